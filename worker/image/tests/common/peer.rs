//! Debian's `docker-registry` and `skopeo` as peers.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use rswarm_image::{Digest, builder::ImageBuilder};

use crate::common::{archive, file, has, is_root, run};

/// Whom a registry lets in, and how.
#[derive(Clone, Copy)]
pub enum Protection<'a> {
    None,
    /// Certificate and key, in PEM.
    Tls(&'a str, &'a str),
    /// Only the user `user` with the password `secret`.
    Password,
    /// Only who brings a token of the server at this address, signed by the key of this certificate (PEM).
    Token {
        realm: &'a str,
        certificate: &'a str,
    },
}

/// `user` with the password `secret`, as `htpasswd -B` writes it.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A port that nobody has, and that nobody gets who asks for any port: servers of other tests would else have it before
/// the program that it is for.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port =
            10_000 + (std::process::id() as u16 % 200 * 100 + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// `docker-registry` on a free loopback port, stopped with the test.
pub struct Registry {
    process: Child,
    pub host: String,
    place: tempfile::TempDir,
}

impl Registry {
    /// `None`, with a note, where it cannot run.
    pub fn start(protection: Protection) -> Option<Registry> {
        if !is_root() || !has("docker-registry") || !has("skopeo") {
            return None;
        }
        let place = tempfile::tempdir().unwrap();
        let host = format!("127.0.0.1:{}", free_port());
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  delete:\n    enabled: true\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
            place.path().join("data").display()
        );
        config += &match protection {
            Protection::None => String::new(),
            Protection::Tls(certificate, key) => {
                let certificate = file(place.path(), "cert.pem", certificate.as_bytes());
                let key = file(place.path(), "key.pem", key.as_bytes());
                format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display())
            }
            Protection::Password => {
                let users = file(place.path(), "htpasswd", HTPASSWD.as_bytes());
                format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", users.display())
            }
            Protection::Token { realm, certificate } => {
                let bundle = file(place.path(), "issuer.pem", certificate.as_bytes());
                format!(
                    "auth:\n  token:\n    realm: {realm}\n    service: test\n    issuer: test\n    rootcertbundle: {}\n",
                    bundle.display()
                )
            }
        };
        let config = file(place.path(), "config.yml", config.as_bytes());
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Registry { process, host, place };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(&registry.host).is_err() {
            assert!(Instant::now() < deadline, "docker-registry answers within 20 s");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    /// Lets skopeo push what `builder` makes; gives the digest the registry has it under.
    pub fn push(&self, builder: &ImageBuilder, name: &str, options: &[&str]) -> Digest {
        let place = tempfile::tempdir().unwrap();
        let file = file(place.path(), "oci.tar", &archive(builder));
        let digest = place.path().join("digest");
        run(Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--dest-tls-verify=false", "--digestfile"])
            .arg(&digest)
            .args(options)
            .arg(format!("oci-archive:{}", file.display()))
            .arg(format!("docker://{}/{name}", self.host)));
        fs::read_to_string(digest).unwrap().trim().parse().unwrap()
    }

    /// Where the registry keeps its content.
    pub fn data(&self) -> std::path::PathBuf {
        self.place.path().join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `skopeo copy` of `from` (any transport) to an OCI layout in `directory`, under the tag `1`.
pub fn copy_to_layout(from: &str, directory: &Path) {
    run(Command::new("skopeo")
        .args(["copy", "--insecure-policy", "--src-tls-verify=false", from])
        .arg(format!("oci:{}:1", directory.display())));
}
