//! The manager's door: accepts TLS connections, learns who is at the other end, and hands them to the RPC services.
//!
//! Each connection is handshaken with the configuration that is current when it arrives, so a renewed certificate is
//! used from then on and the listener stays. A handshake has its own task and a time limit: a slow or hostile peer
//! delays nobody. Who may call what is decided per request, in [`crate::gate`].

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rswarm_identity::{Identity, NodeCertificate, Receiver, peer_certificate};
use rswarm_types::{NodeId, Timestamp};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::gate::Gate;

/// A handshake takes a millisecond on a LAN; a peer that needs longer than this is not worth a socket.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at once. Each costs a signature; more than this at a time only makes all of them late.
const HANDSHAKES_MAX: usize = 256;
/// Of these from one address: all nodes behind one address translation may come back at the same time.
const HANDSHAKES_PER_ADDRESS_MAX: usize = 64;
/// Finished handshakes that wait for the RPC server, which takes them at once.
const ACCEPTED_QUEUE: usize = 64;
/// After an error of `accept` that is not the peer's fault, most likely too many open files.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// A client that answers no ping for these two together is gone, and its streams end.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Life of a connection that was opened with an expired certificate: enough to renew it. Whoever goes on with it, as a
/// manager would with the one it replicates over, is to come back with the new certificate.
const EXPIRED_LIFE: Duration = Duration::from_secs(1);
/// How long requests in flight may take to end when the manager stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the manager cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("`{0}` is in use by another process: stop it, or choose another port with `--listen-addr`")]
    InUse(SocketAddr),
    #[error("`{0}` is no address of this host: choose one that is with `--listen-addr`")]
    NotHere(SocketAddr),
    #[error("failed to listen on `{addr}`")]
    Bind { addr: SocketAddr, source: io::Error },
}

/// Opens the manager's port.
pub(crate) async fn bind(addr: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(addr).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(addr),
        io::ErrorKind::AddrNotAvailable => ListenError::NotHere(addr),
        _ => ListenError::Bind { addr, source },
    })
}

/// Serves what is behind `gate` on `listener` until `stop`; returns once every connection is closed.
pub(crate) async fn serve(
    listener: TcpListener,
    identity: Receiver,
    gate: Gate,
    connections: Arc<Connections>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (accepted, incoming) = mpsc::channel(ACCEPTED_QUEUE);
    let accept = accept_loop(listener, identity, connections.clone(), accepted);
    let accept = tokio::spawn(stop.clone().run_until_cancelled_owned(accept));
    let server = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .http2_adaptive_window(Some(true))
        .serve_with_incoming_shutdown(gate, ReceiverStream::new(incoming), stop.clone().cancelled_owned());
    tokio::pin!(server);
    let result = tokio::select! {
        result = &mut server => result,
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN_TIMEOUT).await } => {
            connections.close_all();
            server.await
        }
    };
    accept.abort();
    result
}

async fn accept_loop(
    listener: TcpListener,
    identity: Receiver,
    connections: Arc<Connections>,
    accepted: mpsc::Sender<io::Result<Connection>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let quota = Arc::new(Quota::default());
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let (tcp, addr) = match listener.accept().await {
            Ok(pair) => pair,
            Err(error) => {
                warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Some(place) = quota.take(addr.ip()) else {
            debug!(%addr, "refused a connection: too many unfinished handshakes from its address");
            continue;
        };
        let acceptor = TlsAcceptor::from(identity.server_config());
        let (connections, accepted) = (connections.clone(), accepted.clone());
        tokio::spawn(async move {
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(acceptor, tcp, addr)).await;
            drop((permit, place));
            match handshake {
                Ok(Ok((stream, peer))) => {
                    // Fails only when the server has stopped; the connection then closes by being dropped.
                    let _ = accepted.send(Ok(connections.register(stream, peer))).await;
                }
                Ok(Err(error)) => debug!(%addr, %error, "refused a connection"),
                Err(_) => debug!(%addr, "a handshake took too long"),
            }
        });
    }
}

/// Unfinished handshakes by address, so that one host cannot take the places of all others.
#[derive(Debug, Default)]
struct Quota {
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One handshake's place; given back when dropped.
struct Place {
    quota: Arc<Quota>,
    ip: IpAddr,
}

impl Quota {
    fn take(self: &Arc<Self>, ip: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(ip).or_default();
        if *count >= HANDSHAKES_PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(Place { quota: self.clone(), ip })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.quota.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.ip);
            }
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    addr: SocketAddr,
) -> io::Result<(TlsStream<TcpStream>, Peer)> {
    tcp.set_nodelay(true)?;
    let stream = acceptor.accept(tcp).await?;
    let certificate = peer_certificate(stream.get_ref().1.peer_certificates()).map_err(io::Error::other)?;
    let expired = certificate.is_some_and(|certificate| certificate.is_expired(Timestamp::now()));
    Ok((stream, Peer { addr, certificate, expired }))
}

/// The other end of a connection: in the extensions of every request that came over it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub addr: SocketAddr,
    /// The certificate it was opened with; `None` if it showed none.
    pub certificate: Option<NodeCertificate>,
    /// Whether that had expired already. One that expires later does not end the connection: whoever opened it has
    /// renewed meanwhile.
    pub expired: bool,
}

impl Peer {
    /// Who that is, as the certificate says.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.certificate.map(|certificate| certificate.identity)
    }
}

/// The open connections, so that those of a node that was removed or demoted can be closed.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_node: BTreeMap<(Option<NodeId>, u64), Handle>,
}

#[derive(Debug)]
struct Handle {
    certificate: Option<NodeCertificate>,
    close: CancellationToken,
}

impl Connections {
    fn register(self: &Arc<Self>, stream: TlsStream<TcpStream>, peer: Peer) -> Connection {
        let token = CancellationToken::new();
        let mut open = self.lock();
        let key = (peer.identity().map(|identity| identity.node), open.next);
        open.next += 1;
        open.by_node.insert(key, Handle { certificate: peer.certificate, close: token.clone() });
        drop(open);
        if peer.expired {
            let token = token.clone();
            tokio::spawn(async move {
                tokio::time::sleep(EXPIRED_LIFE).await;
                token.cancel();
            });
        }
        Connection { stream, peer, closed: Box::pin(token.cancelled_owned()), key, connections: self.clone() }
    }

    /// Closes the connections that `node` opened with such a certificate.
    pub(crate) fn close_of(&self, node: NodeId, such: impl Fn(&NodeCertificate) -> bool) {
        for (_, handle) in self.lock().by_node.range((Some(node), 0)..=(Some(node), u64::MAX)) {
            if handle.certificate.as_ref().is_some_and(&such) {
                handle.close.cancel();
            }
        }
    }

    fn close_all(&self) {
        for handle in self.lock().by_node.values() {
            handle.close.cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An accepted connection. Looks closed by the peer once its token is cancelled.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    key: (Option<NodeId>, u64),
    connections: Arc<Connections>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.lock().by_node.remove(&self.key);
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.closed.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
