//! Measures create + start + wait + delete of `true` with Docker's default profile, and what a shim costs in memory;
//! then the command line beside runc and crun, where they are installed: the same cycle, `run` and `exec`, with and
//! without the profile, in turns.
//!
//! `cargo run --release -p rswarm-runtime --example cycle [rounds]`, as root, with a static `/bin/busybox`. It is its
//! own shim, and its own `rswarm-runc`.

mod command_line;

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use rswarm_runtime::{Containers, CreateRequest, ExecRequest, LogOptions, Rootfs, ShimCommand, default_spec};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    if first.as_deref() == Some("shim".as_ref()) {
        std::process::exit(rswarm_runtime::shim_main(args));
    }
    if first.as_deref() == Some("runtime".as_ref()) {
        std::process::exit(rswarm_runtime::runc_main(args));
    }
    let rounds: usize = first.and_then(|text| text.to_str()?.parse().ok()).unwrap_or(50);
    let directory = tempfile::tempdir()?;
    let rootfs = directory.path().join("rootfs");
    for name in ["bin", "proc", "sys", "dev"] {
        std::fs::create_dir_all(rootfs.join(name))?;
    }
    for name in ["true", "sleep"] {
        std::fs::copy("/bin/busybox", rootfs.join("bin").join(name))?;
    }
    let containers = Containers::new(directory.path().join("containers"), ShimCommand::default());
    let mut phases: [Vec<Duration>; 5] = Default::default();
    for round in 0..rounds {
        let request = request(&format!("c{round}"), directory.path(), &rootfs, &["/bin/true"])?;
        let begin = Instant::now();
        let container = containers.create(&request)?;
        let created = Instant::now();
        container.start()?;
        let started = Instant::now();
        container.wait()?;
        let ended = Instant::now();
        container.delete()?;
        let deleted = Instant::now();
        for (list, (from, to)) in phases.iter_mut().zip([
            (begin, created),
            (created, started),
            (started, ended),
            (ended, deleted),
            (begin, deleted),
        ]) {
            list.push(to - from);
        }
    }
    for (name, list) in ["create", "start", "wait", "delete", "cycle"].iter().zip(&mut phases) {
        println!("rswarm {name}: {:.2} ms", median(list));
    }
    memory(&containers, &request("memory", directory.path(), &rootfs, &["/bin/sleep", "1000"])?)?;
    command_line::compare(directory.path(), &rootfs, rounds)
}

fn median(list: &mut [Duration]) -> f64 {
    list.sort();
    list.get(list.len() / 2).map_or(f64::NAN, |value| value.as_secs_f64() * 1000.0)
}

fn request(
    id: &str,
    directory: &Path,
    rootfs: &Path,
    args: &[&str],
) -> Result<CreateRequest, Box<dyn Error>> {
    let own = directory.join("layers").join(id);
    for name in ["upper", "work"] {
        std::fs::create_dir_all(own.join(name))?;
    }
    let mut spec = default_spec();
    if let Some(process) = spec.process_mut() {
        process.set_args(Some(args.iter().map(|arg| (*arg).to_owned()).collect()));
    }
    Ok(CreateRequest {
        id: id.to_owned(),
        spec,
        rootfs: Rootfs::Overlay {
            lower: vec![rootfs.to_owned()],
            upper: own.join("upper"),
            work: own.join("work"),
        },
        stdin: false,
        log: LogOptions::default(),
        cgroup: format!("/rswarm-cycle-{}/{id}", std::process::id()),
    })
}

fn memory(containers: &Containers, request: &CreateRequest) -> Result<(), Box<dyn Error>> {
    let container = containers.create(request)?;
    let pid = container.pid().ok_or("the container has ended")?;
    let waiting = private(pid)?;
    container.start()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let shim: i32 = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(1))
        .ok_or("no parent")?
        .parse()?;
    let rollup = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup"))?;
    for line in
        rollup.lines().filter(|line| ["Rss:", "Pss:", "Private_"].iter().any(|key| line.starts_with(key)))
    {
        println!("shim {line}");
    }
    println!("waiting init, private: {waiting} kB");
    let command = ExecRequest { args: vec!["/bin/true".to_owned()], ..ExecRequest::default() };
    let mut execs = Vec::new();
    for _ in 0..50 {
        let begin = Instant::now();
        container.exec(&command)?.wait()?;
        execs.push(begin.elapsed());
    }
    println!(
        "rswarm exec by the shim: {:.2} ms, its private memory then {} kB",
        median(&mut execs),
        private(shim)?
    );
    if std::env::var_os("SMAPS").is_some() {
        println!("{}", std::fs::read_to_string(format!("/proc/{shim}/smaps"))?);
    }
    container.delete()?;
    Ok(())
}

fn private(pid: i32) -> Result<u64, Box<dyn Error>> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    Ok(lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum())
}
