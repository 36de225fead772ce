//! The server: queries in, replies out, everything on one thread.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use domain::base::iana::Rcode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{spawn_local, yield_now};
use tokio::time::{sleep, timeout};

use crate::answer::{Answer, Rng, answer};
use crate::forward::{Forwarder, Place};
use crate::log;
use crate::message::{Question, Transport};
use crate::names::Names;
use crate::shares::Shares;
use crate::sockets::{Audience, MAX_QUERY, Origin, Udp};

/// Queries answered in a row before others have their turn.
const BATCH: usize = 64;
/// TCP connections at once, and those of one client.
const MAX_CONNECTIONS: usize = 256;
const MAX_CONNECTIONS_OF_CLIENT: usize = 16;
/// A connection ends when nothing comes for so long.
const IDLE: Duration = Duration::from_secs(10);
/// How long to keep away from a socket that only brings errors.
const PAUSE: Duration = Duration::from_secs(1);

pub struct Server {
    names: RefCell<Names>,
    rng: RefCell<Rng>,
    forwarder: Rc<Forwarder>,
    connections: Rc<Shares>,
}

/// What is to be done about a query.
enum Decision {
    Reply(Vec<u8>),
    /// The reply has to be fetched.
    Ask(Question, Place),
    Nothing,
}

impl Server {
    pub fn new(names: Names, forwarder: Forwarder, seed: u64) -> Self {
        Self {
            names: RefCell::new(names),
            rng: RefCell::new(Rng::new(seed)),
            forwarder: Rc::new(forwarder),
            connections: Shares::new(MAX_CONNECTIONS, MAX_CONNECTIONS_OF_CLIENT),
        }
    }

    /// Where tasks on bridges ask, as the names have it.
    pub fn bridges(&self) -> BTreeSet<Audience> {
        self.names.borrow().bridges().iter().copied().collect()
    }

    /// From now on these names count.
    pub fn set_names(&self, names: Names) {
        *self.names.borrow_mut() = names;
    }

    fn decide(&self, query: &[u8], from: IpAddr, via: Transport) -> Decision {
        let Some(asker) = self.names.borrow().asker(from) else { return Decision::Nothing };
        match answer(&self.names.borrow(), query, asker, via, &mut self.rng.borrow_mut()) {
            Answer::Reply(reply) => Decision::Reply(reply),
            Answer::Nothing => Decision::Nothing,
            Answer::Forward(question) => {
                let Some(servers) = self.names.borrow().servers_of(asker) else {
                    return Decision::Reply(question.refuse(Rcode::SERVFAIL));
                };
                if let Some(reply) = self.forwarder.cached(&question, &servers) {
                    return Decision::Reply(reply);
                }
                match self.forwarder.enter(asker, servers) {
                    Some(place) => Decision::Ask(question, place),
                    None => Decision::Reply(question.refuse(Rcode::SERVFAIL)),
                }
            }
        }
    }

    /// Answers all that comes by UDP.
    pub async fn serve_udp(self: Rc<Self>, socket: Rc<Udp>) {
        let mut buffer = vec![0; MAX_QUERY];
        loop {
            let ready = socket.readable().await.and_then(|()| {
                (0..BATCH).try_for_each(|_| match socket.receive(&mut buffer)? {
                    Some((_, origin)) if !socket.hears(origin) => Ok(()),
                    Some((len, origin)) => {
                        self.answer_udp(&socket, &buffer[..len], origin);
                        Ok(())
                    }
                    None => Err(io::ErrorKind::WouldBlock.into()),
                })
            });
            match ready {
                Ok(()) => yield_now().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log!("failed to receive a query by UDP: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn answer_udp(&self, socket: &Rc<Udp>, query: &[u8], origin: Origin) {
        match self.decide(query, origin.peer.ip(), Transport::Udp) {
            Decision::Reply(reply) => socket.send(&reply, &origin),
            Decision::Nothing => {}
            Decision::Ask(question, place) => {
                let socket = socket.clone();
                spawn_local(async move {
                    let reply = place.ask(&question).await;
                    socket.send(&reply, &origin);
                });
            }
        }
    }

    /// Leaves what comes to the resolver that takes over, and answers what has come and can be answered at once.
    pub fn drain(&self, socket: &Udp) {
        // Where it fails, the namespace has no loopback; what comes in these microseconds has to be asked again.
        let _ = socket.leave();
        let mut buffer = vec![0; MAX_QUERY];
        while let Ok(Some((len, origin))) = socket.receive_last(&mut buffer) {
            if socket.hears(origin)
                && let Decision::Reply(reply) = self.decide(&buffer[..len], origin.peer.ip(), Transport::Udp)
            {
                socket.send(&reply, &origin);
            }
        }
    }

    /// Answers all that comes by TCP. A connection too many is closed at once.
    pub async fn serve_tcp(self: Rc<Self>, listener: TcpListener, audience: Audience) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let peer = peer.ip();
                    if !audience.has(peer) {
                        continue;
                    }
                    let Some(share) = self.connections.take(peer) else { continue };
                    let server = self.clone();
                    spawn_local(async move {
                        // What ends a connection early is the client's affair.
                        let _ = server.serve_connection(stream, peer).await;
                        drop(share);
                    });
                }
                Err(error) => {
                    log!("failed to accept a TCP connection: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Queries one after the other, each behind its length: RFC 1035, section 4.2.2.
    async fn serve_connection(&self, mut stream: TcpStream, client: IpAddr) -> io::Result<()> {
        loop {
            let query = timeout(IDLE, async {
                let mut query = vec![0; stream.read_u16().await?.into()];
                stream.read_exact(&mut query).await?;
                io::Result::Ok(query)
            });
            let reply = match self.decide(&query.await??, client, Transport::Tcp) {
                Decision::Reply(reply) => reply,
                Decision::Ask(question, place) => place.ask(&question).await,
                Decision::Nothing => return Ok(()),
            };
            let mut framed = Vec::with_capacity(2 + reply.len());
            framed.extend((reply.len() as u16).to_be_bytes());
            framed.extend(reply);
            timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }
}
