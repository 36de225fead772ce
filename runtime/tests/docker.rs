//! Debian's `dockerd` with this runtime as its default one: what people do with containers, by the `docker` command.
//!
//! The daemon has its own network namespace, directories, socket and containerd; nothing of the host's Docker is used.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Lab, eventually};

struct Docker {
    daemon: Child,
    socket: String,
    directory: PathBuf,
}

impl Docker {
    /// `None`, with the reason on stderr, where it cannot be run.
    fn start(lab: &Lab) -> Option<Self> {
        for program in ["dockerd", "docker", "containerd", "unshare", "tar"] {
            let path = std::env::var("PATH").unwrap() + ":/usr/sbin:/usr/local/bin";
            if !path.split(':').any(|directory| PathBuf::from(directory).join(program).exists()) {
                eprintln!("skipped: needs {program} (Debian packages docker.io and util-linux)");
                return None;
            }
        }
        let directory = lab.directory.path().join("docker");
        std::fs::create_dir(&directory).unwrap();
        let path = |name: &str| directory.join(name).display().to_string();
        let runtime = path("rswarm-runc");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_rswarm-runc"), &runtime).unwrap();
        let socket = format!("unix://{}", path("docker.sock"));
        let log = std::fs::File::create(path("log")).unwrap();
        let line = format!(
            "ip link set lo up; exec dockerd --data-root {} --exec-root {} --pidfile {} --host {socket} --bridge none \
             --iptables=false --add-runtime rswarm={runtime} --default-runtime rswarm --cgroup-parent {}",
            path("data"),
            path("exec"),
            path("pid"),
            lab.cgroup
        );
        let mut daemon = Command::new("unshare")
            .args(["--net", "sh", "-c", &line])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let docker = loop {
            let answers = Command::new("docker")
                .args(["--host", &socket, "version"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success();
            if answers {
                break Self { daemon, socket, directory };
            }
            let ended = daemon.try_wait().unwrap().is_some();
            if ended || Instant::now() > deadline {
                let _ = daemon.kill();
                let _ = daemon.wait();
                let log = std::fs::read_to_string(directory.join("log")).unwrap();
                let last: Vec<&str> = log.lines().rev().take(3).collect();
                eprintln!("skipped: dockerd does not start here: {last:?}");
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let image = docker.directory.join("image.tar");
        let made =
            Command::new("tar").arg("-C").arg(lab.layer()).arg("-cf").arg(&image).arg(".").status().unwrap();
        assert!(made.success());
        docker.done(&["import", image.to_str().unwrap(), "box"]);
        Some(docker)
    }

    /// Exit code, and output and errors together.
    fn call(&self, args: &[&str]) -> (i32, String) {
        let output = Command::new("docker").args(["--host", &self.socket]).args(args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
    }

    fn done(&self, args: &[&str]) -> String {
        let (code, text) = self.call(args);
        let log = || std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        assert_eq!(
            code,
            0,
            "docker {args:?}: {text}\n{}",
            log().lines().rev().take(8).collect::<Vec<_>>().join("\n")
        );
        text.trim().to_owned()
    }

    fn inspect(&self, field: &str) -> String {
        self.done(&["inspect", "--format", &format!("{{{{{field}}}}}"), "box1"])
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let ids = self.call(&["ps", "-aq"]).1;
        for id in ids.lines() {
            self.call(&["rm", "--force", id]);
        }
        if let Some(pid) = rustix::process::Pid::from_raw(self.daemon.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.daemon.wait();
        // What it leaves mounted would keep its directory from being removed.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for mount in below.filter(|mount| std::path::Path::new(mount).starts_with(&self.directory)) {
            let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[test]
fn dockerd_runs_containers_with_it() {
    let Some(lab) = Lab::new() else { return };
    let other = lab.layer().join("bin/other");
    std::fs::write(&other, "echo x\n").unwrap();
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let Some(docker) = Docker::start(&lab) else { return };

    assert_eq!(docker.done(&["run", "--rm", "box", "sh", "-c", "echo hello"]), "hello");
    let (code, text) = docker.call(&["run", "--rm", "box", "/bin/other"]);
    assert_eq!((code, text.trim_end()), (1, "exec /bin/other: exec format error"));
    assert_eq!(docker.call(&["run", "--rm", "box", "sh", "-c", "exit 7"]).0, 7);
    let (code, text) = docker.call(&["run", "--rm", "box", "nope"]);
    assert!(code == 127 && text.contains("exec `nope`"), "{code}: {text}");
    assert_eq!(docker.call(&["run", "--rm", "box", "/etc"]).0, 126);
    let script = "grep -e Seccomp: -e CapEff /proc/self/status; cat /proc/1/oom_score_adj; hostname";
    let options =
        ["run", "--rm", "--hostname", "h", "--cap-drop", "ALL", "--cap-add", "CHOWN", "--oom-score-adj", "5"];
    let text = docker.done(&[&options[..], &["box", "sh", "-c", script]].concat());
    assert_eq!(
        text.split_whitespace().collect::<Vec<_>>(),
        ["CapEff:", "0000000000000001", "Seccomp:", "2", "5", "h"]
    );
    // All of the host's devices, a file system of one's own, and the host's processes.
    let script = "mount -t tmpfs x /tmp && ls /dev | wc -l";
    assert!(
        docker.done(&["run", "--rm", "--privileged", "box", "sh", "-c", script]).parse::<u32>().unwrap() > 20
    );
    let tmpfs = [
        "run",
        "--rm",
        "--read-only",
        "--tmpfs",
        "/tmp",
        "box",
        "sh",
        "-c",
        "touch /tmp/x && ! touch /x 2>/dev/null && echo ok",
    ];
    assert_eq!(docker.done(&tmpfs), "ok");

    let script = "echo started; trap 'echo bye; exit 4' TERM; while :; do sleep 0.05; done";
    let health = ["--health-cmd", "[ -e /tmp/ok ]", "--health-interval", "300ms", "--health-retries", "200"];
    let limits = ["--memory", "64m", "--pids-limit", "30", "--cpus", "0.5"];
    let start = ["run", "--detach", "--name", "box1"];
    docker.done(&[&start[..], &health, &limits, &["box", "sh", "-c", script]].concat());
    let shown = || {
        let files = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us";
        docker.done(&["exec", "box1", "sh", "-c", files]).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let v1 = std::path::Path::new("/sys/fs/cgroup/memory").exists();
    if v1 {
        assert_eq!(shown(), "67108864 30 50000");
    } else {
        eprintln!("skipped: the limits' files are those of cgroup v1");
    }
    assert_eq!(
        docker.done(&["exec", "--user", "7:8", "--env", "A=b", "box1", "sh", "-c", "id -u; id -g; echo $A"]),
        "7\n8\nb"
    );
    assert_eq!(docker.call(&["exec", "box1", "sh", "-c", "exit 5"]).0, 5);
    assert_eq!(docker.call(&["exec", "box1", "nope"]).0, 126);
    docker.done(&["exec", "box1", "touch", "/tmp/ok"]);
    eventually("it is healthy", || docker.inspect(".State.Health.Status") == "healthy");
    docker.done(&["pause", "box1"]);
    assert_eq!(docker.inspect(".State.Status"), "paused");
    docker.done(&["unpause", "box1"]);
    docker.done(&[
        "update",
        "--memory",
        "128m",
        "--memory-swap",
        "256m",
        "--pids-limit",
        "40",
        "--cpus",
        "1",
        "box1",
    ]);
    if v1 {
        assert_eq!(shown(), "134217728 40 100000");
    }
    assert!(docker.done(&["top", "box1"]).contains("sh -c"));
    assert!(docker.done(&["stats", "--no-stream", "box1"]).contains("MiB"));
    docker.done(&["stop", "--time", "20", "box1"]);
    assert_eq!(docker.inspect(".State.ExitCode"), "4");
    docker.done(&["start", "box1"]);
    docker.done(&["restart", "--time", "20", "box1"]);
    docker.done(&["kill", "box1"]);
    eventually("it has been killed", || docker.inspect(".State.ExitCode") == "137");
    assert_eq!(docker.done(&["logs", "box1"]).replace("bye\n", "").trim(), "started\nstarted\nstarted");
    docker.done(&["rm", "box1"]);

    let (code, _) = docker.call(&[
        "run",
        "--name",
        "box1",
        "--memory",
        "16m",
        "--memory-swap",
        "16m",
        "box",
        "sh",
        "-c",
        "x=a; while :; do x=$x$x; done",
    ]);
    assert_eq!(code, 137);
    assert_eq!(docker.inspect(".State.OOMKilled"), "true");
    docker.done(&["rm", "box1"]);
}

#[test]
fn docker_has_terminals_with_it() {
    let Some(lab) = Lab::new() else { return };
    if !std::path::Path::new("/usr/bin/script").exists() {
        eprintln!("skipped: needs script (Debian package bsdutils)");
        return;
    }
    let Some(docker) = Docker::start(&lab) else { return };
    // `script` is the terminal that docker wants to be on.
    let on_terminal = |line: &str| {
        let line = format!("docker --host {} {line}", docker.socket);
        let output =
            Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, text) =
        on_terminal("run --rm -it --name box1 box sh -c 'tty; [ -c /dev/console ] && echo console; exit 6'");
    assert!(code == 6 && text.contains("/dev/pts/0") && text.contains("console"), "{code}: {text}");
    docker.done(&["run", "--detach", "--name", "box1", "box", "sleep", "1000"]);
    let (code, text) = on_terminal("exec -it box1 sh -c 'tty; exit 7'");
    assert!(code == 7 && text.contains("/dev/pts/0"), "{code}: {text}");
}
