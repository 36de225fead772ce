//! What is refused: with a message that says what to do, a non-zero exit, and nothing half-done.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use rswarm_cluster_tests::{ClusterLab, workload};

const SOON: Duration = Duration::from_secs(15);

/// Replaces one character of a token by another that is as likely there.
fn spoil(token: &str, place: usize) -> String {
    let mut bytes = token.as_bytes().to_vec();
    bytes[place] = if bytes[place] == b'a' { b'b' } else { b'a' };
    String::from_utf8(bytes).expect("tokens are ASCII")
}

fn is_outside(lab: &ClusterLab, number: usize) {
    let info = lab.api(number).info().expect("the daemon answers");
    assert_eq!(info.node_id, "", "host {number} is in no cluster");
    let identity = lab.host(number).data_root.join("identity");
    let left = fs::read_dir(identity).map_or(0, Iterator::count);
    assert_eq!(left, 0, "no certificate is left on host {number}");
}

#[test]
fn join_is_refused_without_the_right_token_and_address() {
    // Host 3 makes a cluster of its own, host 4 is to join the first one.
    let Some(mut lab) = ClusterLab::new("join", 4) else { return };
    for number in 1..=4 {
        lab.start(number);
    }
    lab.init(1);
    lab.init(3);
    let (one, three) = (lab.host(1).address.to_string(), lab.host(3).address.to_string());
    let token = lab.token(1, "worker");
    let foreign = lab.token(3, "worker");
    let manager = format!("{one}:2377");
    let join = |token: &str, manager: &str, words: &[&str]| {
        lab.refused(4, &["join", "--token", token, manager], words);
        is_outside(&lab, 4);
    };

    join("nonsense", &manager, &["token"]);
    join(&token[..token.len() - 4], &manager, &["token"]);
    // The last character is of the secret, an early one of the root's digest.
    join(&spoil(&token, token.len() - 1), &manager, &["token"]);
    join(&spoil(&token, 12), &manager, &["token"]);
    join(&foreign, &manager, &["token"]);

    join(&token, "10.79.0.99", &["10.79.0.99", "reach"]);
    join(&token, &format!("{one}:2399"), &["2399"]);
    join(&token, "not an address:xyz", &["address"]);
    // Somebody who listens there, but speaks something else.
    let stranger = lab.host(2).run(|| TcpListener::bind("0.0.0.0:8000")).unwrap().unwrap();
    let thread = std::thread::spawn(move || {
        for connection in stranger.incoming().flatten().take(1) {
            let mut connection = connection;
            let _ = connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    join(&token, &format!("{}:8000", lab.host(2).address), &["8000"]);
    drop(thread);

    // A token that was replaced works no more, the new one does.
    let rotated = lab.ok(1, &["join-token", "--rotate", "-q", "worker"]).trim().to_owned();
    assert_ne!(rotated, token);
    join(&token, &manager, &["token"]);
    // To join through a worker is no way in.
    lab.ok(2, &["join", "--token", &rotated, &manager]);
    lab.refused(4, &["join", "--token", &rotated, &format!("{}:2377", lab.host(2).address)], &["2377"]);
    is_outside(&lab, 4);
    assert_eq!(lab.api(1).nodes().unwrap().len(), 2, "none of these has left an entry");

    lab.ok(4, &["join", "--token", &rotated, &manager]);
    let known = lab.ok(1, &["node", "ls", "--format", "{{.Hostname}} {{.Status}}"]);
    assert_eq!(known, "host-1 Ready\nhost-2 Ready\nhost-4 Ready\n", "known as soon as it has joined");
    lab.refused(4, &["join", "--token", &foreign, &format!("{three}:2377")], &["already"]);
    lab.refused(4, &["init"], &["already"]);
    lab.refused(1, &["init"], &["already"]);
}

#[test]
fn join_that_fails_after_it_was_let_in_leaves_no_entry() {
    let Some(mut lab) = ClusterLab::new("undo", 2) else { return };
    lab.start(1);
    lab.start(2);
    lab.init(1);
    let manager = format!("{}:2377", lab.host(1).address);
    // Where the worker keeps its ledger is a file: known only once everything before it has gone well.
    let worker = lab.host(2).data_root.join("worker");
    fs::write(&worker, "in the way").unwrap();
    for role in ["worker", "manager"] {
        let token = lab.token(1, role);
        lab.refused(2, &["join", "--token", &token, &manager], &["worker"]);
        is_outside(&lab, 2);
        assert!(!lab.host(2).data_root.join("manager").exists());
        let nodes = lab.api(1).nodes().unwrap();
        assert_eq!(nodes.len(), 1, "the {role} has left no entry: {nodes:?}");
    }
    // Nor does the first manager wait for the second one's vote.
    lab.create(1, "web", 0, &["--no-resolve-image"], &[]);
    fs::remove_file(&worker).unwrap();
    // Overlays need their port; a member it is without them.
    let other = lab.host(2).run(|| UdpSocket::bind("0.0.0.0:4789")).unwrap().unwrap();
    let (token, manager) = (lab.token(1, "manager"), format!("{}:2377", lab.host(1).address));
    let joined = lab.rswarm(2, &["join", "--token", &token, &manager]);
    assert_eq!(joined.code, Some(0), "{}", joined.stderr);
    assert!(joined.stderr.contains("Warning: UDP port 4789 is in use"), "{}", joined.stderr);
    drop(other);
    lab.until_ready(2);
}

#[test]
fn init_is_refused_on_foreign_addresses_and_roots() {
    let Some(mut lab) = ClusterLab::new("init", 2) else { return };
    lab.start(1);
    lab.refused(1, &["init", "--advertise-addr", "10.99.99.99"], &["10.99.99.99", "address"]);
    lab.refused(1, &["init", "--advertise-addr", "nonsense"], &["nonsense"]);
    lab.refused(1, &["init", "--default-addr-pool", "10.0.0.0/31"], &["10.0.0.0/31", "/29"]);
    is_outside(&lab, 1);
    lab.refused(1, &["service", "ls"], &["not a member", "init"]);
    let other = lab.host(1).run(|| UdpSocket::bind("0.0.0.0:4789")).unwrap().unwrap();
    lab.refused(1, &["init"], &["UDP port 4789 is in use", "--data-path-port"]);
    drop(other);
    lab.refused(1, &["node", "ls"], &["not a member"]);
    // Nobody there to answer.
    lab.refused(2, &["service", "ls"], &["rswarm.sock", "daemon"]);

    // Where no daemon runs one is started, and goes again with all that it has made.
    let bare = lab.config().data_dir.join("bare");
    let (data, run) = (bare.join("data"), bare.join("run"));
    let roots = ["--data-root", data.to_str().unwrap(), "--run-root", run.to_str().unwrap()];
    let mut init = roots.to_vec();
    init.extend(["init", "--default-addr-pool", "10.0.0.0/31"]);
    lab.refused(2, &init, &["started the rswarm daemon", "stopped", "10.0.0.0/31"]);
    assert!(!data.exists() && !run.exists(), "nothing stays of it");
    let mut foreign = roots.to_vec();
    foreign.extend(["init", "--advertise-addr", "10.99.99.99"]);
    let message = lab.refused(2, &foreign, &["10.99.99.99", "address"]);
    assert!(!message.contains("started") && !data.exists(), "it needs no daemon: {message}");
    let mut join = roots.to_vec();
    join.extend(["join", "--token", "RSWTKN-1-x", "10.99.99.99"]);
    let message = lab.refused(2, &join, &["token", "cut short"]);
    assert!(!message.contains("started") && !data.exists(), "it needs no daemon: {message}");

    // A second daemon on the same data root.
    let data_root = lab.host(1).data_root.to_string_lossy().into_owned();
    let other = lab.host(1).run_root.join("other").to_string_lossy().into_owned();
    lab.refused(
        1,
        &["daemon", "--data-root", &data_root, "--run-root", &other],
        &["another daemon", &data_root],
    );
    // A data root that cannot be one.
    let file = lab.host(1).data_root.join("file");
    fs::write(&file, "text").unwrap();
    let below = file.join("root").to_string_lossy().into_owned();
    lab.refused(1, &["daemon", "--data-root", &below, "--run-root", &other], &["root"]);

    lab.init(1);
    assert_eq!(lab.api(1).nodes().unwrap().len(), 1);
    // State without its certificate is another cluster's, for all anyone knows.
    lab.host_mut(1).stop();
    fs::remove_dir_all(lab.host(1).data_root.join("identity")).unwrap();
    lab.start(1);
    lab.refused(1, &["init", "--advertise-addr", &lab.host(1).address.to_string()], &["data-root"]);
}

#[test]
fn commands_need_root() {
    let Some(mut lab) = ClusterLab::new("noroot", 1) else { return };
    lab.start(1);
    let nobody = |args: &[&str]| {
        use std::os::unix::process::CommandExt as _;
        let mut command = lab.host(1).rswarm(args).unwrap();
        // The executable may lie where nobody else may look; its copy does not.
        let copy = std::env::temp_dir().join("rswarm-noroot");
        fs::copy(command.get_program(), &copy).unwrap();
        let mut command = {
            let envs: Vec<_> =
                command.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
            command = std::process::Command::new(&copy);
            for (key, value) in envs {
                command.env(key, value.unwrap_or_default());
            }
            command
        };
        let output = command.args(args).uid(65534).gid(65534).output().unwrap();
        let _ = fs::remove_file(&copy);
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stderr).to_lowercase()
    };
    let words = nobody(&["daemon"]);
    assert!(words.contains("root"), "{words}");
    let words = nobody(&["playground"]);
    assert!(words.contains("needs root"), "{words}");
    let words = nobody(&["node", "ls"]);
    assert!(words.contains("run this as root"), "{words}");
}

#[test]
fn services_are_refused_when_they_make_no_sense() {
    let Some(lab) = ClusterLab::form("service", 1, 0) else { return };
    let image = workload::IMAGE;
    let create = |args: &[&str], words: &[&str]| {
        let mut all = vec!["service", "create", "--detach"];
        all.extend(args);
        lab.refused(1, &all, words);
    };
    create(&["--name", "no/slash", image], &["name", "no/slash"]);
    create(&["--name", "-dash", image], &["name"]);
    create(&["--name", &"x".repeat(70), image], &["name"]);
    create(&["--name", "bad", "--replicas", "-1", image], &["replicas"]);
    create(&["--name", "bad", "--replicas", "1000000000", image], &["replicas", "1000000000"]);
    create(&["--name", "bad", "--replicas", "many", image], &["replicas"]);
    create(&["--name", "bad", "--constraint", "node.colour==red", image], &["node.colour"]);
    create(&["--name", "bad", "--constraint", "nonsense", image], &["nonsense"]);
    create(&["--name", "bad", "--no-such-flag", image], &["no-such-flag"]);
    create(&["--name", "bad", "--publish", "99999:80", image], &["99999"]);
    create(&["--name", "bad", "some/UPPER:1"], &["UPPER"]);
    create(&["--name", "bad"], &["image"]);
    create(&["--name", "bad", "--stop-signal", "NOPE", image], &["stop signal `NOPE`"]);
    create(&["--name", "bad", "--sysctl", "vm.swappiness=1", image], &["vm.swappiness"]);
    let shared = ["--name", "bad", "--network", "host"];
    create(&[&shared[..], &["--network", "bridge", image]].concat(), &["`host`", "`bridge`"]);
    create(&[&shared[..], &["--sysctl", "net.core.somaxconn=1", image]].concat(), &["net.core.somaxconn"]);
    assert!(lab.api(1).services().unwrap().is_empty(), "nothing was created");

    lab.create(1, "web", 1, &[], &[]);
    lab.create(1, "web-2", 1, &[], &[]);
    lab.until_running(1, "web", 1, SOON);
    lab.refused(1, &["service", "update", "--stop-signal", "NOPE", "web"], &["stop signal `NOPE`"]);
    lab.refused(1, &["service", "ls", "--filter", "runtime=wasm"], &["`runtime`", "`container`"]);
    assert_eq!(lab.ok(1, &["service", "ls", "-q", "--filter", "runtime=container"]).lines().count(), 2);
    assert_eq!(lab.ok(1, &["service", "ls", "-q", "--filter", "runtime=plugin"]), "");
    assert_eq!(lab.ok(1, &["service", "ps", "-q", "--filter", "node=self", "web"]).lines().count(), 1);
    create(&["--name", "web", image], &["`web`", "in use"]);
    lab.refused(1, &["service", "scale", "--detach", "nothing=2"], &["nothing"]);
    lab.refused(1, &["service", "scale", "--detach", "web=-1"], &["web"]);
    lab.refused(1, &["service", "scale", "--detach", "web=1000000000"], &["1000000000"]);
    lab.refused(1, &["service", "scale", "--detach", "web"], &["web"]);
    lab.refused(1, &["service", "rm", "nothing"], &["nothing"]);
    lab.refused(1, &["service", "inspect", "nothing"], &["nothing"]);
    lab.refused(1, &["service", "ps", "nothing"], &["nothing"]);
    lab.refused(1, &["node", "inspect", "nothing"], &["nothing"]);
    lab.refused(1, &["node", "update", "--availability", "asleep", "host-1"], &["asleep"]);
    lab.refused(1, &["node", "demote", "host-1"], &["manager"]);
    lab.refused(1, &["leave"], &["--force"]);

    // A change computed from an old version.
    let api = lab.api(1);
    let version = api.service("web").unwrap().meta.unwrap().version;
    api.update("web", None, |spec| drop(spec.labels.insert("a".into(), "1".into()))).unwrap();
    let stale = api.update("web", Some(version), |spec| drop(spec.labels.insert("a".into(), "2".into())));
    let status = stale.expect_err("it is out of sequence");
    assert!(
        status.message().contains("out of sequence") || status.message().contains("version"),
        "{status:?}"
    );
    assert_eq!(api.service("web").unwrap().spec.unwrap().labels["a"], "1");
    assert_eq!(api.services().unwrap().len(), 2);
}

#[test]
fn a_lost_quorum_says_who_is_missing() {
    let Some(mut lab) = ClusterLab::form("quorum", 3, 0) else { return };
    lab.crash(2);
    lab.crash(3);
    let missing = ["1 of 3 managers answer", "2 must", "`host-2`", "`host-3`"];
    lab.wait("the last manager has noticed", SOON, || {
        if lab.leader(1).is_none() { Ok(()) } else { Err("it leads".to_owned()) }
    });
    // Both wait for a leader first.
    let message = std::thread::scope(|scope| {
        let reads = scope.spawn(|| lab.rswarm(1, &["node", "ls"]));
        let message = lab.refused(1, &["join-token", "--rotate", "worker"], &missing);
        let reads = reads.join().unwrap().stderr;
        assert!(missing.iter().all(|word| reads.contains(word)), "{reads}");
        message
    });
    assert!(message.contains("no leader"), "{message}");
    lab.start(2);
    lab.wait("two of three are enough", SOON, || {
        let output = lab.rswarm(1, &["node", "ls"]);
        if output.code == Some(0) { Ok(()) } else { Err(output.stderr) }
    });
}

#[test]
fn task_that_cannot_run_says_why() {
    let Some(lab) = ClusterLab::form("why", 1, 0) else { return };
    let once = ["--restart-condition", "none"];
    let image = workload::IMAGE;
    let create = |name: &str, rest: &[&str]| {
        let mut all = vec!["service", "create", "--detach", "--name", name];
        all.extend(once);
        all.extend(rest);
        lab.ok(1, &all);
    };
    create("missing", &["--entrypoint", "/no/such/program", image]);
    create("plain", &["--entrypoint", "/not-executable", image]);
    create("large", &["--reserve-memory", "1000G", image]);
    create("nowhere", &["--constraint", "node.labels.disk==ssd", image]);
    // A registry that cannot be asked now may be there when a node needs it: that is a warning. Source: Swarm.
    let unknown = [
        "service",
        "create",
        "--detach",
        "--name",
        "unknown",
        "--restart-condition",
        "none",
        "127.0.0.1:1/x:1",
    ];
    let output = lab.rswarm(1, &unknown);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(output.stderr.contains("127.0.0.1:1/x:1"), "it warns: {}", output.stderr);
    for (service, words) in [
        ("missing", &["/no/such/program"][..]),
        ("plain", &["/not-executable"]),
        ("unknown", &["127.0.0.1:1", "refused"]),
        // Pending, with the number of nodes a filter turned away.
        ("large", &["insufficient resources", "1 node"]),
        ("nowhere", &["constraint", "1 node"]),
    ] {
        lab.wait(&format!("`{service}` says why"), SOON, || {
            let shown = lab.ok(1, &["service", "ps", "--no-trunc", service]).to_lowercase();
            if words.iter().all(|word| shown.contains(word)) { Ok(()) } else { Err(shown) }
        });
    }
    let states = |service: &str| {
        let tasks = lab.api(1).tasks(Some(service)).unwrap();
        tasks.iter().filter_map(|task| Some(task.status.as_ref()?.state())).collect::<Vec<_>>()
    };
    use rswarm_api::v1::TaskState;
    assert_eq!(states("large"), [TaskState::Pending]);
    assert_eq!(states("nowhere"), [TaskState::Pending]);
    for service in ["missing", "plain", "unknown"] {
        assert!(
            matches!(states(service)[..], [TaskState::Rejected | TaskState::Failed]),
            "{:?}",
            states(service)
        );
    }
    assert!(lab.workload_pids(1).is_empty());
}

#[test]
fn archives_that_are_corrupt_or_dangerous_are_refused() {
    let Some(mut lab) = ClusterLab::new("archive", 1) else { return };
    lab.start(1);
    let directory = lab.config().data_dir.clone();
    let good = fs::read(workload::write_archive(workload::IMAGE, &directory).unwrap()).unwrap();
    let load = |name: &str, bytes: &[u8], words: &[&str]| {
        let path = directory.join(name);
        fs::write(&path, bytes).unwrap();
        lab.refused(1, &["image", "load", "--input", &path.to_string_lossy()], words);
        assert_eq!(lab.ok(1, &["image", "ls", "-q"]), "", "{name} left nothing");
    };
    load("text", b"this is no archive at all", &[]);
    load("empty", b"", &[]);
    load("cut", &good[..good.len() / 2], &[]);
    // A byte of the layer: its digest says so.
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    load("flipped", &flipped, &["digest"]);
    lab.refused(1, &["image", "load", "--input", "/no/such/file"], &["/no/such/file"]);
    lab.refused(1, &["image", "rm", "nothing:1"], &["nothing"]);
    lab.refused(1, &["image", "pull", "127.0.0.1:1/x:1"], &["127.0.0.1:1"]);
}

#[test]
fn image_commands_answer_scripts_as_those_of_docker() {
    let Some(mut lab) = ClusterLab::new("images", 1) else { return };
    lab.start(1);
    let archive = workload::write_archive(workload::IMAGE, &lab.config().data_dir).unwrap();
    let loaded = lab.ok(1, &["image", "load", "-q", "--input", &archive.to_string_lossy()]);
    assert_eq!(loaded, format!("Loaded image: {}\n", workload::IMAGE));
    let inspect = |format| ["image", "inspect", "--format", format, workload::IMAGE];
    assert_eq!(lab.ok(1, &inspect("{{.Config.User}}")), "\n");
    lab.refused(1, &inspect("{{.Nope}}"), &["Nope"]);
    // What is not there stops nothing.
    let removed = lab.ok(1, &["image", "rm", "--force", "nothing:1", workload::IMAGE]);
    assert!(removed.contains(&format!("Untagged: {}", workload::IMAGE)), "{removed}");
}

#[test]
fn flipped_byte_in_the_log_is_named_and_a_torn_end_is_cut() {
    let Some(mut lab) = ClusterLab::form("log", 1, 0) else { return };
    for n in 0..20 {
        lab.create(1, &format!("s{n}"), 0, &[], &[]);
    }
    lab.crash(1);
    let manager = lab.host(1).data_root.join("manager");
    let log = largest_file(&manager).expect("the log is below the manager's directory");
    let sound = fs::read(&log).unwrap();
    // Files are made longer than what is in them.
    let end = sound.iter().rposition(|byte| *byte != 0).expect("something is in it") + 1;

    // In the middle, with good records after it: refused by name, never skipped.
    let mut flipped = sound.clone();
    flipped[end / 2] ^= 0x10;
    fs::write(&log, &flipped).unwrap();
    let address = lab.host(1).data_root.to_string_lossy().into_owned();
    let other = lab.host(1).run_root.to_string_lossy().into_owned();
    let name = log.file_name().unwrap().to_string_lossy().into_owned();
    let message = lab.refused(1, &["daemon", "--data-root", &address, "--run-root", &other], &["corrupt"]);
    assert!(message.contains(&name.to_lowercase()), "expected `{name}` in {message}");
    assert!(message.contains("rswarm leave --force"), "it says what to do: {message}");

    // The last record half written, as a power cut leaves it: cut off, and the rest is there.
    let mut torn = sound.clone();
    torn[end - 20..end].fill(0);
    fs::write(&log, &torn).unwrap();
    lab.start(1);
    lab.until_ready(1);
    let services = lab.api(1).services().unwrap().len();
    assert!(services >= 19, "{services} of 20 are there");

    // What the message says to do works where no daemon can start, and ends what runs.
    lab.load_image(workload::IMAGE);
    lab.create(1, "web", 2, &[], &[]);
    lab.until_running(1, "web", 2, SOON);
    lab.crash(1);
    let log = largest_file(&manager).expect("the log is below the manager's directory");
    let mut flipped = fs::read(&log).unwrap();
    let end = flipped.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    flipped[end / 2] ^= 0x10;
    fs::write(&log, &flipped).unwrap();
    lab.refused(1, &["leave"], &["rswarm.sock"]);
    assert_eq!(lab.workload_pids(1).len(), 2);
    lab.ok(1, &["leave", "--force"]);
    assert!(lab.workload_pids(1).is_empty() && !manager.exists());
    lab.start(1);
    is_outside(&lab, 1);
    lab.init(1);
    lab.create(1, "web", 2, &[], &[]);
    lab.until_running(1, "web", 2, SOON);
}

fn largest_file(directory: &std::path::Path) -> Option<std::path::PathBuf> {
    let mut found: Vec<(u64, std::path::PathBuf)> = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).ok()?.flatten() {
            let metadata = entry.metadata().ok()?;
            if metadata.is_dir() {
                todo.push(entry.path());
            } else {
                found.push((metadata.len(), entry.path()));
            }
        }
    }
    found.into_iter().max().map(|(_, path)| path)
}
