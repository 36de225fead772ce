//! `rswarm exec`: a command in a task of this node. Source: Docker's `docker exec`.
//!
//! It talks to the shim of the task's container and needs no daemon, as long as the task is found on this node.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use rswarm_runtime::{
    Container, ExecRequest, ExecUser, Failure, RuntimeError, Session, Streams, TerminalSize,
};
use rswarm_worker::resolve_user;

use crate::client::Client;
use crate::here;
use crate::paths::Paths;
use crate::streams::{self, Attended, DetachKeys, Ends, size};

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Leave the command alone once it runs
    #[arg(short, long)]
    detach: bool,
    /// What is typed to leave a terminal, and the command alone
    #[arg(long, value_name = "KEYS", requires = "tty")]
    detach_keys: Option<DetachKeys>,
    /// Set a variable; a name alone takes the value it has here
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// More rights than the task has (not supported)
    #[arg(long, hide = true)]
    privileged: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Run as somebody else than the task does
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Id, name or prefix of the id of a task that runs on this node
    task: String,
    /// What to run, and what it is given
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Source: Docker's `docker exec`; bash(1), "EXIT STATUS".
const EXIT_NOT_EXECUTABLE: i32 = 126;
const EXIT_NOT_FOUND: i32 = 127;

/// Ends the process with the command's exit code, unless it could not come to that.
pub async fn run(paths: &Paths, client: &Client, args: ExecArgs) -> anyhow::Result<()> {
    if args.privileged {
        bail!(
            "--privileged is not supported: a command has the rights of its task (see service create --cap-add)"
        );
    }
    if args.tty && args.interactive && !args.detach && !io::stdin().is_terminal() {
        bail!("standard input is no terminal: leave out --tty or --interactive");
    }
    let container = here::container(paths, client, &args.task).await?;
    let request = request(&container, &args)?;
    let session = match container.exec(&request) {
        Ok(session) => session,
        Err(RuntimeError::Exec { source, .. }) => {
            eprintln!("Error: {source}");
            std::process::exit(code_of(&source));
        }
        Err(error) => return Err(here::explain(&args.task, error)),
    };
    if args.detach {
        return Ok(());
    }
    let code = attend(session, &args).await?;
    std::process::exit(code)
}

fn code_of(failure: &Failure) -> i32 {
    if failure.errno() == Some(libc::ENOENT) { EXIT_NOT_FOUND } else { EXIT_NOT_EXECUTABLE }
}

fn request(container: &Container, args: &ExecArgs) -> anyhow::Result<ExecRequest> {
    let user = args.user.as_deref().map(|words| {
        let file = |path: &str| {
            let bytes = container.read_file(path.as_ref(), rswarm_worker::USERS_BYTES_MAX);
            bytes.map(|bytes| String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
        };
        let user = resolve_user(words, &[], &file("/etc/passwd")?, &file("/etc/group")?)?;
        anyhow::Ok(ExecUser { uid: user.uid, gid: user.gid, additional_gids: user.additional_gids })
    });
    let user = user.transpose()?;
    let mut env = Vec::new();
    for word in &args.env {
        match word.split_once('=') {
            Some(("", _)) | None if word.is_empty() || word.starts_with('=') => {
                bail!("invalid variable `{word}`: expected KEY=VALUE or KEY");
            }
            Some(_) => env.push(word.clone()),
            None => env.extend(std::env::var(word).ok().map(|value| format!("{word}={value}"))),
        }
    }
    Ok(ExecRequest {
        args: args.command.clone(),
        env,
        cwd: args.workdir.clone(),
        user,
        terminal: args.tty.then(|| size().unwrap_or_default()),
    })
}

impl Attended for Session {
    fn signalled(&self, number: i32) -> bool {
        // If it has just ended, that is the next thing we hear.
        let _ = self.signal(number);
        true
    }

    /// Which it would have been told here.
    fn unread(&self) -> bool {
        self.signalled(libc::SIGPIPE)
    }

    fn resized(&self, size: TerminalSize) -> io::Result<()> {
        self.resize(size)
    }
}

/// Stays with the command until it has ended. Gives its exit code.
async fn attend(mut session: Session, args: &ExecArgs) -> anyhow::Result<i32> {
    let (input, output, errors) = match &mut session.streams {
        Streams::Terminal(master) => (Some(master.try_clone()?), master.try_clone()?, None),
        Streams::Pipes { stdin, stdout, stderr } => {
            (stdin.take(), stdout.try_clone()?, Some(stderr.try_clone()?))
        }
    };
    // Without it, the command sees the end of its input at once.
    let input = input.filter(|_| args.interactive);
    let detach_keys = args.detach_keys.clone().unwrap_or_default();
    match streams::attend(&session, Ends { input, output, errors, detach_keys }).await {
        Ok(()) => Ok(session.wait()?.shell_code()),
        Err(left) => left.into_code(),
    }
}
