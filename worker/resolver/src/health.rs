//! Whether tasks are answered; for the worker. It asks as they do, from where they are, as nothing else tells that a
//! resolver hangs, or listens in a namespace that stood here before; and by TCP, which a flood of datagrams does not
//! keep out.

use std::io::{self, ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use domain::base::iana::{Class, Rtype};
use domain::base::{MessageBuilder, Name};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::sockets::PORT;

/// Between two looks at a port that nobody listens on yet.
const PAUSE: Duration = Duration::from_millis(50);
/// How long to connect before a new try: what is lost on a link that has just come up is sent again only after 1 s.
const CONNECT: Duration = Duration::from_millis(100);
/// The least that a socket can wait.
const MOMENT: Duration = Duration::from_millis(1);

/// Who asks, and whom.
#[derive(Debug, Clone)]
pub struct Asker {
    /// A task's network namespace.
    pub netns: PathBuf,
    /// Its address there.
    pub address: IpAddr,
    pub server: IpAddr,
}

/// What becomes of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Answered,
    /// Nobody listens where it was asked.
    Unheard,
    /// Nothing comes back.
    Silent,
}

/// Lets all ask until they are answered, or for so long; returns the best that happened to any of them. `None` if none
/// could ask, as they are gone.
pub fn health(askers: &[Asker], patience: Duration) -> Option<Health> {
    // One answer is enough, and as a rule the first one asked has it.
    if askers.first()?.until_answered(CONNECT) == Some(Health::Answered) {
        return Some(Health::Answered);
    }
    std::thread::scope(|scope| {
        let threads = askers.iter().map(|asker| scope.spawn(move || asker.until_answered(patience)));
        let threads: Vec<_> = threads.collect();
        threads.into_iter().filter_map(|thread| thread.join().ok().flatten()).min()
    })
}

impl Asker {
    fn until_answered(&self, patience: Duration) -> Option<Health> {
        let ask = || {
            let deadline = Instant::now() + patience;
            loop {
                let left = deadline.saturating_duration_since(Instant::now()).max(MOMENT);
                let health = match self.ask(left) {
                    Ok(()) => return Some(Health::Answered),
                    Err(error) if error.kind() == ErrorKind::AddrNotAvailable => return None,
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => Health::Unheard,
                    Err(_) => Health::Silent,
                };
                if Instant::now() + PAUSE >= deadline {
                    return Some(health);
                }
                std::thread::sleep(PAUSE);
            }
        };
        rswarm_net::run_in_netns(&self.netns, ask).ok().flatten()
    }

    /// Asks a question that every resolver answers at once by itself: of a class that it does not know.
    fn ask(&self, patience: Duration) -> io::Result<()> {
        let family = if self.server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(self.address, 0)))?;
        let wait = |time: Duration| TimeVal::new(time.as_secs() as i64, time.subsec_micros().into());
        setsockopt(&fd, sockopt::SendTimeout, &wait(patience.min(CONNECT)))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &wait(patience))?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(self.server, PORT))) {
            // So a connection is said to take too long.
            Err(Errno::EINPROGRESS) => return Err(ErrorKind::TimedOut.into()),
            connected => connected?,
        }
        let mut stream = TcpStream::from(fd);
        let mut query = MessageBuilder::new_vec().question();
        let pushed = query.push((&Name::<Vec<u8>>::root_vec(), Rtype::TXT, Class::CH));
        pushed.map_err(io::Error::other)?;
        let query = query.finish();
        stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat())?;
        // Closed without a word, as one that has too many connections does: it lives.
        stream.peek(&mut [0; 1]).map(drop)
    }
}
