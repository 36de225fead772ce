//! Data roots that cannot be used, or not any more: full, not writable, another node's.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use rswarm_cluster_tests::{ClusterLab, workload};

const SOON: Duration = Duration::from_secs(20);

/// Puts a small file system at the data root of a host; the lab takes it away with the rest.
fn small_disk(root: &Path, options: &str) {
    mount(Some("small"), root, Some("tmpfs"), MsFlags::empty(), Some(options)).expect("root may mount");
}

fn remount(root: &Path, flags: MsFlags, options: &str) {
    mount(Some("small"), root, Some("tmpfs"), MsFlags::MS_REMOUNT | flags, Some(options))
        .expect("root may mount");
}

/// Takes all the room there is; gives it back when dropped.
struct Filler(PathBuf);

impl Filler {
    fn new(root: &Path) -> Self {
        let filler = Self(root.join("filler"));
        let mut file = fs::File::create(&filler.0).expect("the data root is writable");
        while file.write_all(&[0; 4096]).is_ok() {}
        filler
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        fs::remove_file(&self.0).expect("it can be removed");
    }
}

#[test]
fn full_data_root_is_named_and_the_daemon_goes_on_when_there_is_room() {
    let Some(mut lab) = ClusterLab::new("full", 1) else { return };
    let root = lab.host(1).data_root.clone();
    let place = root.to_string_lossy().into_owned();
    let address = lab.host(1).address.to_string();
    let archive = workload::write_archive(workload::IMAGE, &lab.config().data_dir).unwrap();
    let archive = archive.to_string_lossy().into_owned();

    // Not even room for a log: nothing of the cluster stays.
    small_disk(&root, "size=2m,mode=700");
    lab.start(1);
    lab.refused(1, &["init", "--advertise-addr", &address], &["no space left", &place]);
    assert_eq!(lab.api(1).info().unwrap().node_id, "", "it is in no cluster");
    assert!(!root.join("manager").exists() && !root.join("node.json").exists());
    remount(&root, MsFlags::empty(), "size=512m");
    lab.init(1);

    let pid = lab.host_mut(1).daemon_pid();
    {
        let _full = Filler::new(&root);
        lab.refused(1, &["image", "load", "--input", &archive], &["no space left", &place]);
        assert_eq!(lab.ok(1, &["image", "ls", "-q"]), "", "nothing half loaded");
    }
    lab.ok(1, &["image", "load", "--input", &archive]);

    // The log has room of its own for a while; then a change is refused and the rest goes on.
    let label = format!("big={}", "x".repeat(60 << 10));
    let mut created = 0;
    {
        let _full = Filler::new(&root);
        let refusal = loop {
            let name = format!("s{created}");
            let create =
                ["service", "create", "--detach", "--replicas", "0", "--label", &label, "--name", &name];
            let output = lab.rswarm(1, &[&create[..], &[workload::IMAGE]].concat());
            if output.code != Some(0) {
                break output.stderr;
            }
            created += 1;
            assert!(created < 200, "the log must want a new segment some time");
        };
        assert!(refusal.contains("no space left") && refusal.contains(&place), "{refusal}");
        lab.refused(1, &["service", "rm", "s0"], &["no space left", &place, "nothing was changed"]);
        assert!(lab.ok(1, &["service", "ls", "-q"]).lines().count() >= created, "it still answers");
    }
    lab.wait("changes are taken again", SOON, || {
        let output = lab.rswarm(1, &["service", "rm", "s0"]);
        if output.code == Some(0) { Ok(()) } else { Err(output.stderr) }
    });
    lab.create(1, "web", 1, &[], &[]);
    lab.until_running(1, "web", 1, SOON);
    assert_eq!(lab.host_mut(1).daemon_pid(), pid, "it is the same daemon");
}

#[test]
fn data_root_that_is_not_writable_or_another_node_s_is_refused_by_name() {
    let Some(mut lab) = ClusterLab::new("roots", 2) else { return };
    let root = lab.host(1).data_root.clone();
    let (place, run) =
        (root.to_string_lossy().into_owned(), lab.host(1).run_root.to_string_lossy().into_owned());
    let daemon = ["daemon", "--data-root", &place, "--run-root", &run];

    small_disk(&root, "size=64m,mode=700");
    remount(&root, MsFlags::MS_RDONLY, "");
    lab.refused(1, &daemon, &[&place, "not writable", "read-only"]);
    remount(&root, MsFlags::empty(), "");

    for number in 1..=2 {
        lab.start(number);
        lab.init(number);
        lab.host_mut(number).stop();
    }
    // The state of one cluster with the certificate of another.
    let own = root.join("identity");
    let kept = root.join("identity.own");
    fs::rename(&own, &kept).unwrap();
    fs::create_dir(&own).unwrap();
    for entry in fs::read_dir(lab.host(2).data_root.join("identity")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), own.join(entry.file_name())).unwrap();
    }
    lab.refused(1, &daemon, &[&place, "of cluster", "expected", "found"]);
    fs::remove_dir_all(&own).unwrap();
    fs::rename(&kept, &own).unwrap();
    lab.start(1);
    lab.until_ready(1);
}

#[test]
fn leader_with_a_full_disk_hands_over_and_catches_up_when_there_is_room() {
    let Some(mut lab) = ClusterLab::new("full-leader", 3) else { return };
    let root = lab.host(1).data_root.clone();
    small_disk(&root, "size=64m,mode=700");
    for number in 1..=3 {
        lab.start(number);
    }
    lab.init(1);
    lab.join(2, "manager", 1);
    lab.join(3, "manager", 1);
    lab.until_ready(3);
    // Where others have the processors another may have been elected meanwhile.
    loop {
        match lab.until_leader(2) {
            1 => break,
            other => lab.restart(other),
        }
    }
    let pid = lab.host_mut(1).daemon_pid();

    let label = format!("big={}", "x".repeat(60 << 10));
    let mut created = 0;
    {
        let _full = Filler::new(&root);
        // Each through another manager, and none is lost while the leadership moves.
        while lab.until_leader(2) == 1 {
            let name = format!("s{created}");
            // An answer may get lost with the leadership; the change then was made, or is asked for again.
            let create = ["service", "create", "-d", "--no-resolve-image", "--replicas", "0"];
            let args = [&create[..], &["--label", &label, "--name", &name, workload::IMAGE]].concat();
            lab.wait(&format!("`{name}` is created"), SOON, || {
                let output = lab.rswarm(2, &args);
                let made = output.code == Some(0) || output.stderr.contains("is in use by");
                if made { Ok(()) } else { Err(output.stderr) }
            });
            created += 1;
            assert!(created < 200, "the log must want a new segment some time");
        }
        lab.wait("one with room leads", SOON, || match lab.leader(2) {
            Some(2 | 3) => Ok(()),
            other => Err(format!("{other:?} does")),
        });
        for _ in 0..5 {
            lab.create(3, &format!("s{created}"), 0, &["--no-resolve-image", "--label", &label], &[]);
            created += 1;
        }
        lab.refused(1, &["service", "ls"], &["no space left", &root.to_string_lossy()]);
    }
    lab.wait("it has caught up", SOON, || {
        let known = lab.api(1).services().map_err(|status| status.to_string())?.len();
        if known == created { Ok(()) } else { Err(format!("it knows {known} of {created}")) }
    });
    assert_eq!(lab.host_mut(1).daemon_pid(), pid, "it is the same daemon");
    lab.create(1, "last", 0, &["--no-resolve-image"], &[]);
}

/// What was started below a data root that is there no more has to end; what another daemon has goes on.
#[test]
fn containers_of_a_lost_data_root_end_when_the_next_one_enters_a_cluster() {
    let Some(mut lab) = ClusterLab::new("lost", 2) else { return };
    for number in 1..=2 {
        lab.start(number);
        lab.init(number);
    }
    lab.load_image(workload::IMAGE);
    for number in 1..=2 {
        lab.create(number, "web", 2, &[], &[]);
        lab.until_running(number, "web", 2, SOON);
    }
    let neighbour = lab.workload_pids(2);
    let (root, moved) = (lab.host(1).data_root.clone(), lab.host(1).data_root.with_extension("moved"));
    for keep in [false, true] {
        let before = lab.workload_pids(1);
        assert_eq!(before.len(), 2);
        lab.host_mut(1).stop();
        if keep {
            fs::rename(&root, &moved).unwrap();
            fs::create_dir(&root).unwrap();
        } else {
            // Its own file system, if it has one, stays; what is in it goes.
            fs::remove_dir_all(&root).unwrap();
            fs::create_dir(&root).unwrap();
        }
        lab.start(1);
        assert_eq!(lab.workload_pids(1), before, "outside of a cluster nothing is ended");
        lab.init(1);
        lab.wait("the old containers have ended", SOON, || match lab.workload_pids(1).len() {
            0 => Ok(()),
            found => Err(format!("{found} processes are there")),
        });
        lab.load_image(workload::IMAGE);
        lab.create(1, "web", 2, &["--publish", "mode=host,target=80"], &[]);
        lab.until_running(1, "web", 2, SOON);
    }
    // A daemon on the directory that was moved has none of them.
    assert_eq!(lab.workload_pids(2), neighbour, "another daemon's containers are left alone");
    fs::remove_dir_all(&moved).unwrap();
}
