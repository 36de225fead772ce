//! Asking the replicas for their pages, from the wire between the hosts, as any client in the network would.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rswarm_net::run_in_netns;

use crate::error::LabError;

/// A replica that runs may still be about to listen; and a tunnel that began before the other end knew its key begins
/// again after 5 s.
const DEADLINE: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);
const PAGE_BYTES_MAX: u64 = 64 << 10;

/// The body of `http://address:port/`, seen from the network namespace at `netns`.
///
/// # Errors
/// `Page` with the last reason, when there is none within ten seconds; `Network`.
pub fn page(netns: &Path, address: impl Into<IpAddr>, port: u16) -> Result<String, LabError> {
    let deadline = Instant::now() + DEADLINE;
    let address = SocketAddr::new(address.into(), port);
    run_in_netns(netns, || {
        loop {
            match get(address, ATTEMPT) {
                Ok(body) => return Ok(body),
                Err(source) if Instant::now() > deadline => {
                    return Err(LabError::Page { address, within: DEADLINE, source });
                }
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    })?
}

/// The body of `http://address/`, seen from the calling thread's network namespace, by one attempt of which no step may
/// take longer than `patience`.
///
/// # Errors
/// What happened to the connection, or an answer that is not of status 200.
pub fn get(address: SocketAddr, patience: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    // In one write: a server may answer and close on the first part it reads.
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(PAGE_BYTES_MAX).read_to_string(&mut answer)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer was cut off"));
    };
    let status = head.lines().next().unwrap_or_default();
    if !status.contains(" 200 ") {
        return Err(io::Error::other(format!("expected status 200, found `{status}`")));
    }
    Ok(body.to_owned())
}
