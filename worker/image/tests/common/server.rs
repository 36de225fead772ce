//! A registry in a few lines that answers as it is told, also wrongly.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rswarm_image::{Digest, builder::ImageBuilder};

pub struct Request {
    pub method: String,
    pub path: String,
    pub body: String,
    pub headers: HashMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    sent: usize,
    wait: Duration,
}

impl Answer {
    pub fn ok(body: Vec<u8>) -> Answer {
        Answer { status: 200, headers: Vec::new(), sent: body.len(), body, wait: Duration::ZERO }
    }

    pub fn partial(body: Vec<u8>) -> Answer {
        Answer { status: 206, ..Answer::ok(body) }
    }

    /// Takes as long before the answer starts.
    pub fn after(self, wait: Duration) -> Answer {
        Answer { wait, ..self }
    }

    pub fn status(status: u16) -> Answer {
        Answer { status, ..Answer::ok(Vec::new()) }
    }

    /// Announces the whole body but closes the connection after `bytes` of it.
    pub fn cut_after(self, bytes: usize) -> Answer {
        Answer { sent: bytes.min(self.body.len()), ..self }
    }

    pub fn with_header(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

type Handler = Box<dyn Fn(&Request) -> Answer + Send + Sync>;

/// What a registry has of one image.
#[derive(Clone)]
pub struct Repository {
    pub manifest: Digest,
    pub config: Digest,
    pub layers: Vec<Digest>,
    pub content: HashMap<Digest, Vec<u8>>,
}

impl Repository {
    pub fn of(builder: &ImageBuilder) -> Repository {
        let mut bytes = Vec::new();
        let manifest = builder.write_oci_archive(&mut bytes).unwrap();
        let mut content = HashMap::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut data = Vec::new();
            entry.unwrap().read_to_end(&mut data).unwrap();
            content.insert(Digest::of(&data), data);
        }
        let document: serde_json::Value = serde_json::from_slice(&content[&manifest]).unwrap();
        let digest = |descriptor: &serde_json::Value| descriptor["digest"].as_str().unwrap().parse().unwrap();
        let layers = document["layers"].as_array().unwrap().iter().map(digest).collect();
        Repository { manifest, config: digest(&document["config"]), layers, content }
    }

    /// Answers as a registry should.
    pub fn answers(self) -> impl Fn(&Request) -> Answer + Send + Sync + Clone {
        let repository = Arc::new(self);
        move |request: &Request| {
            let target = request.path.rsplit('/').next().unwrap_or_default();
            let digest = if request.path.contains("/manifests/") && !target.contains(':') {
                Some(repository.manifest)
            } else {
                target.parse().ok()
            };
            match digest.and_then(|digest| repository.content.get(&digest)) {
                Some(body) => Answer::ok(body.clone()),
                None if request.path == "/v2/" => Answer::ok(Vec::new()),
                None => Answer::status(404),
            }
        }
    }

    /// Keeps the repository beside a handler of another behaviour.
    pub fn with(self, handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> (Repository, Handler) {
        (self, Box::new(handler))
    }
}

/// Serves until dropped.
pub struct Server {
    pub host: String,
    pub repository: Repository,
    seen: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    tls: Arc<Mutex<Option<Arc<rustls::ServerConfig>>>>,
}

impl Server {
    pub fn start((repository, handler): (Repository, Handler)) -> Server {
        let tls = Arc::<Mutex<Option<Arc<rustls::ServerConfig>>>>::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, stopped, handler) = (seen.clone(), stop.clone(), Arc::new(handler));
        let current = tls.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (log, handler, tls) = (log.clone(), handler.clone(), current.lock().unwrap().clone());
                std::thread::spawn(move || {
                    let connection = connection.unwrap();
                    match tls {
                        Some(tls) => {
                            let session = rustls::ServerConnection::new(tls).unwrap();
                            let mut stream = rustls::StreamOwned::new(session, connection);
                            serve(&mut stream, &log, &**handler);
                            stream.conn.send_close_notify();
                            let _ = stream.flush();
                        }
                        None => serve(&mut &connection, &log, &**handler),
                    }
                });
            }
        });
        Server { host, repository, seen, stop, tls }
    }

    /// Speaks TLS from now on, with a certificate that nobody knows, or no longer.
    pub fn speak_tls(&self, yes: bool) {
        let config = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
            let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key);
            Arc::new(config.unwrap())
        };
        *self.tls.lock().unwrap() = yes.then(config);
    }

    /// How often a path with this end was asked for.
    pub fn count(&self, end: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|path| path.ends_with(end)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.host); // Wakes the accepting thread.
    }
}

/// Answers one request and closes; what is no HTTP (a TLS handshake) is closed at once.
fn serve(
    connection: &mut (impl Read + Write),
    log: &Mutex<Vec<String>>,
    handler: &(dyn Fn(&Request) -> Answer + Send + Sync),
) {
    let mut reader = BufReader::new(&mut *connection);
    let mut line = || {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).ok()?;
        Some(String::from_utf8(line).ok()?.trim_end().to_owned())
    };
    let Some(first) = line().filter(|first| first.ends_with(" HTTP/1.1")) else { return };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = HashMap::new();
    while let Some(header) = line().filter(|header| !header.is_empty()) {
        if let Some((name, value)) = header.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let length = headers.get("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    let mut body = String::new();
    let _ = reader.take(length).read_to_string(&mut body);
    log.lock().unwrap().push(path.clone());
    let answer = handler(&Request { method, path, body, headers });
    std::thread::sleep(answer.wait);
    let mut head = format!(
        "HTTP/1.1 {} x\r\nConnection: close\r\nContent-Length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let _ = connection.write_all(format!("{head}\r\n").as_bytes());
    let _ = connection.write_all(&answer.body[..answer.sent]);
}
