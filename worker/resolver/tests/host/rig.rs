//! A node for the resolver: host 1 is the node's own namespace, with name servers for the rest of the world on its
//! loopback; host 2 the one in which the resolver listens; hosts 3 and 4 are tasks on the networks `one` and `two`.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use domain::base::iana::{Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::A;
use rswarm_net::lab::{Host, Lab, LabSpec};
use rswarm_resolver::MapWriter;
use rswarm_types::netmap::{EndpointState, MapAttachment, MapEndpoint, MapNetwork, MapService, NetworkMap};
use rswarm_types::service::EndpointMode;
use rswarm_types::{NetworkId, NodeId, ServiceId, TaskId};

pub const DEADLINE: Duration = Duration::from_secs(10);

/// Runs the rest of the test, or says by name what is missing.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
    };
}

pub struct Rig {
    pub lab: Lab,
    pub run_root: tempfile::TempDir,
    resolvers: Vec<Child>,
    said: Arc<Mutex<Vec<String>>>,
}

impl Rig {
    /// No resolver runs yet.
    pub fn new(resolv_conf: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("dns{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Lab::create(LabSpec::new(&name, 4)).unwrap();
        let rig =
            Self { lab, run_root: tempfile::tempdir().unwrap(), resolvers: Vec::new(), said: Arc::default() };
        std::fs::write(rig.resolv_conf(), resolv_conf).unwrap();
        rig
    }

    pub fn resolv_conf(&self) -> PathBuf {
        self.run_root.path().join("resolv.conf")
    }

    pub fn command(&self, more: &[&str]) -> Command {
        let mut command = self.lab.host(1).command(env!("CARGO_BIN_EXE_rswarm-resolver")).unwrap();
        command.arg("--run-root").arg(self.run_root.path()).arg("--netns").arg(&self.lab.host(2).netns);
        command.arg("--resolv-conf").arg(self.resolv_conf()).args(more);
        command
    }

    /// Starts a resolver and waits until it serves.
    pub fn start(&mut self, more: &[&str]) -> u32 {
        let mut child = self.command(more).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let serving = lines.by_ref().inspect(|line| eprintln!("{line}")).any(|line| line.contains("serving"));
        assert!(serving, "the resolver ended: {:?}", child.wait());
        let said = self.said.clone();
        thread::spawn(move || lines.for_each(|line| said.lock().unwrap().push(line)));
        self.resolvers.push(child);
        self.resolvers.last().unwrap().id()
    }

    /// How many lines with `words` the resolvers have written since they serve.
    pub fn said(&self, words: &str) -> usize {
        self.said.lock().unwrap().iter().filter(|line| line.contains(words)).count()
    }

    /// The resolver that was started first and still counts as running.
    pub fn first(&mut self) -> &mut Child {
        &mut self.resolvers[0]
    }

    pub fn write_map(&self, map: &NetworkMap) -> MapWriter {
        MapWriter::create(self.run_root.path(), map).unwrap()
    }

    pub fn write_bytes(&self, bytes: &[u8]) {
        let new = self.run_root.path().join("network-map.new");
        std::fs::write(&new, bytes).unwrap();
        std::fs::rename(new, self.run_root.path().join(rswarm_resolver::MAP_FILE)).unwrap();
    }

    /// Where the tasks ask.
    pub fn server(&self) -> SocketAddr {
        (self.lab.host(2).address, 53).into()
    }

    pub fn ask(&self, host: usize, name: &str) -> String {
        ask(self.lab.host(host), self.server(), name, Rtype::A).expect("an answer in time")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for child in &mut self.resolvers {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Networks `one` and `two`, each with a service `web` of as many tasks as host numbers are given, `backends` all on
/// `one`; hosts 3 and 4 are the tasks of `web` on `one` and `two`.
pub fn map(backends: &[u8]) -> NetworkMap {
    let mut map = NetworkMap::default();
    let network = |number: u8| NetworkId::from_bytes([number; 16]);
    let address = |host: u8| Ipv4Addr::new(10, 77, 0, host);
    for (number, name) in [(1, "one"), (2, "two")] {
        let network_map = MapNetwork {
            name: name.to_owned(),
            vni: 4096,
            subnet: "10.77.0.0/24".parse().unwrap(),
            gateway: address(2),
            ipv6: None,
            mtu: 1450,
            internal: false,
            ingress: false,
            encrypted: false,
        };
        map.networks.insert(network(number), network_map);
        let attachment = MapAttachment { vip: None, aliases: vec![format!("alias-{name}")] };
        let service = MapService {
            name: "web".to_owned(),
            mode: EndpointMode::Dnsrr,
            networks: BTreeMap::from([(network(number), attachment)]),
            ..MapService::default()
        };
        map.services.insert(ServiceId::from_bytes([number; 16]), service);
    }
    let on_one = backends.iter().chain(&[3]).map(|&host| (1, host));
    for (number, host) in on_one.chain([(2, 4)]) {
        let endpoint = MapEndpoint {
            service: ServiceId::from_bytes([number; 16]),
            slot: host.into(),
            node: NodeId::from_bytes([1; 16]),
            addresses: BTreeMap::from([(network(number), address(host))]),
            state: EndpointState::Ready,
            hostname: String::new(),
            nameservers: Vec::new(),
            joined: None,
            enclosed: false,
        };
        map.endpoints.insert(TaskId::from_bytes([host; 16]), endpoint);
    }
    map
}

pub fn query(id: u16, name: &str, qtype: Rtype) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(id);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((&Name::vec_from_str(name).unwrap(), qtype)).unwrap();
    builder.finish()
}

/// The code, then addresses with their times to live, sorted: `NOERROR 10.77.0.3/2`; `TC` if more was to be said.
pub fn shown(reply: &[u8]) -> String {
    let message = Message::from_slice(reply).unwrap();
    let mut addresses = Vec::new();
    for record in message.answer().unwrap().limit_to::<A>() {
        let record = record.unwrap();
        addresses.push(format!("{}/{}", record.data(), record.ttl().as_secs()));
    }
    addresses.sort();
    let mut words = vec![message.header().rcode().to_string()];
    words.extend(message.header().tc().then(|| "TC".to_owned()));
    words.extend(addresses);
    words.join(" ")
}

/// Asks by UDP from `host`; `None` without an answer in time. An answer from another address than asked is not heard.
pub fn ask(host: &Host, server: SocketAddr, name: &str, qtype: Rtype) -> Option<String> {
    host.run(|| ask_here(server, name, qtype)).unwrap()
}

/// As [`ask`], from the host that this thread is on.
pub fn ask_here(server: SocketAddr, name: &str, qtype: Rtype) -> Option<String> {
    let query = query(7, name, qtype);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket.send(&query).unwrap();
    let mut buffer = [0; 4096];
    let len = socket.recv(&mut buffer).ok()?;
    assert_eq!(buffer[..2], query[..2]);
    Some(shown(&buffer[..len]))
}

pub fn ask_tcp(stream: &mut TcpStream, name: &str) -> std::io::Result<String> {
    let query = query(9, name, Rtype::A);
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat())?;
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut reply = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut reply)?;
    Ok(shown(&reply))
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A name server whose answers follow from the first label of the name:
///
/// - `big`: cut short by UDP, 60 addresses by TCP
/// - `none`: does not exist, for 30 s
/// - `fail`, `refuse`: an error
/// - `liar`: first three wrong answers, then the right one
/// - `silent`: nothing
/// - `late`: nothing until it is asked again, and then the answer to the first time
/// - all others: 192.0.2.1 for 60 s
pub struct World {
    asked: Arc<Mutex<Vec<String>>>,
}

impl World {
    pub fn start(host: &Host, address: IpAddr) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (udp, tcp) = host
            .run(|| (UdpSocket::bind((address, 53)).unwrap(), TcpListener::bind((address, 53)).unwrap()))
            .unwrap();
        let log = asked.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            let mut late = None;
            while let Ok((len, peer)) = udp.recv_from(&mut buffer) {
                if buffer[..len].windows(5).any(|bytes| bytes == b"\x04late") {
                    match late.take() {
                        None => late = Some((buffer[..len].to_vec(), peer)),
                        Some((query, peer)) => {
                            for reply in Self::replies(&query, false, &log) {
                                let _ = udp.send_to(&reply, peer);
                            }
                        }
                    }
                    continue;
                }
                for reply in Self::replies(&buffer[..len], false, &log) {
                    let _ = udp.send_to(&reply, peer);
                }
            }
        });
        let log = asked.clone();
        thread::spawn(move || {
            for stream in tcp.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut len = [0; 2];
                stream.read_exact(&mut len).unwrap();
                let mut query = vec![0; u16::from_be_bytes(len).into()];
                stream.read_exact(&mut query).unwrap();
                for reply in Self::replies(&query, true, &log) {
                    stream.write_all(&[&(reply.len() as u16).to_be_bytes()[..], &reply].concat()).unwrap();
                }
            }
        });
        Self { asked }
    }

    /// How often a name was asked for.
    pub fn times(&self, name: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == name).count()
    }

    pub fn all(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn replies(query: &[u8], tcp: bool, log: &Mutex<Vec<String>>) -> Vec<Vec<u8>> {
        let query = Message::from_slice(query).unwrap();
        let question = query.sole_question().unwrap();
        let name = question.qname().to_string();
        log.lock().unwrap().push(name.clone());
        let reply = |rcode, addresses: u8, cut: bool, soa: bool| {
            let mut builder = MessageBuilder::new_vec().start_answer(query, rcode).unwrap();
            builder.header_mut().set_tc(cut);
            for last in 1..=addresses {
                builder.push((question.qname(), 60, A::new(Ipv4Addr::new(192, 0, 2, last)))).unwrap();
            }
            let mut builder = builder.authority();
            if soa {
                let (name, ttl) = (Name::<Vec<u8>>::root_vec(), domain::base::Ttl::from_secs(30));
                let soa = domain::rdata::Soa::new(name.clone(), name.clone(), 1.into(), ttl, ttl, ttl, ttl);
                builder.push((name, 30, soa)).unwrap();
            }
            builder.finish()
        };
        let good = reply(Rcode::NOERROR, 1, false, false);
        let spoilt = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        };
        match name.split('.').next().unwrap_or_default() {
            "big" if tcp => vec![reply(Rcode::NOERROR, 60, false, false)],
            "big" => vec![reply(Rcode::NOERROR, 1, true, false)],
            "none" => vec![reply(Rcode::NXDOMAIN, 0, false, true)],
            "fail" => vec![reply(Rcode::SERVFAIL, 0, false, false)],
            "refuse" => vec![reply(Rcode::REFUSED, 0, false, false)],
            "liar" => vec![spoilt(0), spoilt(13), good[..20].to_vec(), good],
            "silent" => vec![],
            _ => vec![good],
        }
    }
}
