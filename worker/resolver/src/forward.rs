//! Passes questions on to the host's name servers, or to those of the task that asks, in the process's own network namespace.
//!
//! Each question has a socket of its own, hence a port that the kernel chose at random, connected, so that nobody but
//! the server asked is heard; and a random number that the reply has to bear beside the question itself.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use domain::base::iana::Rcode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::cache::Cache;
use crate::host::HostConfig;
use crate::log;
use crate::message::{MAX_UDP_LEN, Question};
use crate::names::Servers;
use crate::relay::Relayed;
use crate::shares::{Share, Shares};

/// Questions on their way at once, as in Docker. Each takes a socket and some 10 KB.
const MAX_OUTSTANDING: usize = 1024;
/// Those of one client.
const MAX_OUTSTANDING_OF_CLIENT: usize = 256;

pub struct Forwarder {
    path: PathBuf,
    config: RefCell<Read>,
    cache: RefCell<Cache>,
    outstanding: Rc<Shares>,
    /// The server to begin with: moves on when one does not answer.
    first: Cell<usize>,
}

/// The host's configuration, and which file that was.
struct Read {
    file: Option<FileVersion>,
    config: Rc<HostConfig>,
}

/// Device, inode, and time of the last change: differs when a file was written or replaced, through links too.
type FileVersion = (u64, u64, i64, i64);

impl Forwarder {
    pub fn new(path: PathBuf) -> Self {
        let config = Rc::new(HostConfig::parse(""));
        let forwarder = Self {
            path,
            config: RefCell::new(Read { file: None, config }),
            cache: RefCell::default(),
            outstanding: Shares::new(MAX_OUTSTANDING, MAX_OUTSTANDING_OF_CLIENT),
            first: Cell::new(0),
        };
        forwarder.config();
        forwarder
    }

    /// The host's configuration as it is now. Asking the kernel for the file's version costs less than being told of
    /// changes, and follows links.
    fn config(&self) -> Rc<HostConfig> {
        let file = fs::metadata(&self.path).ok();
        let file = file.map(|meta| (meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec()));
        let mut read = self.config.borrow_mut();
        if read.file != file {
            read.file = file;
            let text = fs::read(&self.path).unwrap_or_default();
            read.config = Rc::new(HostConfig::parse(&String::from_utf8_lossy(&text)));
            self.cache.borrow_mut().clear();
            self.first.set(0);
            log!("asking {:?} for names that are not ours", read.config.servers);
        }
        read.config.clone()
    }

    /// A reply that is at hand.
    pub fn cached(&self, question: &Question, servers: &Servers) -> Option<Vec<u8>> {
        // A change of servers empties the cache first.
        self.config();
        let (message, age) = self.cache.borrow().get(question, servers, Instant::now())?;
        Some(message.reply(question, age))
    }

    /// Takes a place among the questions on their way, to `servers` if there are any, else to the host's; `None` if
    /// there is none for this client.
    pub fn enter(self: &Rc<Self>, client: Ipv4Addr, servers: Servers) -> Option<Place> {
        let share = self.outstanding.take(client.into())?;
        Some(Place { forwarder: self.clone(), servers, _share: share })
    }
}

/// One of the questions on their way.
pub struct Place {
    forwarder: Rc<Forwarder>,
    servers: Servers,
    _share: Share,
}

impl Place {
    /// Asks one server after the other until one answers; else SERVFAIL.
    ///
    /// A server that refuses, fails or stays silent does not answer. If none does, the client hears the first no.
    pub async fn ask(self, question: &Question) -> Vec<u8> {
        let forwarder = &self.forwarder;
        let config = forwarder.config();
        // What was learned of the host's servers says nothing of a task's own.
        let of_host = self.servers.is_empty();
        let servers = if of_host { &config.servers[..] } else { &self.servers };
        let count = servers.len();
        let first = if of_host { forwarder.first.get() } else { 0 };
        if config.rotate && of_host {
            forwarder.first.set((first + 1) % count.max(1));
        }
        let mut refusal = None;
        // A try that has had its time is listened to until all have: late is better than never.
        let mut tries = JoinSet::new();
        for attempt in 0..config.attempts as usize * count {
            let number = (first + attempt) % count;
            let server = servers[number];
            let Ok(id) = random_id() else { break };
            let query = question.query(id);
            tries.spawn_local(async move { (attempt, ask_udp(server, query).await) });
            let mut time = pin!(sleep(config.timeout));
            let moves_on = loop {
                let (of, reply) = tokio::select! {
                    Some(Ok(heard)) = tries.join_next() => heard,
                    () = &mut time => break true,
                };
                match reply {
                    Ok(message) if matches!(message.rcode, Rcode::NOERROR | Rcode::NXDOMAIN) => {
                        let server = servers[(first + of) % count];
                        let message = Rc::new(whole(server, question, message, config.timeout).await);
                        let mut cache = forwarder.cache.borrow_mut();
                        cache.put(question, &self.servers, message.clone(), Instant::now());
                        return message.reply(question, Duration::ZERO);
                    }
                    Ok(message) => {
                        refusal.get_or_insert(message);
                        if of == attempt {
                            break false;
                        }
                    }
                    Err(_) if of == attempt => break true,
                    Err(_) => {}
                }
            };
            // Of all that wait for it the first moves on; the next question begins elsewhere.
            if moves_on && of_host && forwarder.first.get() == number {
                forwarder.first.set((number + 1) % count);
            }
        }
        match refusal {
            Some(message) => message.reply(question, Duration::ZERO),
            None => question.refuse(Rcode::SERVFAIL),
        }
    }
}

/// The answer that did not fit, fetched by TCP.
async fn whole(server: SocketAddr, question: &Question, reply: Relayed, wait: Duration) -> Relayed {
    if !reply.truncated {
        return reply;
    }
    let fetch = async { ask_tcp(server, &question.query(random_id()?)).await };
    match timeout(wait, fetch).await {
        Ok(Ok(whole)) => whole,
        // The client may have more luck; it gets to know that something is missing.
        _ => reply,
    }
}

/// Asks a server by UDP and waits for its reply.
async fn ask_udp(server: SocketAddr, query: Vec<u8>) -> io::Result<Relayed> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&query).await?;
    // Servers that know no EDNS limit send less, those that ignore it are cut, which makes their answer malformed.
    let mut buffer = vec![0; usize::from(MAX_UDP_LEN).max(4096)];
    loop {
        let len = socket.recv(&mut buffer).await?;
        // Somebody else's guess, or the answer to nothing we asked: the right one may still come.
        if let Some(reply) = Relayed::read(buffer[..len].to_vec(), &query) {
            return Ok(reply);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Relayed> {
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = Vec::with_capacity(2 + query.len());
    framed.extend((query.len() as u16).to_be_bytes());
    framed.extend(query);
    stream.write_all(&framed).await?;
    let mut reply = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut reply).await?;
    Relayed::read(reply, query).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn random_id() -> io::Result<u16> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    Ok(u16::from_be_bytes(id))
}
