//! The one binary: client commands, the daemon, and the helper processes.
//!
//! Helper processes are chosen by the first argument before an argument parser or an async runtime exists, so that
//! there is next to nothing of this program in them.

mod attach;
mod client;
mod cluster;
mod daemon;
mod exec;
mod here;
mod image;
mod login;
mod network;
mod node;
mod output;
mod paths;
mod playground;
mod progress;
mod registry_auth;
mod service;
mod shape;
mod streams;
mod system;
mod task;
mod template;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use rswarm_types::error::chain;

use client::Client;
use paths::Paths;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// A swarm of machines that runs your services: containers, networks and updates, with nothing beneath it.
#[derive(Debug, Parser)]
// Of a flag that is given twice the last one counts, as in Docker.
#[command(name = "rswarm", version, propagate_version = false, disable_help_subcommand = true)]
#[command(args_override_self = true)]
struct Cli {
    #[command(flatten)]
    paths: Paths,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a cluster with this host as its first manager
    Init(cluster::InitArgs),
    /// Enter a cluster
    Join(cluster::JoinArgs),
    /// Show or replace the tokens with which hosts enter
    JoinToken(cluster::JoinTokenArgs),
    /// Leave the cluster
    Leave(cluster::LeaveArgs),
    /// The same commands under the name that Docker users know
    #[command(subcommand, hide = true)]
    Swarm(SwarmCommand),
    /// Show this host and its cluster
    Info(cluster::InfoArgs),
    /// Show versions
    Version(cluster::VersionArgs),
    /// Ask whether the daemon answers
    Ping,
    /// Manage nodes
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// Manage services
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Manage networks
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Look at tasks
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Run a command in a task of this host
    Exec(exec::ExecArgs),
    /// See what a task of this host writes, and type into its terminal
    Attach(attach::AttachArgs),
    /// Manage the images of this host
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Run containers with runc's command line (see `rswarm runtime --help`)
    #[command(disable_help_flag = true)]
    Runtime,
    /// Keep a credential for a registry
    Login(login::LoginArgs),
    /// Forget the credential for a registry
    Logout(login::LogoutArgs),
    /// Look at this host as a whole
    #[command(subcommand)]
    System(system::SystemCommand),
    /// Run the daemon of this host in the foreground
    Daemon(daemon::DaemonArgs),
    /// Make several hosts on this machine with a cluster and a service on them, to try things on
    Playground(playground::PlaygroundArgs),
}

#[derive(Debug, Subcommand)]
enum SwarmCommand {
    Init(cluster::InitArgs),
    Join(cluster::JoinArgs),
    JoinToken(cluster::JoinTokenArgs),
    Leave(cluster::LeaveArgs),
}

/// A flag that is not known or has a value that cannot be read; words too many or too few, and words that mean
/// nothing, are ordinary failures. Source: swarm-parity 1.0.
const EXIT_BAD_FLAG: u8 = 125;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next();
    if is_runc(name.as_deref()) {
        std::process::exit(rswarm_runtime::runc_main(args));
    }
    match args.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("shim") => std::process::exit(rswarm_runtime::shim_main(args)),
        Some("runtime") => std::process::exit(rswarm_runtime::runc_main(args)),
        Some("resolver") => std::process::exit(rswarm_resolver::main(args)),
        Some("tunnel") => std::process::exit(rswarm_tunnel::main(args)),
        _ => {}
    }
    if std::env::args_os()
        .skip(1)
        .map_while(|word| word.into_string().ok())
        .take(2)
        .eq(["playground", "serve"])
    {
        return playground::serve();
    }
    let cli = match parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be a file on a full disk.
            let _ = writeln!(std::io::stderr(), "Error: {}", in_words(&error));
            ExitCode::FAILURE
        }
    }
}

/// What is said of an error, from here or from the daemon: its causes in words, and of a full disk what to do.
fn in_words(error: &anyhow::Error) -> String {
    let text = chain(&**error);
    let full = ["No space left on device", "Disk quota exceeded"].iter().any(|cause| text.contains(cause));
    if full { format!("{text}; free some space and run this again") } else { text }
}

/// Whether this program was called by the name that makes it runc's stand-in.
fn is_runc(name: Option<&std::ffi::OsStr>) -> bool {
    let name = name.and_then(|name| std::path::Path::new(name).file_name());
    name.is_some_and(|name| name == rswarm_runtime::RUNC_PROGRAM)
}

/// The roots of one daemon mean nothing to the playground, whose hosts have their own: there they are not shown, and
/// refused.
fn parse<T: Into<OsString> + Clone>(words: impl IntoIterator<Item = T>) -> Result<Cli, clap::Error> {
    const ROOTS: [(&str, &str); 2] = [("data_root", "data-root"), ("run_root", "run-root")];
    let mut command = Cli::command().mut_subcommand("playground", |playground| {
        ROOTS.into_iter().fold(playground, |playground, (id, flag)| {
            let root = clap::Arg::new(id).long(flag).hide(true).global(true);
            playground.arg(root.value_parser(clap::value_parser!(std::path::PathBuf)))
        })
    });
    let matches = command.try_get_matches_from_mut(words)?;
    let cli = Cli::from_arg_matches(&matches)?;
    let given = |id| matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine);
    if let (Command::Playground(_), Some((_, flag))) = (&cli.command, ROOTS.iter().find(|(id, _)| given(id)))
    {
        let text = format!("`--{flag}` means nothing to the playground: its hosts have roots of their own");
        return Err(command.error(ErrorKind::ArgumentConflict, text));
    }
    Ok(cli)
}

fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be done if the terminal does not take it.
    let _ = error.print();
    ExitCode::from(exit_code(error))
}

fn exit_code(error: &clap::Error) -> u8 {
    let flag = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.starts_with('-'),
        _ => true,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
        ErrorKind::UnknownArgument
        | ErrorKind::InvalidValue
        | ErrorKind::ValueValidation
        | ErrorKind::NoEquals
            if flag =>
        {
            EXIT_BAD_FLAG
        }
        _ => 1,
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { paths, command } = cli;
    match command {
        Command::Daemon(args) => return daemon::run(paths, args),
        // It has global options of its own.
        Command::Runtime => anyhow::bail!("`runtime` has to be the first word: rswarm runtime …"),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::new(&paths.socket());
        match command {
            Command::Init(args) | Command::Swarm(SwarmCommand::Init(args)) => {
                cluster::init(&paths, &client, args).await
            }
            Command::Join(args) | Command::Swarm(SwarmCommand::Join(args)) => {
                cluster::join(&paths, &client, args).await
            }
            Command::JoinToken(args) | Command::Swarm(SwarmCommand::JoinToken(args)) => {
                cluster::join_token(&client, args).await
            }
            Command::Leave(args) | Command::Swarm(SwarmCommand::Leave(args)) => {
                cluster::leave(&paths, &client, args).await
            }
            Command::Info(args) => cluster::info(&client, args).await,
            Command::Version(args) => cluster::version(&client, args).await,
            Command::Ping => cluster::ping(&client).await,
            Command::Node(command) => node::run(&client, command).await,
            Command::Service(command) => service::run(&client, command).await,
            Command::Network(command) => network::run(&client, command).await,
            Command::Task(command) => task::run(&client, command).await,
            Command::Exec(args) => exec::run(&paths, &client, args).await,
            Command::Attach(args) => attach::run(&paths, &client, args).await,
            Command::Image(command) => image::run(&client, command).await,
            Command::Login(args) => login::login(&client, args).await,
            Command::Logout(args) => login::logout(&args),
            Command::System(command) => system::run(&client, command).await,
            Command::Playground(args) => playground::run(args).await,
            Command::Daemon(_) | Command::Runtime => unreachable!("these were started above"),
        }
    })
}

/// Sends what happens to standard error, filtered by `RSWARM_LOG` (default: `info`, of the consensus library `warn`).
fn log_to_stderr() {
    const DEFAULT: &str = "info,openraft=warn";
    let wanted = std::env::var("RSWARM_LOG").unwrap_or_else(|_| DEFAULT.to_owned());
    let (filter, refused) = match wanted.parse::<Targets>() {
        Ok(filter) => (filter, None),
        Err(error) => (DEFAULT.parse().expect("a well-formed filter"), Some(error)),
    };
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(terminal);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    if let Some(error) = refused {
        tracing::warn!(%error, "RSWARM_LOG=`{wanted}` is not a list like `{DEFAULT}`; the default is used");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the command line `rswarm …` ends with if it is not understood; `None` if it is.
    fn refusal(line: &str) -> Option<u8> {
        parse(std::iter::once("rswarm").chain(line.split(' '))).err().map(|error| exit_code(&error))
    }

    #[test]
    fn errors_are_said_in_words_and_with_a_way_out_of_a_full_disk() {
        let error = |number| {
            anyhow::Error::new(std::io::Error::from_raw_os_error(number)).context("cannot write `/x`")
        };
        assert_eq!(in_words(&error(13)), "cannot write `/x`: Permission denied");
        assert_eq!(
            in_words(&error(28)),
            "cannot write `/x`: No space left on device; free some space and run this again"
        );
        // The daemon's words come as text.
        let said = anyhow::anyhow!("client error (Connect): Connection refused (os error 111): x");
        assert_eq!(in_words(&said), "client error (Connect): Connection refused: x");
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn unknown_flags_and_bad_values_exit_125_and_wrong_words_1() {
        for (line, code) in [
            ("service create --no-such-flag web", 125),
            ("service create -z web", 125),
            ("service create --replicas many web", 125),
            ("service create --replicas", 125),
            ("node update --availability asleep host-1", 125),
            ("service create", 1),
            ("service rm", 1),
            ("service rollback web extra", 1),
            ("node ls extra", 1),
            ("join 10.0.0.1", 1),
            ("join-token", 1),
            ("join-token nobody", 1),
            ("service nonsense", 1),
            ("nonsense", 1),
            ("service create --help", 0),
        ] {
            assert_eq!(refusal(line), Some(code), "{line}");
        }
    }

    #[test]
    fn the_last_of_equal_flags_counts_and_lists_grow() {
        assert_eq!(refusal("service create --replicas 1 --replicas 2 --label a=1 --label b=2 web"), None);
        let cli = parse(["rswarm", "node", "ls", "--format", "a", "--format", "b"]).unwrap();
        assert!(format!("{cli:?}").contains("\"b\""), "{cli:?}");
    }

    #[test]
    fn the_roots_of_a_daemon_are_not_the_playground_s() {
        for line in
            ["playground --data-root /x", "--run-root /x playground down", "playground down --data-root /x"]
        {
            assert_eq!(refusal(line), Some(1), "{line}");
        }
        assert_eq!(refusal("playground down --name two"), None);
        let help = |words: &[&str]| parse(words).unwrap_err().to_string();
        assert!(!help(&["rswarm", "playground", "--help"]).contains("--data-root"));
        assert!(!help(&["rswarm", "playground", "down", "--help"]).contains("--data-root"));
        assert!(help(&["rswarm", "node", "ls", "--help"]).contains("--data-root"));
    }
}
