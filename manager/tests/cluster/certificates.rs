//! What a certificate is good for as its owner's place in the cluster changes: given back, outdated, expired, renewed.

use std::time::{Duration, Instant};

use rswarm_api::v1;
use rswarm_api::v1::ca_client::CaClient;
use rswarm_api::v1::control_client::ControlClient;
use rswarm_api::v1::raft_client::RaftClient;
use rswarm_identity::{
    Credentials, JoinToken, NodeCertificate, NodeKey, Receiver, RootDigest, ServerExpectation, Store,
    bootstrap_client_config, peer_certificate,
};
use rswarm_manager::Manager;
use rswarm_types::Timestamp;
use tonic::{Code, Status};

use crate::host::{
    Host, PATIENCE, Worker, channel, config, enroll, enroll_trusting, eventually, expired, open_session,
};
use crate::membership::{renew, set_role};
use crate::services::{create, spec, wait_running};

/// What the manager at `addr` says to a message between members. One that the gate lets through is refused further in:
/// it makes no sense.
async fn replicate(addr: &str, identity: &Receiver) -> Code {
    let cluster_id = identity.identity().cluster.to_string();
    let message = v1::RaftMessage { cluster_id, to: 1, body: b"nonsense".to_vec() };
    let mut raft = RaftClient::new(channel(addr, identity));
    let refused = raft.vote(message.clone()).await.err().unwrap().code();
    assert_eq!(raft.append_entries(message).await.err().unwrap().code(), refused);
    refused
}

/// Asks again where its connection was closed, since the node was demoted or removed, before it had the answer. Who is
/// then refused as a stranger has what it asked for.
async fn withdraw(addr: &str, identity: &Receiver) -> Result<(), Status> {
    let mut asked_before = false;
    loop {
        let answer = CaClient::new(channel(addr, identity)).withdraw(v1::WithdrawRequest {}).await;
        match answer.map(drop) {
            Err(status) if asked_before && status.code() == Code::PermissionDenied => return Ok(()),
            Err(status) if !asked_before && matches!(status.code(), Code::Unknown | Code::Unavailable) => {
                asked_before = true;
            }
            answer => return answer,
        }
    }
}

/// The certificate that the server at `addr` shows.
async fn shown(addr: &str, identity: &Receiver) -> NodeCertificate {
    let tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
    let config = identity.client_config(ServerExpectation::Manager);
    let name = "rswarm".try_into().unwrap();
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.unwrap();
    peer_certificate(stream.get_ref().1.peer_certificates()).unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demoted_manager_is_out_at_once_and_a_promoted_one_in_again() {
    let first = Host::found().await;
    let second = first.join().await;
    let id = second.identity.identity().node.to_string();
    eventually("it is recorded as a manager", || async { first.node(&id).await.ok()?.manager }).await;
    assert_eq!(replicate(&first.addr, &second.identity).await, Code::InvalidArgument, "members are let in");
    create(&first, spec("web", "web", 0)).await;
    let mut control = ControlClient::new(channel(&first.addr, &second.identity));
    let mut watch = control
        .watch_service(v1::WatchServiceRequest { service: "web".to_owned() })
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap().unwrap();

    set_role(&first, &id, v1::Role::Worker).await.unwrap();
    eventually("the role has changed", || async {
        (first.node(&id).await.ok()?.role() == v1::Role::Worker).then_some(())
    })
    .await;
    let ends = async { while let Ok(Some(_)) = watch.message().await {} };
    tokio::time::timeout(PATIENCE, ends).await.expect("what it had opened as a manager ends");
    assert_eq!(replicate(&first.addr, &second.identity).await, Code::PermissionDenied);
    second.manager.shutdown().await;

    set_role(&first, &id, v1::Role::Manager).await.unwrap();
    eventually("the role has changed back", || async {
        (first.node(&id).await.ok()?.role() == v1::Role::Manager).then_some(())
    })
    .await;
    let old = &second.identity;
    assert_eq!(replicate(&first.addr, old).await, Code::PermissionDenied, "the first time is over");
    let refused = ControlClient::new(channel(&first.addr, old))
        .list_nodes(v1::ListNodesRequest::default())
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // What tells it to renew is the index of its role, also if it never heard that it was a worker for a while.
    let (_session, mut messages, _) = open_session(&first.addr, old, "m2").await.unwrap();
    let view = loop {
        if let Some(v1::manager_message::Message::Cluster(view)) =
            messages.message().await.unwrap().unwrap().message
        {
            break view;
        }
    };
    assert_eq!(view.role(), v1::Role::Manager);
    assert!(view.renew_below > old.certificate().index.0);

    let renewed = renew(&first.addr, old).await;
    assert!(renewed.certificate().index.0 >= view.renew_below);
    let again = first.join_as(renewed).await;
    create(&again, spec("later", "web", 0)).await;
    assert_eq!(replicate(&first.addr, &again.identity).await, Code::InvalidArgument);
    assert_eq!(
        replicate(&again.addr, &first.identity).await,
        Code::FailedPrecondition,
        "for member 1 it is not"
    );
    again.manager.shutdown().await;
    first.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_never_came_can_take_itself_back() {
    let host = Host::found().await;
    let tokens = host.tokens().await;
    let (issued, identity) = enroll(&host.addr, &tokens.worker).await.unwrap();
    assert!(host.node(&issued.node_id).await.is_ok());
    withdraw(&host.addr, &identity).await.unwrap();
    assert_eq!(host.node(&issued.node_id).await.err().unwrap().code(), Code::NotFound);
    let refused = open_session(&host.addr, &identity, "w1").await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied, "{}", refused.message());

    // One that came has to be removed by the managers.
    let worker = host.worker("w2").await;
    let refused = withdraw(&host.addr, &worker.identity).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{}", refused.message());
    assert!(host.node(&worker.id()).await.is_ok());
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_takes_itself_back_leaves_the_group_able_to_write() {
    let host = Host::found().await;
    let second = host.join().await;
    let third = host.join().await;
    // At a follower, which has the leader take it out of the group.
    withdraw(&second.addr, &third.identity).await.unwrap();
    third.manager.shutdown().await;
    // Of three members two would be enough in any case, of two both are needed.
    withdraw(&host.addr, &second.identity).await.unwrap();
    second.manager.shutdown().await;
    create(&host, spec("web", "web", 0)).await;
    let request = v1::ListNodesRequest::default();
    let nodes = host.control().list_nodes(request).await.unwrap().into_inner().nodes;
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_proves_the_key_and_is_renewed() {
    let (host, root) = Host::found_with_root().await;
    let (_, fresh) = enroll(&host.addr, &host.tokens().await.worker).await.unwrap();
    let old = Store::new(expired(&root, &fresh.identity())).1;

    let refused = open_session(&host.addr, &old, "w1").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("expired"), "{}", refused.message());
    let renewed = renew(&host.addr, &old).await;
    assert_eq!(renewed.identity(), fresh.identity());
    assert!(!renewed.certificate().is_expired(Timestamp::now()));
    let worker = Worker::connect(&host.addr, renewed, "w1").await;
    create(&host, spec("web", "web", 1)).await;
    wait_running(&host, "web", 1).await;
    assert_eq!(worker.tasks().len(), 1);

    // A manager's gives no rights before it is renewed, and a node that was removed is not renewed.
    let manager = Store::new(expired(&root, &host.identity.identity())).1;
    assert_eq!(replicate(&host.addr, &manager).await, Code::Unauthenticated);
    let remove = v1::RemoveNodeRequest { node: worker.id(), force: true };
    host.control().remove_node(remove).await.unwrap();
    let csr_pem = NodeKey::generate().unwrap().csr_pem().unwrap();
    let refused = CaClient::new(channel(&host.addr, &old))
        .renew_certificate(v1::RenewCertificateRequest { csr_pem })
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied, "{}", refused.message());
    host.manager.shutdown().await;
}

/// After a long sleep of all managers nobody could be asked: each has what it takes.
#[tokio::test(flavor = "multi_thread")]
async fn managers_whose_certificates_have_all_expired_come_back() {
    let (first, root) = Host::found_with_root().await;
    let second = first.join().await;
    let token = first.tokens().await.worker;
    let mut asleep = Vec::new();
    for host in [first, second] {
        let claims = host.identity.identity();
        host.manager.shutdown().await;
        asleep.push((expired(&root, &claims), host.addr, host.dir));
    }
    let mut hosts = Vec::new();
    for (credentials, addr, dir) in asleep {
        let (store, identity) = Store::new(credentials);
        let manager = Manager::start(config(dir.path(), &identity, &addr)).await.unwrap();
        hosts.push((store, Host { manager, identity, addr, dir }));
    }
    for (store, host) in &hosts {
        let key = NodeKey::generate().unwrap();
        let renewed = host.manager.renew_own(&key.csr_pem().unwrap()).unwrap();
        let credentials = Credentials::new(&renewed.root_cert_pem, &renewed.cert_pem, key).unwrap();
        assert_eq!(credentials.identity(), host.identity.identity());
        store.publish(credentials);
    }
    eventually("the two agree on a leader", || async { enroll(&hosts[1].1.addr, &token).await.ok() }).await;
    for (_, host) in hosts {
        host.manager.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renewal_cuts_neither_streams_nor_listeners() {
    let first = Host::found().await;
    // A manager whose certificate can be exchanged under it.
    let (_, enrolled) = enroll(&first.addr, &first.tokens().await.manager).await.unwrap();
    let (store, identity) = Store::new(enrolled.credentials());
    let second = first.join_as(identity).await;
    let worker = first.worker("w1").await;
    let (worker_store, worker_identity) = Store::new(worker.identity.credentials());
    create(&first, spec("web", "web", 1)).await;
    wait_running(&first, "web", 1).await;
    let mut control = ControlClient::new(channel(&second.addr, &first.identity));
    let mut watch = control
        .watch_service(v1::WatchServiceRequest { service: "web".to_owned() })
        .await
        .unwrap()
        .into_inner();
    watch.message().await.unwrap().unwrap();
    let before = shown(&second.addr, &worker_identity).await;

    store.publish(renew(&first.addr, &second.identity).await.credentials());
    worker_store.publish(renew(&first.addr, &worker_identity).await.credentials());

    // The one listener shows the new certificate, while what was open goes on: session, watch and replication.
    let after = shown(&second.addr, &worker_identity).await;
    assert!(after.index > before.index, "{after:?}");
    assert_eq!(after.identity, before.identity);
    create(&second, spec("later", "web", 1)).await;
    wait_running(&second, "later", 1).await;
    assert_eq!(worker.tasks().len(), 2, "its session of before is told");
    let remove = v1::RemoveServiceRequest { service: "web".to_owned() };
    second.control().remove_service(remove).await.unwrap();
    let news = tokio::time::timeout(PATIENCE, watch.message()).await.expect("the watch goes on");
    assert!(!matches!(news, Err(ref status) if status.code() == Code::Unavailable), "{news:?}");
    second.manager.shutdown().await;
    first.manager.shutdown().await;
}

/// Anyone may ask to join: a token that cannot be of this cluster is refused without a word to the other managers.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_cannot_be_right_costs_no_quorum() {
    let first = Host::found().await;
    let second = first.join().await;
    let tokens = first.tokens().await;
    second.manager.shutdown().await;
    let digest = tokens.worker.parse::<JoinToken>().unwrap().digest;
    let trust = move || bootstrap_client_config(digest);
    let foreign = JoinToken { digest: RootDigest::from_bytes([7; 32]), secret: "0".repeat(25) }.to_string();
    let begun = Instant::now();
    let refused = enroll_trusting(&first.addr, "RSWTKN-1-0", trust).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument, "{}", refused.message());
    let refused = enroll_trusting(&first.addr, &foreign, trust).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied, "{}", refused.message());
    // To ask for a leader in vain takes 5 s.
    assert!(begun.elapsed() < Duration::from_millis(4500), "took {:?}", begun.elapsed());
    // Without a majority nobody can tell whether a secret is the present one.
    let refused = enroll(&first.addr, &tokens.worker).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable, "{}", refused.message());
    first.manager.shutdown().await;
}
