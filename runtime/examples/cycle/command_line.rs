//! The command line beside its peers. All are called in turns, so that a loaded machine is as loaded for each of them.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rswarm_runtime::default_spec;
use serde_json::{Value, json};

use crate::median;

/// One of the programs that are compared.
struct Runtime {
    name: &'static str,
    program: PathBuf,
    /// What comes before runc's words.
    first: Option<&'static str>,
    root: PathBuf,
}

impl Runtime {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.first).arg("--root").arg(&self.root).args(args).stdin(Stdio::null());
        command
    }

    fn call(&self, args: &[&str]) -> Result<(), Box<dyn Error>> {
        let errors = tempfile::tempfile()?;
        let mut command = self.command(args);
        let status = command.stdout(Stdio::null()).stderr(errors.try_clone()?).status()?;
        if status.success() {
            return Ok(());
        }
        let mut errors = errors;
        std::io::Seek::rewind(&mut errors)?;
        let said = std::io::read_to_string(errors)?;
        Err(format!("{} {args:?} failed with {status}: {}", self.name, said.trim()).into())
    }

    fn state(&self, id: &str) -> Result<Value, Box<dyn Error>> {
        Ok(serde_json::from_slice(&self.command(&["state", id]).output()?.stdout)?)
    }
}

/// Prints medians in milliseconds, and what a create and a waiting container cost in memory.
pub fn compare(directory: &Path, rootfs: &Path, rounds: usize) -> Result<(), Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let runtime =
        |name, program: PathBuf, first| Runtime { name, program, first, root: directory.join(name) };
    let mut runtimes = vec![runtime("rswarm-runc", own, Some("runtime"))];
    for (name, path) in [("runc", "/usr/sbin/runc"), ("crun", "/usr/bin/crun")] {
        if Path::new(path).exists() {
            runtimes.push(runtime(name, path.into(), None));
        } else {
            println!("{name} is left out: it is not installed");
        }
    }
    for profile in [false, true] {
        let bundle = bundle(directory, rootfs, profile)?;
        let bundle = bundle.to_str().ok_or("a directory that is no text")?;
        runtimes.retain(|runtime| {
            let tried = runtime.call(&["run", "--bundle", bundle, "try"]);
            if let Err(error) = &tried {
                println!("{} is left out, it does not run this container here: {error}", runtime.name);
                let _ = runtime.call(&["delete", "--force", "try"]);
            }
            tried.is_ok()
        });
        let mut times: Vec<[Vec<Duration>; 3]> = runtimes.iter().map(|_| Default::default()).collect();
        for _ in 0..rounds {
            for (runtime, times) in runtimes.iter().zip(&mut times) {
                times[0].push(cycle(runtime, bundle)?);
                times[1].push(time(|| runtime.call(&["run", "--bundle", bundle, "run"]))?);
            }
        }
        exec(&runtimes, &mut times, bundle, rounds)?;
        let profile = if profile { "with Docker's profile" } else { "without seccomp" };
        for (runtime, times) in runtimes.iter().zip(&mut times) {
            let [cycle, run, exec] = times.each_mut().map(|list| median(list));
            println!(
                "{:<12} {profile}: cycle {cycle:.2} ms, run {run:.2} ms, exec {exec:.2} ms",
                runtime.name
            );
        }
        for runtime in &runtimes {
            memory(runtime, bundle)?;
        }
    }
    Ok(())
}

fn time(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let begin = Instant::now();
    work()?;
    Ok(begin.elapsed())
}

/// create + start + delete. Nobody waits for the end of `true` but the last of these, as an engine's would be.
fn cycle(runtime: &Runtime, bundle: &str) -> Result<Duration, Box<dyn Error>> {
    time(|| {
        runtime.call(&["create", "--bundle", bundle, "cycle"])?;
        runtime.call(&["start", "cycle"])?;
        runtime.call(&["delete", "--force", "cycle"])
    })
}

fn exec(
    runtimes: &[Runtime],
    times: &mut [[Vec<Duration>; 3]],
    bundle: &str,
    rounds: usize,
) -> Result<(), Box<dyn Error>> {
    let path = Path::new(bundle).join("config.json");
    let original = std::fs::read(&path)?;
    let mut config: Value = serde_json::from_slice(&original)?;
    config["process"]["args"] = json!(["/bin/sleep", "1000"]);
    for runtime in runtimes {
        config["linux"]["cgroupsPath"] =
            format!("/rswarm-exec-{}-{}", std::process::id(), runtime.name).into();
        std::fs::write(&path, config.to_string())?;
        runtime.call(&["run", "--detach", "--bundle", bundle, "exec"])?;
    }
    std::fs::write(&path, original)?;
    let mut result = Ok(());
    for _ in 0..rounds {
        for (runtime, times) in runtimes.iter().zip(times.iter_mut()) {
            match time(|| runtime.call(&["exec", "exec", "/bin/true"])) {
                Ok(time) => times[2].push(time),
                Err(error) => result = Err(error),
            }
        }
    }
    for runtime in runtimes {
        runtime.call(&["delete", "--force", "exec"])?;
    }
    result
}

/// Peak of the command that creates, proportional share of the process that then waits.
fn memory(runtime: &Runtime, bundle: &str) -> Result<(), Box<dyn Error>> {
    let create = runtime.command(&["create", "--bundle", bundle, "memory"]);
    // A small parent: what a process was before it became the program counts as its own.
    let mut timed = Command::new("/bin/busybox");
    timed.args(["time", "-f", "peak %M"]).arg(create.get_program()).args(create.get_args());
    let output = tempfile::NamedTempFile::new()?;
    let status = timed.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output.reopen()?).status()?;
    let said = std::fs::read_to_string(output.path())?;
    if !status.success() {
        return Err(format!("{} create failed: {said}", runtime.name).into());
    }
    let peak: u64 =
        said.lines().find_map(|line| line.strip_prefix("peak ")?.parse().ok()).ok_or("no peak")?;
    // busybox takes the kernel's KiB for pages of 4.
    let peak = peak / 4;
    let pid = runtime.state("memory")?["pid"].as_i64().ok_or("no pid")?;
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let share = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or("unknown").trim();
    println!("{:<12} peak of create {peak} kB, waiting container {share}", runtime.name);
    runtime.call(&["delete", "--force", "memory"])
}

fn bundle(directory: &Path, rootfs: &Path, profile: bool) -> Result<PathBuf, Box<dyn Error>> {
    let path = directory.join(if profile { "bundle-profile" } else { "bundle" });
    std::fs::create_dir_all(&path)?;
    let mut config = serde_json::to_value(default_spec())?;
    config["ociVersion"] = "1.0.2".into();
    config["root"] = json!({ "path": rootfs, "readonly": false });
    config["process"]["args"] = json!(["/bin/true"]);
    config["linux"]["cgroupsPath"] = format!("/rswarm-cycle-{}", std::process::id()).into();
    if !profile {
        config["linux"].as_object_mut().ok_or("no linux part")?.remove("seccomp");
    }
    // crun refuses to mount cgroups on a hybrid host whose v2 side has a controller.
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["type"] != "cgroup");
    }
    std::fs::write(path.join("config.json"), config.to_string())?;
    Ok(path)
}
