//! What the kernel of each host has of the cluster's networks, read with `ip`, `bridge` and `nft` and by asking for names,
//! beside what it should have by the objects of the API. None of the data path's own code is used.
//!
//! A fact is a line of words, such as `neighbour rsb4097 10.0.16.7 at 02:52:00:00:00:03`. What is known of nft is only what
//! `docs/networking.md` tells users: the names of its maps and sets, and where in the end they lead ([`led`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rswarm_api::v1::{self, TaskState};
use rswarm_lab::Host;
use rswarm_net::run_in_netns;
use serde_json::Value;

use crate::ClusterLab;

/// What is so, or should be, in one host's kernel.
pub type Facts = BTreeSet<String>;

/// Where the addresses of the link between a host and its overlays begin.
const UPLINK6: &str = "fd5c:9a1e:3b72::";
/// How long a name server may take.
const DNS_PATIENCE: Duration = Duration::from_secs(5);
/// How long a node may take to hear of a task that a manager knows to run.
const KNOWN_WITHIN: Duration = Duration::from_secs(20);
const PROGRAMS: [&str; 3] = ["ip", "bridge", "nft"];

/// The program that is missing on this machine to read kernels with.
pub fn missing_program() -> Option<&'static str> {
    PROGRAMS
        .into_iter()
        .find(|program| !Command::new(program).arg("-V").output().is_ok_and(|output| output.status.success()))
}

/// The namespace that the overlays of a host are in.
pub fn helper(host: &Host) -> PathBuf {
    host.run_root.join("netns/overlay")
}

/// What a program that must succeed prints in a namespace.
///
/// # Panics
/// When it fails.
pub fn output(netns: &Path, words: &str) -> String {
    printed(netns, words).unwrap_or_else(|reason| panic!("{reason}"))
}

/// The same of what may just be going away, as the namespace of a task that ends.
fn printed(netns: &Path, words: &str) -> Result<String, String> {
    let mut command = Command::new(words.split(' ').next().unwrap_or_default());
    command.args(words.split(' ').skip(1));
    let output = run_in_netns(netns, || command.output()).map_err(|error| error.to_string())?;
    let output = output.map_err(|error| format!("`{words}`: {error}"))?;
    if !output.status.success() {
        return Err(format!("`{words}`: {}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn json(netns: &Path, words: &str) -> Result<Vec<Value>, String> {
    let text = printed(netns, words)?;
    // With nothing to show, some print nothing at all.
    let parsed = if text.trim().is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text) };
    Ok(match parsed.map_err(|error| format!("`{words}` printed {error}: {text}"))? {
        Value::Array(values) => values,
        Value::Object(mut fields) => {
            fields.remove("nftables").and_then(|all| all.as_array().cloned()).unwrap_or_default()
        }
        _ => Vec::new(),
    })
}

/// What a program prints about either version of IP.
fn of_both(netns: &Path, words: &str) -> Result<Vec<Value>, String> {
    let all = [4, 6].map(|family| json(netns, &words.replace("-N", &format!("-{family}"))));
    Ok(all.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
}

fn word<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

// ---- what there is ----

/// What a host's kernel has.
///
/// # Errors
/// When it changes too much to be read.
pub fn found(host: &Host) -> Result<Facts, String> {
    let netns = helper(host);
    let mut facts = Facts::new();
    let mut own = BTreeSet::new();
    for link in json(&netns, "ip -j link")? {
        let name = word(&link, "ifname");
        own.insert((name.to_owned(), word(&link, "address").to_owned()));
        facts.insert(format!("link {name} {}", word(&link, "master")).trim().to_owned());
    }
    for neighbour in of_both(&netns, "ip -j -N neigh show nud all")? {
        let state = neighbour["state"][0].as_str().unwrap_or_default();
        let (link, address, mac) =
            (word(&neighbour, "dev"), word(&neighbour, "dst"), word(&neighbour, "lladdr"));
        facts.insert(match state {
            "PERMANENT" => format!("neighbour {link} {address} at {mac}"),
            // A question that nobody answers: nothing is known.
            "FAILED" | "INCOMPLETE" => continue,
            // Groups; and who is at the other end of the link to the host is found out as on any link.
            _ if ["01:00:5e", "33:33"].iter().any(|group| mac.starts_with(group)) => continue,
            _ if link == "rsup" || link == "lo" => continue,
            _ => format!("neighbour {link} {address} at {mac}, {state}"),
        });
    }
    for entry in json(&netns, "bridge -j fdb")? {
        let (link, mac, to) = (word(&entry, "ifname"), word(&entry, "mac"), word(&entry, "dst"));
        // Groups that a link listens to by itself, and the addresses of the ports and the bridge.
        let multicast = mac.starts_with("01:00:5e") || mac.starts_with("33:33");
        if multicast || (to.is_empty() && own.contains(&(link.to_owned(), mac.to_owned()))) {
            continue;
        }
        let state = word(&entry, "state");
        facts.insert(format!("forwarding {mac} by {link} {state} {to}").trim().to_owned());
    }
    for route in of_both(&netns, "ip -j -N route show table all")? {
        if word(&route, "dst") == "default" {
            let table = route["table"].as_str().unwrap_or("main");
            facts.insert(format!("route {table} via {} {}", word(&route, "gateway"), word(&route, "dev")));
        }
    }
    for (family, words) in [("", "ip -j -4 rule"), ("IPv6 ", "ip -j -6 rule")] {
        for rule in json(&netns, words)?.iter().filter(|rule| rule["fwmark"].is_string()) {
            facts.insert(format!("{family}rule {} to {}", word(rule, "fwmark"), word(rule, "table")));
        }
    }
    let inside = json(&netns, "nft -j list ruleset")?;
    for member in elements(&inside, "members").chain(elements(&inside, "members6")) {
        facts.insert(format!("member {}", plain(member)));
    }
    let outside = json(&host.netns, "nft -j list ruleset")?;
    for family in ["", "6"] {
        facts.extend(led(&inside, &format!("services{family}")));
        // The way of a published port may go through several maps, of which this is the last.
        let published = format!("published{family}");
        let mesh: Facts = led(&inside, &published).chain(led(&outside, &published)).collect();
        let last = |fact: &String| !fact.contains("to 169.254.") && !fact.contains(&format!("to {UPLINK6}"));
        facts.extend(mesh.into_iter().filter(last));
    }
    Ok(facts)
}

fn objects<'a>(ruleset: &'a [Value], kind: &str) -> impl Iterator<Item = &'a Value> {
    ruleset
        .iter()
        .filter_map(move |object| object.get(kind))
        .filter(|object| word(object, "table") == "rswarm")
}

fn elements<'a>(ruleset: &'a [Value], name: &str) -> impl Iterator<Item = &'a Value> {
    let sets =
        objects(ruleset, "set").chain(objects(ruleset, "map")).filter(move |set| word(set, "name") == name);
    sets.filter_map(|set| set["elem"].as_array()).flatten()
}

/// A key as words: `rsb4097 10.0.16.2`, `tcp 8080`.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(" "),
        Value::Object(fields) => fields.get("concat").map(plain).unwrap_or_default(),
        other => other.to_string(),
    }
}

/// `services rsb4097 10.0.16.2 to 10.0.16.3 10.0.16.4`: the keys of a map, and all addresses to which a packet can be
/// translated where they lead.
fn led<'a>(ruleset: &'a [Value], map: &'a str) -> impl Iterator<Item = String> + 'a {
    elements(ruleset, map).filter_map(move |element| {
        let (key, data) = (element.get(0)?, element.get(1)?);
        let mut to = BTreeSet::new();
        addresses(data, &mut to);
        if let Some(chain) = data["goto"]["target"].as_str().or_else(|| data["jump"]["target"].as_str()) {
            let rules = objects(ruleset, "rule").filter(|rule| word(rule, "chain") == chain);
            rules.for_each(|rule| addresses(&rule["expr"], &mut to));
        }
        let to: Vec<String> = to.iter().map(ToString::to_string).collect();
        Some(format!("{map} {} to {}", plain(key), to.join(" ")))
    })
}

fn addresses(value: &Value, into: &mut BTreeSet<IpAddr>) {
    match value {
        Value::String(text) => into.extend(text.parse::<IpAddr>().ok()),
        Value::Array(values) => values.iter().for_each(|value| addresses(value, into)),
        Value::Object(fields) => fields.values().for_each(|value| addresses(value, into)),
        _ => {}
    }
}

// ---- what there should be ----

/// A task that has a place on the networks.
struct Endpoint {
    service: String,
    node: String,
    ready: bool,
    pid: Option<i32>,
    /// By network.
    addresses: BTreeMap<String, Ipv4Addr>,
}

/// The objects of a cluster that say what kernels should have.
pub struct Cluster {
    nodes: Vec<v1::Node>,
    networks: BTreeMap<String, v1::Network>,
    services: Vec<v1::Service>,
    endpoints: Vec<Endpoint>,
}

/// MAC of all bridges of a node.
fn node_mac(number: u32) -> String {
    let [a, b, c, d] = number.to_be_bytes();
    format!("02:52:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

fn task_mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

impl Cluster {
    /// What a manager says.
    ///
    /// # Errors
    /// Why it does not.
    pub fn read(lab: &ClusterLab, manager: usize) -> Result<Self, String> {
        let api = lab.api(manager);
        let said = |status: tonic::Status| status.to_string();
        let networks = api.networks().map_err(said)?;
        let is_overlay = |network: &v1::Network| network.vni.is_some();
        let networks = networks.into_iter().filter(is_overlay).map(|network| (network.id.clone(), network));
        let tasks = api.tasks(None).map_err(said)?;
        Ok(Self {
            nodes: api.nodes().map_err(said)?,
            networks: networks.collect(),
            services: api.services().map_err(said)?,
            endpoints: tasks.iter().filter_map(endpoint).collect(),
        })
    }

    fn vni(&self, network: &str) -> Option<u32> {
        self.networks.get(network)?.vni
    }

    /// The IPv6 address of whoever has this one: in the same place of its subnet, counted from the first address that the
    /// network had before it grew. Of a network with both families.
    fn twin(&self, network: &str, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let network = self.networks.get(network)?;
        let first = match network.counted_from6.as_str() {
            "" => network.subnet.split('/').next()?,
            first => first,
        };
        let first: Ipv4Addr = first.parse().ok()?;
        let first6: Ipv6Addr = network.subnet6.split('/').next()?.parse().ok()?;
        Some((u128::from(first6) + u128::from(u32::from(address).wrapping_sub(u32::from(first)))).into())
    }

    /// An address and its twin, as far as the network has them.
    fn both(&self, network: &str, address: Ipv4Addr) -> impl Iterator<Item = IpAddr> + use<> {
        let alone = self.networks.get(network).is_some_and(|network| network.ipv6_alone);
        let ipv4 = (!alone).then_some(IpAddr::from(address));
        ipv4.into_iter().chain(self.twin(network, address).map(IpAddr::from))
    }

    fn on<'a>(&'a self, network: &'a str) -> impl Iterator<Item = (&'a Endpoint, Ipv4Addr)> {
        self.endpoints.iter().filter_map(move |task| Some((task, *task.addresses.get(network)?)))
    }

    /// Addresses of the tasks of a service that take new connections.
    fn backends(&self, service: &str, network: &str) -> BTreeSet<Ipv4Addr> {
        let ready = self.on(network).filter(|(task, _)| task.ready && task.service == service);
        ready.map(|(_, address)| address).collect()
    }

    /// The networks that a node takes part in, and the ingress network.
    fn networks_of(&self, node: &str) -> impl Iterator<Item = (&str, u32, bool)> {
        self.networks.iter().filter_map(move |(id, network)| {
            let ingress = network.spec.as_ref().is_some_and(|spec| spec.ingress);
            let concerned = ingress || self.on(id).any(|(task, _)| task.node == node);
            concerned.then_some((id.as_str(), network.vni?, ingress))
        })
    }

    /// What the kernel of a host should have.
    ///
    /// # Errors
    /// When a task's own link cannot be looked at, as the task has just ended.
    pub fn expected(&self, lab: &ClusterLab, host: &Host) -> Result<Facts, String> {
        let own = self.nodes.iter().find(|node| lab.number_of(node) == Some(host.number));
        let own = own.ok_or("the node is not listed")?;
        let peers: BTreeMap<&str, (u32, Ipv4Addr)> = self
            .nodes
            .iter()
            .filter(|node| node.id != own.id)
            .filter_map(|node| {
                Some((node.id.as_str(), (node.number, lab.host(lab.number_of(node)?).address)))
            })
            .collect();
        let mut facts: Facts =
            ["link lo", "link rsup", "rule 0 to main", "rule 0xfff to 5095"].map(str::to_owned).into();
        let uplink = uplink_gateway(host)?;
        facts.extend(["main", "5095"].map(|table| format!("route {table} via {uplink} rsup")));
        if self
            .networks_of(&own.id)
            .any(|(id, ..)| self.networks.get(id).is_some_and(|n| !n.subnet6.is_empty()))
        {
            facts.insert("IPv6 rule 0 to main".to_owned());
            facts.insert("IPv6 rule 0xfff to 5095".to_owned());
            facts.insert(format!("neighbour rsup {UPLINK6}1 at 02:53:00:00:00:01"));
            facts.insert(format!("route 5095 via {UPLINK6}1 rsup"));
            // The way out is for hosts that have IPv6 addresses themselves.
            let words = "ip -j -6 addr show scope global";
            let own6 = json(&host.netns, words)?.iter().any(|link| {
                let all = link["addr_info"].as_array();
                // Of an address in another scope `ip` may print an object without anything in it.
                let foreign = |address: &str| !address.is_empty() && !address.starts_with(UPLINK6);
                all.is_some_and(|all| all.iter().any(|one| foreign(word(one, "local"))))
            });
            facts.extend(own6.then(|| format!("route main via {UPLINK6}1 rsup")));
        }
        let ports = ports(&helper(host))?;
        for (network, vni, ingress) in self.networks_of(&own.id) {
            let (bridge, tunnel) = (format!("rsb{vni}"), format!("rsx{vni}"));
            facts.insert(format!("link {bridge}"));
            facts.insert(format!("link {tunnel} {bridge}"));
            let mut reached: BTreeSet<&str> = BTreeSet::new();
            if ingress {
                reached.extend(peers.keys());
                for (number, _) in peers.values() {
                    let hop = Ipv4Addr::from(u32::from(Ipv4Addr::new(169, 254, 128, 0)) + number);
                    let hop6 = self.networks.get(network).filter(|network| !network.subnet6.is_empty());
                    let hop6 =
                        hop6.map(|_| Ipv6Addr::from((0xfe80 << 112) + (0x5253 << 16) + u128::from(*number)));
                    for hop in [IpAddr::from(hop)].into_iter().chain(hop6.map(IpAddr::from)) {
                        let family = if hop.is_ipv6() { "IPv6 " } else { "" };
                        facts.insert(format!("neighbour {bridge} {hop} at {}", node_mac(*number)));
                        facts.insert(format!("route {} via {hop} {bridge}", 1000 + number));
                        facts.insert(format!("{family}rule {number:#x} to {}", 1000 + number));
                    }
                }
            }
            for (task, address) in self.on(network) {
                facts.extend(self.both(network, address).map(|at| format!("member {bridge} {at}")));
                let mac = match peers.get(task.node.as_str()) {
                    Some((number, _)) => {
                        reached.insert(&task.node);
                        node_mac(*number)
                    }
                    None => {
                        let known =
                            self.both(network, address).next().ok_or("a network without addresses")?;
                        let link = task.link(known, &ports)?;
                        facts.insert(format!("link {link} {bridge}"));
                        facts.insert(format!("forwarding {} by {link} static", task_mac(address)));
                        task_mac(address)
                    }
                };
                let both = self.both(network, address);
                facts.extend(both.map(|at| format!("neighbour {bridge} {at} at {mac}")));
            }
            for (number, address) in reached.into_iter().filter_map(|node| peers.get(node)) {
                facts.insert(format!("forwarding {} by {tunnel} static", node_mac(*number)));
                facts.insert(format!("forwarding {} by {tunnel} permanent {address}", node_mac(*number)));
            }
        }
        self.balanced(&own.id, &mut facts);
        Ok(facts)
    }

    /// Where services' addresses and published ports lead.
    fn balanced(&self, node: &str, facts: &mut Facts) {
        let concerned: BTreeSet<&str> = self.networks_of(node).map(|(network, ..)| network).collect();
        let ingress =
            self.networks.values().find(|network| network.spec.as_ref().is_some_and(|spec| spec.ingress));
        for service in &self.services {
            let Some(endpoint) = &service.endpoint else { continue };
            for vip in endpoint.vips.iter().filter(|vip| concerned.contains(vip.network.as_str())) {
                let (Some(vni), backends) =
                    (self.vni(&vip.network), self.backends(&service.id, &vip.network))
                else {
                    continue;
                };
                let Ok(address) = vip.address.parse() else { continue };
                for at in self.both(&vip.network, address) {
                    let map = if at.is_ipv6() { "services6" } else { "services" };
                    facts.extend(self.leads(
                        &format!("{map} rsb{vni} {at}"),
                        &vip.network,
                        &backends,
                        at.is_ipv6(),
                    ));
                }
            }
            for port in endpoint.ports.iter().filter(|port| port.mode() == v1::PublishMode::Ingress) {
                let Some(ingress) = ingress else { continue };
                let backends = self.backends(&service.id, &ingress.id);
                let protocol = port.protocol().as_str_name().trim_start_matches("PROTOCOL_").to_lowercase();
                let number = port.published.unwrap_or_default();
                for (map, ipv6) in [("published", false), ("published6", true)] {
                    facts.extend(self.leads(
                        &format!("{map} {protocol} {number}"),
                        &ingress.id,
                        &backends,
                        ipv6,
                    ));
                }
            }
        }
    }

    /// That what is asked for leads to the backends, in one family; nothing where there are none.
    fn leads(&self, what: &str, network: &str, backends: &BTreeSet<Ipv4Addr>, ipv6: bool) -> Option<String> {
        let all = backends.iter().flat_map(|at| self.both(network, *at)).filter(|at| at.is_ipv6() == ipv6);
        let all: BTreeSet<IpAddr> = all.collect();
        let to: Vec<String> = all.iter().map(ToString::to_string).collect();
        (!to.is_empty()).then(|| format!("{what} to {}", to.join(" ")))
    }

    /// Asks, from each task on a host and on each of its networks, for the names of the services there.
    ///
    /// # Errors
    /// The first wrong answer.
    pub fn check_names(&self, host_node: &str) -> Result<(), String> {
        for task in self.endpoints.iter().filter(|task| task.node == host_node && task.ready) {
            let Some(netns) = task.netns() else { continue };
            for network in task.addresses.keys() {
                let Some(known) = self.networks.get(network) else { continue };
                let spec = known.spec.clone().unwrap_or_default();
                let gateway = if known.ipv6_alone { &known.gateway6 } else { &known.gateway };
                let server: IpAddr = gateway.parse().map_err(|_| "a network without a gateway")?;
                for service in self.services.iter().filter(|_| !spec.ingress) {
                    let name = service.spec.as_ref().map(|spec| spec.name.as_str()).unwrap_or_default();
                    let vips = service.endpoint.iter().flat_map(|endpoint| &endpoint.vips);
                    let vip =
                        vips.filter(|vip| vip.network == *network).find_map(|vip| vip.address.parse().ok());
                    // A service that is not on the network has a name like any other: the host's name servers are asked.
                    let Some(vip) = vip else { continue };
                    let tasks = self.backends(&service.id, network);
                    let vip = if tasks.is_empty() { BTreeSet::new() } else { BTreeSet::from([vip]) };
                    let expected = [vip, tasks];
                    for (place, prefix) in ["", "tasks."].into_iter().enumerate() {
                        let asked = format!("{prefix}{name}.{}", spec.name);
                        let found = addresses_of(&netns, server, &asked, A)?;
                        let expected = Some(expected[place].clone());
                        let nobody = Some(BTreeSet::new());
                        if found != *(if known.ipv6_alone { &nobody } else { &expected }) {
                            return Err(format!("`{asked}` is {found:?}, expected {expected:?}"));
                        }
                        let twins = |of: BTreeSet<Ipv4Addr>| -> BTreeSet<Ipv6Addr> {
                            of.into_iter().filter_map(|address| self.twin(network, address)).collect()
                        };
                        let found = addresses_of(&netns, server, &asked, AAAA)?;
                        let expected = expected.map(twins);
                        if found != expected {
                            return Err(format!("`{asked}` is {found:?}, expected {expected:?}"));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// `None` of a task that has no node yet or has ended.
fn endpoint(task: &v1::Task) -> Option<Endpoint> {
    let status = task.status.as_ref()?;
    let alive = TaskState::Assigned <= status.state() && status.state() <= TaskState::Running;
    let address = |network: &v1::TaskNetwork| {
        let address = network.address.as_ref()?.address.parse().ok()?;
        Some((network.network.clone(), address))
    };
    (alive && !task.node_id.is_empty()).then(|| Endpoint {
        service: task.service_id.clone(),
        node: task.node_id.clone(),
        ready: crate::is_running(task),
        pid: status.container.as_ref().and_then(|container| container.pid),
        addresses: task.networks.iter().filter_map(address).collect(),
    })
}

impl Endpoint {
    fn netns(&self) -> Option<PathBuf> {
        self.pid.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// Name of the node's end of the link that has an address.
    fn link<'a>(&self, address: IpAddr, ports: &'a BTreeMap<u64, String>) -> Result<&'a str, String> {
        let netns = self.netns().filter(|netns| netns.exists()).ok_or("a task without a process")?;
        let links = json(&netns, "ip -j addr")?;
        let has = |link: &&Value| {
            let addresses = link["addr_info"].as_array();
            addresses.is_some_and(|all| all.iter().any(|one| word(one, "local") == address.to_string()))
        };
        let peer = links.iter().find(has).and_then(|link| link["link_index"].as_u64());
        let link = peer.and_then(|peer| ports.get(&peer));
        link.map(String::as_str).ok_or(format!("no link of a task has {address}"))
    }
}

/// Links of a namespace by their numbers.
fn ports(netns: &Path) -> Result<BTreeMap<u64, String>, String> {
    let links = json(netns, "ip -j link")?;
    let port = |link: &Value| Some((link["ifindex"].as_u64()?, word(link, "ifname").to_owned()));
    Ok(links.iter().filter_map(port).collect())
}

/// The host's address on its link to the overlays.
fn uplink_gateway(host: &Host) -> Result<String, String> {
    let links = json(&host.netns, "ip -j -4 addr show dev rshost")?;
    let address = links.iter().find_map(|link| link["addr_info"][0]["local"].as_str());
    address.map(str::to_owned).ok_or_else(|| "`rshost` has no address".to_owned())
}

/// Addresses that a name server gives to whoever is in a namespace; `None` if it knows no such name.
///
/// # Panics
/// When it does not answer.
pub fn resolve(netns: &Path, server: impl Into<IpAddr>, name: &str) -> Option<BTreeSet<Ipv4Addr>> {
    addresses_of(netns, server.into(), name, A).unwrap_or_else(|reason| panic!("{reason}"))
}

/// The same of IPv6.
///
/// # Panics
/// As [`resolve`].
pub fn resolve6(netns: &Path, server: impl Into<IpAddr>, name: &str) -> Option<BTreeSet<Ipv6Addr>> {
    addresses_of(netns, server.into(), name, AAAA).unwrap_or_else(|reason| panic!("{reason}"))
}

/// Types of records: RFC 1035 and RFC 3596.
const A: u8 = 1;
const AAAA: u8 = 28;

/// The addresses in the records that a name server gives; `None` if it knows no such name.
fn addresses_of<T: Ord + From<[u8; N]>, const N: usize>(
    netns: &Path,
    server: IpAddr,
    name: &str,
    qtype: u8,
) -> Result<Option<BTreeSet<T>>, String> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("a short label"));
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, qtype, 0, 1]);
    let answer = run_in_netns(netns, || {
        let any =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(DNS_PATIENCE))?;
        socket.send_to(&query, (server, 53))?;
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer)?;
        Ok::<_, std::io::Error>(buffer[..length].to_vec())
    });
    let answer = answer.map_err(|error| error.to_string())?;
    let answer = answer.map_err(|error| format!("asking {server} for `{name}`: {error}"))?;
    let rcode = answer[3] & 0x0f;
    // The type, class IN, a TTL, and so many bytes.
    let record = |window: &[u8]| {
        let (head, data) = window.split_at(10);
        let wanted = head[..4] == [0, qtype, 0, 1] && head[8..] == [0, N as u8];
        wanted.then(|| T::from(data.try_into().expect("so many bytes")))
    };
    Ok((rcode == 0).then(|| answer[query.len()..].windows(10 + N).filter_map(record).collect()))
}

impl ClusterLab {
    /// The addresses of a name as soon as there are so many: a node hears of tasks a moment after a manager that they run.
    ///
    /// # Panics
    /// When there are not within 20 s, or nothing answers.
    pub fn until_known(
        &self,
        netns: &Path,
        server: impl Into<IpAddr>,
        name: &str,
        count: usize,
    ) -> BTreeSet<Ipv4Addr> {
        let server = server.into();
        self.until_found(name, count, || resolve(netns, server, name))
    }

    /// The same of IPv6.
    ///
    /// # Panics
    /// As [`Self::until_known`].
    pub fn until_known6(
        &self,
        netns: &Path,
        server: impl Into<IpAddr>,
        name: &str,
        count: usize,
    ) -> BTreeSet<Ipv6Addr> {
        let server = server.into();
        self.until_found(name, count, || resolve6(netns, server, name))
    }

    fn until_found<T: std::fmt::Debug>(
        &self,
        name: &str,
        count: usize,
        look: impl Fn() -> Option<BTreeSet<T>>,
    ) -> BTreeSet<T> {
        self.wait(&format!("`{name}` has {count} addresses"), KNOWN_WITHIN, || match look() {
            Some(found) if found.len() == count => Ok(found),
            found => Err(format!("{found:?}")),
        })
    }

    /// Waits until every host's kernel has exactly what it should have, and names are answered so.
    ///
    /// # Panics
    /// When it does not come to that.
    pub fn until_kernels_are_exact(&self, manager: usize, within: Duration) {
        self.wait("every kernel has exactly what it should", within, || {
            let cluster = Cluster::read(self, manager)?;
            for host in self.hosts() {
                let (expected, found) = (cluster.expected(self, host)?, found(host)?);
                let missing: Vec<_> = expected.difference(&found).collect();
                let surplus: Vec<_> = found.difference(&expected).collect();
                if !(missing.is_empty() && surplus.is_empty()) {
                    return Err(format!("{}: missing {missing:#?}, too much {surplus:#?}", host.name));
                }
                cluster.check_names(&self.node_id(host.number))?;
            }
            Ok(())
        });
    }
}
