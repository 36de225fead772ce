//! `rswarm playground`: several hosts on this machine, to try things on.
//!
//! Each host is a network namespace with a daemon of its own (see `rswarm_lab`). What is shown are the commands that
//! somebody would type on those hosts, run by this executable; only where nobody would type anything (the hosts
//! themselves, waiting for nodes, asking replicas) does this module act by itself.

mod image;
mod page;
mod tour;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use rswarm_lab::{Lab, LabConfig, LabError};
use tokio::signal::unix::{SignalKind, signal};

pub use page::serve;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct PlaygroundArgs {
    #[command(flatten)]
    up: UpArgs,
    #[command(subcommand)]
    command: Option<PlaygroundCommand>,
}

#[derive(Debug, Subcommand)]
enum PlaygroundCommand {
    /// End the playground and remove everything that was made for it
    Down {
        /// Which playground
        #[arg(long, default_value = DEFAULT_NAME, value_parser = name)]
        name: String,
    },
}

#[derive(Debug, Args)]
struct UpArgs {
    /// How many hosts to make; the first three become managers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=50))]
    hosts: u8,
    /// Replicas of the service that is created
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(0..=500))]
    replicas: u16,
    /// End this command but leave the playground up, until `rswarm playground down`
    #[arg(short, long)]
    detach: bool,
    /// Tells several playgrounds apart
    #[arg(long, default_value = DEFAULT_NAME, value_parser = name)]
    name: String,
}

const DEFAULT_NAME: &str = "playground";
/// Sockets lie below directories of this name, and the kernel takes paths of 108 bytes.
const NAME_BYTES_MAX: usize = 20;
/// Of the hosts; seen by nobody else.
const SUBNET: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 0);
/// Lines of a daemon's log that are shown when something failed.
const LOG_LINES: usize = 15;
/// Between two looks whether another process has ended the playground.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

fn name(text: &str) -> Result<String, String> {
    let ordinary = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(ordinary) {
        return Err(format!("expected up to {NAME_BYTES_MAX} letters a-z, digits and `-`"));
    }
    Ok(text.to_owned())
}

fn config(name: &str, hosts: usize) -> anyhow::Result<LabConfig> {
    Ok(LabConfig {
        name: name.to_owned(),
        hosts,
        subnet: SUBNET,
        executable: std::env::current_exe().context("cannot find the rswarm executable")?,
        data_dir: Path::new("/var/lib/rswarm-playground").join(name),
        run_dir: Path::new("/run/rswarm-playground").join(name),
    })
}

pub async fn run(args: PlaygroundArgs) -> anyhow::Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the playground needs root to make network namespaces and containers: run it as root or by `sudo`"
    );
    match args.command {
        Some(PlaygroundCommand::Down { name }) => down(&name),
        None => up(&args.up).await,
    }
}

fn down(name: &str) -> anyhow::Result<()> {
    let config = config(name, 0)?;
    if !config.exists() {
        eprintln!("There is no playground `{name}`.");
        return Ok(());
    }
    config.destroy()?;
    println!("The playground is gone.");
    Ok(())
}

async fn up(args: &UpArgs) -> anyhow::Result<()> {
    // Asked for first, so that from here on no signal ends this process before it has cleaned up.
    let mut end = End::new()?;
    let config = config(&args.name, args.hosts.into())?;
    let mut lab = Lab::create(config.clone()).map_err(|error| match error {
        LabError::Exists { .. } => anyhow::anyhow!(
            "a playground named `{}` is already there: end it with `{}`, or choose another `--name`",
            args.name,
            down_command(&args.name)
        ),
        error => error.into(),
    })?;
    let shown = tokio::select! {
        shown = tour::show(&mut lab, args.replicas) => shown,
        name = end.signal() => Err(anyhow::anyhow!("interrupted by {name}")),
    };
    if let Err(error) = shown {
        show_logs(&mut lab, &error);
        let error = error.context("the playground could not be set up");
        return match lab.destroy() {
            Ok(()) => Err(error),
            Err(left) => Err(error.context(left.to_string())),
        };
    }
    let ending = if args.detach { "It stays up." } else { "It stays up until Ctrl-C." };
    println!("{ending} `{}` ends it and leaves nothing behind.", down_command(&args.name));
    if args.detach {
        lab.keep();
        return Ok(());
    }
    tokio::select! {
        _ = end.signal() => {
            println!();
            lab.destroy()?;
            println!("The playground is gone.");
        }
        () = gone(&config.run_dir) => {
            lab.destroy()?;
            println!("The playground was ended from elsewhere.");
        }
    }
    Ok(())
}

/// The signals by which people and supervisors end a command.
struct End {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl End {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn signal(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}

async fn gone(run_dir: &Path) {
    while run_dir.exists() {
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

/// Shows the log of the host on which a step failed, and those of daemons that ended.
fn show_logs(lab: &mut Lab, error: &anyhow::Error) {
    let failed = error.downcast_ref::<tour::HostFailed>().map(|failed| failed.number);
    for number in 1..=lab.hosts().len() {
        let host = lab.host_mut(number);
        let tail = host.log_tail(LOG_LINES);
        if (failed == Some(number) || host.daemon_pid().is_none()) && !tail.is_empty() {
            eprintln!("The last lines of {}'s log:\n{tail}\n", host.name);
        }
    }
}

fn down_command(name: &str) -> String {
    let mut words = vec!["rswarm playground down"];
    if name != DEFAULT_NAME {
        words.extend(["--name", name]);
    }
    words.join(" ")
}

/// The executable's directory, unless a shell would find it anyway.
fn directory_to_add(executable: &Path) -> Option<PathBuf> {
    let directory = executable.parent()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    (!std::env::split_paths(&path).any(|known| known == directory)).then(|| directory.to_owned())
}

/// Fails unless `value` is there.
fn expect<T>(value: Option<T>, what: impl FnOnce() -> String) -> anyhow::Result<T> {
    match value {
        Some(value) => Ok(value),
        None => bail!(what()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_paths_and_links() {
        assert_eq!(name("lab-2").as_deref(), Ok("lab-2"));
        for bad in ["", "Lab", "a/b", "..", "a b", "a-name-that-is-too-long"] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_way_down_names_the_playground() {
        assert_eq!(down_command(DEFAULT_NAME), "rswarm playground down");
        assert_eq!(down_command("two"), "rswarm playground down --name two");
    }
}
