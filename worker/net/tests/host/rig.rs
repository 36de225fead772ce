//! Nodes and containers for the tests: a lab whose host 1 is the node, containers that are sleeping processes in
//! namespaces of their own, echo servers, and `ip` and `nft` as independent witnesses.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use rswarm_net::{
    BridgeNetwork, Endpoint, HostPort, Network, NetworkConfig, NodeNetwork, Protocol,
    lab::{Host, Lab, LabSpec},
    run_in_netns,
};
use serde_json::Value;

/// For what must happen. WireGuard says again after 5.3 s what of its handshake was lost, as its protocol has it
/// (`REKEY_TIMEOUT` and its jitter), so it is longer than that.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Says why a test cannot run here, if it cannot.
pub fn cannot_run() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("root");
    }
    if !found("nft") {
        Some("the nft binary, as a witness")
    } else if !found("ip") {
        Some("the ip binary, as a witness")
    } else {
        None
    }
}

fn found(tool: &str) -> bool {
    Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Whether a tool is there that part of a test needs; says so if not.
pub fn installed(tool: &str) -> bool {
    let found = found(tool);
    if !found {
        eprintln!("left out: needs {tool}");
    }
    found
}

/// Runs the rest of the test, or says by name what is missing.
#[macro_export]
macro_rules! needs_kernel {
    () => {
        if let Some(what) = $crate::rig::cannot_run() {
            eprintln!("skipped: needs {what}");
            return;
        }
    };
}

/// A lab with a node (host 1) and other machines.
pub struct Rig {
    pub lab: Lab,
    pub net: Network,
}

impl Rig {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("net{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Lab::create(LabSpec { gateway: true, ..LabSpec::new(&name, 2) }).unwrap();
        let net = Self::daemon(lab.host(1));
        Self { lab, net }
    }

    /// A daemon's handle, in the namespace of `host`.
    pub fn daemon(host: &Host) -> Network {
        // None of these tests has overlays; a path of its own keeps them from each other's.
        let helper = format!("/run/rswarm-lab/{}-overlay", host.name).into();
        let config = NetworkConfig { helper, ..NetworkConfig::default() };
        host.run(|| Network::new(config)).unwrap().unwrap()
    }

    pub fn node(&self) -> &Host {
        self.lab.host(1)
    }

    pub fn other(&self) -> &Host {
        self.lab.host(2)
    }

    /// Output of a program on the node.
    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        output(self.node().command(program).unwrap().args(arguments))
    }

    pub fn nft(&self, command: &str) {
        self.output("nft", &[command]);
    }

    /// Names of the node's links, by the witness.
    pub fn links(&self) -> Vec<String> {
        let links: Value = serde_json::from_str(&self.output("ip", &["-j", "link"])).unwrap();
        links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
    }

    /// Indexes of the node's links: a link made anew has a new one.
    pub fn indexes(&self) -> Vec<u64> {
        let links: Value = serde_json::from_str(&self.output("ip", &["-j", "link"])).unwrap();
        links.as_array().unwrap().iter().map(|link| link["ifindex"].as_u64().unwrap()).collect()
    }

    /// Sets whether bridged packets pass the IP hooks; does nothing where the kernel has no `br_netfilter`.
    pub fn filter_bridged(&self, on: bool) {
        let value = if on { "1" } else { "0" };
        for tables in ["iptables", "ip6tables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{tables}");
            self.node().run(|| drop(std::fs::write(path, value))).unwrap();
        }
    }
}

pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A process in a network namespace of its own; killed when dropped.
pub struct Container {
    child: Child,
}

impl Container {
    pub fn start() -> Self {
        let mut command = Command::new("sleep");
        command.arg("600");
        // SAFETY: one system call, no allocation, between fork and exec.
        unsafe {
            command.pre_exec(|| {
                rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET).map_err(Into::into)
            });
        }
        Self { child: command.spawn().unwrap() }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid()).into()
    }

    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        run_in_netns(&self.netns(), f).unwrap()
    }

    pub fn output(&self, program: &str, arguments: &[&str]) -> String {
        output(rswarm_net::lab::command_in_netns(&self.netns(), program).unwrap().args(arguments))
    }

    /// Listens on a port that may have been listened on just before: a process that another test is about to start
    /// holds what this one had open until it becomes its program.
    pub fn listen(&self, port: u16) -> TcpListener {
        let deadline = Instant::now() + DEADLINE;
        self.run(|| {
            loop {
                match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
                    Err(error)
                        if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline =>
                    {
                        thread::sleep(Duration::from_millis(1));
                    }
                    bound => return bound.unwrap(),
                }
            }
        })
    }

    /// Answers every TCP connection with `name` and the caller's address.
    pub fn serve(&self, port: u16, name: &'static str) {
        let listen = || {
            TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
                .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        };
        serve(self.run(listen).unwrap(), name);
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The thread lives until the test process ends.
pub fn serve(listener: TcpListener, name: &'static str) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().unwrap();
            let _ = write!(stream, "{name} saw {}", peer.ip().to_canonical());
        }
    });
}

/// What a server at this address answers; `Err` when it cannot be reached.
pub fn fetch(address: impl Into<IpAddr>, port: u16) -> std::io::Result<String> {
    let address = SocketAddr::new(address.into(), port);
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A UDP socket that waits at most half a second for an answer.
pub fn udp(address: Ipv4Addr, port: u16) -> UdpSocket {
    UdpSocket::bind((address, port)).unwrap()
}

/// The datagram that must arrive, and its sender. A first one may wait a second for its neighbour to be found.
pub fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 16];
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let (length, from) = socket.recv_from(&mut buffer).expect("a datagram arrives");
    (buffer[..length].to_vec(), from)
}

/// Whether nothing arrives for as long as a datagram between neighbours that know each other may take.
pub fn stays_silent(socket: &UdpSocket) -> bool {
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.recv(&mut [0; 16]).is_err()
}

/// Waits until `ready` says so.
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !ready() {
        assert!(Instant::now() < end, "gave up waiting until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

pub fn network() -> BridgeNetwork {
    BridgeNetwork {
        id: "n0".into(),
        bridge: "rsw-br0".into(),
        gateway: Ipv4Addr::new(10, 90, 0, 1),
        prefix_len: 24,
        subnet: Ipv4Addr::new(10, 90, 0, 0),
        masquerade: true,
        internal: false,
        ipv6: None,
        ipv6_only: false,
        mtu: None,
        separate: false,
    }
}

pub fn port(protocol: Protocol, published: u16, target: u16) -> HostPort {
    HostPort { protocol, published, target, at: None }
}

/// An endpoint of [`network`] with the last byte of its address.
pub fn endpoint(id: &str, container: &Container, last: u8, ports: &[HostPort]) -> Endpoint {
    Endpoint {
        id: id.into(),
        network: "n0".into(),
        netns_pid: container.pid(),
        address: Ipv4Addr::new(10, 90, 0, last),
        ipv6: None,
        prefix_len: 24,
        gateway: Ipv4Addr::new(10, 90, 0, 1),
        default_route: true,
        interface_name: "eth0".into(),
        ports: ports.to_vec(),
    }
}

pub fn node_network(endpoints: &[Endpoint]) -> NodeNetwork {
    NodeNetwork { networks: vec![network()], endpoints: endpoints.to_vec(), overlay: None }
}
