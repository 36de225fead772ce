//! `rswarm exec`: a command in a task of this node. Source: Docker's `docker exec`.
//!
//! It talks to the shim of the task's container and needs no daemon, as long as the task is found on this node.

use std::fmt::Display;
use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use futures::FutureExt as _;
use futures::future::select_all;
use rswarm_api::v1;
use rswarm_runtime::{
    Container, Containers, ExecRequest, ExecUser, Failure, RuntimeError, Session, ShimCommand, Streams,
    TerminalSize,
};
use rswarm_types::{Task, TaskId};
use rswarm_worker::resolve_user;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, call};
use crate::node;
use crate::paths::Paths;

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Leave the command alone once it runs
    #[arg(short, long)]
    detach: bool,
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
/// What a pipe holds, and more than a terminal does.
const PIPE: usize = 64 << 10;
/// How long the end waits for output that is still on its way.
const DRAIN: Duration = Duration::from_millis(200);

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
    let containers = Containers::new(paths.containers(), ShimCommand::default());
    let id = find(paths, &containers, client, &args.task).await?;
    let not_running = |what: &dyn Display| anyhow::anyhow!("task `{}` is not running: {what}", args.task);
    let container = containers.find(&id.to_string()).map_err(|error| not_running(&error))?;
    let request = request(&container, &args)?;
    let session = match container.exec(&request) {
        Ok(session) => session,
        Err(RuntimeError::Exec { source, .. }) => {
            eprintln!("Error: {source}");
            std::process::exit(code_of(&source));
        }
        Err(RuntimeError::WrongState { found, .. }) => {
            return Err(not_running(&format_args!("its container is {found}")));
        }
        Err(error) => return Err(error.into()),
    };
    if args.detach {
        return Ok(());
    }
    let code = attend(session, args.interactive).await?;
    std::process::exit(code)
}

fn code_of(failure: &Failure) -> i32 {
    if failure.errno() == Some(libc::ENOENT) { EXIT_NOT_FOUND } else { EXIT_NOT_EXECUTABLE }
}

/// The task of this node that `text` names, by the rules of every other command; of several with one name the one that
/// runs. What is not here may be elsewhere, which a manager knows.
async fn find(paths: &Paths, containers: &Containers, client: &Client, text: &str) -> anyhow::Result<TaskId> {
    let tasks = rswarm_worker::tasks_on_disk(&paths.data_root).with_context(|| {
        format!("cannot look for tasks in `{}`: this needs to be root", paths.data_root.display())
    })?;
    if let Some((id, _)) = tasks.iter().find(|(id, _)| id.to_string() == text) {
        return Ok(*id);
    }
    let runs = |id: &TaskId| {
        let container = containers.find(&id.to_string());
        container.and_then(|container| container.init_pid()).is_ok_and(|pid| pid.is_some())
    };
    let named: Vec<TaskId> = tasks.iter().filter(|(_, name)| name == text).map(|(id, _)| *id).collect();
    let running: Vec<TaskId> = named.iter().copied().filter(runs).collect();
    let found = match (running.is_empty(), named.is_empty()) {
        (false, _) => running,
        (true, false) => named,
        (true, true) => {
            let ids = tasks.iter().map(|(id, _)| *id);
            ids.filter(|id| !text.is_empty() && id.to_string().starts_with(text)).collect()
        }
    };
    match found[..] {
        [one] => Ok(one),
        [] => Err(elsewhere(client, text).await),
        _ => bail!("task {text} is ambiguous ({} matches found on this node)", found.len()),
    }
}

/// Why a task that is not on this node cannot be entered.
async fn elsewhere(client: &Client, text: &str) -> anyhow::Error {
    let known = async {
        let found = call!(client, control.get_task(v1::GetTaskRequest { task: text.to_owned() }))?;
        let task = Task::try_from(found.task.unwrap_or_default())?;
        let Some(node) = task.node_id.map(|id| id.to_string()) else {
            return Ok(format!("task `{text}` has no node yet (it is {})", task.status.state));
        };
        let name = node::names(client).await?.remove(&node).unwrap_or(node);
        let state = task.status.state;
        Ok::<_, anyhow::Error>(format!(
            "task `{text}` is not on this node but on `{name}` (it is {state} there): run this command there"
        ))
    };
    match known.await {
        Ok(words) => anyhow::anyhow!(words),
        Err(error) => error.context(format!("no task `{text}` on this node")),
    }
}

fn request(container: &Container, args: &ExecArgs) -> anyhow::Result<ExecRequest> {
    let mut env = Vec::new();
    let user = args.user.as_deref().map(|words| {
        let file = |path: &str| {
            let bytes = container.read_file(path.as_ref(), rswarm_worker::USERS_BYTES_MAX);
            bytes.map(|bytes| String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
        };
        let user = resolve_user(words, &[], &file("/etc/passwd")?, &file("/etc/group")?)?;
        env.push(format!("HOME={}", user.home));
        anyhow::Ok(ExecUser { uid: user.uid, gid: user.gid, additional_gids: user.additional_gids })
    });
    let user = user.transpose()?;
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

/// Of the terminal we have.
fn size() -> Option<TerminalSize> {
    let size = tcgetwinsize(io::stdin()).or_else(|_| tcgetwinsize(io::stdout())).ok()?;
    Some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
}

/// Stays with the command until it has ended: passes input, output, signals and the terminal's size on. Gives its exit
/// code.
async fn attend(mut session: Session, interactive: bool) -> anyhow::Result<i32> {
    let (input, output, errors) = match &mut session.streams {
        Streams::Terminal(master) => (Some(master.try_clone()?), master.try_clone()?, None),
        Streams::Pipes { stdin, stdout, stderr } => {
            (stdin.take(), stdout.try_clone()?, Some(stderr.try_clone()?))
        }
    };
    // Without it, the command sees the end of its input at once.
    let input = input.filter(|_| interactive);
    let _raw = (interactive && matches!(session.streams, Streams::Terminal(_))).then(Raw::begin);
    let session = &session;
    let ended = CancellationToken::new();
    let output = forward(output, tokio::io::stdout(), session, &ended);
    let errors = async {
        match errors {
            Some(errors) => forward(errors, tokio::io::stderr(), session, &ended).await,
            None => Ok(()),
        }
    };
    let work = async { tokio::try_join!(output, errors, until_end(session, &ended)) };
    tokio::select! {
        done = work => drop(done.context("cannot stay with the command")?),
        failed = feed(input) => return Err(failed),
    }
    Ok(session.wait()?.shell_code())
}

/// Passes signals and the terminal's size on until the command has ended.
async fn until_end(session: &Session, ended: &CancellationToken) -> io::Result<()> {
    // Those that ask a program for something, of all that reach this one.
    let kinds = [
        SignalKind::hangup(),
        SignalKind::interrupt(),
        SignalKind::quit(),
        SignalKind::terminate(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    let mut signals = kinds
        .into_iter()
        .map(|kind| Ok((kind.as_raw_value(), signal(kind)?)))
        .collect::<io::Result<Vec<(i32, Signal)>>>()?;
    let mut resized = signal(SignalKind::window_change())?;
    // It may have changed since it was said.
    let follow_size = || size().map_or(Ok(()), |size| session.resize(size));
    follow_size()?;
    // Nothing is read through it.
    let end = pipe::Receiver::from_owned_fd_unchecked(session.as_fd().try_clone_to_owned()?)?;
    loop {
        let next = signals.iter_mut().map(|(number, signal)| Box::pin(signal.recv().map(|_| *number)));
        tokio::select! {
            ready = end.readable() => {
                ended.cancel();
                return ready;
            }
            (number, ..) = select_all(next) => {
                // If it has just ended, that is the next thing we hear.
                let _ = session.signal(number);
            }
            _ = resized.recv() => follow_size()?,
        }
    }
}

/// Copies what the command writes. When it has ended, what it wrote until then is still to come; others that it has
/// left behind may write for as long as they like.
async fn forward(
    from: OwnedFd,
    to: impl AsyncWrite + Unpin,
    session: &Session,
    ended: &CancellationToken,
) -> io::Result<()> {
    let mut from = pipe::Receiver::from_owned_fd_unchecked(non_blocking(from)?)?;
    let mut to = Some(to);
    let mut buffer = vec![0; 8 << 10];
    let mut left = PIPE;
    while left > 0 {
        let over = ended.is_cancelled();
        let len = tokio::select! {
            // An error: nobody has the terminal open any more.
            read = from.read(&mut buffer) => read.unwrap_or(0),
            () = ended.cancelled(), if !over => continue,
            () = tokio::time::sleep(DRAIN), if over => 0,
        };
        if len == 0 {
            break;
        }
        if over {
            left = left.saturating_sub(len);
        }
        if let Some(open) = &mut to
            && (open.write_all(&buffer[..len]).await.is_err() || open.flush().await.is_err())
        {
            // Nobody reads what it writes, which it would have been told here.
            to = None;
            let _ = session.signal(libc::SIGPIPE);
        }
    }
    Ok(())
}

/// Copies our input. Returns only when that is not possible.
async fn feed(to: Option<OwnedFd>) -> anyhow::Error {
    let copied = async {
        let Some(to) = to else { return Ok(()) };
        let mut to = pipe::Sender::from_owned_fd_unchecked(non_blocking(to)?)?;
        let mut from = tokio::io::stdin();
        let mut buffer = vec![0; 8 << 10];
        loop {
            let len = from.read(&mut buffer).await?;
            // Its end is the command's: `to` is dropped. A command that does not read is none the worse for it.
            if len == 0 || to.write_all(&buffer[..len]).await.is_err() {
                return Ok(());
            }
        }
    };
    match copied.await {
        Ok(()) => std::future::pending().await,
        Err(error) => {
            let error: io::Error = error;
            anyhow::Error::new(error).context("cannot pass standard input on")
        }
    }
}

fn non_blocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// Our terminal while it only passes things on: keys are the command's to make something of.
struct Raw(Option<Termios>);

impl Raw {
    fn begin() -> Self {
        let Ok(before) = tcgetattr(io::stdin()) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &raw);
        Self(Some(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Drain, before);
        }
    }
}
