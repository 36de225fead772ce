//! The rules of `apply`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rswarm_types::service::{PortConfig, Protocol, PublishMode};
use rswarm_types::*;

use super::{Command, ObjectRef, Rejected, State, Write, apply};
use crate::testing::{Fixture, node_id};

#[test]
fn a_stale_write_rejects_the_whole_command() {
    let mut f = Fixture::new(1);
    let web = f.create("web", 1, |_| {});
    let found = f.state.service(web).unwrap().meta.version;
    let spec = Box::new(Fixture::spec("web", 5, |_| {}));
    let other = Box::new(Fixture::spec("other", 1, |_| {}));
    let expected = Version(1);
    let before = f.state.clone();
    let rejected = f
        .commit(vec![
            Write::CreateService { id: ServiceId::from_bytes([5; 16]), spec: other },
            Write::UpdateService { id: web, spec, expected, change: Default::default() },
        ])
        .unwrap_err();
    assert_eq!(rejected, Rejected::Stale { object: ObjectRef::Service(web), expected, found });
    assert!(rejected.to_string().starts_with("update out of sequence: expected service"));
    assert_eq!(f.state.index.0, before.index.0 + 1);
    assert!(f.state.services().eq(before.services()));
}

#[test]
fn names_are_unique_and_free_again_after_removal() {
    let mut f = Fixture::new(1);
    let web = f.create("web", 1, |_| {});
    let again = |f: &mut Fixture| {
        let spec = Box::new(Fixture::spec("web", 1, |_| {}));
        f.commit(vec![Write::CreateService { id: ServiceId::from_bytes([5; 16]), spec }])
    };
    let taken = Rejected::NameTaken { name: "web".into(), by: ObjectRef::Service(web) };
    assert_eq!(again(&mut f), Err(taken));
    f.must(vec![Write::RemoveService { id: web, expected: None }]);
    assert_eq!(again(&mut f), Ok(()));
}

#[test]
fn a_network_in_use_stays() {
    let mut f = Fixture::new(1);
    let network = f.network("front", "10.1.0.0/24");
    let id = network.id;
    f.must(vec![Write::CreateNetwork(Box::new(network))]);
    let web = f.create("web", 1, |spec| {
        spec.task.networks = vec![rswarm_types::task::NetworkAttachment { network: id, aliases: vec![] }];
    });
    f.run();
    let in_use = |by| Err(Rejected::InUse { object: ObjectRef::Network(id), by });
    assert_eq!(f.commit(vec![Write::RemoveNetwork { id }]), in_use(ObjectRef::Service(web)));
    f.must(vec![Write::RemoveService { id: web, expected: None }]);
    let task = f.state.tasks().next().unwrap().id;
    assert_eq!(f.commit(vec![Write::RemoveNetwork { id }]), in_use(ObjectRef::Task(task)));
    f.run();
    f.must(vec![Write::RemoveNetwork { id }]);
}

/// A state with one task assigned to the only node, and that task.
fn assigned() -> (Fixture, TaskId) {
    let mut f = Fixture::new(1);
    let web = f.create("web", 1, |_| {});
    f.pass();
    let task = f.current(web)[0].id;
    (f, task)
}

#[test]
fn of_two_observed_states_the_later_wins_and_a_terminal_one_is_final() {
    let (f, task) = assigned();
    let report = |state: &State, observed| {
        let status = TaskStatus { state: observed, at: f.now, ..TaskStatus::default() };
        let command = Command::one(f.now, Write::SetTaskStatus { id: task, status });
        apply(state, Version(state.index.0 + 1), &command).0
    };
    let later = TaskState::ALL.into_iter().filter(|state| *state > TaskState::Assigned);
    for first in later.clone() {
        for second in TaskState::ALL {
            let expected = if first.is_terminal() { first } else { first.max(second) };
            let state = report(&report(&f.state, first), second);
            assert_eq!(state.task(task).unwrap().status.state, expected, "{first} then {second}");
        }
    }
}

#[test]
fn desired_states_only_rise() {
    let (f, task) = assigned();
    for first in TaskState::ALL {
        for second in TaskState::ALL {
            let set = |desired| Write::SetTaskDesired { id: task, desired };
            let command = Command { at: f.now, writes: vec![set(first), set(second)] };
            let (state, result) = apply(&f.state, Version(f.state.index.0 + 1), &command);
            assert!(result.is_ok());
            assert_eq!(state.task(task).unwrap().desired, TaskState::Running.max(first).max(second));
        }
    }
}

#[test]
fn a_task_is_not_given_to_a_node_that_takes_none_and_never_to_a_second_one() {
    let mut f = Fixture::new(1);
    f.add_node(2, |_| {});
    f.create("web", 1, |spec| spec.task.placement.constraints = vec!["node.hostname==nobody".into()]);
    f.pass();
    let task = f.state.tasks().next().unwrap().id;
    f.set_node(1, NodeState::Ready, Availability::Drain);
    for (n, expected) in [(1, None), (2, Some(2)), (1, Some(2))] {
        f.must(vec![Write::AssignTask { id: task, node: node_id(n) }]);
        assert_eq!(f.state.task(task).unwrap().node_id, expected.map(node_id));
    }
}

#[test]
fn writes_to_what_is_gone_are_ignored() {
    let mut f = Fixture::new(1);
    let (task, node) = (TaskId::from_bytes([1; 16]), node_id(77));
    let before = f.state.clone();
    f.must(vec![
        Write::AllocateTask { id: task, networks: vec![] },
        Write::AssignTask { id: task, node },
        Write::SetTaskDesired { id: task, desired: TaskState::Remove },
        Write::SetTaskStatus { id: task, status: TaskStatus::default() },
        Write::RemoveTask { id: task },
        Write::SetNodeStatus { id: node, status: NodeStatus::default() },
    ]);
    f.state.index = before.index;
    assert!(f.state == before);
}

#[test]
fn system_writes_do_not_make_an_edit_stale() {
    let mut f = Fixture::new(1);
    let node = f.state.node(node_id(1)).unwrap().clone();
    f.must(vec![Write::SetNodeStatus { id: node.id, status: NodeStatus::default() }]);
    let (id, expected) = (node.id, node.meta.version);
    f.must(vec![Write::UpdateNode { id, spec: NodeSpec::default(), expected }]);
}

#[test]
fn commands_survive_a_newer_and_an_older_reader() {
    // An older manager wrote fewer fields: each that was added since has a default.
    let json = r#"{"at":5,"writes":[{"RemoveService":{"id":"0000000000000000000000001"}}]}"#;
    let command: Command = serde_json::from_str(json).unwrap();
    let bytes = rmp_serde::to_vec_named(&command).unwrap();
    assert_eq!(rmp_serde::from_slice::<Command>(&bytes).unwrap(), command);
}

#[test]
fn ports_survive_a_newer_and_an_older_reader() {
    /// As ports were when they could answer everywhere or at one IPv4 address.
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Older {
        protocol: Protocol,
        target: u16,
        published: Option<u16>,
        mode: PublishMode,
        host_ip: Option<Ipv4Addr>,
    }
    let (protocol, mode, published) = (Protocol::Tcp, PublishMode::Ingress, Some(8080));
    for host_ip in [None, Some(Ipv4Addr::LOCALHOST)] {
        let older = Older { protocol, target: 80, published, mode, host_ip };
        let newer = PortConfig {
            protocol,
            target: 80,
            published,
            mode,
            host_ip: host_ip.map(IpAddr::from),
            interface: None,
        };
        let bytes = rmp_serde::to_vec_named(&older).unwrap();
        assert_eq!(rmp_serde::from_slice::<PortConfig>(&bytes).unwrap(), newer);
        let bytes = rmp_serde::to_vec_named(&newer).unwrap();
        assert_eq!(rmp_serde::from_slice::<Older>(&bytes).unwrap(), older);
    }
    let newest = PortConfig {
        interface: Some("eth0".parse().unwrap()),
        host_ip: Some(Ipv6Addr::LOCALHOST.into()),
        ..PortConfig { protocol, target: 80, published, mode, host_ip: None, interface: None }
    };
    let bytes = rmp_serde::to_vec_named(&newest).unwrap();
    assert_eq!(rmp_serde::from_slice::<PortConfig>(&bytes).unwrap(), newest);
    let json = serde_json::to_string(&newest).unwrap();
    assert!(json.contains(r#""host_ip":"::1""#), "{json}");
    assert_eq!(serde_json::from_str::<PortConfig>(&json).unwrap(), newest);
}
