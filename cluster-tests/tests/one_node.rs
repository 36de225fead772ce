//! Claims about a cluster of one node.

use std::collections::BTreeMap;
use std::time::Duration;

use rswarm_cluster_tests::{ClusterLab, workload};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn service_is_created_scaled_updated_and_removed() {
    let Some(mut lab) = ClusterLab::form("one", 1, 0) else { return };
    lab.create(1, "web", 3, &[], &[]);
    lab.until_running(1, "web", 3, SOON);
    assert_eq!(lab.workload_pids(1).len(), 3, "each task is one process");

    lab.ok(1, &["service", "scale", "--detach", "web=5"]);
    lab.until_running(1, "web", 5, SOON);
    lab.ok(1, &["service", "scale", "--detach", "web=2"]);
    lab.until_running(1, "web", 2, SOON);
    until_processes(&lab, 2);

    lab.load_image(workload::IMAGE_2);
    lab.ok(1, &["service", "update", "--detach", "--image", workload::IMAGE_2, "web"]);
    lab.wait("both tasks run the new image", SOON, || {
        let running = lab.api(1).running("web").map_err(|status| status.to_string())?;
        let image = |task: &rswarm_api::v1::Task| {
            task.spec.clone().and_then(|spec| spec.container).unwrap_or_default().image
        };
        let images: Vec<_> = running.iter().map(image).collect();
        let updated = images.iter().filter(|image| image.contains(workload::IMAGE_2)).count();
        if updated == 2 && images.len() == 2 { Ok(()) } else { Err(format!("they run {images:?}")) }
    });

    lab.ok(1, &["service", "rm", "web"]);
    until_processes(&lab, 0);
    assert_eq!(lab.ok(1, &["service", "ls", "--quiet"]), "");
    lab.wait("no task is left", SOON, || {
        let tasks = lab.api(1).tasks(None).map_err(|status| status.to_string())?;
        if tasks.is_empty() { Ok(()) } else { Err(format!("{} are", tasks.len())) }
    });
}

fn until_processes(lab: &ClusterLab, count: usize) {
    lab.wait(&format!("{count} processes"), SOON, || match lab.workload_pids(1).len() {
        found if found == count => Ok(()),
        found => Err(format!("{found} are there")),
    });
}

#[test]
fn containers_survive_a_crash_of_the_daemon() {
    let Some(mut lab) = ClusterLab::form("crash", 1, 0) else { return };
    lab.create(1, "count", 2, &[], &["count", "50"]);
    lab.create(1, "short", 1, &["--restart-condition", "none"], &["exit", "7", "10000"]);
    lab.until_running(1, "count", 2, SOON);
    lab.until_running(1, "short", 1, SOON);
    let before = lab.workload_pids(1);
    assert_eq!(before.len(), 3);

    lab.crash(1);
    // Until the short one has ended while no daemon was there to see it.
    lab.wait("the short task ends by itself", SOON, || match lab.workload_pids(1).len() {
        2 => Ok(()),
        found => Err(format!("{found} processes are there")),
    });
    let survivors = lab.workload_pids(1);
    assert!(survivors.is_subset(&before), "the same processes go on");

    lab.start(1);
    lab.until_running(1, "count", 2, SOON);
    assert_eq!(lab.workload_pids(1), survivors, "adopted, not started anew");
    lab.wait("the exit code that nobody saw is known", SOON, || {
        let tasks = lab.api(1).tasks(Some("short")).map_err(|status| status.to_string())?;
        let status = tasks.first().and_then(|task| task.status.clone()).unwrap_or_default();
        match status.container.as_ref().and_then(|container| container.exit_code) {
            Some(7) => Ok(()),
            other => Err(format!("found {other:?} in {status:?}")),
        }
    });
    // Each line once, from the first on, those written while there was no daemon too.
    let logs = lab.ok(1, &["service", "logs", "--raw", "count"]);
    let ones = logs.lines().filter(|line| line.trim() == "count 1").count();
    assert_eq!(ones, 2, "both logs begin at their beginning:\n{logs}");
    let mut found = BTreeMap::new();
    for n in logs.lines().filter_map(|line| line.trim().strip_prefix("count ")?.parse::<usize>().ok()) {
        *found.entry(n).or_insert(0) += 1;
    }
    // One of the two may be ahead, but no line is missing before its last or there twice.
    let last_of_both = found.iter().rev().find(|(_, times)| **times == 2).map(|(n, _)| *n);
    let last_of_both = last_of_both.expect("there are lines");
    for n in 1..=*found.last_key_value().expect("there are lines").0 {
        let expected = if n <= last_of_both { 2 } else { 1 };
        assert_eq!(found.get(&n), Some(&expected), "line {n} of both tasks");
    }
}

#[test]
fn task_that_fails_is_started_again_and_says_why() {
    let Some(lab) = ClusterLab::form("again", 1, 0) else { return };
    lab.create(1, "flaky", 1, &["--restart-delay", "200ms"], &["exit", "3", "100"]);
    lab.wait("it was tried three times", SOON, || {
        let tasks = lab.api(1).tasks(Some("flaky")).map_err(|status| status.to_string())?;
        if tasks.len() >= 3 { Ok(()) } else { Err(format!("{} times", tasks.len())) }
    });
    let shown = lab.ok(1, &["service", "ps", "--no-trunc", "flaky"]);
    assert!(shown.contains("Failed") && shown.contains("exit (3)"), "{shown}");
}

#[test]
fn memory_limit_is_kept_and_its_breach_is_named() {
    let Some(lab) = ClusterLab::form("oom", 1, 0) else { return };
    let limits = ["--limit-memory", "32M", "--restart-condition", "none"];
    lab.create(1, "greedy", 1, &limits, &["take", "200000000"]);
    lab.wait("it was killed for its memory", SOON, || {
        let tasks = lab.api(1).tasks(Some("greedy")).map_err(|status| status.to_string())?;
        let container = tasks.first().and_then(|task| task.status.clone()?.container).unwrap_or_default();
        if container.oom_killed { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
}

#[test]
fn stubborn_task_is_killed_after_its_grace_period() {
    let Some(lab) = ClusterLab::form("grace", 1, 0) else { return };
    lab.create(1, "stubborn", 1, &["--stop-grace-period", "1s"], &["stubborn"]);
    lab.until_running(1, "stubborn", 1, SOON);
    let started_at = std::time::Instant::now();
    lab.ok(1, &["service", "rm", "stubborn"]);
    until_processes(&lab, 0);
    let took = started_at.elapsed();
    assert!(took > Duration::from_millis(900), "it had its second: {took:?}");
    assert!(took < Duration::from_secs(9), "without waiting for the usual 10 s: {took:?}");
}

#[test]
fn nothing_is_left_of_a_lab() {
    let Some(lab) = ClusterLab::form("trace", 1, 1) else { return };
    lab.create(1, "web", 4, &[], &[]);
    // Containers that never come about, and some that come and go.
    lab.create(1, "missing", 2, &["--entrypoint", "/no/such/program", "--restart-condition", "none"], &[]);
    lab.create(1, "short", 4, &["--restart-delay", "50ms"], &["exit", "1"]);
    lab.until_running(1, "web", 4, SOON);
    let groups: Vec<String> = [1, 2].into_iter().map(|number| lab.node_id(number)[..12].to_owned()).collect();
    let config = lab.config().clone();
    let pids: Vec<i32> = [1, 2].into_iter().flat_map(|number| lab.workload_pids(number)).collect();
    assert!(pids.len() >= 4);
    lab.destroy().expect("everything can be removed");
    assert!(!config.exists());
    for pid in pids {
        // One that has ended has no more than a number, until whoever inherited it asks for its exit status.
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(line.is_empty(), "process {pid} is left: {}", String::from_utf8_lossy(&line));
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        for group in &groups {
            let path = hierarchy.path().join("rswarm").join(group);
            assert!(!path.exists(), "`{}` is left", path.display());
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("rswarm-tests"), "{mounts}");
}

/// Whether the node is in a cluster, once its daemon knows.
fn is_member(lab: &ClusterLab) -> bool {
    use rswarm_api::v1::info_response::Membership;
    lab.wait("the daemon knows what it is", SOON, || {
        let info = lab.api(1).info().map_err(|status| status.to_string())?;
        match info.membership() {
            Membership::Inactive => Ok(false),
            _ if info.node_id.is_empty() => Err(info.message),
            _ => Ok(true),
        }
    })
}

/// Makes a call and kills the daemon so much later.
fn kill_during(lab: &mut ClusterLab, after: Duration, call: impl FnOnce() + Send + 'static) {
    let caller = std::thread::spawn(call);
    std::thread::sleep(after);
    lab.crash(1);
    caller.join().expect("the caller has not panicked");
}

/// Whatever the kill has left, the next daemon makes a whole of it: in a cluster with all that was acknowledged, or in
/// none and free to found one.
#[test]
fn killed_while_it_founds_or_leaves_a_cluster_it_is_a_member_or_none() {
    let Some(mut lab) = ClusterLab::new("halfway", 1) else { return };
    let address = lab.host(1).address.to_string();
    let mut outcomes = [[0; 2]; 2];
    for round in 0..5 {
        let after = Duration::from_millis(60 * round);
        lab.start(1);
        assert!(!is_member(&lab));
        let (api, address) = (lab.api(1), address.clone());
        // Its answer, if there is one, is the daemon's word that there is a cluster.
        let (tell, told) = std::sync::mpsc::channel();
        kill_during(&mut lab, after, move || tell.send(api.init(&address).is_ok()).unwrap());
        lab.start(1);
        let founded = is_member(&lab);
        assert!(founded || !told.recv().unwrap(), "what was acknowledged is there");
        outcomes[0][usize::from(founded)] += 1;
        if !founded {
            lab.init(1);
        }
        lab.create(1, "web", 0, &["--no-resolve-image"], &[]);
        let api = lab.api(1);
        let (tell, told) = std::sync::mpsc::channel();
        kill_during(&mut lab, after, move || tell.send(api.leave().is_ok()).unwrap());
        lab.start(1);
        let stayed = is_member(&lab);
        assert!(!(stayed && told.recv().unwrap()), "it had left");
        outcomes[1][usize::from(stayed)] += 1;
        if stayed {
            lab.wait("what was acknowledged is there", SOON, || match lab.api(1).services() {
                Ok(services) if services.len() == 1 => Ok(()),
                other => Err(format!("{other:?}")),
            });
            lab.ok(1, &["leave", "--force"]);
        }
        for name in ["manager", "node.json", "membership.change"] {
            assert!(!lab.host(1).data_root.join(name).exists(), "`{name}` is left");
        }
        lab.host_mut(1).stop();
    }
    eprintln!("init: {:?}, leave: {:?} (outside, member)", outcomes[0], outcomes[1]);
}
