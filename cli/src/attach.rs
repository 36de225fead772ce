//! `rswarm attach`: what a task of this node writes, and its terminal. Source: Docker's `docker attach`.

use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::bail;
use clap::Args;
use rswarm_runtime::{AttachEnd, Attachment, Container, TerminalSize};

use crate::client::Client;
use crate::here;
use crate::paths::Paths;
use crate::streams::{self, Attended, DetachKeys, Ends};

#[derive(Debug, Args)]
pub struct AttachArgs {
    /// What is typed to leave a terminal, and the task alone
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// Pass nothing on that is typed
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to a task without a terminal
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true,
          action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Id, name or prefix of the id of a task that runs on this node
    task: String,
}

/// Ends the process with the task's exit code, if it is still there then.
pub async fn run(paths: &Paths, client: &Client, args: AttachArgs) -> anyhow::Result<()> {
    let container = here::container(paths, client, &args.task).await?;
    let mut attachment = container.attach().map_err(|error| here::explain(&args.task, error))?;
    let terminal = attachment.stderr.is_none();
    if terminal && !args.no_stdin && !io::stdin().is_terminal() {
        bail!("task `{}` has a terminal, and standard input is none: use --no-stdin", args.task);
    }
    let input = attachment.stdin.as_ref().filter(|_| !args.no_stdin);
    let ends = Ends {
        input: input.map(OwnedFd::try_clone).transpose()?,
        output: attachment.stdout.try_clone()?,
        errors: attachment.stderr.take(),
        detach_keys: args.detach_keys,
    };
    if let Some(size) = streams::size() {
        // Of another size than it will have at once, so that its program shows itself anew.
        attachment.resize(TerminalSize { rows: size.rows.saturating_add(1), ..size })?;
    }
    let task = Attached { attachment, container, proxy: args.sig_proxy && !terminal };
    let code = match streams::attend(&task, ends).await {
        Ok(()) => match task.attachment.wait()? {
            AttachEnd::Exited(status) => status.shell_code(),
            AttachEnd::Lagging => bail!(
                "what task `{}` writes was not read in time: its log has all of it (rswarm service logs)",
                args.task
            ),
        },
        Err(left) => left.into_code()?,
    };
    std::process::exit(code)
}

struct Attached {
    attachment: Attachment,
    container: Container,
    proxy: bool,
}

impl AsFd for Attached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.attachment.as_fd()
    }
}

impl Attended for Attached {
    fn signalled(&self, number: i32) -> bool {
        if self.proxy {
            // If it has just ended, that is the next thing we hear.
            let _ = self.container.kill(number, false);
        }
        self.proxy
    }

    fn unread(&self) -> bool {
        false
    }

    fn resized(&self, size: TerminalSize) -> io::Result<()> {
        self.attachment.resize(size)
    }
}
