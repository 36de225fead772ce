//! The link in the helper namespace, whoever carries it.

use std::{
    net::Ipv4Addr,
    os::fd::BorrowedFd,
    path::Path,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use super::{Setting, State, WIREGUARD, inner_address, kernel, user};
use crate::{
    error::KernelError,
    model::{Cidr, NetworkConfig, TunnelProgram},
    netlink::{
        Socket, forwarding,
        route::{self, Link, LinkChange},
    },
};

/// How long a port may still be held by the process before this one.
const PORT_PATIENCE: Duration = Duration::from_secs(1);

/// Why this host cannot take part in encrypted networks, `None` if it can.
pub fn obstacle(config: &NetworkConfig) -> Option<String> {
    let in_kernel = Socket::open(libc::NETLINK_GENERIC).and_then(|mut socket| kernel::family(&mut socket));
    if let Ok(Some(_)) = in_kernel {
        return None;
    }
    match (&config.tunnel, user::is_possible()) {
        (Some(_), Ok(())) => None,
        (_, result) => {
            let tun = result.map_or_else(|error| format!(" ({error})"), |()| String::new());
            Some(format!("expected WireGuard in the kernel, or `/dev/net/tun`, found neither{tun}"))
        }
    }
}

/// What is needed to set and read it.
pub(crate) struct Device {
    generic: Socket,
    program: Option<TunnelProgram>,
    /// The process started last, to be reaped.
    child: Option<Child>,
}

/// The parts of the link that are no settings of WireGuard's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub node: u16,
    pub mtu: u32,
    pub port: u16,
}

/// Both addresses of the node: at either the others may still, or already, expect it.
pub(crate) fn addresses(node: u16) -> [Cidr; 2] {
    [0, 1].map(|place| Cidr { address: inner_address(node, place), prefix_len: 32 })
}

/// Where all nodes' addresses are.
fn ranges() -> [Cidr; 2] {
    [0, 1].map(|place| Cidr { address: inner_address(0, place), prefix_len: 20 })
}

/// Whether an address is one inside the tunnel.
pub(crate) fn carries(address: Ipv4Addr) -> bool {
    ranges().iter().any(|range| range.contains(address))
}

impl Device {
    /// `generic` is a socket in the helper namespace.
    pub fn new(generic: Socket, config: &NetworkConfig) -> Self {
        Self { generic, program: config.tunnel.clone(), child: None }
    }

    fn family(&mut self) -> Result<u16, KernelError> {
        let missing = KernelError { errno: libc::EOPNOTSUPP, reason: None };
        kernel::family(&mut self.generic)?.ok_or(missing)
    }

    fn program(&self) -> Result<&TunnelProgram, KernelError> {
        let reason = "the kernel has no WireGuard, and no program is known that stands in for it".to_owned();
        self.program.as_ref().ok_or(KernelError { errno: libc::EOPNOTSUPP, reason: Some(reason) })
    }

    fn in_kernel(link: &Link) -> bool {
        link.kind == "wireguard"
    }

    /// The link's settings; an error also if its process is gone.
    pub fn get(&mut self, link: &Link) -> Result<State, KernelError> {
        if Self::in_kernel(link) {
            let family = self.family()?;
            return kernel::get(&mut self.generic, family, WIREGUARD);
        }
        if let Some(child) = &mut self.child
            && let Ok(Some(_)) = child.try_wait()
        {
            self.child = None;
        }
        user::get(self.program()?)
    }

    pub fn set(&mut self, route: &mut Socket, setting: &Setting) -> Result<(), KernelError> {
        let missing = KernelError { errno: libc::ENODEV, reason: None };
        let link = route::link_by_name(route, WIREGUARD)?.ok_or(missing)?;
        self.set_on(&link, setting)
    }

    fn set_on(&mut self, link: &Link, setting: &Setting) -> Result<(), KernelError> {
        if Self::in_kernel(link) {
            let family = self.family()?;
            kernel::set(&mut self.generic, family, WIREGUARD, setting)
        } else {
            user::set(self.program()?, setting)
        }
    }

    /// Makes the link, whose UDP socket is in the namespace of `host`, or mends it.
    pub fn make(
        &mut self,
        host: &mut Socket,
        route: &mut Socket,
        (netns, namespace): (&Path, BorrowedFd<'_>),
        shape: Shape,
    ) -> Result<(), KernelError> {
        let found = route::link_by_name(route, WIREGUARD)?;
        let link = match found {
            Some(link) if self.get(&link).is_ok() => link,
            other => {
                if other.is_some() {
                    route::delete_link(route, WIREGUARD)?;
                }
                self.create(host, route, netns, namespace)?
            }
        };
        for (_, surplus) in route::addresses(route)?
            .into_iter()
            .filter(|(of, cidr)| *of == link.index && !addresses(shape.node).contains(cidr))
        {
            route::delete_address(route, link.index, surplus)?;
        }
        for address in addresses(shape.node) {
            route::add_address(route, link.index, address)?;
        }
        self.set_port(&link, shape.port)?;
        let change = LinkChange { up: Some(true), mtu: Some(shape.mtu), ..LinkChange::default() };
        route::set_link(route, WIREGUARD, &change)?;
        // Where no mark of a packet leads it astray.
        ranges().iter().try_for_each(|to| forwarding::set_local_way(route, *to, link.index))
    }

    fn create(
        &mut self,
        host: &mut Socket,
        route: &mut Socket,
        netns: &Path,
        namespace: BorrowedFd<'_>,
    ) -> Result<Link, KernelError> {
        match route::create_wireguard(host, WIREGUARD, namespace) {
            Err(error) if error.errno == libc::EOPNOTSUPP => {
                self.child = Some(user::start(self.program()?, netns)?);
            }
            made => made?,
        }
        let missing = KernelError { errno: libc::ENODEV, reason: None };
        route::link_by_name(route, WIREGUARD)?.ok_or(missing)
    }

    fn set_port(&mut self, link: &Link, port: u16) -> Result<(), KernelError> {
        let end = Instant::now() + PORT_PATIENCE;
        loop {
            match self.set_on(link, &Setting::Port(port)) {
                Err(error) if error.errno == libc::EADDRINUSE && Instant::now() < end => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) if error.errno == libc::EADDRINUSE => {
                    let reason = format!("UDP port {port} of this host: leave it to encrypted networks");
                    return Err(KernelError { errno: error.errno, reason: Some(reason) });
                }
                other => return other,
            }
        }
    }

    /// Whether the link is as [`Device::make`] leaves it.
    pub fn is_sound(link: &Link, own: &[Cidr], routes: &[forwarding::Route], node: u16) -> bool {
        let wanted = addresses(node);
        let led = |to: &Cidr| {
            let local = u32::from(libc::RT_TABLE_LOCAL);
            routes.iter().any(|route| route.table == local && route.link == link.index && route.to == *to)
        };
        link.up
            && own.len() == wanted.len()
            && wanted.iter().all(|cidr| own.contains(cidr))
            && ranges().iter().all(led)
    }

    /// The number of the node whose addresses a link has.
    pub fn node_of(own: &[Cidr]) -> u16 {
        let number = |address: Ipv4Addr| {
            let [_, _, third, last] = address.octets();
            u16::from_be_bytes([third & 0x0f, last])
        };
        own.first().map_or(0, |cidr| number(cidr.address))
    }

    /// What is left when the link is gone.
    pub fn forget(&mut self) {
        if let Some(program) = &self.program {
            // The next process makes its own; a stale one is refused by whoever connects.
            let _ = std::fs::remove_file(&program.socket);
        }
        if let Some(mut child) = self.child.take() {
            // Its link is gone, so it ends.
            thread::spawn(move || child.wait());
        }
    }
}
