//! Real handshakes, mostly over a pipe in memory.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use common::{Cluster, HOUR, MINUTE, node_id};
use rswarm_identity::{
    BACKDATE, CLOCK_LEEWAY, Credentials, HandshakeError, Identity, NodeCertificate, NodeKey, Receiver,
    RootDigest, ServerExpectation, Store, VerifyError, VerifyRootError, bootstrap_client_config, diagnose,
    peer_certificate, probe_client_config, verify_root,
};
use rswarm_types::{Role, Timestamp};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What each side knows of the other once a byte went there and back.
struct Outcome {
    client: io::Result<Option<NodeCertificate>>,
    server: io::Result<Option<NodeCertificate>>,
}

impl Outcome {
    fn both(self) -> (Identity, Option<Identity>) {
        let (client, server) = (self.client.expect("client"), self.server.expect("server"));
        (client.expect("servers show a certificate").identity, server.map(|peer| peer.identity))
    }

    fn client_error(&self) -> HandshakeError {
        diagnose(self.client.as_ref().expect_err("the client fails")).expect("a TLS failure")
    }

    fn server_error(&self) -> HandshakeError {
        diagnose(self.server.as_ref().expect_err("the server fails")).expect("a TLS failure")
    }
}

async fn client_side<S: AsyncRead + AsyncWrite + Unpin>(
    config: Arc<ClientConfig>,
    stream: S,
) -> io::Result<(tokio_rustls::client::TlsStream<S>, Option<NodeCertificate>)> {
    let name = ServerName::try_from("ignored.invalid").unwrap();
    let mut stream = TlsConnector::from(config).connect(name, stream).await?;
    let peer = peer_certificate(stream.get_ref().1.peer_certificates()).unwrap();
    ping(&mut stream).await?;
    Ok((stream, peer))
}

async fn ping(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    stream.write_all(b"x").await?;
    stream.flush().await?;
    stream.read_u8().await.map(drop)
}

async fn handshake(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Outcome {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let server = async move {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let peer = peer_certificate(stream.get_ref().1.peer_certificates()).unwrap();
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        stream.flush().await?;
        Ok(peer)
    };
    let client = async move { client_side(client, near).await.map(|(_, peer)| peer) };
    let both = async { tokio::join!(client, server) };
    let (client, server) =
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("handshake in time");
    Outcome { client, server }
}

/// A clock that stands still.
#[derive(Debug)]
struct Fixed(Timestamp);

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_nanos(self.0.0)))
    }
}

fn receiver(credentials: Credentials) -> Receiver {
    Store::new(credentials).1
}

fn receiver_at(credentials: Credentials, now: Timestamp) -> Receiver {
    Store::with_clock(credentials, Arc::new(Fixed(now))).1
}

#[tokio::test]
async fn nodes_of_one_cluster_know_each_other() {
    let cluster = Cluster::new(1);
    let manager = receiver(cluster.node(1, Role::Manager));
    for role in [Role::Worker, Role::Manager] {
        let peer = receiver(cluster.node(2, role));
        for expect in [ServerExpectation::Manager, ServerExpectation::Node(node_id(1))] {
            let (server, client) =
                handshake(manager.server_config(), peer.client_config(expect)).await.both();
            assert_eq!(server, manager.identity());
            assert_eq!(client, Some(Identity { node: node_id(2), role, cluster: cluster.id }));
        }
    }
}

#[tokio::test]
async fn a_server_of_another_cluster_is_refused() {
    let (ours, theirs) = (Cluster::new(1), Cluster::new(2));
    let manager = receiver(theirs.node(1, Role::Manager));
    let worker = receiver(ours.node(2, Role::Worker));
    let outcome = handshake(manager.server_config(), worker.client_config(ServerExpectation::Manager)).await;
    assert_eq!(outcome.client_error(), HandshakeError::Refused(VerifyError::UnknownIssuer));
    assert_eq!(outcome.server_error(), HandshakeError::PeerDoesNotTrustUs);
}

#[tokio::test]
async fn a_client_of_another_cluster_is_refused() {
    let (ours, theirs) = (Cluster::new(1), Cluster::new(2));
    let manager = receiver(ours.node(1, Role::Manager));
    // A client that takes our manager, but shows a certificate of its own cluster.
    let stranger = theirs.node(2, Role::Manager);
    let mut config = ClientConfig::clone(&bootstrap_client_config(ours.ca.digest()));
    config.client_auth_cert_resolver =
        receiver(stranger).client_config(ServerExpectation::Manager).client_auth_cert_resolver.clone();
    let outcome = handshake(manager.server_config(), Arc::new(config)).await;
    assert_eq!(outcome.server_error(), HandshakeError::Refused(VerifyError::UnknownIssuer));
    assert_eq!(outcome.client_error(), HandshakeError::PeerDoesNotTrustUs);
}

#[tokio::test]
async fn one_root_does_not_make_two_clusters_one() {
    let ours = Cluster::new(1);
    let restored = Cluster {
        ca: rswarm_identity::RootCa::from_pem(ours.ca.cert_pem(), ours.ca.key_pem()).unwrap(),
        id: Cluster::new(9).id,
    };
    let manager = receiver(restored.node(1, Role::Manager));
    let worker = receiver(ours.node(2, Role::Worker));
    let outcome = handshake(manager.server_config(), worker.client_config(ServerExpectation::Manager)).await;
    let expected = VerifyError::WrongCluster { expected: ours.id, found: restored.id };
    assert_eq!(outcome.client_error(), HandshakeError::Refused(expected));
}

#[tokio::test]
async fn a_worker_is_no_manager_and_a_node_no_other() {
    let cluster = Cluster::new(1);
    let worker = receiver(cluster.node(1, Role::Worker));
    let peer = receiver(cluster.node(2, Role::Manager));
    let outcome = handshake(worker.server_config(), peer.client_config(ServerExpectation::Manager)).await;
    let expected = VerifyError::NotManager { node: node_id(1), role: Role::Worker };
    assert_eq!(outcome.client_error(), HandshakeError::Refused(expected));

    let third = peer.client_config(ServerExpectation::Node(node_id(3)));
    let outcome = handshake(worker.server_config(), third).await;
    let expected = VerifyError::WrongNode { expected: node_id(3), found: node_id(1) };
    assert_eq!(outcome.client_error(), HandshakeError::Refused(expected));

    let first = peer.client_config(ServerExpectation::Node(node_id(1)));
    assert_eq!(handshake(worker.server_config(), first).await.both().0.node, node_id(1));
}

#[tokio::test]
async fn a_joining_node_needs_no_certificate_and_accepts_only_the_root_of_its_token() {
    let (ours, theirs) = (Cluster::new(1), Cluster::new(2));
    let manager = receiver(ours.node(1, Role::Manager));
    let (server, client) =
        handshake(manager.server_config(), bootstrap_client_config(ours.ca.digest())).await.both();
    assert_eq!((server, client), (manager.identity(), None));

    let outcome = handshake(manager.server_config(), bootstrap_client_config(theirs.ca.digest())).await;
    let expected = VerifyError::WrongRoot { expected: theirs.ca.digest(), found: Some(ours.ca.digest()) };
    assert_eq!(outcome.client_error(), HandshakeError::Refused(expected.clone()));

    let worker = receiver(ours.node(2, Role::Worker));
    let outcome = handshake(worker.server_config(), bootstrap_client_config(ours.ca.digest())).await;
    assert!(matches!(outcome.client_error(), HandshakeError::Refused(VerifyError::NotManager { .. })));

    assert!(verify_root(ours.ca.cert_pem(), ours.ca.digest()).is_ok());
    let refused = verify_root(ours.ca.cert_pem(), theirs.ca.digest());
    assert_eq!(refused, Err(VerifyRootError::Refused(expected)));
    let two = format!("{}{}", ours.ca.cert_pem(), theirs.ca.cert_pem());
    assert!(verify_root(&two, ours.ca.digest()).is_err(), "no second root may ride along");
    assert!(matches!(verify_root("", RootDigest::from_bytes([0; 32])), Err(VerifyRootError::Read(_))));
}

/// A stranger may show the right root, for that is public, but not a certificate signed by it.
#[tokio::test]
async fn showing_the_root_is_not_enough() {
    let (ours, theirs) = (Cluster::new(1), Cluster::new(2));
    let key = NodeKey::generate().unwrap();
    let issued = theirs.issue(&key, &theirs.claims(1, Role::Manager), Timestamp::now());
    let roots = format!("{}{}", theirs.ca.cert_pem(), ours.ca.cert_pem());
    let impostor = receiver(Credentials::new(&roots, &issued.pem, key).unwrap());
    let outcome = handshake(impostor.server_config(), bootstrap_client_config(ours.ca.digest())).await;
    assert_eq!(outcome.client_error(), HandshakeError::Refused(VerifyError::UnknownIssuer));
}

#[tokio::test]
async fn while_the_root_is_exchanged_both_are_trusted() {
    let (old, new) = (Cluster::new(1), Cluster::new(1));
    let roots = format!("{}{}", old.ca.cert_pem(), new.ca.cert_pem());
    let with_both = |cluster: &Cluster, node, role| {
        let key = NodeKey::generate().unwrap();
        let issued = cluster.issue(&key, &cluster.claims(node, role), Timestamp::now());
        receiver(Credentials::new(&roots, &issued.pem, key).unwrap())
    };
    let (manager, worker) = (with_both(&new, 1, Role::Manager), with_both(&old, 2, Role::Worker));
    let client = worker.client_config(ServerExpectation::Manager);
    assert_eq!(handshake(manager.server_config(), client).await.both().1, Some(worker.identity()));
}

#[tokio::test]
async fn validity_is_judged_with_leeway_and_the_error_names_the_clock() {
    let cluster = Cluster::new(1);
    let issued = Timestamp::from_millis(1_800_000_000_000);
    let credentials = || cluster.node_at(1, Role::Manager, issued);
    let (start, end) = (issued.before(BACKDATE), issued.after(HOUR));
    let attempt = |now: Timestamp| {
        // Both see the same time, so that the client judges the server first.
        let manager = receiver_at(credentials(), now);
        let worker = receiver_at(cluster.node_at(2, Role::Worker, issued), now);
        async move { handshake(manager.server_config(), worker.client_config(ServerExpectation::Manager)).await }
    };
    for now in [issued, start.before(CLOCK_LEEWAY), end.after(CLOCK_LEEWAY)] {
        attempt(now).await.both();
    }
    let now = start.before(CLOCK_LEEWAY + MINUTE);
    let outcome = attempt(now).await;
    let error = VerifyError::NotYetValid { not_before: start, now };
    assert_eq!(outcome.client_error(), HandshakeError::Refused(error.clone()));
    assert_eq!(outcome.server_error(), HandshakeError::PeerSaysExpired);
    assert_eq!(
        error.to_string(),
        "the certificate is not valid yet: it starts at 2027-01-15T07:00:00Z, this host's clock says \
         2027-01-15T06:44:00Z; check this host's clock"
    );
    let now = end.after(CLOCK_LEEWAY + MINUTE);
    let error = VerifyError::Expired { not_after: end, now };
    assert_eq!(attempt(now).await.client_error(), HandshakeError::Refused(error));
}

#[tokio::test]
async fn an_expired_client_still_proves_its_key_and_is_known_as_expired() {
    let cluster = Cluster::new(1);
    let now = Timestamp::now();
    let manager = receiver(cluster.node(1, Role::Manager));
    let worker = receiver(cluster.node_at(2, Role::Worker, now.before(3 * HOUR)));
    let outcome = handshake(manager.server_config(), worker.client_config(ServerExpectation::Manager)).await;
    let shown = outcome.server.unwrap().unwrap();
    assert_eq!(shown.identity, worker.identity());
    assert!(shown.is_expired(now) && !manager.certificate().is_expired(now));

    // Of another cluster it proves nothing, and an expired server is no server.
    let root = rswarm_identity::RootCa::generate(now.before(4 * HOUR)).unwrap();
    let theirs = Cluster { ca: root, ..Cluster::new(2) };
    let stranger = receiver(theirs.node_at(2, Role::Worker, now.before(3 * HOUR)));
    let mut config = ClientConfig::clone(&bootstrap_client_config(cluster.ca.digest()));
    config.client_auth_cert_resolver =
        stranger.client_config(ServerExpectation::Manager).client_auth_cert_resolver.clone();
    let outcome = handshake(manager.server_config(), Arc::new(config)).await;
    assert_eq!(outcome.server_error(), HandshakeError::Refused(VerifyError::UnknownIssuer));
    let expired = receiver(cluster.node_at(1, Role::Manager, now.before(3 * HOUR)));
    let worker = receiver(cluster.node(2, Role::Worker));
    let outcome = handshake(expired.server_config(), worker.client_config(ServerExpectation::Manager)).await;
    assert!(matches!(outcome.client_error(), HandshakeError::Refused(VerifyError::Expired { .. })));
}

/// However wrong a clock is, the manager's time can be asked for; the token is shown to nobody by then.
#[tokio::test]
async fn a_joining_node_can_compare_clocks_that_are_years_apart() {
    let cluster = Cluster::new(1);
    let digest = cluster.ca.digest();
    let now = Timestamp::now();
    for issued in [now.after(1000 * 24 * HOUR), now.before(1000 * 24 * HOUR)] {
        let manager = receiver(cluster.node_at(1, Role::Manager, issued));
        let outcome = handshake(manager.server_config(), bootstrap_client_config(digest)).await;
        assert!(matches!(
            outcome.client_error(),
            HandshakeError::Refused(VerifyError::Expired { .. } | VerifyError::NotYetValid { .. })
        ));
        let (server, client) = handshake(manager.server_config(), probe_client_config(digest)).await.both();
        assert_eq!((server, client), (manager.identity(), None));
        let others = probe_client_config(Cluster::new(2).ca.digest());
        let outcome = handshake(manager.server_config(), others).await;
        assert!(matches!(outcome.client_error(), HandshakeError::Refused(VerifyError::WrongRoot { .. })));
    }
}

#[tokio::test]
async fn new_credentials_reach_a_live_listener_and_old_connections_live() {
    let cluster = Cluster::new(1);
    let (store, manager) = Store::new(cluster.node(1, Role::Worker));
    let worker = receiver(cluster.node(2, Role::Worker));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = manager.clone();
    let accept_loop = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = TlsAcceptor::from(accepting.server_config());
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                while let Ok(byte) = stream.read_u8().await {
                    stream.write_u8(byte).await.unwrap();
                    stream.flush().await.unwrap();
                }
            });
        }
    });
    let connect = || async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        client_side(worker.client_config(ServerExpectation::Node(node_id(1))), stream).await.unwrap()
    };
    let (mut old, before) = connect().await;
    store.publish(cluster.node(1, Role::Manager));
    let (_new, after) = connect().await;
    assert_eq!(before.unwrap().identity.role, Role::Worker);
    assert_eq!(after.unwrap().identity.role, Role::Manager);
    assert_eq!(manager.identity().role, Role::Manager);
    ping(&mut old).await.expect("the old connection still works");
    accept_loop.abort();
}

#[tokio::test]
async fn what_is_not_tls_is_called_so() {
    let (near, mut far) = tokio::io::duplex(4096);
    far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let error =
        client_side(bootstrap_client_config(RootDigest::from_bytes([0; 32])), near).await.unwrap_err();
    assert_eq!(diagnose(&error), Some(HandshakeError::NotRswarm));
    assert_eq!(diagnose(&io::Error::other("something else")), None);
}
