//! The command line's connection to the daemon on this host, and how its refusals are worded.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rswarm_api::channel;
use rswarm_api::v1::control_client::ControlClient;
use rswarm_api::v1::local_client::LocalClient;
use tonic::Status;
use tonic::transport::Channel;

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
    Unreachable { socket: PathBuf, reason: &'static str },
    #[error(
        "the daemon at `{}` broke off ({reason}): a change that was asked of it may or may not have been made, so \
         look before you repeat it; its log says more", socket.display()
    )]
    BrokeOff { socket: PathBuf, reason: String },
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
        let socket = self.socket.clone();
        // What the daemon itself has said has no cause on this side.
        let Some(cause) = std::error::Error::source(status) else {
            return CallError::Refused(in_words(status));
        };
        let causes = std::iter::successors(Some(cause), |error| error.source());
        let io = causes.filter_map(|error| error.downcast_ref::<std::io::Error>()).last();
        match io.map(std::io::Error::kind) {
            Some(ErrorKind::PermissionDenied) => CallError::NotRoot { socket },
            Some(ErrorKind::NotFound) => CallError::Unreachable { socket, reason: "there is no such socket" },
            Some(ErrorKind::ConnectionRefused) => {
                CallError::Unreachable { socket, reason: "nobody listens there any more" }
            }
            Some(ErrorKind::TimedOut) => CallError::Unreachable { socket, reason: "it does not answer" },
            _ => {
                let reason = io.map_or_else(|| "connection closed".to_owned(), ToString::to_string);
                CallError::BrokeOff { socket, reason }
            }
        }
    }
}

/// The text of a refusal; of one without a text what its code stands for.
fn in_words(status: &Status) -> String {
    match status.message() {
        "" => status.code().description().to_lowercase(),
        text => text.to_owned(),
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn ping(socket: &Path) -> String {
        let client = Client::new(socket);
        let answer = call!(client, local.ping(rswarm_api::v1::PingRequest {}));
        answer.expect_err("nobody answers there").to_string()
    }

    #[tokio::test]
    async fn a_daemon_that_dies_in_mid_call_is_told_from_one_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("rswarm.sock");
        let words = ping(&socket).await;
        assert!(words.contains("cannot reach the daemon") && words.contains("rswarm init"), "{words}");

        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let daemon = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Something was asked for; it dies over it.
            stream.read_exact(&mut [0; 64]).await.unwrap();
        });
        let words = ping(&socket).await;
        daemon.await.unwrap();
        assert!(words.contains("may or may not have been made"), "{words}");
        assert!(!words.contains("transport error"), "{words}");

        let words = ping(&socket).await;
        assert!(words.contains("cannot reach the daemon") && words.contains("nobody listens"), "{words}");
    }

    #[test]
    fn a_refusal_without_a_text_is_still_one_in_words() {
        assert_eq!(in_words(&Status::already_exists("name `web` is in use")), "name `web` is in use");
        assert_eq!(
            in_words(&Status::new(tonic::Code::Unavailable, "")),
            "the service is currently unavailable"
        );
    }
}
