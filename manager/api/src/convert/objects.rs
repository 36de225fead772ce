//! Stored objects and statuses.

use std::sync::Arc;

use rswarm_types as types;
use types::service::{ServiceSpec, UpdateStatus};
use types::task::{
    ContainerStatus, PortStatus, TaskAddress, TaskAddress6, TaskNetwork, TaskSpec, TaskStatus, Unplaced,
};
use types::{
    Cluster, ManagerStatus, Meta, Node, NodeDescription, NodeStatus, Service, Task, Timestamp, Version,
};

use super::{
    Field, WireError, all, each, exact_word, labels, nanos, narrow, or_default, parse, parse_optional,
    required, word,
};
use crate::v1;

impl From<&Meta> for v1::Meta {
    fn from(meta: &Meta) -> Self {
        Self { version: meta.version.0, created_at: meta.created_at.0, updated_at: meta.updated_at.0 }
    }
}

impl TryFrom<v1::Meta> for Meta {
    type Error = WireError;
    fn try_from(wire: v1::Meta) -> Result<Self, WireError> {
        Ok(Self {
            version: Version(wire.version),
            created_at: Timestamp(wire.created_at),
            updated_at: Timestamp(wire.updated_at),
        })
    }
}

/// Without the secrets: the root's key and the join tokens do not travel with the cluster object.
impl From<&Cluster> for v1::Cluster {
    fn from(cluster: &Cluster) -> Self {
        Self {
            id: cluster.id.to_string(),
            meta: Some((&cluster.meta).into()),
            spec: Some((&cluster.spec).into()),
            root_cert_pem: cluster.root_ca.cert_pem.clone(),
        }
    }
}

impl From<&Node> for v1::Node {
    fn from(node: &Node) -> Self {
        Self {
            id: node.id.to_string(),
            meta: Some((&node.meta).into()),
            spec: Some((&node.spec).into()),
            role: v1::Role::from(node.role).into(),
            description: node.description.as_ref().map(Into::into),
            status: Some((&node.status).into()),
            manager: node.manager.as_ref().map(Into::into),
            number: node.number.into(),
        }
    }
}

impl TryFrom<v1::Node> for Node {
    type Error = WireError;
    fn try_from(wire: v1::Node) -> Result<Self, WireError> {
        Ok(Self {
            id: parse("id", &wire.id)?,
            meta: or_default("meta", wire.meta)?,
            spec: required("spec", wire.spec)?,
            role: exact_word::<v1::Role, _>("role", wire.role)?,
            description: wire
                .description
                .map(|d| NodeDescription::try_from(d).field("description"))
                .transpose()?,
            status: or_default("status", wire.status)?,
            manager: wire.manager.map(|m| ManagerStatus { raft_id: m.raft_id, addr: m.addr }),
            number: narrow("number", wire.number)?,
            // The managers' own business.
            role_since: types::Version::default(),
        })
    }
}

impl From<&NodeDescription> for v1::NodeDescription {
    fn from(description: &NodeDescription) -> Self {
        Self {
            hostname: description.hostname.clone(),
            platform: Some((&description.platform).into()),
            resources: Some((&description.resources).into()),
            engine_version: description.engine_version.clone(),
            engine_labels: labels(&description.engine_labels),
            network: Some((&description.network).into()),
        }
    }
}

impl TryFrom<v1::NodeDescription> for NodeDescription {
    type Error = WireError;
    fn try_from(wire: v1::NodeDescription) -> Result<Self, WireError> {
        Ok(Self {
            hostname: wire.hostname,
            platform: or_default("platform", wire.platform)?,
            resources: or_default("resources", wire.resources)?,
            engine_version: wire.engine_version,
            engine_labels: wire.engine_labels.into_iter().collect(),
            network: or_default("network", wire.network)?,
        })
    }
}

impl From<&NodeStatus> for v1::NodeStatus {
    fn from(status: &NodeStatus) -> Self {
        Self {
            state: v1::NodeState::from(status.state).into(),
            message: status.message.clone(),
            addr: status.addr.map(|addr| addr.to_string()).unwrap_or_default(),
            since_at: status.since.0,
        }
    }
}

impl TryFrom<v1::NodeStatus> for NodeStatus {
    type Error = WireError;
    fn try_from(wire: v1::NodeStatus) -> Result<Self, WireError> {
        Ok(Self {
            state: word::<v1::NodeState, _>("state", wire.state)?,
            message: wire.message,
            addr: parse_optional("addr", &wire.addr)?,
            since: Timestamp(wire.since_at),
        })
    }
}

/// `leader` and `reachability` are measured, not stored: whoever answers fills them in.
impl From<&ManagerStatus> for v1::ManagerStatus {
    fn from(status: &ManagerStatus) -> Self {
        Self {
            raft_id: status.raft_id,
            addr: status.addr.clone(),
            leader: false,
            reachability: v1::Reachability::Unknown.into(),
        }
    }
}

/// `counts` are made when asked: whoever answers fills them in.
impl From<&Service> for v1::Service {
    fn from(service: &Service) -> Self {
        Self {
            id: service.id.to_string(),
            meta: Some((&service.meta).into()),
            spec: Some((&service.spec).into()),
            previous_spec: service.previous_spec.as_deref().map(Into::into),
            spec_version: service.spec_version.0,
            update_status: service.update_status.as_ref().map(Into::into),
            counts: None,
            endpoint: Some((&service.endpoint).into()),
        }
    }
}

impl TryFrom<v1::Service> for Service {
    type Error = WireError;
    fn try_from(wire: v1::Service) -> Result<Self, WireError> {
        let previous =
            wire.previous_spec.map(|s| ServiceSpec::try_from(s).field("previous_spec")).transpose()?;
        Ok(Self {
            id: parse("id", &wire.id)?,
            meta: or_default("meta", wire.meta)?,
            spec: required("spec", wire.spec)?,
            previous_spec: previous.map(Box::new),
            spec_version: Version(wire.spec_version),
            update_status: wire
                .update_status
                .map(|status| UpdateStatus::try_from(status).field("update_status"))
                .transpose()?,
            endpoint: or_default("endpoint", wire.endpoint)?,
        })
    }
}

impl From<&UpdateStatus> for v1::UpdateStatus {
    fn from(status: &UpdateStatus) -> Self {
        Self {
            state: v1::UpdateState::from(status.state).into(),
            started_at: status.started_at.0,
            completed_at: status.completed_at.map(|at| at.0),
            message: status.message.clone(),
        }
    }
}

impl TryFrom<v1::UpdateStatus> for UpdateStatus {
    type Error = WireError;
    fn try_from(wire: v1::UpdateStatus) -> Result<Self, WireError> {
        Ok(Self {
            state: exact_word::<v1::UpdateState, _>("state", wire.state)?,
            started_at: Timestamp(wire.started_at),
            completed_at: wire.completed_at.map(Timestamp),
            message: wire.message,
        })
    }
}

impl From<&Task> for v1::Task {
    fn from(task: &Task) -> Self {
        Self {
            id: task.id.to_string(),
            meta: Some((&task.meta).into()),
            service_id: task.service_id.to_string(),
            slot: task.slot,
            node_id: task.node_id.map(|id| id.to_string()).unwrap_or_default(),
            spec: Some((&*task.spec).into()),
            spec_version: task.spec_version.0,
            service_name: task.service_name.clone(),
            service_labels: labels(&task.service_labels),
            ports: all(&task.ports),
            desired: v1::TaskState::from(task.desired).into(),
            start_delay_nanos: nanos(task.start_delay),
            status: Some((&task.status).into()),
            networks: all(&task.networks),
        }
    }
}

impl TryFrom<v1::Task> for Task {
    type Error = WireError;
    fn try_from(wire: v1::Task) -> Result<Self, WireError> {
        Ok(Self {
            id: parse("id", &wire.id)?,
            meta: or_default("meta", wire.meta)?,
            service_id: parse("service_id", &wire.service_id)?,
            slot: wire.slot,
            node_id: parse_optional("node_id", &wire.node_id)?,
            spec: Arc::new(required::<_, TaskSpec>("spec", wire.spec)?),
            spec_version: Version(wire.spec_version),
            service_name: wire.service_name,
            service_labels: wire.service_labels.into_iter().collect(),
            ports: each("ports", wire.ports)?,
            desired: exact_word::<v1::TaskState, _>("desired", wire.desired)?,
            start_delay: std::time::Duration::from_nanos(wire.start_delay_nanos),
            status: or_default("status", wire.status)?,
            networks: each("networks", wire.networks)?,
        })
    }
}

impl From<&TaskStatus> for v1::TaskStatus {
    fn from(status: &TaskStatus) -> Self {
        Self {
            state: v1::TaskState::from(status.state).into(),
            at: status.at.0,
            applied_at: status.applied_at.0,
            running_since_at: status.running_since.map(|at| at.0),
            message: status.message.clone(),
            error: status.error.clone(),
            unplaced: status.unplaced.as_ref().map(Into::into),
            container: status.container.as_ref().map(Into::into),
            ports: all(&status.ports),
        }
    }
}

impl TryFrom<v1::TaskStatus> for TaskStatus {
    type Error = WireError;
    fn try_from(wire: v1::TaskStatus) -> Result<Self, WireError> {
        Ok(Self {
            state: exact_word::<v1::TaskState, _>("state", wire.state)?,
            at: Timestamp(wire.at),
            applied_at: Timestamp(wire.applied_at),
            running_since: wire.running_since_at.map(Timestamp),
            message: wire.message,
            error: wire.error,
            unplaced: wire
                .unplaced
                .map(|unplaced| Unplaced::try_from(unplaced).field("unplaced"))
                .transpose()?,
            container: wire.container.map(|c| ContainerStatus {
                pid: c.pid,
                exit_code: c.exit_code,
                oom_killed: c.oom_killed,
            }),
            ports: each("ports", wire.ports)?,
        })
    }
}

impl From<&ContainerStatus> for v1::ContainerStatus {
    fn from(status: &ContainerStatus) -> Self {
        Self { pid: status.pid, exit_code: status.exit_code, oom_killed: status.oom_killed }
    }
}

impl From<&PortStatus> for v1::PortStatus {
    fn from(port: &PortStatus) -> Self {
        Self {
            protocol: v1::Protocol::from(port.protocol).into(),
            target: port.target.into(),
            published: port.published.into(),
            host_ip: port.host_ip.map(|at| at.to_string()).unwrap_or_default(),
            interface: port.interface.map(|name| name.to_string()).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::PortStatus> for PortStatus {
    type Error = WireError;
    fn try_from(wire: v1::PortStatus) -> Result<Self, WireError> {
        Ok(Self {
            protocol: word::<v1::Protocol, _>("protocol", wire.protocol)?,
            target: narrow("target", wire.target)?,
            published: narrow("published", wire.published)?,
            host_ip: super::spec::host_ip(&wire.host_ip)?,
            interface: parse_optional("interface", &wire.interface)?,
        })
    }
}

impl From<&Unplaced> for v1::Unplaced {
    fn from(unplaced: &Unplaced) -> Self {
        let reason = |(filter, nodes): &(types::task::PlacementFilter, u32)| v1::unplaced::Reason {
            filter: v1::PlacementFilter::from(*filter).into(),
            nodes: *nodes,
        };
        Self { reasons: unplaced.reasons.iter().map(reason).collect() }
    }
}

impl TryFrom<v1::Unplaced> for Unplaced {
    type Error = WireError;
    fn try_from(wire: v1::Unplaced) -> Result<Self, WireError> {
        let reason = |reason: v1::unplaced::Reason| {
            Ok((exact_word::<v1::PlacementFilter, _>("reasons.filter", reason.filter)?, reason.nodes))
        };
        Ok(Self { reasons: wire.reasons.into_iter().map(reason).collect::<Result<_, WireError>>()? })
    }
}

impl From<&TaskNetwork> for v1::TaskNetwork {
    fn from(network: &TaskNetwork) -> Self {
        Self {
            network: network.network.to_string(),
            name: network.name.clone(),
            driver: v1::NetworkDriver::from(network.driver).into(),
            address: network.address.map(|address| v1::TaskAddress {
                address: address.address.to_string(),
                prefix_len: address.prefix_len.into(),
                gateway: address.gateway.to_string(),
                address6: address.ipv6.map(|ipv6| ipv6.address.to_string()).unwrap_or_default(),
                prefix_len6: address.ipv6.map_or(0, |ipv6| ipv6.prefix_len.into()),
                gateway6: address
                    .ipv6
                    .and_then(|ipv6| ipv6.gateway)
                    .map(|at| at.to_string())
                    .unwrap_or_default(),
                ipv6_alone: address.ipv6.is_some_and(|ipv6| ipv6.alone),
            }),
            aliases: network.aliases.clone(),
            internal: network.internal,
            mtu: network.mtu,
            bridge: Some((&network.bridge).into()),
            joined: network.joined,
        }
    }
}

impl TryFrom<v1::TaskNetwork> for TaskNetwork {
    type Error = WireError;
    fn try_from(wire: v1::TaskNetwork) -> Result<Self, WireError> {
        Ok(Self {
            network: parse("network", &wire.network)?,
            name: wire.name,
            driver: exact_word::<v1::NetworkDriver, _>("driver", wire.driver)?,
            address: wire
                .address
                .map(|address| TaskAddress::try_from(address).field("address"))
                .transpose()?,
            aliases: wire.aliases,
            internal: wire.internal,
            mtu: wire.mtu,
            bridge: or_default("bridge", wire.bridge)?,
            joined: wire.joined,
        })
    }
}

impl TryFrom<v1::TaskAddress> for TaskAddress {
    type Error = WireError;
    fn try_from(wire: v1::TaskAddress) -> Result<Self, WireError> {
        Ok(Self {
            address: parse("address", &wire.address)?,
            prefix_len: narrow("prefix_len", wire.prefix_len)?,
            gateway: parse("gateway", &wire.gateway)?,
            ipv6: parse_optional("address6", &wire.address6)?
                .map(|address| {
                    Ok::<_, WireError>(TaskAddress6 {
                        address,
                        prefix_len: narrow("prefix_len6", wire.prefix_len6)?,
                        gateway: parse_optional("gateway6", &wire.gateway6)?,
                        alone: wire.ipv6_alone,
                    })
                })
                .transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use types::network::{BridgeOptions, NetworkDriver};
    use types::service::{PortConfig, Protocol, PublishMode, ServiceMode, UpdateOrder, UpdateState};
    use types::task::{
        Mount, MountKind, NetworkAttachment, PlacementFilter, RestartCondition, TaskState, Ulimit,
    };
    use types::{NetworkId, NodeId, ServiceId, TaskId};

    fn service() -> Service {
        let mut task = TaskSpec::default();
        task.container.image = "web:1".into();
        task.container.stop_grace_period = Some(Duration::from_millis(1500));
        task.container.tty = true;
        task.log.non_blocking_buffer_bytes = Some(1 << 20);
        task.container.mounts = vec![
            Mount { kind: MountKind::Bind, source: "/a".into(), target: "/b".into(), read_only: true },
            Mount {
                kind: MountKind::Tmpfs { size_bytes: 1 << 20, mode: 0o700 },
                source: String::new(),
                target: "/t".into(),
                read_only: false,
            },
        ];
        task.container.ulimits = vec![Ulimit { name: "nofile".into(), soft: 10, hard: -1 }];
        task.restart.condition = RestartCondition::OnFailure;
        task.networks =
            vec![NetworkAttachment { network: NetworkId::from_bytes([3; 16]), aliases: vec!["x".into()] }];
        let spec = ServiceSpec {
            name: "web".into(),
            labels: [("a".into(), "b".into())].into(),
            mode: ServiceMode::Replicated { replicas: 3 },
            task,
            update: types::service::UpdateConfig { order: UpdateOrder::StartFirst, ..Default::default() },
            rollback: Default::default(),
            endpoint: types::service::EndpointSpec {
                ports: vec![PortConfig {
                    protocol: Protocol::Udp,
                    target: 53,
                    published: None,
                    mode: PublishMode::Host,
                    host_ip: Some("fd00::7".parse().unwrap()),
                    interface: None,
                }],
                allow_from: ["api".to_owned()].into(),
                prefer_same_node: true,
                ..Default::default()
            },
        };
        Service {
            id: ServiceId::from_bytes([1; 16]),
            meta: Meta { version: Version(7), created_at: Timestamp(1), updated_at: Timestamp(2) },
            previous_spec: Some(Box::new(spec.clone())),
            spec,
            spec_version: Version(6),
            update_status: Some(UpdateStatus {
                state: UpdateState::Paused,
                started_at: Timestamp(3),
                completed_at: None,
                message: "m".into(),
            }),
            endpoint: types::service::ServiceEndpoint {
                vips: [(NetworkId::from_bytes([3; 16]), [10, 0, 16, 2].into())].into(),
                ports: vec![PortConfig {
                    protocol: Protocol::Tcp,
                    target: 80,
                    published: Some(30_000),
                    mode: PublishMode::Ingress,
                    host_ip: None,
                    interface: Some("eth0".parse().unwrap()),
                }],
                number: 9,
            },
        }
    }

    #[test]
    fn a_service_survives_the_wire() {
        let service = service();
        assert_eq!(Service::try_from(v1::Service::from(&service)), Ok(service));
    }

    #[test]
    fn a_task_survives_the_wire() {
        let service = service();
        let task = Task {
            id: TaskId::from_bytes([9; 16]),
            meta: service.meta,
            service_id: service.id,
            slot: 2,
            node_id: Some(NodeId::from_bytes([4; 16])),
            spec: Arc::new(service.spec.task.clone()),
            spec_version: Version(6),
            service_name: "web".into(),
            service_labels: service.spec.labels.clone(),
            ports: service.spec.endpoint.ports.clone(),
            start_delay: Duration::from_secs(5),
            desired: TaskState::Running,
            status: TaskStatus {
                state: TaskState::Pending,
                unplaced: Some(Unplaced { reasons: vec![(PlacementFilter::Resources, 2)] }),
                container: Some(ContainerStatus { pid: Some(1), exit_code: Some(0), oom_killed: true }),
                ports: vec![PortStatus {
                    protocol: Protocol::Tcp,
                    target: 80,
                    published: 32768,
                    host_ip: Some("192.0.2.7".parse().unwrap()),
                    interface: Some("eth0".parse().unwrap()),
                }],
                ..Default::default()
            },
            networks: vec![TaskNetwork {
                network: NetworkId::from_bytes([3; 16]),
                name: "bridge".into(),
                driver: NetworkDriver::Bridge,
                address: Some(TaskAddress {
                    address: [10, 213, 0, 2].into(),
                    prefix_len: 16,
                    gateway: [10, 213, 0, 1].into(),
                    ipv6: Some(TaskAddress6 {
                        address: "fd00:1::2".parse().unwrap(),
                        prefix_len: 64,
                        gateway: Some("fd00:1::1".parse().unwrap()),
                        alone: true,
                    }),
                }),
                aliases: vec![],
                internal: true,
                mtu: Some(1400),
                bridge: BridgeOptions { host_ip: Some([127, 0, 0, 1].into()), ..BridgeOptions::default() },
                joined: true,
            }],
        };
        assert_eq!(Task::try_from(v1::Task::from(&task)), Ok(task));
    }

    #[test]
    fn credentials_travel_alone_and_print_nothing() {
        use rswarm_types::task::{RegistryAuth, RegistrySecret};
        let registry = "r:5000".to_owned();
        for secret in [
            RegistrySecret::Password { username: "me".into(), password: "s3cr3t".into() },
            RegistrySecret::IdentityToken("s3cr3t".into()),
            RegistrySecret::RegistryToken("s3cr3t".into()),
        ] {
            let auth = RegistryAuth { registry: registry.clone(), secret };
            let wire = v1::RegistryAuth::from(&auth);
            assert!(!format!("{wire:?} {auth:?} {:?}", auth.secret).contains("s3cr3t"));
            assert_eq!(RegistryAuth::try_from(wire), Ok(auth.clone()));
            let mut service = service();
            service.spec.task.container.registry_auth = Some(auth);
            let bytes = prost::Message::encode_to_vec(&v1::Service::from(&service));
            assert!(!bytes.windows(6).any(|found| found == b"s3cr3t"));
        }
        let nothing = RegistryAuth::try_from(v1::RegistryAuth { registry, ..Default::default() });
        assert!(nothing.unwrap_err().to_string().contains("found neither"));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_its_path() {
        let mut wire = v1::Service::from(&service());
        wire.spec.as_mut().unwrap().task.as_mut().unwrap().container.as_mut().unwrap().mounts[1].kind = 77;
        let error = Service::try_from(wire).unwrap_err().to_string();
        assert_eq!(error, "invalid field `spec.task.container.mounts[1].kind`: unknown value `77`");

        let mut wire = v1::Service::from(&service());
        wire.spec.as_mut().unwrap().endpoint.as_mut().unwrap().ports[0].target = 70_000;
        let error = Service::try_from(wire).unwrap_err().to_string();
        assert_eq!(error, "invalid field `spec.endpoint.ports[0].target`: `70000` is out of range");
    }
}
