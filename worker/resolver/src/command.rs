//! `rswarm resolver`: its arguments, its start and its end.

use std::error::Error;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::rc::Rc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, Receiver};
use tokio::task::LocalSet;

use crate::follow::follow;
use crate::forward::Forwarder;
use crate::instance::{self, Claim};
use crate::names::Names;
use crate::places::Places;
use crate::server::Server;

/// Writes a line to standard error, which may be closed or full.
#[macro_export]
#[doc(hidden)]
macro_rules! log {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "rswarm resolver: {}", format_args!($($argument)*));
    }};
}

const USAGE: &str = "\
Usage: rswarm resolver --run-root DIR --netns PATH [--resolv-conf PATH] [--replace]

Answers names of the cluster's networks, from `network-map` in the run root, and passes on all others.

  --run-root DIR       Run root of the daemon
  --netns PATH         Listen on all addresses of this network namespace, port 53, and in the host's on the gateways
                       of its bridges
  --resolv-conf PATH   Whom to ask for other names (default: /etc/resolv.conf)
  --replace            Take over from a resolver that runs already
";

/// As the command line has it for flags that are unknown or malformed.
const EXIT_BAD_FLAG: i32 = 125;

#[derive(Debug, PartialEq, Eq)]
struct Options {
    run_root: PathBuf,
    netns: PathBuf,
    resolv_conf: PathBuf,
    replace: bool,
}

/// Runs the resolver with the words behind `rswarm resolver`, until SIGTERM; returns the exit code.
pub fn main(args: impl Iterator<Item = OsString>) -> i32 {
    let options = match parse(args) {
        Ok(Some(options)) => options,
        Ok(None) => {
            let _ = std::io::stdout().write_all(USAGE.as_bytes());
            return 0;
        }
        Err(reason) => {
            log!("{reason}\n\n{USAGE}");
            return EXIT_BAD_FLAG;
        }
    };
    match run(&options) {
        Ok(()) => 0,
        Err(error) => {
            log!("{}", chain(&*error));
            1
        }
    }
}

/// `None` if help was asked for.
fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Option<Options>, String> {
    let (mut run_root, mut netns, mut replace) = (None, None, false);
    let mut resolv_conf = PathBuf::from("/etc/resolv.conf");
    while let Some(word) = args.next() {
        let flag = word.to_string_lossy().into_owned();
        let mut value = || args.next().ok_or_else(|| format!("expected a value after `{flag}`"));
        match flag.as_str() {
            "--run-root" => run_root = Some(value()?.into()),
            "--netns" => netns = Some(value()?.into()),
            "--resolv-conf" => resolv_conf = value()?.into(),
            "--replace" => replace = true,
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("unknown argument `{flag}`")),
        }
    }
    let run_root = run_root.ok_or("expected `--run-root`")?;
    let netns = netns.ok_or("expected `--netns`")?;
    Ok(Some(Options { run_root, netns, resolv_conf, replace }))
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let claim = instance::claim(&options.run_root)?;
    if let (Claim::Taken(pid), false) = (&claim, options.replace) {
        let pid = pid.map_or("unknown".to_owned(), |pid| pid.to_string());
        log!("one with process id {pid} serves `{}` already", options.run_root.display());
        return Ok(());
    }
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let forwarder = Forwarder::new(options.resolv_conf.clone());
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(std::io::Error::other)?;
    let (sender, renewed) = mpsc::channel(1);
    let names = follow(&options.run_root, sender)?;
    let server = Rc::new(Server::new(names, forwarder, u64::from_ne_bytes(seed)));
    let places = Places::listen(&options.netns, &server)?;
    // Queries wait at our sockets from here on, so all that takes time has been done.
    let _instance = match claim {
        Claim::Ours(instance) => instance,
        Claim::Taken(_) => instance::take_over(&options.run_root)?,
    };
    LocalSet::new().block_on(&runtime, serve(options, server, renewed, places))
}

async fn serve(
    options: &Options,
    server: Rc<Server>,
    mut renewed: Receiver<Names>,
    places: Places,
) -> Result<(), Box<dyn Error>> {
    let mut end = signal(SignalKind::terminate())?;
    let mut served = places.serve(server.clone())?;
    log!("serving `{}`", options.run_root.display());
    loop {
        tokio::select! {
            Some(names) = renewed.recv() => {
                server.set_names(names);
                served.follow();
            }
            _ = end.recv() => break,
        }
    }
    served.drain();
    Ok(())
}

/// Each question on its way takes a descriptor. If there are fewer than wished, those beyond get SERVFAIL.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = setrlimit(Resource::Nofile, raised);
}

/// An error with all its causes.
pub(crate) fn chain(error: &dyn Error) -> String {
    std::iter::successors(error.source(), |&cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_or_refused_by_name() {
        let read = |line: &str| parse(line.split_whitespace().map(OsString::from));
        assert_eq!(
            read("--run-root /r --netns /n --resolv-conf /c --replace"),
            Ok(Some(Options {
                run_root: "/r".into(),
                netns: "/n".into(),
                resolv_conf: "/c".into(),
                replace: true,
            }))
        );
        assert_eq!(read("--run-root /r --help"), Ok(None));
        for (line, reason) in [
            ("", "expected `--run-root`"),
            ("--run-root /r", "expected `--netns`"),
            ("--run-root", "expected a value after `--run-root`"),
            ("--run-root /r --port 53", "unknown argument `--port`"),
        ] {
            assert!(read(line).unwrap_err().contains(reason), "{line}");
        }
    }
}
