//! `rswarm playground serve`: what the playground's containers run. A web server of one page that says which task
//! answers, on the standard library alone, so that hardly anything of this program is in memory.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use super::image::REVISION;

const PORT: u16 = 80;
/// A client that takes longer for its request, or to take the answer, is hung up on.
const PATIENCE: Duration = Duration::from_secs(5);
const REQUEST_BYTES_MAX: u64 = 16 << 10;
/// More at once are hung up on.
const CONNECTIONS_MAX: usize = 64;

/// Serves until SIGTERM or SIGINT.
pub fn serve() -> ExitCode {
    // The first process of a container has no default actions: signals must be waited for.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    let listener =
        signals.thread_block().map_err(io::Error::from).and_then(|()| TcpListener::bind(("0.0.0.0", PORT)));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen on port {PORT}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let facts = Arc::new(Facts::from_environment(|name| std::env::var(name).ok()));
    println!("{} listens on port {PORT}", facts.task);
    std::thread::spawn(move || accept(&listener, &facts));
    match signals.wait() {
        Ok(signal) => println!("{signal}: goodbye"),
        Err(error) => eprintln!("cannot wait for signals: {error}"),
    }
    ExitCode::SUCCESS
}

/// What the page says besides who asked.
struct Facts {
    task: String,
    slot: String,
    node: String,
    revision: String,
}

impl Facts {
    fn from_environment(get: impl Fn(&str) -> Option<String>) -> Self {
        let value =
            |name: &str| get(name).filter(|value| !value.is_empty()).unwrap_or_else(|| "unknown".to_owned());
        Self {
            task: value("RSWARM_TASK_NAME"),
            slot: value("RSWARM_TASK_SLOT"),
            node: value("RSWARM_NODE_HOSTNAME"),
            revision: value(REVISION),
        }
    }

    fn page(&self, peer: SocketAddr) -> String {
        let Self { task, slot, node, revision } = self;
        format!(
            "task:     {task}\nslot:     {slot}\nnode:     {node}\nrevision: {revision}\npeer:     {peer}\n"
        )
    }
}

fn accept(listener: &TcpListener, facts: &Arc<Facts>) {
    let open = Arc::new(AtomicUsize::new(0));
    for connection in listener.incoming() {
        let Ok(connection) = connection else { continue };
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (facts, open) = (facts.clone(), open.clone());
        std::thread::spawn(move || {
            // The client's trouble is not ours.
            let _ = answer(&connection, &facts);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn answer(mut connection: &TcpStream, facts: &Facts) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let peer = connection.peer_addr()?;
    let (status, body) = match read_request(connection)?.as_deref() {
        Some("GET" | "HEAD") => ("200 OK", facts.page(peer)),
        Some(_) => ("405 Method Not Allowed", "only GET is understood here\n".to_owned()),
        None => ("400 Bad Request", "this is no HTTP request\n".to_owned()),
    };
    println!("{peer} {status}");
    // In one segment, not one for each piece of it.
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nAllow: GET, HEAD\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(answer.as_bytes())
}

/// The method of a request, read up to its empty line; `None` if it is none. Source: RFC 9112, section 2.1.
fn read_request(stream: impl Read) -> io::Result<Option<String>> {
    let mut lines = BufReader::new(stream.take(REQUEST_BYTES_MAX)).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let mut words = first.split(' ');
    let (Some(method), Some(_), Some(version)) = (words.next(), words.next(), words.next()) else {
        return Ok(None);
    };
    for line in lines {
        if line?.is_empty() {
            return Ok(version.starts_with("HTTP/1.").then(|| method.to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_from_noise() {
        for (request, expected) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", Some("GET")),
            ("POST /x HTTP/1.0\r\n\r\nbody", Some("POST")),
            ("GET / HTTP/2\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: cut off", None),
            ("hello\r\n\r\n", None),
            ("", None),
        ] {
            assert_eq!(read_request(request.as_bytes()).unwrap().as_deref(), expected, "{request:?}");
        }
        let endless = format!("GET / HTTP/1.1\r\n{}", "X: y\r\n".repeat(10_000));
        assert_eq!(read_request(endless.as_bytes()).unwrap(), None);
    }

    #[test]
    fn page_names_what_is_known() {
        let facts = Facts::from_environment(|name| (name == "RSWARM_TASK_SLOT").then(|| "2".to_owned()));
        let page = facts.page("10.0.0.9:1234".parse().unwrap());
        assert!(page.contains("slot:     2\n") && page.contains("peer:     10.0.0.9:1234\n"), "{page}");
        assert!(page.contains("node:     unknown\n"), "{page}");
    }
}
