//! Networks: made and removed by users, and told to the nodes together with their tasks.

use std::collections::BTreeMap;

use rswarm_api::v1;
use rswarm_types::netmap::{EndpointState, NetworkMap};
use tonic::{Code, Status};

use crate::host::{Host, ODD_NETWORK, eventually};
use crate::services::{create, spec, wait_running};

fn overlay(name: &str) -> v1::NetworkSpec {
    let driver = v1::NetworkDriver::Overlay.into();
    v1::NetworkSpec { name: name.to_owned(), driver, ..Default::default() }
}

async fn make(host: &Host, spec: v1::NetworkSpec) -> Result<v1::Network, Status> {
    let request = v1::CreateNetworkRequest { spec: Some(spec) };
    Ok(host.control().create_network(request).await?.into_inner().network.unwrap())
}

async fn update(host: &Host, held: &v1::Network, spec: v1::NetworkSpec) -> Result<v1::Network, Status> {
    let version = held.meta.unwrap().version;
    let request = v1::UpdateNetworkRequest { id: held.id.clone(), version, spec: Some(spec) };
    Ok(host.control().update_network(request).await?.into_inner().network.unwrap())
}

async fn remove(host: &Host, network: &str) -> Result<(), Status> {
    let request = v1::RemoveNetworkRequest { network: network.to_owned() };
    host.control().remove_network(request).await.map(drop)
}

fn publishing(name: &str, published: Option<u32>, network: &str) -> v1::ServiceSpec {
    let mut spec = spec(name, "web", 2);
    let at = v1::NetworkAttachment { network: network.to_owned(), aliases: vec!["www".to_owned()] };
    spec.task.as_mut().unwrap().networks.push(at);
    let port = v1::PortConfig { target: 80, published, ..Default::default() };
    spec.endpoint = Some(v1::EndpointSpec { ports: vec![port], ..Default::default() });
    spec
}

/// How many endpoints of each state a node knows.
fn endpoints(map: &NetworkMap) -> BTreeMap<EndpointState, usize> {
    map.endpoints.values().fold(BTreeMap::new(), |mut counts, endpoint| {
        *counts.entry(endpoint.state).or_insert(0) += 1;
        counts
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_learn_of_networks_with_their_tasks_and_of_endpoints_as_they_come_and_go() {
    let host = Host::found().await;
    let (one, two) = (host.worker("w1").await, host.worker("w2").await);
    eventually("every node is known to every node", || async {
        [&one, &two].iter().all(|worker| worker.map().nodes.len() == 3).then_some(())
    })
    .await;
    let numbers: Vec<u16> = one.map().nodes.values().map(|node| node.number).collect();
    assert_eq!(numbers.iter().max(), Some(&3), "{numbers:?}");

    let network = make(&host, overlay("front")).await.unwrap();
    assert_eq!((network.vni, network.subnet.as_str()), (Some(4097), "10.1.0.0/20"));
    let service = create(&host, publishing("web", None, "front")).await.service.unwrap();
    let endpoint = service.endpoint.unwrap();
    assert_eq!((endpoint.ports[0].published, endpoint.vips.len()), (Some(30_000), 1));
    wait_running(&host, "web", 2).await;
    for worker in [&one, &two] {
        eventually("both tasks are ready to both nodes", || async {
            (endpoints(&worker.map()) == [(EndpointState::Ready, 2)].into()).then_some(())
        })
        .await;
        let map = worker.map();
        let names: Vec<&str> = map.networks.values().map(|network| network.name.as_str()).collect();
        assert_eq!((names.len(), map.services.len(), map.data_path_port), (2, 1, 4789));
        let web = map.services.values().next().unwrap();
        assert_eq!((web.ports[0].published, web.networks.len()), (Some(30_000), 1));
        assert_eq!(web.networks.values().next().unwrap().aliases, ["www"]);
        assert!(map.endpoints.values().all(|endpoint| endpoint.addresses.len() == 2));
        assert_eq!(worker.tasks()[0].networks[0].name, "ingress", "the way back to clients comes first");
    }

    let grown = v1::NetworkSpec { subnet: "10.0.0.0/15".to_owned(), ..network.spec.clone().unwrap() };
    let refused = update(&host, &network, grown).await.unwrap_err();
    assert!(refused.message().contains("overlaps `10.0.0.0/20`, network `ingress`"), "{refused:?}");
    let moved = v1::NetworkSpec { internal: true, ..network.spec.clone().unwrap() };
    assert_eq!(update(&host, &network, moved).await.unwrap_err().code(), Code::InvalidArgument);
    let bridge = v1::GetNetworkRequest { network: "bridge".to_owned(), verbose: false };
    let bridge = host.control().get_network(bridge).await.unwrap().into_inner().network.unwrap();
    let refused = update(&host, &bridge, bridge.spec.clone().unwrap()).await.unwrap_err();
    assert!(refused.message().contains("every cluster has, and cannot be changed"), "{refused:?}");
    let labels = [("a".to_owned(), "b".to_owned())].into();
    let labelled = v1::NetworkSpec { labels, ..network.spec.clone().unwrap() };
    let newer = update(&host, &network, labelled.clone()).await.unwrap();
    assert_eq!((newer.spec, newer.subnet), (Some(labelled.clone()), network.subnet.clone()));
    assert_eq!(
        update(&host, &network, labelled).await.unwrap_err().code(),
        Code::Aborted,
        "of an old version"
    );

    let seen = v1::GetNetworkRequest { network: "front".to_owned(), verbose: true };
    let seen = host.control().get_network(seen).await.unwrap().into_inner();
    assert_eq!((seen.services.len(), seen.tasks.len()), (1, 2));

    two.power_off();
    eventually("what is on a dead node is no endpoint", || async {
        let map = one.map();
        let node = two.id();
        map.endpoints.values().all(|endpoint| endpoint.node.to_string() != node).then_some(())
    })
    .await;
    assert_eq!(one.map().nodes.len(), 3, "it may come back");
    host.control().remove_service(v1::RemoveServiceRequest { service: "web".to_owned() }).await.unwrap();
    eventually("nothing is left but the mesh", || async {
        let map = one.map();
        (map.endpoints.is_empty() && map.services.is_empty() && map.networks.len() == 1).then_some(())
    })
    .await;
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clashes_are_refused_by_name_and_what_is_unused_is_pruned() {
    let host = Host::found().await;
    make(&host, overlay("front")).await.unwrap();
    create(&host, publishing("web", Some(8080), "front")).await;
    let refused = |status: Status, code: Code, part: &str| {
        assert!(status.code() == code && status.message().contains(part), "{status:?}");
    };
    let request =
        v1::CreateServiceRequest { spec: Some(publishing("api", Some(8080), "front")), ..Default::default() };
    let status = host.control().create_service(request).await.unwrap_err();
    refused(status, Code::FailedPrecondition, "port 8080/tcp is published by service `web` already");

    let status = make(&host, overlay("front")).await.unwrap_err();
    refused(status, Code::AlreadyExists, "name `front` is in use");
    let clash = v1::NetworkSpec { subnet: "10.1.0.0/24".to_owned(), ..overlay("back") };
    let status = make(&host, clash).await.unwrap_err();
    refused(status, Code::FailedPrecondition, "subnet `10.1.0.0/24` overlaps `10.1.0.0/20`, network `front`");
    let options = [("encrypted".to_owned(), "maybe".to_owned())].into();
    let status = make(&host, v1::NetworkSpec { options, ..overlay("back") }).await.unwrap_err();
    refused(status, Code::InvalidArgument, "invalid option `encrypted=maybe`");

    refused(remove(&host, "front").await.unwrap_err(), Code::FailedPrecondition, "is in use by service");
    refused(remove(&host, "ingress").await.unwrap_err(), Code::FailedPrecondition, "is in use by service");
    refused(remove(&host, "bridge").await.unwrap_err(), Code::FailedPrecondition, "every cluster has");
    refused(remove(&host, "nope").await.unwrap_err(), Code::NotFound, "nope");

    for name in ["idle", "kept"] {
        let labels = [("keep".to_owned(), String::new())].into();
        let labels = if name == "kept" { labels } else { Default::default() };
        make(&host, v1::NetworkSpec { labels, ..overlay(name) }).await.unwrap();
    }
    let list = async |key: &str, value: &str| {
        let filters = vec![v1::Filter { key: key.to_owned(), values: vec![value.to_owned()] }];
        let listed = host.control().list_networks(v1::ListNetworksRequest { filters }).await.unwrap();
        let networks = listed.into_inner().networks.into_iter();
        let mut names: Vec<String> = networks.map(|network| network.spec.unwrap().name).collect();
        names.sort();
        names
    };
    assert_eq!(list("scope", "swarm").await, ["front", "idle", "ingress", "kept"]);
    assert_eq!(list("type", "builtin").await, ["bridge", "host", "none"]);
    assert_eq!(list("dangling", "false").await, ["bridge", "front", "host", "ingress", "none"]);
    assert_eq!(list("dangling", "true").await, ["idle", "kept"]);
    let filters = vec![v1::Filter { key: "label!".to_owned(), values: vec!["keep".to_owned()] }];
    let pruned = host.control().prune_networks(v1::PruneNetworksRequest { filters }).await.unwrap();
    assert_eq!(pruned.into_inner().removed, ["idle"]);
    host.control().remove_service(v1::RemoveServiceRequest { service: "web".to_owned() }).await.unwrap();
    eventually("the network is free", || async { remove(&host, "front").await.ok() }).await;
    remove(&host, "ingress").await.unwrap();
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_is_asked_for_its_networks_and_who_is_silent_is_named() {
    let host = Host::found().await;
    let (_one, two) = (host.worker("w1").await, host.worker("w2").await);
    let network = make(&host, overlay("front")).await.unwrap();
    let verify = async |host: &Host, network: &str| {
        let request = v1::VerifyNetworksRequest { network: network.to_owned() };
        host.control().verify_networks(request).await.map(|answer| answer.into_inner().nodes)
    };
    let status = verify(&host, "nope").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    let of = |nodes: &[v1::verify_networks_response::NodeNetworks], name: &str| {
        nodes.iter().find(|node| node.hostname == name).expect("every node is in the answer").clone()
    };
    let nodes = verify(&host, "").await.unwrap();
    let check = of(&nodes, "w1").check.unwrap();
    assert_eq!((nodes.len(), check.differences.len(), check.mended), (3, 2, 7));
    // Of the other network nothing is said.
    assert_ne!(network.id, ODD_NETWORK);
    let check = of(&verify(&host, "front").await.unwrap(), "w1").check.unwrap();
    assert_eq!(check.differences.iter().map(|one| &*one.what).collect::<Vec<_>>(), ["rule"]);
    // Another manager passes it on.
    let other = host.join().await;
    let nodes = eventually("the other manager knows the leader", || async { verify(&other, "").await.ok() });
    assert_eq!(of(&nodes.await, "w2").check.unwrap().mended, 7);

    two.power_off();
    let gone = eventually("the node is known to be gone", || async {
        let two = of(&verify(&host, "").await.unwrap(), "w2");
        two.check.is_none().then_some(two.unreachable)
    });
    assert!(gone.await.starts_with("it"));
    host.manager.shutdown().await;
}
