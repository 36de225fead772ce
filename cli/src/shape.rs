//! Objects in the JSON shape of the Docker Engine API, which `inspect` shows and templates walk.
//!
//! Source: docker-engine-api.yaml, definitions `Node`, `Service`, `Task`; fields that rswarm has not are left out.

use std::collections::BTreeMap;

use jiff::Timestamp as Instant;
use rswarm_types::network::Ipam;
use rswarm_types::node::{Platform, Resources};
use rswarm_types::service::{EndpointSpec, PortConfig, ServiceMode, ServiceSpec, UpdateConfig};
use rswarm_types::task::{ContainerSpec, MountKind, TaskSpec, Ulimit};
use rswarm_types::{Meta, Network, NetworkDriver, Node, Role, Service, Task, Timestamp};
use serde_json::{Map, Value, json};

/// RFC 3339 with nanoseconds, in UTC.
pub fn time(at: Timestamp) -> String {
    Instant::from_nanosecond(i128::from(at.0)).map(|instant| instant.to_string()).unwrap_or_default()
}

fn nanos(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

fn with_meta(id: &dyn std::fmt::Display, meta: &Meta, mut rest: Map<String, Value>) -> Value {
    let mut object = Map::new();
    object.insert("ID".into(), id.to_string().into());
    object.insert("Version".into(), json!({ "Index": meta.version.0 }));
    object.insert("CreatedAt".into(), time(meta.created_at).into());
    object.insert("UpdatedAt".into(), time(meta.updated_at).into());
    object.append(&mut rest);
    Value::Object(object)
}

/// Drops members that say nothing, as Go's `omitempty` does.
fn omit_empty(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else { return Map::new() };
    map.into_iter()
        .filter(|(_, value)| match value {
            Value::Null => false,
            Value::String(s) => !s.is_empty(),
            Value::Array(a) => !a.is_empty(),
            Value::Object(o) => !o.is_empty(),
            Value::Number(n) => n.as_f64() != Some(0.0),
            Value::Bool(b) => *b,
        })
        .collect()
}

fn platform(platform: &Platform) -> Value {
    json!({ "Architecture": platform.architecture, "OS": platform.os })
}

fn resources(resources: &Resources) -> Value {
    omit_empty(json!({ "NanoCPUs": resources.nano_cpus, "MemoryBytes": resources.memory_bytes })).into()
}

/// `leader` and `reachable` are measured by the manager that answered.
pub fn node(node: &Node, leader: bool, reachability: &str) -> Value {
    let mut rest = Map::new();
    rest.insert(
        "Spec".into(),
        json!({ "Labels": node.spec.labels, "Role": node.spec.role, "Availability": node.spec.availability }),
    );
    rest.insert("Role".into(), json!(node.role));
    if let Some(description) = &node.description {
        rest.insert(
            "Description".into(),
            json!({
                "Hostname": description.hostname,
                "Platform": platform(&description.platform),
                "Resources": resources(&description.resources),
                "Engine": { "EngineVersion": description.engine_version, "Labels": description.engine_labels },
            }),
        );
        let network = &description.network;
        let ports = network.ports_in_use.iter().map(|(protocol, port)| format!("{port}/{protocol}"));
        let network = json!({
            "DataPathAddr": network.data_path_addr.map(|addr| addr.to_string()),
            "MTU": network.mtu,
            "PortsInUse": ports.collect::<Vec<_>>(),
        });
        rest.insert("Network".into(), omit_empty(network).into());
    }
    let status = json!({
        "State": node.status.state,
        "Message": node.status.message,
        "Addr": node.status.addr.map(|addr| addr.to_string()),
    });
    rest.insert("Status".into(), omit_empty(status).into());
    if let Some(manager) = &node.manager {
        let status = json!({ "Leader": leader, "Reachability": reachability, "Addr": manager.addr });
        rest.insert("ManagerStatus".into(), omit_empty(status).into());
    }
    with_meta(&node.id, &node.meta, rest)
}

/// `networks` are those of the cluster.
pub fn service(service: &Service, networks: &[Network]) -> Value {
    let mut rest = Map::new();
    rest.insert("Spec".into(), service_spec(&service.spec));
    if let Some(previous) = &service.previous_spec {
        rest.insert("PreviousSpec".into(), service_spec(previous));
    }
    // As Docker has it: an entry for each address.
    let vips = |(network, address): (&rswarm_types::NetworkId, &std::net::Ipv4Addr)| {
        let ipam = networks.iter().find(|held| held.id == *network).and_then(|held| held.ipam);
        let prefix_len = ipam.map_or(32, |ipam| ipam.subnet.prefix_len);
        let twin = ipam.and_then(|ipam| {
            let ipv6 = ipam.ipv6?;
            Some(format!("{}/{}", ipv6.twin(ipam.subnet, *address), ipv6.subnet.prefix_len))
        });
        let hidden = ipam.is_some_and(Ipam::is_ipv6_alone);
        let ipv4 = (!hidden).then(|| format!("{address}/{prefix_len}"));
        let all = ipv4.into_iter().chain(twin);
        let id = network.to_string();
        all.map(move |address| json!({ "NetworkID": id, "Addr": address }))
    };
    let reached = json!({
        "Spec": endpoint(&service.spec.endpoint),
        "Ports": service.endpoint.ports.iter().map(port).collect::<Vec<_>>(),
        "VirtualIPs": service.endpoint.vips.iter().flat_map(vips).collect::<Vec<_>>(),
    });
    rest.insert("Endpoint".into(), omit_empty(reached).into());
    if let Some(status) = &service.update_status {
        let status = json!({
            "State": status.state,
            "StartedAt": time(status.started_at),
            "CompletedAt": status.completed_at.map(time),
            "Message": status.message,
        });
        rest.insert("UpdateStatus".into(), omit_empty(status).into());
    }
    with_meta(&service.id, &service.meta, rest)
}

fn service_spec(spec: &ServiceSpec) -> Value {
    let mode = match spec.mode {
        ServiceMode::Replicated { replicas } => json!({ "Replicated": { "Replicas": replicas } }),
        ServiceMode::Global => json!({ "Global": {} }),
    };
    json!({
        "Name": spec.name,
        "Labels": spec.labels,
        "TaskTemplate": task_spec(&spec.task),
        "Mode": mode,
        "UpdateConfig": update_config(&spec.update),
        "RollbackConfig": update_config(&spec.rollback),
        "EndpointSpec": endpoint(&spec.endpoint),
    })
}

fn update_config(config: &UpdateConfig) -> Value {
    json!({
        "Parallelism": config.parallelism,
        "Delay": nanos(config.delay),
        "FailureAction": config.failure_action,
        "Monitor": nanos(config.monitor),
        "MaxFailureRatio": config.max_failure_ratio,
        "Order": config.order,
    })
}

fn port(port: &PortConfig) -> Value {
    let port = json!({
        "Protocol": port.protocol,
        "TargetPort": port.target,
        "PublishedPort": port.published,
        "PublishMode": port.mode,
        "HostIP": port.host_ip,
        "Interface": port.interface,
    });
    omit_empty(port).into()
}

fn endpoint(spec: &EndpointSpec) -> Value {
    omit_empty(json!({
        "Mode": spec.mode,
        "Ports": spec.ports.iter().map(port).collect::<Vec<_>>(),
        "AllowFrom": spec.allow_from,
        "PreferSameNode": spec.prefer_same_node,
    }))
    .into()
}

fn task_spec(spec: &TaskSpec) -> Value {
    let limits = json!({ "NanoCPUs": spec.limits.nano_cpus, "MemoryBytes": spec.limits.memory_bytes, "Pids": spec.limits.pids });
    let restart = json!({
        "Condition": spec.restart.condition,
        "Delay": nanos(spec.restart.delay),
        "MaxAttempts": spec.restart.max_attempts,
        "Window": nanos(spec.restart.window),
    });
    let placement = json!({
        "Constraints": spec.placement.constraints,
        "Preferences": spec.placement.spread.iter()
            .map(|descriptor| json!({ "Spread": { "SpreadDescriptor": descriptor } }))
            .collect::<Vec<_>>(),
        "MaxReplicas": spec.placement.max_replicas,
        "Platforms": spec.placement.platforms.iter().map(platform).collect::<Vec<_>>(),
    });
    let networks: Vec<Value> = spec
        .networks
        .iter()
        .map(|n| omit_empty(json!({ "Target": n.network.to_string(), "Aliases": n.aliases })).into())
        .collect();
    let mut out = Map::new();
    out.insert("ContainerSpec".into(), container(&spec.container));
    out.insert(
        "Resources".into(),
        json!({ "Limits": omit_empty(limits), "Reservations": resources(&spec.reservations) }),
    );
    out.insert("RestartPolicy".into(), omit_empty(restart).into());
    out.insert("Placement".into(), omit_empty(placement).into());
    if !networks.is_empty() {
        out.insert("Networks".into(), networks.into());
    }
    let mut log = json!({
        "max-size": spec.log.max_size_bytes.to_string(), "max-file": spec.log.max_files.to_string(),
    });
    if let Some(buffer) = spec.log.non_blocking_buffer_bytes {
        log["mode"] = "non-blocking".into();
        log["max-buffer-size"] = buffer.to_string().into();
    }
    out.insert("LogDriver".into(), json!({ "Name": "rswarm", "Options": log }));
    out.insert("ForceUpdate".into(), spec.force_update.into());
    Value::Object(out)
}

fn container(spec: &ContainerSpec) -> Value {
    let mounts: Vec<Value> = spec
        .mounts
        .iter()
        .map(|mount| {
            let (kind, options) = match mount.kind {
                MountKind::Bind => ("bind", Value::Null),
                MountKind::Tmpfs { size_bytes, mode } => {
                    ("tmpfs", Value::from(omit_empty(json!({ "SizeBytes": size_bytes, "Mode": mode }))))
                }
            };
            omit_empty(json!({
                "Type": kind, "Source": mount.source, "Target": mount.target, "ReadOnly": mount.read_only,
                "TmpfsOptions": options,
            }))
            .into()
        })
        .collect();
    let ulimit = |limit: &Ulimit| json!({ "Name": limit.name, "Soft": limit.soft, "Hard": limit.hard });
    let dns = omit_empty(json!({
        "Nameservers": spec.dns.nameservers, "Search": spec.dns.search, "Options": spec.dns.options,
    }));
    let mut out = omit_empty(json!({
        "Image": spec.image,
        "Labels": spec.labels,
        "Command": spec.command,
        "Args": spec.args,
        "Hostname": spec.hostname,
        "Env": spec.env,
        "Dir": spec.dir,
        "User": spec.user,
        "Groups": spec.groups,
        "TTY": spec.tty,
        "ReadOnly": spec.read_only,
        "StopSignal": spec.stop_signal,
        "StopGracePeriod": spec.stop_grace_period.map(nanos),
        "Mounts": mounts,
        "Hosts": spec.hosts,
        "DNSConfig": dns,
        "Sysctls": spec.sysctls,
        "CapabilityAdd": spec.cap_add,
        "CapabilityDrop": spec.cap_drop,
        "Ulimits": spec.ulimits.iter().map(ulimit).collect::<Vec<_>>(),
        "OomScoreAdj": spec.oom_score_adj,
    }));
    out.insert("Init".into(), spec.init.into());
    Value::Object(out)
}

pub fn task(task: &Task) -> Value {
    let mut rest = Map::new();
    rest.insert("Name".into(), task.name().into());
    rest.insert("Labels".into(), json!(task.service_labels));
    rest.insert("Spec".into(), task_spec(&task.spec));
    rest.insert("ServiceID".into(), task.service_id.to_string().into());
    if task.slot != 0 {
        rest.insert("Slot".into(), task.slot.into());
    }
    if let Some(node) = task.node_id {
        rest.insert("NodeID".into(), node.to_string().into());
    }
    let status = &task.status;
    let container = status.container.as_ref().map(|container| {
        json!({
            "ContainerID": task.id.to_string(), "PID": container.pid, "ExitCode": container.exit_code,
            "OOMKilled": container.oom_killed,
        })
    });
    let ports: Vec<Value> = status
        .ports
        .iter()
        .map(|port| {
            json!({
                "Protocol": port.protocol, "TargetPort": port.target, "PublishedPort": port.published,
                "PublishMode": "host", "HostIP": port.host_ip, "Interface": port.interface,
            })
        })
        .collect();
    let shown = json!({
        "Timestamp": time(status.at),
        "State": status.state,
        "Message": status.message,
        "Err": status.error,
        "ContainerStatus": container,
        "PortStatus": omit_empty(json!({ "Ports": ports })),
    });
    rest.insert("Status".into(), omit_empty(shown).into());
    rest.insert("DesiredState".into(), json!(task.desired));
    let networks: Vec<Value> = task
        .networks
        .iter()
        .map(|network| {
            let ipv6 =
                network.address.and_then(|a| a.ipv6).map(|a| format!("{}/{}", a.address, a.prefix_len));
            let ipv4 = network.address.and_then(|a| Some(format!("{}/{}", a.ipv4()?.0, a.prefix_len)));
            let addresses: Vec<String> = ipv4.into_iter().chain(ipv6).collect();
            json!({
                "Network": { "ID": network.network.to_string(),
                    "Spec": { "Name": network.name, "DriverConfiguration": { "Name": network.driver } } },
                "Addresses": addresses,
            })
        })
        .collect();
    if !networks.is_empty() {
        rest.insert("NetworksAttachments".into(), networks.into());
    }
    with_meta(&task.id, &task.meta, rest)
}

/// Where a network reaches. Source: docker-engine-api.yaml, `Network.Scope`.
pub fn scope(network: &Network) -> &'static str {
    if network.spec.driver == NetworkDriver::Overlay { "swarm" } else { "local" }
}

/// `verbose` are the services and tasks on the network, if they were asked for.
pub fn network(
    network: &Network,
    verbose: Option<(&[Service], &[Task])>,
    nodes: &BTreeMap<String, String>,
) -> Value {
    let spec = &network.spec;
    let ipv4 = network.ipam.filter(|ipam| !ipam.is_ipv6_alone());
    let config = ipv4.map(|ipam| {
        omit_empty(json!({
            "Subnet": ipam.subnet.to_string(),
            "IPRange": spec.ipam.range.map(|range| range.to_string()),
            "Gateway": ipam.gateway.to_string(),
        }))
    });
    let ipv6 = network.ipam.and_then(|ipam| ipam.ipv6);
    let config6 = ipv6.map(|ipv6| {
        omit_empty(json!({ "Subnet": ipv6.subnet.to_string(), "Gateway": ipv6.gateway.to_string() }))
    });
    let config: Vec<_> = config.into_iter().chain(config6).collect();
    let mut options = spec.options.clone();
    if let Some(vni) = network.vni {
        options.insert("com.docker.network.driver.overlay.vxlanid_list".to_owned(), vni.to_string());
    }
    let mut out = json!({
        "Name": spec.name,
        "Id": network.id.to_string(),
        "Created": time(network.meta.created_at),
        "Scope": scope(network),
        "Driver": spec.driver,
        "EnableIPv4": network.ipam.is_none_or(|ipam| !ipam.is_ipv6_alone()),
        "EnableIPv6": ipv6.is_some(),
        "IPAM": { "Driver": "default", "Options": null, "Config": config },
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": spec.ingress,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": {},
        "Options": options,
        "Labels": spec.labels,
    });
    let Some((services, tasks)) = verbose else { return out };
    let at = |task: &Task| task.networks.iter().find(|at| at.network == network.id)?.address;
    let container = |task: &Task| {
        let at = at(task)?;
        let ipv4 = at.ipv4().map(|(address, _)| format!("{address}/{}", at.prefix_len));
        let ipv6 = at.ipv6.map(|ipv6| format!("{}/{}", ipv6.address, ipv6.prefix_len));
        let shown = json!({
            "Name": task.name(),
            "IPv4Address": ipv4.unwrap_or_default(),
            "IPv6Address": ipv6.unwrap_or_default(),
        });
        Some((task.id.to_string(), shown))
    };
    out["Containers"] = Value::Object(tasks.iter().filter_map(container).collect());
    let vip = |service: &Service| Some(network.ipam?.shown(*service.endpoint.vips.get(&network.id)?));
    let service = |service: &Service| {
        let own = tasks.iter().filter(|task| task.service_id == service.id).map(|task| {
            let node = task.node_id.map(|id| id.to_string()).unwrap_or_default();
            json!({
                "Name": task.name(),
                "EndpointIP": at(task).and_then(|at| at.all().next()).map(|address| address.to_string()),
                "Info": { "Node": nodes.get(&node).cloned().unwrap_or(node) },
            })
        });
        let ports = service.endpoint.ports.iter().filter(|_| spec.ingress);
        let shown = json!({
            "VIP": vip(service).map(|address| address.to_string()).unwrap_or_default(),
            "Ports": ports.map(port).collect::<Vec<_>>(),
            "Tasks": own.collect::<Vec<_>>(),
        });
        (service.spec.name.clone(), shown)
    };
    out["Services"] = Value::Object(services.iter().map(service).collect());
    out
}

/// How a role is shown in `node ls`.
pub fn manager_status(role: Role, leader: bool, reachability: &str) -> &'static str {
    match (role, leader, reachability) {
        (Role::Worker, ..) => "",
        (Role::Manager, true, _) => "Leader",
        (Role::Manager, _, "reachable") => "Reachable",
        (Role::Manager, _, "unreachable") => "Unreachable",
        (Role::Manager, ..) => "Unknown",
    }
}
