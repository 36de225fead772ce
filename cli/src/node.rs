//! `rswarm node …`. Source: swarm-parity 1.2.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, Subcommand};
use rswarm_api::v1;
use rswarm_types::quantity::format_bytes;
use rswarm_types::{Availability, Node, NodeId, NodeState, Role};
use serde_json::{Value, json};

use crate::client::{Client, call, filters, for_each};
use crate::output::{self, Columns};
use crate::{shape, task};

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List nodes
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show nodes in full
    Inspect(InspectArgs),
    /// List the tasks of nodes (default: this one)
    Ps(PsArgs),
    /// Change labels, availability or role of a node
    Update(UpdateArgs),
    /// Make nodes managers
    Promote {
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Make managers workers
    Demote {
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Remove nodes from the cluster
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(required = true)]
        nodes: Vec<String>,
        /// Also a node that is not down
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub struct LsArgs {
    /// Show only nodes that match: id, name, label, node.label, membership, role
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// `table`, `table TEMPLATE`, `json` or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// `json` or a Go template
    #[arg(short, long)]
    format: Option<String>,
    /// For reading
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    /// Names or ids; `self` is this node
    #[arg(required = true)]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    #[command(flatten)]
    list: task::ListArgs,
    /// Names or ids; `self` is this node
    #[arg(default_value = "self")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// active, pause or drain
    #[arg(long)]
    availability: Option<Availability>,
    /// worker or manager
    #[arg(long)]
    role: Option<Role>,
    /// Add or change a label
    #[arg(long, value_name = "KEY=VALUE")]
    label_add: Vec<String>,
    /// Remove a label
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    node: String,
}

const COLUMNS: Columns = Columns {
    table: "{{.ID}}{{if .Self}} *{{else}}{{end}}\t{{.Hostname}}\t{{.Status}}\t{{.Availability}}\t\
            {{.ManagerStatus}}\t{{.EngineVersion}}",
    headings: &[
        ("ID", "ID"),
        ("Self", ""),
        ("Hostname", "HOSTNAME"),
        ("Status", "STATUS"),
        ("Availability", "AVAILABILITY"),
        ("ManagerStatus", "MANAGER STATUS"),
        ("EngineVersion", "ENGINE VERSION"),
        ("TLSStatus", "TLS STATUS"),
    ],
};

/// A node with what the answering manager measured.
struct Seen {
    node: Node,
    leader: bool,
    reachability: &'static str,
    /// Of its routes with the cluster's networks, in words; known of one that was asked for by name.
    conflicts: Vec<String>,
    /// Other nodes that do not answer it by the data path, in words; known of one that was asked for by name.
    unreached: Vec<String>,
}

impl TryFrom<v1::Node> for Seen {
    type Error = anyhow::Error;
    fn try_from(wire: v1::Node) -> anyhow::Result<Self> {
        let (leader, reachability) = wire.manager.as_ref().map_or((false, ""), |manager| {
            (
                manager.leader,
                match manager.reachability() {
                    v1::Reachability::Reachable => "reachable",
                    v1::Reachability::Unreachable => "unreachable",
                    v1::Reachability::Unknown | v1::Reachability::Unspecified => "unknown",
                },
            )
        });
        Ok(Self {
            node: Node::try_from(wire)?,
            leader,
            reachability,
            conflicts: Vec::new(),
            unreached: Vec::new(),
        })
    }
}

pub async fn run(client: &Client, command: NodeCommand) -> anyhow::Result<()> {
    match command {
        NodeCommand::Ls(args) => ls(client, args).await,
        NodeCommand::Inspect(args) => inspect(client, args).await,
        NodeCommand::Ps(args) => ps(client, args).await,
        NodeCommand::Update(args) => update(client, args).await,
        NodeCommand::Promote { nodes } => {
            set_role(
                client,
                &nodes,
                Role::Manager,
                "is already a manager",
                "promoted to a manager in the swarm",
            )
            .await
        }
        NodeCommand::Demote { nodes } => {
            set_role(client, &nodes, Role::Worker, "is already a worker", "demoted in the swarm").await
        }
        NodeCommand::Rm { nodes, force } => {
            for_each(&nodes, async |node| {
                call!(client, control.remove_node(v1::RemoveNodeRequest { node: node.to_owned(), force }))?;
                println!("{node}");
                Ok(())
            })
            .await
        }
    }
}

/// Every node, by id: tables of tasks show names by it.
pub async fn names(client: &Client) -> anyhow::Result<std::collections::BTreeMap<String, String>> {
    let nodes = call!(client, control.list_nodes(v1::ListNodesRequest::default()))?.nodes;
    Ok(nodes
        .into_iter()
        .map(|node| {
            let name = node.description.map_or_else(|| node.id.clone(), |description| description.hostname);
            (node.id, name)
        })
        .collect())
}

async fn own_id(client: &Client) -> anyhow::Result<String> {
    Ok(call!(client, local.info(v1::InfoRequest {}))?.node_id)
}

/// Puts this node's id in the place of `self` in filters by node.
pub async fn resolve_self(client: &Client, filters: &mut [v1::Filter]) -> anyhow::Result<()> {
    let nodes = filters.iter_mut().filter(|filter| filter.key == "node");
    for value in nodes.flat_map(|filter| &mut filter.values).filter(|value| *value == "self") {
        *value = own_id(client).await?;
    }
    Ok(())
}

async fn get(client: &Client, name: &str) -> anyhow::Result<Seen> {
    let node = if name == "self" { own_id(client).await? } else { name.to_owned() };
    let response = call!(client, control.get_node(v1::GetNodeRequest { node }))?;
    let seen = Seen::try_from(response.node.unwrap_or_default())?;
    Ok(Seen { conflicts: response.route_conflicts, unreached: response.unreached_peers, ..seen })
}

async fn ls(client: &Client, args: LsArgs) -> anyhow::Result<()> {
    let request = v1::ListNodesRequest { filters: filters(&args.filter)? };
    let nodes = call!(client, control.list_nodes(request))?.nodes;
    let mut nodes = nodes.into_iter().map(Seen::try_from).collect::<Result<Vec<_>, _>>()?;
    nodes.sort_by(|a, b| {
        output::natural_cmp(&a.node.display_name(), &b.node.display_name()).then(a.node.id.cmp(&b.node.id))
    });
    if args.quiet && args.format.is_none() {
        let ids: String = nodes.iter().map(|seen| format!("{}\n", seen.node.id)).collect();
        return Ok(output::print(&ids)?);
    }
    let own = own_id(client).await?;
    let ready: BTreeSet<NodeId> =
        nodes.iter().map(|seen| &seen.node).filter(|n| is_ready(n)).map(|n| n.id).collect();
    let row = |seen: &Seen| -> Value {
        let node = &seen.node;
        json!({
            "ID": node.id.to_string(),
            "Self": node.id.to_string() == own,
            "Hostname": node.description.as_ref().map_or("", |d| d.hostname.as_str()),
            "Status": status(node, &ready),
            "Availability": capitalised(&node.spec.availability.to_string()),
            "ManagerStatus": shape::manager_status(
                if node.manager.is_some() { Role::Manager } else { Role::Worker }, seen.leader, seen.reachability),
            "EngineVersion": node.description.as_ref().map_or("", |d| d.engine_version.as_str()),
            "TLSStatus": if node.description.is_some() { "Ready" } else { "Unknown" },
        })
    };
    output::list(COLUMNS, args.format.as_deref(), &nodes.iter().map(row).collect::<Vec<_>>())
}

fn is_ready(node: &Node) -> bool {
    node.status.state == NodeState::Ready
}

/// `Ready`, or `Ready, cut off from 2` of the nodes that are ready as well.
fn status(node: &Node, ready: &BTreeSet<NodeId>) -> String {
    let state = capitalised(&node.status.state.to_string());
    let network = node.description.as_ref().map(|description| &description.network);
    let silent = network.map_or(0, |network| network.silent_peers.intersection(ready).count());
    if is_ready(node) && silent > 0 { format!("{state}, cut off from {silent}") } else { state }
}

async fn inspect(client: &Client, args: InspectArgs) -> anyhow::Result<()> {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for name in &args.nodes {
        match get(client, name).await {
            Ok(seen) => found.push(seen),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    let tls = if found.is_empty() { Tls::default() } else { tls(client).await? };
    if args.pretty {
        let texts: Vec<String> = found.iter().map(|seen| pretty(seen, &tls)).collect();
        output::print(&texts.join("\n"))?;
    } else {
        let shapes: Vec<_> = found
            .iter()
            .map(|seen| {
                let mut shape = shape::node(&seen.node, seen.leader, seen.reachability);
                if !seen.conflicts.is_empty() {
                    shape["Network"]["RouteConflicts"] = seen.conflicts.clone().into();
                }
                if !seen.unreached.is_empty() {
                    shape["Network"]["UnreachedPeers"] = seen.unreached.clone().into();
                }
                if let Some(description) = shape.get_mut("Description") {
                    description["TLSInfo"] = tls.shape();
                }
                shape
            })
            .collect();
        output::inspect(args.format.as_deref(), &shapes)?;
    }
    if errors.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(errors.join("\n"))) }
}

/// Whom the nodes of the cluster trust: the authority that issues their certificates.
#[derive(Debug, Default)]
struct Tls {
    /// PEM.
    trust_root: String,
    subject: String,
    /// DER.
    subject_raw: Vec<u8>,
    /// DER.
    public_key: Vec<u8>,
}

impl Tls {
    fn read(root_cert_pem: &str) -> anyhow::Result<Self> {
        let unreadable = || "the cluster's root certificate cannot be read";
        let (_, pem) = x509_parser::pem::parse_x509_pem(root_cert_pem.as_bytes()).with_context(unreadable)?;
        let root = pem.parse_x509().with_context(unreadable)?;
        Ok(Self {
            trust_root: root_cert_pem.to_owned(),
            subject: root.subject().to_string(),
            subject_raw: root.subject().as_raw().to_vec(),
            public_key: root.public_key().raw.to_vec(),
        })
    }

    /// Source: docker-engine-api.yaml, `TLSInfo`.
    fn shape(&self) -> Value {
        json!({
            "TrustRoot": self.trust_root,
            "CertIssuerSubject": BASE64_STANDARD.encode(&self.subject_raw),
            "CertIssuerPublicKey": BASE64_STANDARD.encode(&self.public_key),
        })
    }
}

async fn tls(client: &Client) -> anyhow::Result<Tls> {
    let cluster = call!(client, control.get_cluster(v1::GetClusterRequest {}))?.cluster.unwrap_or_default();
    Tls::read(&cluster.root_cert_pem)
}

fn pretty(seen: &Seen, tls: &Tls) -> String {
    let Seen { node, leader, reachability, conflicts, unreached } = seen;
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<24}{value}");
    };
    line("ID:", &node.id.to_string());
    if !node.spec.labels.is_empty() {
        line("Labels:", "");
        for (key, value) in &node.spec.labels {
            line(&format!(" - {key}={value}"), "");
        }
    }
    line("Hostname:", &node.display_name());
    line("Joined at:", &shape::time(node.meta.created_at));
    line("Status:", "");
    line(" State:", &capitalised(&node.status.state.to_string()));
    if !node.status.message.is_empty() {
        line(" Message:", &node.status.message);
    }
    line(" Availability:", &capitalised(&node.spec.availability.to_string()));
    line(" Address:", &node.status.addr.map(|addr| addr.to_string()).unwrap_or_default());
    if let Some(manager) = &node.manager {
        line("Manager Status:", "");
        line(" Address:", &manager.addr);
        line(" Raft Status:", &capitalised(reachability));
        line(" Leader:", if *leader { "Yes" } else { "No" });
    }
    if let Some(description) = &node.description {
        line("Platform:", "");
        line(" Operating System:", &description.platform.os);
        line(" Architecture:", &description.platform.architecture);
        line("Resources:", "");
        line(" CPUs:", &(description.resources.nano_cpus / 1_000_000_000).to_string());
        line(" Memory:", &format_bytes(description.resources.memory_bytes));
        for (protocol, port) in &description.network.ports_in_use {
            line("Port in Use:", &format!("{port}/{protocol} is published, and another process has it here"));
        }
        for conflict in conflicts {
            line("Conflict:", conflict);
        }
        for fault in unreached {
            line("Data Path:", fault);
        }
        line("Engine Version:", &description.engine_version);
        if !description.engine_labels.is_empty() {
            line("Engine Labels:", "");
        }
        for (key, value) in &description.engine_labels {
            line(&format!(" - {key}={value}"), "");
        }
    }
    line("TLS Info:", "");
    line(" Issuer Subject:", &tls.subject);
    line(" Issuer Public Key:", &BASE64_STANDARD.encode(&tls.public_key));
    line(" Trust Root:", "");
    for text in tls.trust_root.lines() {
        line(&format!("  {text}"), "");
    }
    out.lines().map(str::trim_end).collect::<Vec<_>>().join("\n") + "\n"
}

async fn ps(client: &Client, args: PsArgs) -> anyhow::Result<()> {
    let mut ids = Vec::new();
    let mut errors = Vec::new();
    for name in &args.nodes {
        match get(client, name).await {
            Ok(seen) => ids.push(seen.node.id.to_string()),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    if !ids.is_empty() {
        task::list(client, &args.list, v1::Filter { key: "node".to_owned(), values: ids }).await?;
    }
    if errors.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(errors.join("\n"))) }
}

async fn update(client: &Client, args: UpdateArgs) -> anyhow::Result<()> {
    let Seen { node, .. } = get(client, &args.node).await?;
    let mut spec = node.spec.clone();
    if let Some(availability) = args.availability {
        spec.availability = availability;
    }
    if let Some(role) = args.role {
        spec.role = role;
    }
    for key in &args.label_rm {
        if spec.labels.remove(key).is_none() {
            anyhow::bail!("key `{key}` does not exist in the labels of node `{}`", args.node);
        }
    }
    for label in &args.label_add {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        anyhow::ensure!(!key.is_empty(), "invalid label `{label}`: expected key=value");
        spec.labels.insert(key.to_owned(), value.to_owned());
    }
    put(client, &node, &spec).await?;
    println!("{}", args.node);
    Ok(())
}

async fn put(client: &Client, node: &Node, spec: &rswarm_types::NodeSpec) -> anyhow::Result<()> {
    let request = v1::UpdateNodeRequest {
        id: node.id.to_string(),
        version: node.meta.version.0,
        spec: Some(spec.into()),
    };
    call!(client, control.update_node(request))?;
    Ok(())
}

async fn set_role(
    client: &Client,
    names: &[String],
    role: Role,
    already: &str,
    done: &str,
) -> anyhow::Result<()> {
    for_each(names, async |name| {
        let Seen { node, .. } = get(client, name).await?;
        if node.spec.role == role {
            println!("Node {name} {already}.");
            return Ok(());
        }
        put(client, &node, &rswarm_types::NodeSpec { role, ..node.spec.clone() }).await?;
        let what = if role == Role::Manager { "Node" } else { "Manager" };
        println!("{what} {name} {done}.");
        Ok(())
    })
    .await
}

pub fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_ascii_uppercase().to_string() + chars.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rswarm_types::{NodeDescription, NodeId, NodeSpec, NodeStatus};

    use super::*;

    #[test]
    fn a_node_for_reading_shows_engine_labels_and_whom_it_trusts() {
        let description = NodeDescription {
            hostname: "host-1".to_owned(),
            platform: crate::daemon::platform(),
            resources: rswarm_types::node::Resources::default(),
            engine_version: "1".to_owned(),
            engine_labels: [("disk".to_owned(), "ssd".to_owned())].into(),
            network: Default::default(),
        };
        let node = Node {
            id: NodeId::from_bytes([1; 16]),
            meta: rswarm_types::Meta::default(),
            spec: NodeSpec::default(),
            role: Role::Worker,
            description: Some(description),
            status: NodeStatus::default(),
            manager: None,
            role_since: rswarm_types::Version::default(),
            number: 0,
        };
        let tls = Tls {
            trust_root: "-----BEGIN\nabc\n".to_owned(),
            subject: "CN=root".to_owned(),
            ..Tls::default()
        };
        let text = pretty(
            &Seen {
                node,
                leader: false,
                reachability: "",
                conflicts: Vec::new(),
                unreached: vec!["cut off".to_owned()],
            },
            &tls,
        );
        for part in [
            "Hostname:               host-1\n",
            "Engine Labels:\n - disk=ssd\n",
            "Data Path:              cut off\n",
            "TLS Info:\n Issuer Subject:        CN=root\n Issuer Public Key:\n Trust Root:\n  -----BEGIN\n  abc\n",
        ] {
            assert!(text.contains(part), "expected {part:?} in {text}");
        }
    }
}
