//! Filters, reasons and ranking. Source: swarm-parity 3.6.

use rswarm_types::node::Platform;
use rswarm_types::service::{PortConfig, Protocol, PublishMode};
use rswarm_types::*;

use crate::testing::{CPU, Fixture, GIB, node_id};

/// Why the only task of a service is not placed on three nodes; empty if it is.
fn reason(change: impl FnOnce(&mut ServiceSpec)) -> String {
    let mut f = Fixture::new(2);
    f.add_node(3, |node| node.spec.availability = Availability::Drain);
    let service = f.create("web", 1, change);
    f.pass();
    f.current(service)[0].status.error.clone()
}

#[test]
fn each_filter_says_how_many_nodes_it_turned_away() {
    let platform =
        |os: &str, architecture: &str| Platform { os: os.into(), architecture: architecture.into() };
    type Change = Box<dyn FnOnce(&mut ServiceSpec)>;
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(|_| {}), ""),
        (
            Box::new(|s| s.task.reservations.memory_bytes = 5 * GIB),
            "no suitable node (insufficient resources on 2 nodes; 1 node not available for new tasks)",
        ),
        (
            Box::new(|s| s.task.placement.constraints = vec!["node.role==manager".into()]),
            "no suitable node (scheduling constraints not satisfied on 2 nodes; 1 node not available for new tasks)",
        ),
        (
            Box::new(move |s| s.task.placement.platforms = vec![platform("linux", "arm64")]),
            "no suitable node (unsupported platform on 2 nodes; 1 node not available for new tasks)",
        ),
        (Box::new(move |s| s.task.placement.platforms = vec![platform("", "amd64")]), ""),
    ];
    for (change, expected) in cases {
        assert_eq!(reason(change), expected);
    }
}

#[test]
fn host_ports_and_max_replicas_limit_the_copies_on_a_node() {
    let port = PortConfig {
        protocol: Protocol::Tcp,
        target: 80,
        published: Some(8080),
        mode: PublishMode::Host,
        host_ip: None,
        interface: None,
    };
    for (host_port, max_replicas, expected) in [
        (true, 0, "no suitable node (host-mode port already in use on 2 nodes)"),
        (false, 1, "no suitable node (max replicas per node limit exceeded on 2 nodes)"),
    ] {
        let mut f = Fixture::new(2);
        let service = f.create("web", 3, |spec| {
            spec.endpoint.ports.extend(host_port.then_some(port));
            spec.task.placement.max_replicas = max_replicas;
        });
        f.run();
        assert_eq!((f.spread(service, 2), f.running(service)), (vec![1, 1], 2));
        assert_eq!(f.current(service)[2].status.error, expected);
    }
}

#[test]
fn a_node_is_given_a_thousand_tasks_at_most_of_all_services() {
    let mut f = Fixture::new(2);
    // One that has addresses for all.
    let wide = f.network("wide", "10.1.0.0/16");
    let network = wide.id;
    f.must(vec![crate::Write::CreateNetwork(Box::new(wide))]);
    let attached = |spec: &mut ServiceSpec| {
        spec.task.networks = vec![task::NetworkAttachment { network, aliases: Vec::new() }];
    };
    let first = f.create("first", 900, attached);
    let second = f.create("second", 1_300, attached);
    f.pass();
    assert_eq!((f.spread(first, 2), f.spread(second, 2)), (vec![450, 450], vec![550, 550]));
    let waiting = f.current(second).pop().unwrap();
    assert_eq!(waiting.status.error, "no suitable node (no room for more tasks (1000) on 2 nodes)");
    // One that stops keeps its place until it was seen to end.
    f.update(first, |spec| spec.mode = ServiceMode::Replicated { replicas: 899 });
    f.pass();
    assert_eq!(f.spread(second, 2), [550, 550]);
    let stopping = f.state.tasks_of(first).find(|task| task.desired > TaskState::Running).unwrap().id;
    f.report(stopping, TaskState::Shutdown);
    f.pass();
    assert_eq!(f.spread(second, 2).iter().sum::<usize>(), 1_101);
}

#[test]
fn a_waiting_task_is_placed_as_soon_as_there_is_room() {
    let mut f = Fixture::new(1);
    let big = f.create("big", 1, |spec| spec.task.reservations.nano_cpus = 3 * CPU);
    let next = f.create("next", 1, |spec| spec.task.reservations.nano_cpus = 2 * CPU);
    f.run();
    assert_eq!((f.running(big), f.running(next)), (1, 0));
    f.update(big, |spec| spec.mode = ServiceMode::Replicated { replicas: 0 });
    f.run();
    assert_eq!((f.running(big), f.running(next)), (0, 1));
}

#[test]
fn tasks_go_where_the_service_has_fewest_then_where_fewest_run_then_by_load_then_by_id() {
    let mut f = Fixture::new(3);
    let a = f.create("a", 1, |spec| spec.task.reservations.nano_cpus = CPU);
    f.run();
    assert_eq!(f.spread(a, 3), [1, 0, 0]);
    let b = f.create("b", 2, |_| {});
    f.run();
    assert_eq!(f.spread(b, 3), [0, 1, 1]);
    // All nodes have one task; the first has reserved most.
    let c = f.create("c", 2, |_| {});
    f.run();
    assert_eq!(f.spread(c, 3), [0, 1, 1]);
    let d = f.create("d", 4, |_| {});
    f.run();
    assert_eq!(f.spread(d, 3).iter().max(), Some(&2));
}

#[test]
fn preferences_spread_over_labels_before_nodes() {
    let mut f = Fixture::new(0);
    // Three nodes in zone a, one in b, one without a zone.
    for (n, zone) in [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "")] {
        f.add_node(n, |node| {
            if !zone.is_empty() {
                node.spec.labels.insert("zone".into(), zone.into());
            }
        });
    }
    let web = f.create("web", 9, |spec| spec.task.placement.spread = vec!["node.labels.zone".into()]);
    f.run();
    assert_eq!(f.spread(web, 5), [1, 1, 1, 3, 3]);
    f.update(web, |spec| spec.mode = ServiceMode::Replicated { replicas: 12 });
    f.run();
    assert_eq!(f.spread(web, 5).iter().take(3).sum::<usize>(), 4);
}

#[test]
fn a_node_where_a_service_keeps_failing_becomes_the_last_choice() {
    let mut f = Fixture::new(2);
    // The second node is the busier one, so that only failures can speak for it.
    let filler =
        f.create("filler", 3, |s| s.task.placement.constraints = vec!["node.hostname==host2".into()]);
    let web = f.create("web", 1, |spec| spec.task.restart.delay = std::time::Duration::ZERO);
    f.run();
    assert_eq!(f.spread(filler, 2), [0, 3]);
    for _ in 0..super::FAILURES_THAT_COUNT {
        assert_eq!(f.spread(web, 2), [1, 0]);
        f.report(f.current(web)[0].id, TaskState::Failed);
        f.run_for(std::time::Duration::from_secs(2));
    }
    assert_eq!(f.spread(web, 2), [0, 1]);
}

#[test]
fn a_global_task_that_does_not_fit_its_node_waits_there_with_the_reason() {
    let mut f = Fixture::new(2);
    f.create("big", 1, |spec| spec.task.reservations.nano_cpus = 3 * CPU);
    f.run();
    let agent = f.create("agent", 0, |spec| {
        spec.mode = ServiceMode::Global;
        spec.task.reservations.nano_cpus = 2 * CPU;
    });
    f.run();
    let waiting: Vec<_> = f.state.waiting_tasks().collect();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0].node_id, Some(node_id(1)));
    assert_eq!(waiting[0].status.error, "no suitable node (insufficient resources on 1 node)");
    assert_eq!(f.running(agent), 1);
}
