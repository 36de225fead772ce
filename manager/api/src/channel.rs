//! Connections for clients: mutual TLS over TCP to other nodes, and the unix socket of the daemon on this host.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
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
    let endpoint = if is_own(&addr) { endpoint() } else { kept_alive(endpoint(), KEEP_ALIVE_TIMEOUT) };
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
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
    kept_alive(endpoint(), LOCAL_KEEP_ALIVE_TIMEOUT).connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(&*path).await.map(TokioIo::new) }
        },
    ))
}

fn endpoint() -> Endpoint {
    // The authority is only a label here: connectors above know where to go.
    Endpoint::from_static("http://rswarm").connect_timeout(CONNECT_TIMEOUT).http2_adaptive_window(true)
}

fn kept_alive(endpoint: Endpoint, timeout: Duration) -> Endpoint {
    endpoint
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(timeout)
        .keep_alive_while_idle(true)
}

/// Whether `addr` is of this host, so that nothing on the way can fail silently and asking for life would only wake
/// an idle node. The kernel knows: it takes an own address as the source of what goes there.
fn is_own(addr: &str) -> bool {
    let Ok(addr) = addr.parse::<SocketAddr>() else { return false };
    // Connecting a datagram socket looks the route up and sends nothing.
    let source = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect(addr)?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == addr.ip())
}

#[cfg(test)]
mod tests {
    use super::is_own;

    #[test]
    fn only_addresses_of_this_host_are_own() {
        assert!(is_own("127.0.0.1:2377"));
        for other in ["192.0.2.1:2377", "localhost:2377", "127.0.0.1", ""] {
            assert!(!is_own(other), "{other}");
        }
    }
}
