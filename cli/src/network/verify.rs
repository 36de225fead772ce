//! `rswarm network verify`: whether every node's kernel is as its networks should be. Docker has nothing like it.

use anyhow::Context as _;
use clap::Args;
use rswarm_api::v1;
use rswarm_api::v1::NetworkPart as Part;
use rswarm_api::v1::verify_networks_response::NodeNetworks;
use serde_json::{Map, Value, json};

use crate::client::{Client, call};
use crate::output::{self, align};

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// All that was found, as JSON
    #[arg(long)]
    json: bool,
    /// Look only at what belongs to this network, or serves several
    network: Option<String>,
}

/// Field of the JSON shape and heading of each part.
const PARTS: [(Part, &str, &str); 7] = [
    (Part::Link, "Links", "LINKS"),
    (Part::Forwarding, "FDB", "FDB"),
    (Part::Neighbour, "Neighbours", "NEIGHBOURS"),
    (Part::Route, "Routes", "ROUTES"),
    (Part::Rule, "Rules", "RULES"),
    (Part::Map, "Maps", "MAPS"),
    (Part::Name, "Names", "NAMES"),
];

pub async fn run(client: &Client, args: VerifyArgs) -> anyhow::Result<()> {
    let request = v1::VerifyNetworksRequest { network: args.network.unwrap_or_default() };
    let mut nodes = call!(client, control.verify_networks(request))?.nodes;
    nodes.sort_by(|a, b| output::natural_cmp(&a.hostname, &b.hostname));
    let text = if args.json {
        let shapes: Vec<Value> = nodes.iter().map(shape).collect();
        serde_json::to_string_pretty(&shapes).context("cannot write JSON")? + "\n"
    } else {
        table(&nodes)
    };
    output::print(&text)?;
    match nodes.iter().filter(|node| !is_sound(node)).count() {
        0 => Ok(()),
        odd => anyhow::bail!("{odd} of {} nodes are not as they should be", nodes.len()),
    }
}

fn is_sound(node: &NodeNetworks) -> bool {
    let as_told = |check: &v1::NetworkCheck| check.error.is_empty() && check.differences.is_empty();
    node.check.as_ref().is_some_and(as_told) && node.unreached_peers.is_empty()
}

/// How many of a part are missing, or stale.
fn count(check: &v1::NetworkCheck, part: Part, missing: bool) -> usize {
    check.differences.iter().filter(|one| one.part() == part && one.missing == missing).count()
}

fn port_name(port: &v1::PortInUse) -> String {
    let protocol = match port.protocol() {
        v1::Protocol::Udp => "udp",
        v1::Protocol::Sctp => "sctp",
        v1::Protocol::Tcp | v1::Protocol::Unspecified => "tcp",
    };
    format!("{}/{protocol}", port.port)
}

fn table(nodes: &[NodeNetworks]) -> String {
    let headings: Vec<&str> = PARTS.iter().map(|(_, _, heading)| *heading).collect();
    let mut lines = vec![format!("NODE\t{}\tMENDED\tSTATUS", headings.join("\t"))];
    let mut remarks = String::new();
    for node in nodes {
        let name = &node.hostname;
        let mut remark = |text: &str| remarks += &format!("{name}: {text}\n");
        node.route_conflicts.iter().chain(&node.unreached_peers).for_each(|fault| remark(fault));
        let Some(check) = &node.check else {
            lines.push(format!("{name}\t{}unreachable", "-\t".repeat(PARTS.len() + 1)));
            remark(&format!("unreachable: {}", node.unreachable));
            continue;
        };
        let cells = PARTS.map(|(part, _, _)| match (count(check, part, true), count(check, part, false)) {
            (0, 0) => "0".to_owned(),
            (missing, 0) => format!("-{missing}"),
            (0, stale) => format!("+{stale}"),
            (missing, stale) => format!("-{missing} +{stale}"),
        });
        let status = match (check.error.is_empty(), check.differences.is_empty()) {
            (false, _) => "failed",
            (true, false) => "differs",
            (true, true) if !node.unreached_peers.is_empty() => "cut off",
            (true, true) => "as it should be",
        };
        lines.push(format!("{name}\t{}\t{}\t{status}", cells.join("\t"), check.mended));
        if !check.error.is_empty() {
            remark(&check.error);
        }
        for one in &check.differences {
            remark(&format!("{} {}", if one.missing { "missing" } else { "stale" }, one.what));
        }
        for port in &check.ports_in_use {
            let text = format!("published port {} is in use by another process there", port_name(port));
            remark(&text);
        }
    }
    let mut text = align(&lines);
    if !remarks.is_empty() {
        text += &format!("\n{remarks}");
    }
    text
}

fn shape(node: &NodeNetworks) -> Value {
    let mut shape = Map::new();
    shape.insert("ID".into(), node.node_id.as_str().into());
    shape.insert("Hostname".into(), node.hostname.as_str().into());
    shape.insert("Reachable".into(), node.check.is_some().into());
    shape.insert("RouteConflicts".into(), node.route_conflicts.clone().into());
    shape.insert("UnreachedPeers".into(), node.unreached_peers.clone().into());
    let Some(check) = &node.check else {
        shape.insert("Error".into(), node.unreachable.as_str().into());
        return shape.into();
    };
    shape.insert("Error".into(), check.error.as_str().into());
    for (field, missing) in [("Missing", true), ("Stale", false)] {
        let counts = PARTS.map(|(part, name, _)| (name.to_owned(), count(check, part, missing).into()));
        shape.insert(field.into(), Map::from_iter(counts).into());
    }
    let difference = |one: &v1::NetworkDifference| {
        let part = PARTS.iter().find(|(part, ..)| *part == one.part()).map(|(_, name, _)| *name);
        json!({ "Kind": part, "Missing": one.missing, "What": one.what, "NetworkID": one.network })
    };
    shape.insert("Differences".into(), check.differences.iter().map(difference).collect());
    shape.insert("Mended".into(), check.mended.into());
    shape.insert("PortsInUse".into(), check.ports_in_use.iter().map(port_name).collect());
    shape.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(hostname: &str, check: Option<v1::NetworkCheck>) -> NodeNetworks {
        NodeNetworks { hostname: hostname.to_owned(), check, ..NodeNetworks::default() }
    }

    fn nodes() -> Vec<NodeNetworks> {
        let difference = |part: Part, missing, what: &str| v1::NetworkDifference {
            part: part.into(),
            missing,
            what: what.to_owned(),
            network: String::new(),
        };
        let odd = v1::NetworkCheck {
            differences: vec![
                difference(Part::Neighbour, true, "neighbour 10.0.0.3"),
                difference(Part::Neighbour, false, "neighbour 10.0.0.9"),
                difference(Part::Map, false, "nft element"),
                difference(Part::Name, true, "answers by name: resolver does not run"),
            ],
            mended: 3,
            ports_in_use: vec![v1::PortInUse { protocol: v1::Protocol::Udp.into(), port: 53 }],
            ..v1::NetworkCheck::default()
        };
        let failed = v1::NetworkCheck { error: "no memory".to_owned(), ..v1::NetworkCheck::default() };
        let gone = NodeNetworks { unreachable: "it is down".to_owned(), ..node("d", None) };
        let unreached_peers = vec!["node `e` gets no answer from node `a`".to_owned()];
        let cut_off = NodeNetworks { unreached_peers, ..node("e", Some(v1::NetworkCheck::default())) };
        vec![
            node("a", Some(v1::NetworkCheck::default())),
            node("b", Some(odd)),
            node("c", Some(failed)),
            gone,
            cut_off,
        ]
    }

    #[test]
    fn missing_and_stale_are_counted_and_named_by_node() {
        let expected = "\
NODE   LINKS   FDB   NEIGHBOURS   ROUTES   RULES   MAPS   NAMES   MENDED   STATUS
a      0       0     0            0        0       0      0       0        as it should be
b      0       0     -1 +1        0        0       +1     -1      3        differs
c      0       0     0            0        0       0      0       0        failed
d      -       -     -            -        -       -      -       -        unreachable
e      0       0     0            0        0       0      0       0        cut off

b: missing neighbour 10.0.0.3
b: stale neighbour 10.0.0.9
b: stale nft element
b: missing answers by name: resolver does not run
b: published port 53/udp is in use by another process there
c: no memory
d: unreachable: it is down
e: node `e` gets no answer from node `a`
";
        assert_eq!(table(&nodes()), expected);
        assert_eq!(nodes().iter().map(is_sound).collect::<Vec<_>>(), [true, false, false, false, false]);
    }

    #[test]
    fn json_has_the_counts_of_each_kind() {
        let shape = shape(&nodes()[1]);
        assert_eq!((&shape["Missing"]["Neighbours"], &shape["Stale"]["Maps"]), (&json!(1), &json!(1)));
        assert_eq!(shape["Missing"]["FDB"], json!(0));
        assert_eq!((&shape["Mended"], &shape["PortsInUse"]), (&json!(3), &json!(["53/udp"])));
    }
}
