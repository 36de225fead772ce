//! Who may join, and who may call what.

use rswarm_api::v1;
use rswarm_api::v1::ca_client::CaClient;
use rswarm_api::v1::control_client::ControlClient;
use rswarm_api::v1::raft_client::RaftClient;
use rswarm_identity::{JoinToken, RootDigest, bootstrap_client_config};
use rswarm_types::Role;
use tonic::Code;

use crate::host::{Host, channel, config, enroll, enroll_trusting, eventually, open_session};

#[tokio::test(flavor = "multi_thread")]
async fn tokens_admit_in_their_role_until_replaced_and_only_in_their_cluster() {
    let host = Host::found().await;
    let tokens = host.tokens().await;
    let (issued, worker) = enroll(&host.addr, &tokens.worker).await.unwrap();
    assert_eq!((issued.role(), worker.identity().role), (v1::Role::Worker, Role::Worker));
    assert_eq!(issued.manager_addrs, std::slice::from_ref(&host.addr));
    let (_, manager) = enroll(&host.addr, &tokens.manager).await.unwrap();
    assert_eq!(manager.identity().role, Role::Manager);
    let known = host.node(&worker.identity().node.to_string()).await.unwrap();
    assert_eq!(known.role(), v1::Role::Worker);

    let rotate = v1::RotateJoinTokenRequest { role: v1::Role::Worker.into() };
    let renewed = host.control().rotate_join_token(rotate).await.unwrap().into_inner();
    assert_ne!(renewed.worker, tokens.worker);
    assert_eq!(renewed.manager, tokens.manager);
    let refused = enroll(&host.addr, &tokens.worker).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("replaced"), "{}", refused.message());
    assert!(enroll(&host.addr, &renewed.worker).await.is_ok());

    let digest = tokens.worker.parse::<JoinToken>().unwrap().digest;
    let others = JoinToken { digest: RootDigest::from_bytes([7; 32]), secret: "0".repeat(25) }.to_string();
    let trust = move || bootstrap_client_config(digest);
    let refused = enroll_trusting(&host.addr, &others, trust).await.err().unwrap();
    assert!(refused.message().contains("another cluster"), "{}", refused.message());
    let refused = enroll_trusting(&host.addr, "RSWTKN-1-0", trust).await.err().unwrap();
    assert_eq!(refused.code(), Code::InvalidArgument, "{}", refused.message());
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_and_strangers_neither_read_nor_write_desired_state() {
    let host = Host::found().await;
    let tokens = host.tokens().await;
    let (_, worker) = enroll(&host.addr, &tokens.worker).await.unwrap();

    let mut control = ControlClient::new(channel(&host.addr, &worker));
    let refused = control.list_services(v1::ListServicesRequest::default()).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), "`/rswarm.v1.Control/ListServices` is for managers, not for a worker");
    let refused = control.get_join_tokens(v1::GetJoinTokensRequest {}).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut raft = RaftClient::new(channel(&host.addr, &worker));
    let refused = raft.propose(v1::ProposeRequest::default()).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let digest = tokens.worker.parse::<JoinToken>().unwrap().digest;
    let anonymous = rswarm_api::channel::tls(&host.addr, move || bootstrap_client_config(digest));
    let mut control = ControlClient::new(anonymous.clone());
    let refused = control.list_nodes(v1::ListNodesRequest::default()).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut ca = CaClient::new(anonymous);
    let refused = ca.renew_certificate(v1::RenewCertificateRequest::default()).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let root = ca.get_root_certificate(v1::GetRootCertificateRequest {}).await.unwrap().into_inner();
    assert_eq!(rswarm_identity::verify_root(&root.root_cert_pem, digest).err().map(|e| e.to_string()), None);

    // A node of another cluster does not even get through the handshake.
    let other = Host::found().await;
    let mut control = ControlClient::new(channel(&host.addr, &other.identity));
    assert!(control.list_nodes(v1::ListNodesRequest::default()).await.is_err());
    other.manager.shutdown().await;
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_is_refused_and_its_session_ends() {
    let host = Host::found().await;
    let worker = host.worker("w1").await;
    let (id, identity) = (worker.id(), worker.identity.clone());
    let remove = |force| v1::RemoveNodeRequest { node: id.clone(), force };

    let refused = host.control().remove_node(remove(false)).await.err().unwrap();
    assert!(refused.message().contains("is not down and can't be removed"), "{}", refused.message());
    let own = v1::RemoveNodeRequest { node: host.identity.identity().node.to_string(), force: true };
    let refused = host.control().remove_node(own).await.err().unwrap();
    assert!(refused.message().contains("demote it"), "{}", refused.message());

    host.control().remove_node(remove(true)).await.unwrap();
    worker.wait_refused().await;
    let refused = eventually("the removed node is refused", || async {
        let status = open_session(&host.addr, &identity, "w1").await.err()?;
        (status.code() == Code::PermissionDenied).then_some(status)
    })
    .await;
    assert!(refused.message().contains("was removed from the cluster"), "{}", refused.message());
    assert_eq!(host.node(&id).await.err().unwrap().code(), Code::NotFound);
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_cannot_be_listened_on_is_named() {
    let host = Host::found().await;
    let dir = tempfile::tempdir().unwrap();
    for (addr, expected) in [(host.addr.as_str(), "is in use"), ("192.0.2.1:0", "is no address of this host")]
    {
        let error =
            rswarm_manager::Manager::start(config(dir.path(), &host.identity, addr)).await.err().unwrap();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(expected), "{cause}");
    }
    host.manager.shutdown().await;
}
