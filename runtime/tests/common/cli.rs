//! Bundles for the command line, and calls of it and of its peer.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rswarm_runtime::default_spec;
use serde_json::{Value, json};

use super::Lab;

/// What a command answered.
#[derive(Debug)]
pub struct Answer {
    /// As a shell gives it.
    pub code: i32,
    pub output: String,
    pub errors: String,
}

/// One runtime with a state directory of its own.
pub struct Runtime {
    pub name: &'static str,
    program: PathBuf,
    pub root: PathBuf,
    directory: PathBuf,
}

impl Runtime {
    pub fn ours(lab: &Lab) -> Self {
        let program = env!("CARGO_BIN_EXE_rswarm-runc").into();
        Self {
            name: "rswarm",
            program,
            root: lab.directory.path().join("state"),
            directory: lab.directory.path().into(),
        }
    }

    /// Debian's runc; `None`, with a word about it, where there is none.
    pub fn peer(lab: &Lab) -> Option<Self> {
        let program = ["/usr/sbin/runc", "/usr/bin/runc"].iter().map(Path::new).find(|path| path.exists());
        if program.is_none() {
            eprintln!("skipped: needs runc (Debian package runc) to compare with");
        }
        let root = lab.directory.path().join("peer");
        program.map(|program| Self {
            name: "runc",
            program: program.into(),
            root,
            directory: lab.directory.path().into(),
        })
    }

    /// A command that can be changed before it is run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(args).stdin(Stdio::null());
        command
    }

    pub fn call(&self, args: &[&str]) -> Answer {
        self.answer(self.command(args))
    }

    /// Runs it. What the container says goes into files: it may outlive the command, and keep a pipe open.
    pub fn answer(&self, mut command: Command) -> Answer {
        let mut output = tempfile::tempfile_in(&self.directory).unwrap();
        let mut errors = tempfile::tempfile_in(&self.directory).unwrap();
        let program = command.get_program().to_owned();
        let status = command
            .stdout(output.try_clone().unwrap())
            .stderr(errors.try_clone().unwrap())
            .status()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let read = |file: &mut std::fs::File| {
            use std::io::{Read, Seek};
            let mut text = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        };
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        Answer { code, output: read(&mut output), errors: read(&mut errors) }
    }

    /// A call that has to succeed; gives its output.
    pub fn done(&self, args: &[&str]) -> String {
        let answer = self.call(args);
        assert_eq!(answer.code, 0, "{} {args:?}: {}", self.name, answer.errors);
        answer.output
    }

    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.done(&["state", id])).unwrap()
    }

    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }

    pub fn await_status(&self, id: &str, status: &str) {
        super::eventually(&format!("`{id}` is {status}"), || self.status(id) == status);
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let id = entry.file_name().into_string().unwrap();
            let _ = self.command(&["delete", "--force", &id]).stderr(Stdio::null()).status();
        }
    }
}

/// A bundle whose program is a shell script.
pub struct Bundle {
    pub path: PathBuf,
    pub config: Value,
}

impl Bundle {
    pub fn new(lab: &Lab, name: &str, script: &str) -> Self {
        let path = lab.directory.path().join("bundles").join(name);
        std::fs::create_dir_all(&path).unwrap();
        let mut config = serde_json::to_value(default_spec()).unwrap();
        config["ociVersion"] = "1.0.2".into();
        config["root"] = json!({ "path": lab.layer(), "readonly": false });
        config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        config["linux"]["cgroupsPath"] = format!("{}/{name}", lab.cgroup).into();
        let bundle = Self { path, config };
        bundle.write();
        bundle
    }

    /// After a change of `config`.
    pub fn write(&self) {
        std::fs::write(self.path.join("config.json"), serde_json::to_vec(&self.config).unwrap()).unwrap();
    }

    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// What a container could leave behind on the host.
pub fn traces(lab: &Lab) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let own = lab.directory.path().to_str().unwrap().to_owned();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // Others mount things, too: what a container would leave is below its root file system.
    let left = mounts.lines().filter(|line| line.contains(&own));
    all.extend(left.map(|line| format!("mount {line}")));
    let cgroups =
        mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    all.extend(cgroups.map(|mount| format!("{mount}{}", lab.cgroup)).filter(|path| Path::new(path).exists()));
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&own) {
            all.insert(format!("process {command}"));
        }
    }
    let files = Command::new("find").arg(lab.directory.path()).output().unwrap().stdout;
    all.extend(String::from_utf8_lossy(&files).lines().map(str::to_owned));
    all
}
