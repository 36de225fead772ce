//! `rswarm resolver`: its arguments, its start and its end.

use std::error::Error;
use std::ffi::OsString;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::rc::Rc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, Receiver};
use tokio::task::{LocalSet, spawn_local};

use crate::follow::follow;
use crate::forward::Forwarder;
use crate::instance::{self, Claim};
use crate::names::Names;
use crate::server::Server;
use crate::sockets::{Listeners, PORT, Udp, listen_on};

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
Usage: rswarm resolver --run-root DIR [--netns PATH] [--listen ADDRESS]... [--resolv-conf PATH] [--replace]

Answers names of the cluster's networks, from `network-map` in the run root, and passes on all others.

  --run-root DIR       Run root of the daemon
  --netns PATH         Listen on all addresses of this network namespace, port 53
  --listen ADDRESS     Listen on this IPv4 address of the host, port 53
  --resolv-conf PATH   Whom to ask for other names (default: /etc/resolv.conf)
  --replace            Take over from a resolver that runs already
";

/// As the command line has it for flags that are unknown or malformed.
const EXIT_BAD_FLAG: i32 = 125;

#[derive(Debug, PartialEq, Eq)]
struct Options {
    run_root: PathBuf,
    netns: Option<PathBuf>,
    listen: Vec<Ipv4Addr>,
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
    let (mut run_root, mut netns, mut listen, mut replace) = (None, None, Vec::new(), false);
    let mut resolv_conf = PathBuf::from("/etc/resolv.conf");
    while let Some(word) = args.next() {
        let flag = word.to_string_lossy().into_owned();
        let mut value = || args.next().ok_or_else(|| format!("expected a value after `{flag}`"));
        match flag.as_str() {
            "--run-root" => run_root = Some(value()?.into()),
            "--netns" => netns = Some(value()?.into()),
            "--resolv-conf" => resolv_conf = value()?.into(),
            "--listen" => {
                let word = value()?.to_string_lossy().into_owned();
                let address = word.parse();
                listen.push(
                    address
                        .map_err(|_| format!("expected an IPv4 address after `--listen`, found `{word}`"))?,
                );
            }
            "--replace" => replace = true,
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("unknown argument `{flag}`")),
        }
    }
    let run_root = run_root.ok_or("expected `--run-root`")?;
    if netns.is_none() && listen.is_empty() {
        return Err("expected `--netns` or `--listen`, else nobody could ask".to_owned());
    }
    Ok(Some(Options { run_root, netns, listen, resolv_conf, replace }))
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
    let forwarder = Forwarder::new(options.resolv_conf.clone(), options.listen.clone());
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(std::io::Error::other)?;
    let (sender, renewed) = mpsc::channel(1);
    let names = follow(&options.run_root, sender)?;
    let server = Rc::new(Server::new(names, forwarder, u64::from_ne_bytes(seed)));
    let mut listeners = Vec::new();
    if let Some(netns) = &options.netns {
        listeners.push(listen_on(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT), Some(netns))?);
    }
    for address in &options.listen {
        listeners.push(listen_on(SocketAddrV4::new(*address, PORT), None)?);
    }
    // Queries wait at our sockets from here on, so all that takes time has been done.
    let _instance = match claim {
        Claim::Ours(instance) => instance,
        Claim::Taken(_) => instance::take_over(&options.run_root)?,
    };
    LocalSet::new().block_on(&runtime, serve(options, &server, renewed, listeners))
}

async fn serve(
    options: &Options,
    server: &Rc<Server>,
    mut renewed: Receiver<Names>,
    listeners: Vec<Listeners>,
) -> Result<(), Box<dyn Error>> {
    let mut end = signal(SignalKind::terminate())?;
    let mut sockets = Vec::new();
    for Listeners { udp, tcp } in listeners {
        let udp = Rc::new(Udp::new(udp)?);
        spawn_local(server.clone().serve_udp(udp.clone()));
        spawn_local(server.clone().serve_tcp(tokio::net::TcpListener::from_std(tcp)?));
        sockets.push(udp);
    }
    log!("serving `{}`", options.run_root.display());
    loop {
        tokio::select! {
            Some(names) = renewed.recv() => server.set_names(names),
            _ = end.recv() => break,
        }
    }
    sockets.iter().for_each(|socket| server.drain(socket));
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
            read("--run-root /r --netns /n --listen 10.0.0.1 --listen 10.0.0.2 --resolv-conf /c --replace"),
            Ok(Some(Options {
                run_root: "/r".into(),
                netns: Some("/n".into()),
                listen: vec![Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)],
                resolv_conf: "/c".into(),
                replace: true,
            }))
        );
        assert_eq!(read("--run-root /r --help"), Ok(None));
        for (line, reason) in [
            ("", "expected `--run-root`"),
            ("--run-root /r", "expected `--netns` or `--listen`"),
            ("--run-root", "expected a value after `--run-root`"),
            ("--run-root /r --listen ::1", "found `::1`"),
            ("--run-root /r --port 53", "unknown argument `--port`"),
        ] {
            assert!(read(line).unwrap_err().contains(reason), "{line}");
        }
    }
}
