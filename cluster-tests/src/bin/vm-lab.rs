//! Virtual machines to type on: the lab of the tests by hand.
//!
//! ```text
//! vm-lab up [--nodes 3] [--bare] [--systemd]
//! ```
//!
//! Makes a cluster of one manager and workers with the playground's image on every node, or with `--bare` machines on
//! which nothing runs yet; with `--systemd` that is their first process. It then reads lines: `2 rswarm node ls` runs a command on the second machine, `off 2` takes
//! its power away, `cut 2` and `heal 2` pull its cable and put it back, and the end of input or Ctrl-C ends everything.

use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::{SigSet, Signal};
use rswarm_cluster_tests::scenario::Scenario;
use rswarm_cluster_tests::vm::{self, HELLO, Size};
use rswarm_lab::Machine;
use rswarm_lab::vm::{Payload, VmLab, VmLabConfig};

const NAME: &str = "lab";
const RUN_DIR: &str = "/run/rswarm-vm-lab";
const MEMORY_MIB: u32 = 1024;
/// Everything is emulated.
const PATIENCE: Duration = Duration::from_secs(120);
/// What somebody types may take its time.
const COMMAND: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let Arguments { nodes, bare, systemd } = arguments(std::env::args().skip(1))?;
    vm::can_run().map_err(|reason| anyhow::anyhow!("this {reason}"))?;
    let archive = vm::hello_archive()?;
    let mut payload = if systemd { Payload::new().systemd()? } else { Payload::new() };
    payload = vm::node_payload(payload)?.file(&archive, Path::new("/root/rswarm-hello.tar"), 0o644);
    payload = payload.symlink("/usr/local/bin/rswarm-runc", "rswarm");
    let size = Size { machines: nodes, cpus: 1, memory_mib: MEMORY_MIB };
    let config = vm::config(Path::new(RUN_DIR), NAME, size, payload)?;
    end_on_signals(config.clone())?;

    println!("Starting {nodes} machines ...");
    let started_at = Instant::now();
    let mut lab = VmLab::create(config)?;
    println!("They are up after {:.1} s.", started_at.elapsed().as_secs_f64());
    if !bare {
        form(&mut lab, &archive)?;
    }
    explain(&lab, bare);
    serve(&mut lab)?;
    lab.destroy()?;
    println!("The machines are gone.");
    Ok(())
}

struct Arguments {
    nodes: usize,
    bare: bool,
    systemd: bool,
}

fn arguments(mut words: impl Iterator<Item = String>) -> anyhow::Result<Arguments> {
    const USAGE: &str = "usage: vm-lab up [--nodes 3] [--bare] [--systemd]";
    ensure!(words.next().as_deref() == Some("up"), USAGE);
    let (mut nodes, mut bare, mut systemd) = (3, false, false);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--nodes" => {
                let count = words.next().and_then(|count| count.parse().ok());
                nodes =
                    count.filter(|count| (1..=20).contains(count)).context("expected `--nodes` 1 to 20")?;
            }
            "--bare" => bare = true,
            "--systemd" => systemd = true,
            _ => bail!("unknown word `{word}`; {USAGE}"),
        }
    }
    Ok(Arguments { nodes, bare, systemd })
}

fn form(lab: &mut VmLab, archive: &Path) -> anyhow::Result<()> {
    println!("Making a cluster of them ...");
    let wire = lab.wire_netns();
    let machines = lab.machines_mut().iter_mut().map(|machine| machine as &mut dyn Machine).collect();
    let mut scenario = Scenario { machines, wire: &wire, patience: PATIENCE, heartbeat: "3s" };
    scenario.form();
    scenario.load(archive);
    Ok(())
}

fn explain(lab: &VmLab, bare: bool) {
    println!(
        "\nType a machine's number and a command, or `off`, `cut` or `heal` and a number; Ctrl-D ends everything. Such as:\n"
    );
    if bare {
        println!("    1 rswarm init --advertise-addr {}", lab.machine(1).address());
    } else {
        println!("    1 rswarm node ls");
        println!("    1 rswarm service create --name web --replicas 3 --publish mode=host,target=80 {HELLO}");
    }
    println!("    1 sh -c 'mount | grep cgroup'\n");
    println!("From another terminal, with an address and a published port:\n");
    println!(
        "    nsenter --net={} curl http://{}:PORT/\n",
        lab.wire_netns().display(),
        lab.machine(1).address()
    );
}

/// Whatever this program is doing then, a signal ends the machines and it.
fn end_on_signals(config: VmLabConfig) -> anyhow::Result<()> {
    // Before any other thread is started, as they all leave the signals to this one.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("cannot block signals")?;
    std::thread::spawn(move || {
        let _ = signals.wait();
        println!();
        match config.destroy() {
            Ok(()) => println!("The machines are gone."),
            Err(error) => eprintln!("Error: {error}"),
        }
        std::process::exit(130);
    });
    Ok(())
}

fn serve(lab: &mut VmLab) -> anyhow::Result<()> {
    let mut lines = std::io::stdin().lock().lines();
    loop {
        print!("> ");
        std::io::stdout().flush()?;
        let Some(line) = lines.next().transpose()? else {
            println!();
            return Ok(());
        };
        if !line.trim().is_empty()
            && let Err(error) = obey(lab, line.trim())
        {
            println!("{error:#}");
        }
    }
}

fn obey(lab: &mut VmLab, line: &str) -> anyhow::Result<()> {
    let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
    let count = lab.machines().len();
    let number = |word: &str| {
        let number = word.trim().parse().ok().filter(|number| (1..=count).contains(number));
        number.with_context(|| format!("expected a machine's number, 1 to {count}, found `{word}`"))
    };
    match first {
        "off" => return Ok(lab.machines_mut()[number(rest)? - 1].power_off()?),
        "cut" | "heal" => return Ok(lab.set_cable(number(rest)?, first == "heal")?),
        _ => {}
    }
    // The shell of the machine takes the words apart.
    let output = lab.machine(number(first)?).run("/bin/sh", &["-c", rest], COMMAND)?;
    print!("{}", output.stdout);
    eprint!("{}", output.stderr);
    if let Some(code) = output.code.filter(|code| *code != 0) {
        println!("(exit code {code})");
    }
    Ok(())
}
