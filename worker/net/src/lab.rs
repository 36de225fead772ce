//! A lab: hosts made of network namespaces on one machine, for tests and for the playground.
//!
//! ```text
//!   rswlab-<name>-1        rswlab-<name>-2              each host: a namespace with eth0
//!        eth0                   eth0
//!         │                      │
//!   ──── h1 ─────── br0 ──────── h2 ────                rswlab-<name>-net: the wire, a bridge in its own namespace
//! ```
//!
//! Hosts are named namespaces under `/run/rswarm-lab`, so `nsenter --net=/run/rswarm-lab/rswlab-<name>-1` leads into one. Only
//! the network is apart: files, mounts and cgroups are this machine's (so never use `ip netns exec`, which hides the
//! cgroups). Nothing of a lab is in the machine's own network namespace, nor reaches it.
//!
//! Processes on a host are the caller's to end: a namespace lives as long as a process does in it.

mod witness;

pub use witness::Witness;

use std::{
    ffi::OsStr,
    fs, io,
    net::Ipv4Addr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use rustix::thread::LinkNameSpaceType;

use crate::{
    error::NetError,
    model::{Cidr, Mac},
    netlink::{
        Socket, forwarding,
        route::{self, LinkChange, Peer},
    },
    netns::{self, run_in_netns},
};

/// Where named namespaces live, as `ip netns` has it.
/// A directory of our own: `ip netns add` mounts over `/run/netns`, and what was mounted there before can then no
/// longer be taken away by its name.
const NETNS_DIR: &str = "/run/rswarm-lab";
const PREFIX: &str = "rswlab-";
const WIRE: &str = "br0";

/// What a lab should look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabSpec {
    /// Told apart from other labs by this; letters, digits and `-`.
    pub name: String,
    /// 1 to 200.
    pub hosts: usize,
    /// Host i (from 1) gets the i-th address of this subnet.
    pub subnet: Ipv4Addr,
    pub prefix_len: u8,
    /// Gives the wire the last address of the subnet, and the hosts a default route to it.
    pub gateway: bool,
}

impl LabSpec {
    /// `hosts` hosts on `10.77.0.0/24` without a default route.
    pub fn new(name: &str, hosts: usize) -> Self {
        Self { name: name.into(), hosts, subnet: Ipv4Addr::new(10, 77, 0, 0), prefix_len: 24, gateway: false }
    }

    /// Address of the host with this number, from 1.
    pub fn address(&self, number: usize) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet) + number as u32)
    }

    /// The address on the wire itself, when `gateway` is set.
    pub fn gateway_address(&self) -> Ipv4Addr {
        let all = Cidr { address: self.subnet, prefix_len: self.prefix_len }.broadcast();
        Ipv4Addr::from(u32::from(all) - 1)
    }

    fn check(&self) -> Result<(), NetError> {
        let invalid = |reason: &str| {
            Err(NetError::Invalid { what: "lab", id: self.name.clone(), reason: reason.into() })
        };
        if self.name.is_empty() || !self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return invalid("expected a name of letters, digits and `-`");
        }
        if !(1..=200).contains(&self.hosts) {
            return invalid("expected 1 to 200 hosts");
        }
        let net = Cidr { address: self.subnet, prefix_len: self.prefix_len };
        if !(8..=28).contains(&self.prefix_len) || net.subnet() != self.subnet {
            return invalid("expected a subnet with a prefix length of 8 to 28");
        }
        if self.address(self.hosts) >= self.gateway_address() {
            return invalid("expected a subnet with room for the hosts");
        }
        Ok(())
    }
}

/// Hosts on a wire. Gone when dropped, unless [`Lab::keep`] was called.
#[derive(Debug)]
pub struct Lab {
    spec: LabSpec,
    hosts: Vec<Host>,
    kept: bool,
}

/// The wire alone, for hosts that are no namespaces, such as virtual machines with tap devices. Gone when dropped.
#[derive(Debug)]
pub struct Wire {
    lab: String,
    netns: PathBuf,
}

impl Wire {
    /// Makes the wire of a lab, with the gateway's address if the specification has one. What is left of a lab of the
    /// same name goes first.
    ///
    /// # Errors
    /// As [`Lab::create`].
    pub fn create(spec: &LabSpec) -> Result<Self, NetError> {
        spec.check()?;
        Lab::destroy_named(&spec.name)?;
        // Dropping it undoes whatever was made so far.
        let wire = Self { lab: spec.name.clone(), netns: wire_path(&spec.name) };
        create_named_netns(&wire.netns)?;
        let gateway = spec.gateway.then(|| spec.gateway_address());
        let prefix_len = spec.prefix_len;
        run_in_netns(&wire.netns, || make_wire(gateway.map(|address| Cidr { address, prefix_len })))??;
        Ok(wire)
    }

    /// The namespace that ports have to be made in.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// Joins a link of the wire's namespace to the wire; `false` while there is no such link.
    ///
    /// # Errors
    /// `Namespace` or `Kernel`.
    pub fn plug(&self, port: &str) -> Result<bool, NetError> {
        run_in_netns(&self.netns, || {
            let failed = |error| NetError::kernel(format!("plug `{port}` in"), error);
            let mut socket = open_route()?;
            if route::link_by_name(&mut socket, port).map_err(failed)?.is_none() {
                return Ok(false);
            }
            let master = Some(index_of(&mut socket, WIRE)?);
            route::set_link(&mut socket, port, &LinkChange { master, ..up() }).map_err(failed)?;
            Ok(true)
        })?
    }

    /// Puts the cable of a port back, or pulls it.
    ///
    /// # Errors
    /// `Namespace` or `Kernel`.
    pub fn set_cable(&self, port: &str, up: bool) -> Result<(), NetError> {
        set_cable(&self.netns, port, up)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Err(error) = Lab::destroy_named(&self.lab) {
            tracing::warn!(%error, lab = self.lab, "failed to remove a wire");
        }
    }
}

/// One host of a lab.
#[derive(Debug, Clone)]
pub struct Host {
    /// Also the name of its namespace.
    pub name: String,
    /// From 1.
    pub number: usize,
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    /// `/run/rswarm-lab/<name>`.
    pub netns: PathBuf,
    wire: PathBuf,
}

impl Lab {
    /// Makes the namespaces and the wire. A lab of the same name, left by an earlier run, goes first.
    ///
    /// # Errors
    /// `Invalid` for a senseless specification; `Namespace`, `Kernel` or `NotPermitted` without privilege. Nothing is
    /// left behind then.
    pub fn create(spec: LabSpec) -> Result<Self, NetError> {
        spec.check()?;
        Self::destroy_named(&spec.name)?;
        let hosts = (1..=spec.hosts).map(|number| host(&spec, number)).collect();
        // Dropping it undoes whatever was made so far.
        let lab = Self { spec, hosts, kept: false };
        let wire = lab.wire_path();
        create_named_netns(&wire)?;
        let gateway = lab.spec.gateway.then(|| lab.spec.gateway_address());
        let prefix_len = lab.spec.prefix_len;
        run_in_netns(&wire, || make_wire(gateway.map(|address| Cidr { address, prefix_len })))??;
        for host in &lab.hosts {
            create_named_netns(&host.netns)?;
            host.connect(gateway)?;
        }
        Ok(lab)
    }

    /// The hosts, in order; the first has number 1.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host with this number, from 1.
    ///
    /// # Panics
    /// When there is none.
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    pub fn spec(&self) -> &LabSpec {
        &self.spec
    }

    /// Namespace of the wire; from here all hosts can be reached when the lab has a gateway.
    pub fn wire_path(&self) -> PathBuf {
        wire_path(&self.spec.name)
    }

    /// Lets the lab outlive this value; [`Lab::destroy_named`] ends it.
    pub fn keep(mut self) -> Vec<Host> {
        self.kept = true;
        std::mem::take(&mut self.hosts)
    }

    /// Removes namespaces and wire. Keeps going on errors and returns the first.
    pub fn destroy(mut self) -> Result<(), NetError> {
        self.kept = true;
        Self::destroy_named(&self.spec.name)
    }

    /// Removes whatever there is of a lab of this name. Fine if there is nothing.
    pub fn destroy_named(name: &str) -> Result<(), NetError> {
        let mut outcome = Ok(());
        for path in Self::namespaces_of(name) {
            let deleted = delete_named_netns(&path);
            outcome = outcome.and(deleted);
        }
        outcome
    }

    /// The namespaces there are of a lab of this name, the wire's among them.
    pub fn namespaces_of(name: &str) -> Vec<PathBuf> {
        let prefix = format!("{PREFIX}{name}-");
        let is_part = |path: &PathBuf| {
            let file = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            file.strip_prefix(&prefix).is_some_and(|rest| rest == "net" || rest.parse::<usize>().is_ok())
        };
        let entries = fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
        let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(is_part).collect();
        found.sort();
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = Self::destroy_named(&self.spec.name)
        {
            tracing::warn!(%error, lab = self.spec.name, "failed to remove a lab");
        }
    }
}

fn host(spec: &LabSpec, number: usize) -> Host {
    let name = format!("{PREFIX}{}-{number}", spec.name);
    Host {
        number,
        address: spec.address(number),
        prefix_len: spec.prefix_len,
        netns: Path::new(NETNS_DIR).join(&name),
        wire: wire_path(&spec.name),
        name,
    }
}

fn wire_path(lab: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(format!("{PREFIX}{lab}-net"))
}

fn up() -> LinkChange<'static> {
    LinkChange { up: Some(true), ..LinkChange::default() }
}

fn index_of(socket: &mut Socket, name: &str) -> Result<u32, NetError> {
    let missing = crate::KernelError { errno: libc::ENODEV, reason: None };
    let found = route::link_by_name(socket, name).and_then(|link| link.ok_or(missing));
    found.map(|link| link.index).map_err(|error| NetError::kernel(format!("find link `{name}`"), error))
}

fn open_route() -> Result<Socket, NetError> {
    Socket::open(libc::NETLINK_ROUTE).map_err(|error| NetError::kernel("open a NETLINK_ROUTE socket", error))
}

/// Runs in the wire's namespace.
fn make_wire(address: Option<Cidr>) -> Result<(), NetError> {
    let failed = |error| NetError::kernel("make the wire of a lab", error);
    let mut socket = open_route()?;
    let mac = Mac::from_address(address.map_or(Ipv4Addr::UNSPECIFIED, |cidr| cidr.address));
    route::set_link(&mut socket, "lo", &up()).map_err(failed)?;
    route::create_bridge(&mut socket, WIRE, mac).map_err(failed)?;
    route::set_link(&mut socket, WIRE, &up()).map_err(failed)?;
    if let Some(cidr) = address {
        let index = index_of(&mut socket, WIRE)?;
        route::add_address(&mut socket, index, cidr).map_err(failed)?;
    }
    Ok(())
}

fn set_cable(wire: &Path, port: &str, up: bool) -> Result<(), NetError> {
    run_in_netns(wire, || {
        let change = LinkChange { up: Some(up), ..LinkChange::default() };
        route::set_link(&mut open_route()?, port, &change)
            .map_err(|error| NetError::kernel(format!("set the cable of port `{port}`"), error))
    })?
}

/// Gives the caller's network namespace its loopback, and `link` an address and perhaps a default route.
///
/// # Errors
/// `Kernel`, which names the link.
pub fn configure(link: &str, address: Cidr, gateway: Option<Ipv4Addr>) -> Result<(), NetError> {
    let failed = |error| NetError::kernel(format!("give `{link}` its address"), error);
    let mut socket = open_route()?;
    route::set_link(&mut socket, "lo", &up()).map_err(failed)?;
    let index = index_of(&mut socket, link)?;
    route::add_address(&mut socket, index, address).map_err(failed)?;
    route::set_link(&mut socket, link, &up()).map_err(failed)?;
    gateway
        .map_or(Ok(()), |gateway| forwarding::set_default_route(&mut socket, index, gateway).map_err(failed))
}

impl Host {
    fn port(&self) -> String {
        format!("h{}", self.number)
    }

    fn connect(&self, gateway: Option<Ipv4Addr>) -> Result<(), NetError> {
        let failed = |error| NetError::kernel(format!("connect host `{}`", self.name), error);
        let namespace = netns::open(&self.netns)?;
        run_in_netns(&self.wire, || {
            let mut socket = open_route()?;
            let peer = Peer {
                name: "eth0",
                mac: Some(Mac::from_address(self.address)),
                mtu: None,
                namespace: namespace.as_fd(),
            };
            route::create_veth(&mut socket, &self.port(), &peer).map_err(failed)?;
            let master = Some(index_of(&mut socket, WIRE)?);
            route::set_link(&mut socket, &self.port(), &LinkChange { master, ..up() }).map_err(failed)
        })??;
        let cidr = Cidr { address: self.address, prefix_len: self.prefix_len };
        run_in_netns(&self.netns, || configure("eth0", cidr, gateway))?
    }

    /// Pulls the cable: the wire's side goes down, and nothing comes or goes. Processes there do not notice at once.
    pub fn cut(&self) -> Result<(), NetError> {
        self.set_cable(false)
    }

    /// Puts the cable back.
    pub fn heal(&self) -> Result<(), NetError> {
        self.set_cable(true)
    }

    fn set_cable(&self, up: bool) -> Result<(), NetError> {
        set_cable(&self.wire, &self.port(), up)
    }

    /// Runs `f` on this host, on a thread of its own; sockets opened there stay there.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetError> {
        run_in_netns(&self.netns, f)
    }

    /// A command that will run on this host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command, NetError> {
        command_in_netns(&self.netns, program)
    }
}

/// A command that will run in the network namespace at `path`, all else being the caller's.
pub fn command_in_netns(path: &Path, program: impl AsRef<OsStr>) -> Result<Command, NetError> {
    let namespace = OwnedFd::from(netns::open(path)?);
    let mut command = Command::new(program);
    // SAFETY: between fork and exec this makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(io::Error::from)
        });
    }
    Ok(command)
}

/// Makes an empty network namespace and holds it by a mount at `path`, which must not exist.
pub fn create_named_netns(path: &Path) -> Result<(), NetError> {
    netns::create_pinned(path)
}

/// Lets go of a named namespace; it ends with its last process. Fine if it is gone.
pub fn delete_named_netns(path: &Path) -> Result<(), NetError> {
    netns::remove_pinned(path)?;
    // The last one takes the directory along; it stays while others are in it.
    if let Some(directory) = path.parent()
        && directory == Path::new(NETNS_DIR)
    {
        let _ = fs::remove_dir(directory);
    }
    Ok(())
}
