//! `rswarm init`, `join`, `join-token`, `leave`, `info`, `version`, `ping`: membership of this host.
//! Source: swarm-parity 1.1 and 1.9.

use clap::Args;
use rswarm_api::v1;
use rswarm_identity::JoinToken;
use rswarm_types::cluster::Subnet;
use rswarm_types::quantity::{format_bytes, parse_duration};
use rswarm_types::{Availability, Role};

use crate::client::{CallError, Client, call};
use crate::daemon::start::{Started, ensure_running};
use crate::daemon::{address, offline, registries};
use crate::output;
use crate::paths::Paths;

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Address told to other nodes: its own, or that of an interface
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", default_value = "", hide_default_value = true)]
    advertise_addr: String,
    /// Where managers listen
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", default_value = "0.0.0.0:2377")]
    listen_addr: String,
    /// Whether this node takes tasks: active, pause or drain
    #[arg(long, default_value = "active")]
    availability: Availability,
    /// Life of a node's certificate
    #[arg(long, default_value = "2160h", value_parser = lasting)]
    cert_expiry: std::time::Duration,
    /// How often a node says that it lives; it counts as down after five times this
    #[arg(long, default_value = "1s", value_parser = lasting)]
    dispatcher_heartbeat: std::time::Duration,
    /// Tasks kept per slot
    #[arg(long, default_value_t = 5)]
    task_history_limit: u64,
    /// Raft entries between two snapshots
    #[arg(long, default_value_t = 10_000)]
    snapshot_interval: u64,
    /// Where the subnets of overlay networks are taken from (default 10.0.0.0/8)
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    default_addr_pool: Vec<Subnet>,
    /// Length of the prefix of a subnet taken from there
    #[arg(long, value_name = "BITS", default_value_t = 20)]
    default_addr_pool_mask_length: u8,
    /// Subnet of the network `bridge`, which tasks are on that name none
    #[arg(long, value_name = "CIDR", default_value = "10.213.0.0/16")]
    bridge_subnet: Subnet,
    /// Where packets of overlay networks leave and arrive (default: the address told to other nodes)
    #[arg(long, value_name = "IP|INTERFACE", default_value = "", hide_default_value = true)]
    data_path_addr: String,
    /// UDP port of overlay networks, the same on all nodes; encrypted ones take the next
    #[arg(long, value_name = "PORT", default_value_t = 4789)]
    data_path_port: u16,
    /// Registry that may be used over http or with an unknown certificate: HOST, HOST:PORT or CIDR; for the daemon
    /// that this starts, and kept for those after it
    #[arg(long = "insecure-registry", value_name = "REGISTRY", value_parser = registries::parse)]
    insecure_registries: Vec<String>,
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    /// What `rswarm join-token` shows; it decides the role
    #[arg(long)]
    token: String,
    /// Address told to other nodes (default: the one this host reaches the manager by)
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", default_value = "", hide_default_value = true)]
    advertise_addr: String,
    /// Where this node listens as a manager
    #[arg(long, value_name = "IP|INTERFACE[:PORT]", default_value = "0.0.0.0:2377")]
    listen_addr: String,
    /// Whether this node takes tasks: active, pause or drain
    #[arg(long, default_value = "active")]
    availability: Availability,
    /// Where packets of overlay networks leave and arrive (default: the address told to other nodes)
    #[arg(long, value_name = "IP|INTERFACE", default_value = "", hide_default_value = true)]
    data_path_addr: String,
    /// Registry that may be used over http or with an unknown certificate: HOST, HOST:PORT or CIDR; for the daemon
    /// that this starts, and kept for those after it
    #[arg(long = "insecure-registry", value_name = "REGISTRY", value_parser = registries::parse)]
    insecure_registries: Vec<String>,
    /// A manager: HOST or HOST:PORT
    #[arg(value_name = "HOST:PORT")]
    manager: String,
}

#[derive(Debug, Args)]
pub struct JoinTokenArgs {
    /// worker or manager
    role: Role,
    /// Replace the token: the old one stops working
    #[arg(long)]
    rotate: bool,
    /// Only the token
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub struct LeaveArgs {
    /// Leave although this node is a manager, or has no daemon that runs
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
pub struct VersionArgs {
    /// `json` or a Go template
    #[arg(short, long)]
    format: Option<String>,
}

#[derive(Debug, Args)]
pub struct InfoArgs {
    /// `json` or a Go template
    #[arg(short, long)]
    format: Option<String>,
}

/// A time that is not none at all: on the wire that would mean the default.
fn lasting(text: &str) -> Result<std::time::Duration, String> {
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    if time.is_zero() { Err("expected more than none".to_owned()) } else { Ok(time) }
}

pub async fn init(paths: &Paths, client: &Client, args: InitArgs) -> anyhow::Result<()> {
    let check = || address::check(&args.listen_addr, &args.advertise_addr, None);
    let started = ensure_running(paths, &args.insecure_registries, check)?;
    let request = v1::InitRequest {
        advertise_addr: args.advertise_addr,
        listen_addr: args.listen_addr,
        availability: v1::Availability::from(args.availability).into(),
        spec: Some(v1::ClusterSpec {
            task_history_limit: args.task_history_limit,
            heartbeat_period_nanos: nanos(args.dispatcher_heartbeat),
            node_down_after_nanos: nanos(args.dispatcher_heartbeat * 5),
            node_cert_expiry_nanos: nanos(args.cert_expiry),
            snapshot_interval: args.snapshot_interval,
            default_address_pool: args.bridge_subnet.to_string(),
            overlay_pools: args.default_addr_pool.iter().map(ToString::to_string).collect(),
            overlay_prefix_len: args.default_addr_pool_mask_length.into(),
            data_path_port: args.data_path_port.into(),
        }),
        data_path_addr: args.data_path_addr,
    };
    let response = or_undo(call!(client, local.init(request)), started)?;
    warn(&response.warnings);
    let text = format!(
        "Swarm initialized: current node ({}) is now a manager.\n\n\
         To add a worker to this swarm, run the following command:\n\n    \
         rswarm join --token {} {}\n\n\
         To add a manager to this swarm, run 'rswarm join-token manager' and follow the instructions.\n",
        response.node_id, response.worker_token, response.advertise_addr
    );
    Ok(output::print(&text)?)
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("Warning: {warning}");
    }
}

/// Takes back what was begun for a call if the call failed.
fn or_undo<T>(outcome: Result<T, CallError>, started: Started) -> Result<T, CallError> {
    if outcome.is_err() {
        started.undo();
    }
    outcome
}

pub async fn join(paths: &Paths, client: &Client, args: JoinArgs) -> anyhow::Result<()> {
    // What no cluster can have given out needs no daemon to be refused.
    args.token.parse::<JoinToken>()?;
    let check = || address::check(&args.listen_addr, &args.advertise_addr, Some(&args.manager));
    let started = ensure_running(paths, &args.insecure_registries, check)?;
    let request = v1::JoinRequest {
        token: args.token,
        manager_addr: args.manager,
        advertise_addr: args.advertise_addr,
        listen_addr: args.listen_addr,
        availability: v1::Availability::from(args.availability).into(),
        data_path_addr: args.data_path_addr,
    };
    let response = or_undo(call!(client, local.join(request)), started)?;
    warn(&response.warnings);
    let role = Role::try_from(response.role())?;
    Ok(output::print(&format!("This node joined a swarm as a {role}.\n"))?)
}

pub async fn join_token(client: &Client, args: JoinTokenArgs) -> anyhow::Result<()> {
    let tokens = if args.rotate {
        let request = v1::RotateJoinTokenRequest { role: v1::Role::from(args.role).into() };
        call!(client, control.rotate_join_token(request))?
    } else {
        call!(client, control.get_join_tokens(v1::GetJoinTokensRequest {}))?
    };
    let token = match args.role {
        Role::Worker => tokens.worker,
        Role::Manager => tokens.manager,
    };
    if args.quiet {
        return Ok(output::print(&format!("{token}\n"))?);
    }
    let rotated = if args.rotate {
        format!("Successfully rotated {} join token.\n\n", args.role)
    } else {
        String::new()
    };
    let addr = tokens.manager_addrs.first().map_or("", String::as_str);
    let text = format!(
        "{rotated}To add a {} to this swarm, run the following command:\n\n    rswarm join --token {token} {addr}\n\n",
        args.role
    );
    Ok(output::print(&text)?)
}

/// With force also where no daemon runs, and none may be able to.
pub async fn leave(paths: &Paths, client: &Client, args: LeaveArgs) -> anyhow::Result<()> {
    match call!(client, local.leave(v1::LeaveRequest { force: args.force })) {
        Err(error @ CallError::Unreachable { .. }) if args.force && offline::is_member(paths) => {
            anyhow::ensure!(
                !paths.only_run_root_is_named(),
                "{error}; to leave without one, name its data root as well: `--data-root` or RSWARM_DATA_ROOT"
            );
            offline::leave(paths.clone()).await?;
        }
        answer => drop(answer?),
    }
    Ok(output::print("Node left the swarm.\n")?)
}

pub async fn ping(client: &Client) -> anyhow::Result<()> {
    call!(client, local.ping(v1::PingRequest {}))?;
    Ok(output::print("OK\n")?)
}

/// Shows what is known; that the daemon cannot be asked for its version is an error all the same.
pub async fn version(client: &Client, args: VersionArgs) -> anyhow::Result<()> {
    let daemon = call!(client, local.ping(v1::PingRequest {}));
    let theirs = daemon.as_ref().ok().map(|response| response.version.as_str());
    if args.format.is_some() {
        inspect_one(args.format.as_deref(), &versions(theirs))?;
    } else {
        let platform = crate::daemon::platform();
        let mut text = format!(
            "Client:\n Version:    {}\n OS/Arch:    {}/{}\n",
            env!("CARGO_PKG_VERSION"),
            platform.os,
            platform.architecture
        );
        if let Some(version) = theirs {
            text.push_str(&format!("\nServer:\n Version:    {version}\n"));
        }
        output::print(&text)?;
    }
    Ok(daemon.map(drop)?)
}

/// Source: `docker version --format`.
fn versions(daemon: Option<&str>) -> serde_json::Value {
    let platform = crate::daemon::platform();
    // Both are this one executable on this one host.
    let side = |version: &str| serde_json::json!({ "Version": version, "Os": platform.os, "Arch": platform.architecture });
    serde_json::json!({ "Client": side(env!("CARGO_PKG_VERSION")), "Server": daemon.map(side) })
}

pub async fn info(client: &Client, args: InfoArgs) -> anyhow::Result<()> {
    use v1::info_response::Membership;
    let info = call!(client, local.info(v1::InfoRequest {}))?;
    let state = match info.membership() {
        Membership::Unspecified | Membership::Inactive => "inactive",
        Membership::Pending => "pending",
        Membership::Active => "active",
        Membership::Error => "error",
    };
    let is_manager = info.role() == v1::Role::Manager;
    let resources = info.resources.unwrap_or_default();
    let platform = info.platform.clone().unwrap_or_default();
    let cluster = if is_manager {
        call!(client, control.get_cluster(v1::GetClusterRequest {}))
            .ok()
            .and_then(|response| response.cluster)
    } else {
        None
    };
    let nodes = if is_manager {
        call!(client, control.list_nodes(v1::ListNodesRequest::default())).ok().map(|response| response.nodes)
    } else {
        None
    };
    if args.format.is_some() {
        // Source: docker-engine-api.yaml, `SystemInfo` and `SwarmInfo`.
        let value = serde_json::json!({
            "Name": info.hostname,
            "ServerVersion": info.version,
            "KernelVersion": info.kernel,
            "CgroupVersion": info.cgroup,
            "OSType": platform.os,
            "Architecture": platform.architecture,
            "NCPU": resources.nano_cpus / 1_000_000_000,
            "MemTotal": resources.memory_bytes,
            "DockerRootDir": info.data_root,
            "Images": info.images,
            "ContainersRunning": info.containers_running,
            "Swarm": {
                "NodeID": info.node_id,
                "NodeAddr": info.advertise_addr.rsplit_once(':').map_or("", |(ip, _)| ip),
                "LocalNodeState": state,
                "ControlAvailable": is_manager,
                "Error": info.message,
                "RemoteManagers": info.manager_addrs.iter()
                    .map(|addr| serde_json::json!({ "Addr": addr })).collect::<Vec<_>>(),
                "Nodes": nodes.as_ref().map(Vec::len),
                "Managers": nodes.as_ref().map(|nodes| nodes.iter().filter(|n| n.manager.is_some()).count()),
                "Cluster": { "ID": info.cluster_id },
            },
        });
        return inspect_one(args.format.as_deref(), &value);
    }
    let mut text = String::new();
    let mut line = |indent: usize, name: &str, value: &str| {
        text.push_str(&" ".repeat(indent));
        text.push_str(name);
        if !value.is_empty() {
            text.push(' ');
            text.push_str(value);
        }
        text.push('\n');
    };
    line(0, "Name:", &info.hostname);
    line(0, "Version:", &info.version);
    line(0, "Swarm:", state);
    if !info.message.is_empty() {
        line(1, "Message:", &info.message);
    }
    if !info.node_id.is_empty() {
        line(1, "NodeID:", &info.node_id);
        line(1, "Is Manager:", if is_manager { "true" } else { "false" });
        line(1, "ClusterID:", &info.cluster_id);
        if let Some(nodes) = &nodes {
            line(1, "Managers:", &nodes.iter().filter(|node| node.manager.is_some()).count().to_string());
            line(1, "Nodes:", &nodes.len().to_string());
        }
        if let Some(spec) = cluster.and_then(|cluster| cluster.spec) {
            line(1, "Default Address Pool:", &spec.overlay_pools.join(", "));
            line(1, "SubnetSize:", &spec.overlay_prefix_len.to_string());
            if let Ok(id) = info.cluster_id.parse() {
                line(1, "IPv6 Address Pool:", &rswarm_types::Cluster::ipv6_pool(id).to_string());
            }
            line(1, "Data Path Port:", &spec.data_path_port.to_string());
            line(1, "Bridge Subnet:", &spec.default_address_pool);
            line(1, "Task History Retention Limit:", &spec.task_history_limit.to_string());
            line(1, "Snapshot Interval:", &spec.snapshot_interval.to_string());
            line(1, "Heartbeat Period:", &duration(spec.heartbeat_period_nanos));
            line(1, "Node Down After:", &duration(spec.node_down_after_nanos));
            line(1, "Certificate Expiry:", &duration(spec.node_cert_expiry_nanos));
        }
        line(1, "Node Address:", &info.advertise_addr);
        line(1, "Manager Addresses:", "");
        for addr in &info.manager_addrs {
            line(2, addr, "");
        }
        if let Some(index) = info.applied_index {
            line(1, "Applied Index:", &index.to_string());
            line(1, "Leader:", info.leader.as_deref().unwrap_or("none"));
        }
        line(1, "Certificate Expires:", &crate::shape::time(rswarm_types::Timestamp(info.cert_expires_at)));
    }
    line(0, "Containers Running:", &info.containers_running.to_string());
    line(0, "Images:", &info.images.to_string());
    line(0, "Kernel Version:", &info.kernel);
    line(0, "Cgroup Version:", &info.cgroup);
    line(0, "OS/Arch:", &format!("{}/{}", platform.os, platform.architecture));
    line(0, "CPUs:", &(resources.nano_cpus / 1_000_000_000).to_string());
    line(0, "Total Memory:", &format_bytes(resources.memory_bytes));
    line(0, "Data Root:", &info.data_root);
    line(0, "Run Root:", &info.run_root);
    if !info.insecure_registries.is_empty() {
        line(0, "Insecure Registries:", "");
    }
    for registry in &info.insecure_registries {
        line(1, registry, "");
    }
    if nodes.is_some_and(|nodes| nodes.iter().filter(|node| node.manager.is_some()).count() == 2) {
        eprintln!(
            "WARNING: two managers are worse than one: the loss of either stops all changes; add a third."
        );
    }
    Ok(output::print(&text)?)
}

/// `info --format` shows one object, not a list of one.
fn inspect_one(format: Option<&str>, value: &serde_json::Value) -> anyhow::Result<()> {
    match format {
        Some("json") => Ok(output::print(&format!("{value}\n"))?),
        other => output::inspect(other, std::slice::from_ref(value)),
    }
}

fn nanos(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

fn duration(nanos: u64) -> String {
    rswarm_types::quantity::format_duration(std::time::Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_not_none_at_all() {
        assert_eq!(lasting("5s"), Ok(std::time::Duration::from_secs(5)));
        assert!(lasting("0s").is_err_and(|error| error.contains("more than none")));
        assert!(lasting("5").is_err_and(|error| error.contains("duration")));
    }
}
