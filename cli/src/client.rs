//! The command line's connection to the daemon on this host, and how its refusals are worded.

use std::path::{Path, PathBuf};

use rswarm_api::channel;
use rswarm_api::v1::control_client::ControlClient;
use rswarm_api::v1::local_client::LocalClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Largest message either way: lists of ten thousand tasks fit.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Clients of one daemon, by its unix socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    channel: Channel,
}

/// A call that failed, in words for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(
        "cannot reach the daemon at `{}`: {reason}; start one with `rswarm daemon`, or create a cluster with \
         `rswarm init`", socket.display()
    )]
    Unreachable { socket: PathBuf, reason: String },
    #[error("the daemon's socket `{}` is root's: run this as root or by `sudo`", socket.display())]
    NotRoot { socket: PathBuf },
    #[error("{0}")]
    Refused(String),
}

impl Client {
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), channel: channel::unix(socket) }
    }

    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    pub fn local(&self) -> LocalClient<Channel> {
        LocalClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Words a status: a broken connection names the socket, a refusal is the daemon's own text.
    pub fn error(&self, status: &Status) -> CallError {
        let io = {
            let mut source = std::error::Error::source(status);
            let mut found = None;
            while let Some(error) = source {
                if let Some(io) = error.downcast_ref::<std::io::Error>() {
                    found = Some((io.kind(), io.to_string()));
                }
                source = error.source();
            }
            found
        };
        match (status.code(), io) {
            (Code::Unavailable, Some((std::io::ErrorKind::PermissionDenied, _))) => {
                CallError::NotRoot { socket: self.socket.clone() }
            }
            (Code::Unavailable, Some((_, reason))) => {
                CallError::Unreachable { socket: self.socket.clone(), reason }
            }
            _ => CallError::Refused(status.message().to_owned()),
        }
    }
}

/// `client.control().list_nodes(..).await` with its status worded.
macro_rules! call {
    ($client:expr, $side:ident . $method:ident ( $request:expr )) => {
        $client
            .$side()
            .$method($request)
            .await
            .map(tonic::Response::into_inner)
            .map_err(|s| $client.error(&s))
    };
}
pub(crate) use call;

/// Reads `--filter key=value` arguments: one entry a key, in the order of their first appearance.
pub fn filters(args: &[String]) -> anyhow::Result<Vec<rswarm_api::v1::Filter>> {
    let mut filters: Vec<rswarm_api::v1::Filter> = Vec::new();
    for arg in args {
        let (key, value) = arg
            .split_once('=')
            .ok_or_else(|| anyhow::anyhow!("invalid filter `{arg}`: expected key=value, like name=web"))?;
        let (key, value) = (key.trim().to_lowercase(), value.trim().to_owned());
        match filters.iter_mut().find(|filter| filter.key == key) {
            Some(filter) => filter.values.push(value),
            None => filters.push(rswarm_api::v1::Filter { key, values: vec![value] }),
        }
    }
    Ok(filters)
}

/// Does `work` for each name, goes on after a failure, and fails at the end with all of them joined.
/// Source: swarm-parity 1.0.
pub async fn for_each<F>(names: &[String], mut work: F) -> anyhow::Result<()>
where
    F: AsyncFnMut(&str) -> anyhow::Result<()>,
{
    let mut errors = Vec::new();
    for name in names {
        if let Err(error) = work(name).await {
            errors.push(format!("{error:#}"));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(errors.join("\n"))) }
}
