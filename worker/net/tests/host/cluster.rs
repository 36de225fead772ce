//! Several nodes on a wire, with tasks on overlay networks, for the tests: what the leader would tell each node is
//! worked out from one description of the cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use rswarm_net::{
    Cidr, Endpoint, HostPort, Network, NetworkConfig, NodeNetwork, Overlay, OverlayNetwork, Protocol,
    PublishedPort, TunnelProgram, VirtualService,
    lab::{Host, Lab, LabSpec, delete_named_netns},
    wireguard::{PeerKeys, TunnelEnd},
};

use crate::rig::{Container, output};

pub const INGRESS: u32 = 4096;
pub const APP: u32 = 4097;
pub const OTHER: u32 = 4098;
/// Has no way out.
pub const INNER: u32 = 4099;

/// The last address of a network.
pub fn address(vni: u32, last: u8) -> Ipv4Addr {
    let [_, _, third, _] = subnet(vni).octets();
    let second = if vni == INGRESS { 255 } else { 0 };
    Ipv4Addr::new(10, second, third, last)
}

/// Its twin.
pub fn address6(vni: u32, last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, vni as u16, 0, 0, 0, 0, 0, last.into())
}

fn subnet(vni: u32) -> Ipv4Addr {
    match vni {
        INGRESS => Ipv4Addr::new(10, 255, 0, 0),
        vni => Ipv4Addr::new(10, 0, ((vni - APP) * 16) as u8, 0),
    }
}

/// What a node may have beside the address that the others send to.
pub fn second_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, number as u8)
}

/// A task: on a node, attached to networks.
pub struct Task {
    pub id: String,
    pub node: usize,
    pub container: Container,
    pub networks: Vec<u32>,
    pub last: u8,
    /// Instead of the one that `last` tells.
    pub given: Option<Ipv4Addr>,
    pub ports: Vec<HostPort>,
}

impl Task {
    pub fn address(&self, vni: u32) -> Ipv4Addr {
        self.given.unwrap_or(address(vni, self.last))
    }

    /// One for each network, `eth0` on; the default route is by the first.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let endpoint = |(number, vni): (usize, &u32)| Endpoint {
            id: format!("{}.{vni}", self.id),
            network: vni.to_string(),
            netns_pid: self.container.pid(),
            address: self.address(*vni),
            prefix_len: 20,
            gateway: address(*vni, 1),
            default_route: number == 0,
            ipv6: None,
            interface_name: format!("eth{number}"),
            ports: if number == 0 { self.ports.clone() } else { Vec::new() },
        };
        self.networks.iter().enumerate().map(endpoint).collect()
    }
}

pub struct Cluster {
    pub lab: Lab,
    pub nodes: Vec<Network>,
    pub mtu: u32,
    /// Those of `networks` that are encrypted; and each node's end of the tunnel, and what the others know of it.
    pub encrypted: BTreeSet<u32>,
    pub ends: BTreeMap<usize, (TunnelEnd, PeerKeys)>,
    /// What encrypts.
    pub program: Option<PathBuf>,
    pub networks: Vec<u32>,
    /// Prefixes of those of `networks` that have grown.
    pub grown: BTreeMap<u32, u8>,
    /// Those of `networks` that have IPv6 too.
    pub ipv6: Vec<u32>,
    /// Those of them that have no IPv4.
    pub ipv6_only: Vec<u32>,
    pub tasks: Vec<Task>,
    pub services: BTreeMap<(u32, Ipv4Addr), VirtualService>,
    pub published: BTreeMap<(Protocol, u16), PublishedPort>,
    /// By network and last byte of a task's address: the services that may connect to it.
    pub restricted: BTreeMap<(u32, u8), BTreeSet<u32>>,
    pub callers: BTreeMap<(u32, Ipv4Addr), u32>,
}

/// Names of a node's own, as several share this machine's files.
fn config(host: &Host, program: Option<&PathBuf>) -> NetworkConfig {
    let path = |end: &str| PathBuf::from(format!("/run/rswarm-lab/{}-{end}", host.name));
    let tunnel = program.map(|executable| TunnelProgram {
        executable: executable.clone(),
        args: Vec::new(),
        socket: path("tunnel"),
        log: path("tunnel-log"),
    });
    NetworkConfig { helper: helper(host), tunnel, ..NetworkConfig::default() }
}

pub fn helper(host: &Host) -> PathBuf {
    format!("/run/rswarm-lab/{}-overlay", host.name).into()
}

impl Cluster {
    /// Nodes 1 to `nodes`, and a further host that is no node.
    pub fn new(nodes: usize) -> Self {
        Self::with_program(nodes, None)
    }

    /// The same, whose nodes can encrypt by this program.
    pub fn with_program(nodes: usize, program: Option<PathBuf>) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("ovl{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Lab::create(LabSpec { gateway: true, ..LabSpec::new(&name, nodes + 1) }).unwrap();
        let mut cluster = Self {
            lab,
            nodes: Vec::new(),
            mtu: 1450,
            encrypted: BTreeSet::new(),
            ends: BTreeMap::new(),
            program,
            networks: vec![INGRESS, APP, OTHER, INNER],
            grown: BTreeMap::new(),
            ipv6: Vec::new(),
            ipv6_only: Vec::new(),
            tasks: Vec::new(),
            services: BTreeMap::new(),
            published: BTreeMap::new(),
            restricted: BTreeMap::new(),
            callers: BTreeMap::new(),
        };
        cluster.nodes = (1..=nodes).map(|number| cluster.daemon(number)).collect();
        cluster
    }

    /// A fresh daemon's handle on a node.
    pub fn daemon(&self, number: usize) -> Network {
        let host = self.lab.host(number);
        host.run(|| Network::new(config(host, self.program.as_ref()))).unwrap().unwrap()
    }

    pub fn host(&self, number: usize) -> &Host {
        self.lab.host(number)
    }

    /// The host that is no node.
    pub fn outside(&self) -> &Host {
        self.lab.host(self.nodes.len() + 1)
    }

    pub fn node(&self, number: usize) -> &Network {
        &self.nodes[number - 1]
    }

    /// What node `number` is told.
    pub fn overlay(&self, number: usize) -> Overlay {
        let network = |vni: &u32| {
            let network = OverlayNetwork {
                id: vni.to_string(),
                twins_from: subnet(*vni),
                ipv6_only: self.ipv6_only.contains(vni),
                prefix_len: *self.grown.get(vni).unwrap_or(&20),
                gateway: address(*vni, 1),
                ipv6: self.ipv6.contains(vni).then(|| Cidr { address: address6(*vni, 1), prefix_len: 64 }),
                mtu: self.mtu - if self.encrypted.contains(vni) { 60 } else { 0 },
                internal: *vni == INNER,
                ingress: *vni == INGRESS,
                encrypted: self.encrypted.contains(vni),
            };
            (*vni, network)
        };
        let elsewhere = self.tasks.iter().filter(|task| task.node != number);
        let own = |last: u8| self.tasks.iter().any(|task| task.node == number && task.last == last);
        let restricted = self.restricted.iter().filter(|((_, last), _)| own(*last));
        Overlay {
            node: number as u16,
            source: Some(self.host(number).address),
            data_path_port: 4789,
            guarded: BTreeSet::from([(Protocol::Tcp, 2377), (Protocol::Udp, 4789)]),
            peers: (1..=self.nodes.len())
                .filter(|peer| *peer != number)
                .map(|peer| (peer as u16, self.host(peer).address))
                .collect(),
            peer_addresses: (1..=self.nodes.len())
                .filter(|peer| *peer != number)
                .flat_map(|peer| [self.host(peer).address.into(), second_address(peer).into()])
                .collect(),
            tunnel: self.ends.get(&number).map(|(end, _)| *end),
            keys: self.ends.iter().map(|(node, (_, keys))| (*node as u16, *keys)).collect(),
            networks: self.networks.iter().map(network).collect(),
            endpoints: elsewhere
                .flat_map(|task| {
                    task.networks.iter().map(|vni| ((*vni, task.address(*vni)), task.node as u16))
                })
                .collect(),
            services: self.services.clone(),
            published: self.published.clone(),
            restricted: restricted
                .map(|(key, from)| ((key.0, address(key.0, key.1)), from.clone()))
                .collect(),
            callers: self.callers.clone(),
        }
    }

    /// Tells every node what is.
    pub async fn tell(&self) {
        for number in 1..=self.nodes.len() {
            assert_eq!(self.node(number).apply(self.overlay(number)).await.unwrap(), BTreeSet::new());
        }
    }

    /// Starts a task and attaches it. The networks must have been told.
    pub async fn start(&mut self, node: usize, last: u8, networks: &[u32]) -> usize {
        self.start_at(node, last, networks, None).await
    }

    /// The same with an address of choice.
    pub async fn start_at(
        &mut self,
        node: usize,
        last: u8,
        networks: &[u32],
        given: Option<Ipv4Addr>,
    ) -> usize {
        let (id, networks, container) = (format!("task{last}"), networks.to_vec(), Container::start());
        let task = Task { id, node, container, networks, last, given, ports: Vec::new() };
        for endpoint in task.endpoints() {
            self.node(node).attach(&endpoint).await.unwrap();
        }
        self.tasks.push(task);
        self.tasks.len() - 1
    }

    /// Gives all tasks on `vni` with these last bytes a virtual address there.
    pub fn serve(&mut self, id: &str, vni: u32, last: u8, backends: &[u8]) -> Ipv4Addr {
        let backends = backends.iter().map(|last| address(vni, *last)).collect();
        self.services.insert((vni, address(vni, last)), VirtualService { id: id.into(), backends });
        address(vni, last)
    }

    /// Lets only some services connect to tasks on `vni`.
    pub fn restrict(&mut self, vni: u32, lasts: &[u8], callers: &[u32]) {
        let callers: BTreeSet<u32> = callers.iter().copied().collect();
        self.restricted.extend(lasts.iter().map(|last| ((vni, *last), callers.clone())));
    }

    /// Says which service tasks on `vni` belong to that may connect where not everyone may.
    pub fn call(&mut self, service: u32, vni: u32, lasts: &[u8]) {
        self.callers.extend(lasts.iter().map(|last| ((vni, address(vni, *last)), service)));
    }

    pub fn publish(&mut self, protocol: Protocol, port: u16, target: u16, backends: &[u8]) {
        let backends = backends.iter().map(|last| address(INGRESS, *last)).collect();
        let to = PublishedPort { target, backends, at: BTreeSet::new() };
        self.published.insert((protocol, port), to);
    }

    /// All that node `number` should have.
    pub fn desired(&self, number: usize) -> NodeNetwork {
        let own = self.tasks.iter().filter(|task| task.node == number);
        NodeNetwork {
            networks: Vec::new(),
            endpoints: own.flat_map(Task::endpoints).collect(),
            overlay: Some(self.overlay(number).into()),
        }
    }

    /// Output of a program in the helper namespace of a node.
    pub fn inside(&self, number: usize, program: &str, arguments: &[&str]) -> String {
        let path = helper(self.host(number));
        output(rswarm_net::lab::command_in_netns(&path, program).unwrap().args(arguments))
    }

    pub async fn assert_settled(&self) {
        for number in 1..=self.nodes.len() {
            assert_eq!(self.node(number).verify().await.unwrap(), [], "node {number}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for number in 1..=self.nodes.len() {
            let host = self.host(number);
            let _ = delete_named_netns(&helper(host));
            for end in ["tunnel", "tunnel-log"] {
                let _ = std::fs::remove_file(format!("/run/rswarm-lab/{}-{end}", host.name));
            }
        }
    }
}
