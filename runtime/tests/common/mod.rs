//! A place for containers of one test: a root file system with busybox, and the certainty that nothing stays behind.

#![allow(dead_code)] // Every test file uses its part.

pub mod cli;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rswarm_runtime::oci::Spec;
use rswarm_runtime::{Container, Containers, CreateRequest, LogOptions, Rootfs, ShimCommand, default_spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const BUSYBOX: &str = "/bin/busybox";

pub struct Lab {
    pub containers: Containers,
    pub directory: tempfile::TempDir,
    /// `/rswarm-test-<pid>-<n>`: one parent per test.
    pub cgroup: String,
}

impl Lab {
    /// `None`, with the reason on stderr, where containers cannot be run.
    pub fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        if !Path::new(BUSYBOX).exists() {
            eprintln!("skipped: needs {BUSYBOX} (Debian package busybox-static)");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let shim =
            ShimCommand { executable: env!("CARGO_BIN_EXE_rswarm-runtime-shim").into(), args: Vec::new() };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let lab = Self {
            containers: Containers::new(directory.path().join("containers"), shim),
            cgroup: format!("/rswarm-test-{}-{number}", std::process::id()),
            directory,
        };
        let bin = lab.layer().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        copy_program(BUSYBOX, &bin.join("busybox"));
        for name in [
            "sh", "true", "false", "sleep", "cat", "mount", "unshare", "id", "ls", "touch", "hostname", "dd",
            "yes", "head", "mknod", "kill", "ip", "grep", "readlink", "ulimit", "wc", "stty", "tty", "cut",
        ] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        for name in ["etc", "tmp", "proc", "sys", "dev"] {
            std::fs::create_dir(lab.layer().join(name)).unwrap();
        }
        Some(lab)
    }

    pub fn layer(&self) -> PathBuf {
        self.directory.path().join("layer")
    }

    /// A container that runs a shell script on an overlay of its own.
    pub fn script(&self, id: &str, script: &str) -> CreateRequest {
        self.request(id, &["/bin/sh", "-c", script])
    }

    pub fn request(&self, id: &str, args: &[&str]) -> CreateRequest {
        let own = self.directory.path().join("layers").join(id);
        for name in ["upper", "work"] {
            std::fs::create_dir_all(own.join(name)).unwrap();
        }
        let mut spec = default_spec();
        edit_args(&mut spec, args);
        CreateRequest {
            id: id.to_owned(),
            spec,
            rootfs: Rootfs::Overlay {
                lower: vec![self.layer()],
                upper: own.join("upper"),
                work: own.join("work"),
            },
            stdin: false,
            log: LogOptions::default(),
            cgroup: format!("{}/{id}", self.cgroup),
        }
    }

    /// Runs a request to its end: exit code as a shell gives it, and standard output and error together.
    pub fn run(&self, request: &CreateRequest) -> (i32, String) {
        let container = self.containers.create(request).unwrap_or_else(|error| panic!("{}", chain(&error)));
        container.start().unwrap_or_else(|error| panic!("{}", chain(&error)));
        let status = container.wait().unwrap();
        (status.shell_code(), output(&container))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for id in self.containers.list().unwrap_or_default() {
            if let Ok(container) = self.containers.open(&id) {
                let _ = container.delete();
            }
        }
        // The last shim may still be on its way out of its cgroup.
        let left = || -> Vec<PathBuf> {
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let cgroups = mounts.lines().filter(|line| line.contains(" - cgroup"));
            let mount = cgroups.filter_map(|line| line.split(' ').nth(4));
            mount
                .map(|mount| PathBuf::from(format!("{mount}{}", self.cgroup)))
                .filter(|path| path.exists())
                .collect()
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while !left().is_empty() && std::time::Instant::now() < deadline {
            for path in left() {
                let _ = std::fs::remove_dir(path.join("shims"));
                let _ = std::fs::remove_dir(path);
            }
            std::thread::yield_now();
        }
        if !std::thread::panicking() {
            assert_eq!(left(), Vec::<PathBuf>::new(), "cgroups were left behind");
        }
    }
}

/// Copies a program that is to be run. By another process: a child that another test makes meanwhile would have our
/// descriptor of the copy, and what is open for writing is not executed.
pub fn copy_program(from: &str, to: &Path) {
    assert!(std::process::Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

pub fn edit_args(spec: &mut Spec, args: &[&str]) {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    spec.process_mut().as_mut().unwrap().set_args(Some(args));
}

pub fn output(container: &Container) -> String {
    let mut reader =
        rswarm_runtime::log::Reader::open(container.log_directory(), Default::default()).unwrap();
    let mut text = String::new();
    while let Some(record) = reader.next_record().unwrap() {
        text.push_str(&String::from_utf8_lossy(&record.line));
        if !record.partial {
            text.push('\n');
        }
    }
    text
}

/// An error with all its causes, as a log shows it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Waits for something that happens in another process.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "timed out waiting until {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// What comes from a terminal until `last` does.
pub fn read_until(master: &OwnedFd, last: &str) -> String {
    let mut text = Vec::new();
    let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
    while !String::from_utf8_lossy(&text).contains(last) {
        let ready = poll(&mut [PollFd::new(master, PollFlags::IN)], Some(&limit)).unwrap();
        assert!(ready > 0, "no `{last}` after {:?}", String::from_utf8_lossy(&text));
        let mut buffer = [0; 1024];
        let len = rustix::io::read(master, &mut buffer).unwrap();
        text.extend_from_slice(&buffer[..len]);
    }
    String::from_utf8(text).unwrap()
}

pub fn first_line(from: &OwnedFd) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while rustix::io::read(from, &mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}
