//! Images from a registry that needs a word of explanation: one without TLS, and one with images for other machines.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rswarm_cluster_tests::ClusterLab;
use rswarm_image::Digest;

const SOON: Duration = Duration::from_secs(15);
const PORT: u16 = 5000;
/// First byte of a TLS client. Source: RFC 8446, 5.1.
const TLS_HANDSHAKE: u8 = 22;

/// Serves one image for a platform nobody has, over http, for as long as the test runs.
fn serve_foreign_image(lab: &ClusterLab, number: usize) -> String {
    let listener = lab.host(number).run(|| TcpListener::bind(("0.0.0.0", PORT)));
    let listener = listener.expect("the host's namespace").expect("a free port");
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            std::thread::spawn(move || drop(answer(&connection)));
        }
    });
    format!("{}:{PORT}", lab.host(number).address)
}

fn answer(connection: &TcpStream) -> std::io::Result<()> {
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    let config =
        r#"{"architecture":"s390x","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{}}"#;
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[]}}"#,
        Digest::of(config.as_bytes()),
        config.len()
    );
    let mut first = [0];
    connection.peek(&mut first)?;
    if first == [TLS_HANDSHAKE] {
        return (&mut &*connection).write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    }
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (status, kind, body) = match path {
        "/v2/" => ("200 OK", "application/json", "{}"),
        path if path.contains("/manifests/") => ("200 OK", MANIFEST, &*manifest),
        path if path.contains("/blobs/") => ("200 OK", "application/octet-stream", config),
        _ => ("400 Bad Request", "text/plain", "this is http"),
    };
    let length = body.len();
    let mut connection = connection;
    write!(
        connection,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// Ends a daemon that `init` has started, and waits until it has let go of its data root.
fn end_daemon(lab: &ClusterLab, number: usize) {
    let path = lab.host(number).data_root.join("lock");
    let pid = std::fs::read_to_string(&path).expect("a lock file").parse().expect("a process id");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("a daemon that runs");
    lab.wait("the daemon has ended", SOON, || {
        let file = std::fs::File::open(&path).map_err(|error| error.to_string())?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => Ok(()),
            Err((_, error)) => Err(error.to_string()),
        }
    });
}

#[test]
fn registry_without_tls_is_allowed_by_the_flag_that_its_refusal_names() {
    let Some(mut lab) = ClusterLab::new("plain", 2) else { return };
    let registry = serve_foreign_image(&lab, 2);
    let image = format!("{registry}/x:1");
    let flag = format!("--insecure-registry {registry}");
    let own = lab.host(1).address.to_string();
    let init = ["init", "--advertise-addr", &own, "--insecure-registry", &registry];

    lab.start(1);
    lab.refused(1, &["image", "pull", &image], &[&flag, "http"]);
    // This daemon has read what it knows; saying nothing would look as if it had listened.
    lab.refused(1, &init, &["runs already", "stop it"]);
    lab.host_mut(1).stop();

    // The daemon that `init` starts knows it, and the next one on this data root does.
    lab.ok(1, &init);
    let foreign = ["no manifest for linux/", "linux/s390x"];
    lab.refused(1, &["image", "pull", &image], &foreign);
    assert!(lab.ok(1, &["info"]).contains(&registry));
    end_daemon(&lab, 1);
    lab.start(1);
    lab.refused(1, &["image", "pull", &image], &foreign);
    lab.until_ready(1);

    // A service of that image waits for a machine it could run on.
    lab.ok(1, &["service", "create", "--detach", "--name", "foreign", &image]);
    lab.wait("the service says why it waits", SOON, || {
        let shown = lab.ok(1, &["service", "ps", "--no-trunc", "foreign"]);
        if shown.contains("unsupported platform on 1 node") { Ok(()) } else { Err(shown) }
    });
}
