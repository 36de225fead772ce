//! Where tasks ask: all addresses of the overlays' namespace, and in the host's the gateways of bridges, as these come
//! and go.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::rc::Rc;

use tokio::net::TcpListener;
use tokio::task::{JoinHandle, spawn_local};

use crate::command::chain;
use crate::log;
use crate::server::Server;
use crate::sockets::{Audience, BindError, Listeners, PORT, Udp, listen_on};

/// What is listened on and not yet served, as that takes a runtime.
pub struct Places {
    overlays: Vec<Listeners>,
    /// `None` where somebody else has the port.
    bridges: BTreeMap<Audience, Option<Listeners>>,
}

impl Places {
    /// # Errors
    /// The overlays cannot be listened on. What keeps it from a bridge is logged: others need not do without names.
    pub fn listen(netns: &Path, server: &Server) -> Result<Self, BindError> {
        let ipv6 = rswarm_net::has_ipv6().then_some(IpAddr::from(Ipv6Addr::UNSPECIFIED));
        let all = [IpAddr::from(Ipv4Addr::UNSPECIFIED)].into_iter().chain(ipv6);
        let overlays = all.map(|any| listen_on((any, PORT).into(), Some(netns))).collect::<Result<_, _>>()?;
        let listen = |bridge| (bridge, listen_at(bridge, true));
        Ok(Self { overlays, bridges: server.bridges().into_iter().map(listen).collect() })
    }

    pub fn serve(self, server: Rc<Server>) -> io::Result<Served> {
        let overlays = self.overlays.into_iter();
        let overlays = overlays.map(|listeners| Socket::serve(&server, listeners, Audience::All));
        let overlays = overlays.collect::<io::Result<_>>()?;
        let mut served = Served { server, overlays, bridges: BTreeMap::new() };
        for (bridge, listeners) in self.bridges {
            served.add(bridge, listeners);
        }
        Ok(served)
    }
}

/// What is served.
pub struct Served {
    server: Rc<Server>,
    overlays: Vec<Socket>,
    bridges: BTreeMap<Audience, Option<Socket>>,
}

impl Served {
    /// Listens where there is a bridge now, and not where there is none any more.
    pub fn follow(&mut self) {
        let bridges = self.server.bridges();
        self.bridges.retain(|bridge, _| bridges.contains(bridge));
        for bridge in bridges {
            let held = self.bridges.get(&bridge);
            if !matches!(held, Some(Some(_))) {
                self.add(bridge, listen_at(bridge, held.is_none()));
            }
        }
    }

    fn add(&mut self, bridge: Audience, listeners: Option<Listeners>) {
        let served = listeners.and_then(|listeners| {
            let served = Socket::serve(&self.server, listeners, bridge);
            served.inspect_err(|error| log!("failed to serve a bridge: {error}")).ok()
        });
        self.bridges.insert(bridge, served);
    }

    /// Leaves the rest to the resolver that takes over.
    pub fn drain(&self) {
        let all = self.overlays.iter().chain(self.bridges.values().flatten());
        all.for_each(|socket| self.server.drain(&socket.udp));
    }
}

/// An address by UDP and TCP, served until dropped.
struct Socket {
    udp: Rc<Udp>,
    tasks: [JoinHandle<()>; 2],
}

impl Socket {
    fn serve(server: &Rc<Server>, listeners: Listeners, audience: Audience) -> io::Result<Self> {
        let udp = Rc::new(Udp::new(listeners.udp, audience)?);
        let tcp = TcpListener::from_std(listeners.tcp)?;
        let tasks = [
            spawn_local(server.clone().serve_udp(udp.clone())),
            spawn_local(server.clone().serve_tcp(tcp, audience)),
        ];
        Ok(Self { udp, tasks })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn listen_at(bridge: Audience, aloud: bool) -> Option<Listeners> {
    let listeners = listen_on((bridge.gateway()?, PORT).into(), None);
    if let (Err(error), true) = (&listeners, aloud) {
        log!("{}; tasks on that bridge are left to the node's name servers", chain(error));
    }
    listeners.ok()
}
