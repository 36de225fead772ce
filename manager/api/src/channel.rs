//! Connections for clients: mutual TLS over TCP to other nodes, and the unix socket of the daemon on this host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

/// How long connecting may take, TLS included: beyond it a host that drops packets looks like one that is gone.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that shows no life for these two together is broken, also when no packet says so. A worker then has
/// half of the time after which its node counts as down (5 s) to find the new leader.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_millis(1500);
/// For the daemon on this host, whose end the kernel tells at once: this is for one that hangs. One that is slow, on a
/// busy or emulated machine, must not look like it.
const LOCAL_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(30);

/// A channel to the manager at `addr` (`HOST:PORT`), connected when first used and again when it broke.
///
/// `config` is asked before each connection, so a renewed certificate is used from then on. Whom the other side must
/// be is decided by that configuration; the name in the address is not, since an address is only a hint.
pub fn tls<F>(addr: &str, config: F) -> Channel
where
    F: Fn() -> Arc<rustls::ClientConfig> + Send + Sync + 'static,
{
    let addr: Arc<str> = addr.into();
    let config = Arc::new(config);
    endpoint(KEEP_ALIVE_TIMEOUT).connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (addr, config) = (addr.clone(), config.clone());
        async move {
            let tcp = TcpStream::connect(&*addr).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from("rswarm").map_err(std::io::Error::other)?;
            let stream = tokio_rustls::TlsConnector::from(config()).connect(name, tcp).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    }))
}

/// A channel to the daemon that listens on the unix socket `path`.
pub fn unix(path: &Path) -> Channel {
    let path: Arc<PathBuf> = Arc::new(path.to_owned());
    endpoint(LOCAL_KEEP_ALIVE_TIMEOUT).connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(&*path).await.map(TokioIo::new) }
    }))
}

fn endpoint(keep_alive_timeout: Duration) -> Endpoint {
    // The authority is only a label here: connectors above know where to go.
    Endpoint::from_static("http://rswarm")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(keep_alive_timeout)
        .keep_alive_while_idle(true)
        .http2_adaptive_window(true)
}
