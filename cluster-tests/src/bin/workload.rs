//! What the tests' containers run. The first argument says how to behave:
//!
//! - `wait`: says so, and ends well when asked to (the default)
//! - `exit CODE [AFTER_MS]`: ends by itself
//! - `count EVERY_MS`: says a number now and then, until asked to end
//! - `stubborn`: does not end when asked to
//! - `take BYTES`: takes memory and waits
//! - `serve PORT`: says on every TCP connection, as an HTTP page, and to every datagram which task it is and who asks;
//!   prints since when it listens

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    let began = milliseconds();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize| words.get(place).and_then(|word| word.parse::<u64>().ok());
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    if let Err(error) = signals.thread_block() {
        eprintln!("cannot block signals: {error}");
        return ExitCode::FAILURE;
    }
    match words.first().map_or("wait", String::as_str) {
        "exit" => {
            say("about to end");
            std::thread::sleep(Duration::from_millis(number(2).unwrap_or(0)));
            return ExitCode::from(number(1).and_then(|code| u8::try_from(code).ok()).unwrap_or(0));
        }
        "count" => {
            let pause = Duration::from_millis(number(1).unwrap_or(100).max(1));
            std::thread::spawn(move || {
                for n in 1_u64.. {
                    say(&format!("count {n}"));
                    std::thread::sleep(pause);
                }
            });
        }
        "take" => {
            let memory = vec![1_u8; usize::try_from(number(1).unwrap_or(0)).unwrap_or(usize::MAX)];
            say(&format!("took {}", std::hint::black_box(&memory).len()));
        }
        "serve" => {
            let port = number(1).and_then(|port| u16::try_from(port).ok()).unwrap_or(80);
            if let Err(error) = serve(port, began) {
                eprintln!("cannot listen on port {port}: {error}");
                return ExitCode::FAILURE;
            }
        }
        _ => say("waiting"),
    }
    loop {
        match signals.wait() {
            Ok(signal) if words.first().is_some_and(|word| word == "stubborn") => {
                say(&format!("{signal}: no"));
            }
            Ok(signal) => {
                say(&format!("{signal}: goodbye"));
                return ExitCode::SUCCESS;
            }
            Err(error) => {
                eprintln!("cannot wait for signals: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
}

/// A line on standard output; nobody may be there to read it.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// By the clock, since 1970.
fn milliseconds() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

fn serve(port: u16, began: u128) -> std::io::Result<()> {
    // Both families, where there are both.
    let (any, any6) = ((Ipv4Addr::UNSPECIFIED, port), (Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(any6).or_else(|_| TcpListener::bind(any))?;
    let socket = UdpSocket::bind(any6).or_else(|_| UdpSocket::bind(any))?;
    say(&format!("ran at {began} ms, listens at {} ms", milliseconds()));
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || drop(answer(&connection)));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            // Whoever is gone gets none.
            let _ = socket.send_to(who(peer).as_bytes(), peer);
        }
    });
    Ok(())
}

/// `TASK PEER-ADDRESS`.
fn who(peer: SocketAddr) -> String {
    format!("{} {}", std::env::var("RSWARM_TASK_NAME").unwrap_or_default(), peer.ip().to_canonical())
}

fn answer(mut connection: &TcpStream) -> std::io::Result<()> {
    let body = who(connection.peer_addr()?);
    // The request is of no interest, but must be read whole lest its rest resets the connection.
    let lines = BufReader::new(connection).lines();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    write!(connection, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}
