//! Several managers: followers serve, roles change, a restart loses nothing.

use rswarm_api::v1;
use rswarm_api::v1::ca_client::CaClient;
use rswarm_identity::{Credentials, NodeKey, Receiver, Store};
use rswarm_manager::{Ended, Manager};
use rswarm_types::Role;
use tonic::Code;

use crate::host::{Host, PATIENCE, Worker, channel, config, eventually};
use crate::services::{create, spec, wait_running};

/// A new certificate, in whatever role the cluster wants.
pub async fn renew(addr: &str, identity: &Receiver) -> Receiver {
    let key = NodeKey::generate().unwrap();
    let request = v1::RenewCertificateRequest { csr_pem: key.csr_pem().unwrap() };
    let mut ca = CaClient::new(channel(addr, identity));
    let issued = ca.renew_certificate(request).await.unwrap().into_inner();
    Store::new(Credentials::new(&issued.root_cert_pem, &issued.cert_pem, key).unwrap()).1
}

pub async fn set_role(via: &Host, id: &str, role: v1::Role) -> Result<(), tonic::Status> {
    let node = via.node(id).await?;
    let spec = v1::NodeSpec { role: role.into(), ..node.spec.unwrap() };
    let version = node.meta.unwrap().version;
    let request = v1::UpdateNodeRequest { id: id.to_owned(), version, spec: Some(spec) };
    via.control().update_node(request).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_serves_reads_writes_and_logs_and_sends_workers_to_the_leader() {
    let leader = Host::found().await;
    let follower = leader.join().await;
    // Its session is opened at the follower, which redirects.
    let worker = follower.worker("w1").await;

    create(&follower, spec("web", "web", 2)).await;
    let seen = follower.control().list_services(v1::ListServicesRequest::default()).await.unwrap();
    assert_eq!(seen.into_inner().services.len(), 1, "it reads what it wrote");
    wait_running(&follower, "web", 2).await;
    wait_running(&leader, "web", 2).await;
    assert_eq!(worker.tasks().len(), 2);

    let request =
        v1::ServiceLogsRequest { targets: vec!["web".to_owned()], ..v1::ServiceLogsRequest::default() };
    let mut stream = follower.control().service_logs(request).await.unwrap().into_inner();
    let mut lines = 0;
    while let Some(reply) = stream.message().await.unwrap() {
        lines += reply.records.len();
    }
    assert_eq!(lines, 4);

    for host in [&leader, &follower] {
        let filters = vec![v1::Filter { key: "role".to_owned(), values: vec!["manager".to_owned()] }];
        let nodes = eventually("both managers are seen as reachable", || async {
            let request = v1::ListNodesRequest { filters: filters.clone() };
            let nodes = host.control().list_nodes(request).await.unwrap().into_inner().nodes;
            let fine = nodes.iter().all(|node| {
                node.manager.as_ref().is_some_and(|m| m.reachability() == v1::Reachability::Reachable)
            });
            (nodes.len() == 2 && fine).then_some(nodes)
        })
        .await;
        let leads: Vec<_> = nodes.iter().filter(|n| n.manager.as_ref().unwrap().leader).collect();
        assert_eq!(leads.len(), 1);
        assert_eq!(leads[0].id, leader.identity.identity().node.to_string());
    }
    assert_eq!(follower.manager.info().managers.len(), 2);
    follower.manager.shutdown().await;
    leader.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_promoted_and_demoted_again() {
    let first = Host::found().await;
    let own = first.identity.identity().node.to_string();
    let last = set_role(&first, &own, v1::Role::Worker).await.err().unwrap();
    assert_eq!(last.code(), Code::FailedPrecondition);
    assert!(last.message().contains("last manager"), "{}", last.message());

    let mut worker = first.worker("w1").await;
    let id = worker.id();
    worker.wait_role(v1::Role::Worker).await;
    set_role(&first, &id, v1::Role::Manager).await.unwrap();
    worker.wait_role(v1::Role::Manager).await;
    let identity = renew(&first.addr, &worker.identity).await;
    assert_eq!(identity.identity().role, Role::Manager);
    let second = first.join_as(identity.clone()).await;
    eventually("it is a member of the group", || async { first.node(&id).await.ok()?.manager }).await;

    set_role(&second, &id, v1::Role::Worker).await.unwrap();
    worker.wait_role(v1::Role::Worker).await;
    let node = first.node(&id).await.unwrap();
    assert_eq!((node.role(), node.manager), (v1::Role::Worker, None));
    // The certificate still says manager, but the cluster knows better.
    let mut control = v1::control_client::ControlClient::new(channel(&first.addr, &identity));
    let refused = control.list_nodes(v1::ListNodesRequest::default()).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(renew(&first.addr, &identity).await.identity().role, Role::Worker);
    second.manager.shutdown().await;
    create(&first, spec("web", "web", 0)).await;
    first.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_demoted_hands_over_and_ends() {
    let first = Host::found().await;
    let second = first.join().await;
    let third = first.join().await;
    let id = first.identity.identity().node.to_string();
    // Only recorded managers count as ones that stay, and the leader records them after they have joined.
    for host in [&second, &third] {
        let joined = host.identity.identity().node.to_string();
        eventually("it is recorded as a manager", || async { second.node(&joined).await.ok()?.manager })
            .await;
    }
    set_role(&second, &id, v1::Role::Worker).await.unwrap();
    eventually("the role has changed", || async {
        let node = second.node(&id).await.ok()?;
        (node.role() == v1::Role::Worker && node.manager.is_none()).then_some(())
    })
    .await;
    create(&third, spec("web", "web", 0)).await;
    first.manager.shutdown().await;
    second.manager.shutdown().await;
    third.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_manager_knows_all_and_its_workers_come_back() {
    let host = Host::found().await;
    let worker = host.worker("w1").await;
    create(&host, spec("web", "web", 1)).await;
    wait_running(&host, "web", 1).await;
    let (identity, addr, dir) = (host.identity.clone(), host.addr.clone(), host.dir);
    let ended = host.manager.ended();
    host.manager.shutdown().await;
    assert!(!matches!(*ended.borrow(), Some(Ended::Fatal(_))), "a shutdown is no failure");

    let manager = Manager::start(config(dir.path(), &identity, &addr)).await.unwrap();
    let host = Host { manager, identity, addr, dir };
    let worker = Worker::connect(&host.addr, worker.identity.clone(), "w1").await;
    wait_running(&host, "web", 1).await;
    let received = eventually("the worker has its full set", || async { worker.tasks().pop() });
    assert_eq!(tokio::time::timeout(PATIENCE, received).await.unwrap().service_name, "web");
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_leader_the_cluster_goes_on() {
    let first = Host::found().await;
    let second = first.join().await;
    let third = first.join().await;
    let worker = second.worker("w1").await;
    create(&second, spec("web", "web", 1)).await;
    wait_running(&second, "web", 1).await;

    first.manager.shutdown().await;
    create(&third, spec("later", "web", 1)).await;
    let worker = Worker::connect(&second.addr, worker.identity.clone(), "w1").await;
    wait_running(&second, "later", 1).await;
    wait_running(&third, "web", 1).await;
    assert_eq!(worker.tasks().len(), 2);
    second.manager.shutdown().await;
    third.manager.shutdown().await;
}
