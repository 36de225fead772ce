//! Images from a registry that needs a word of explanation: one without TLS, one with images for other machines, and
//! one that wants a password.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rswarm_cluster_tests::{ClusterLab, workload};
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

const USER: &str = "user";
const PASSWORD: &str = "pa55-of-the-registry";
/// Both, as `htpasswd -B` writes them.
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuh2UEAnTSxys8kxnTyq3wV1ptbrt0/uK\n";

/// Debian's registry on a host, for those who know the password; stopped with the test.
struct Locked {
    process: Child,
    address: String,
}

impl Locked {
    /// `None`, with a note, where it is not installed.
    fn start(lab: &ClusterLab, number: usize) -> Option<Self> {
        let address = format!("{}:{PORT}", lab.host(number).address);
        let directory = lab.config().data_dir.join("registry");
        std::fs::create_dir_all(&directory).expect("a directory");
        let (users, config) = (directory.join("htpasswd"), directory.join("config.yml"));
        std::fs::write(&users, HTPASSWD).expect("a file");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n\
             auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            directory.join("data").display(),
            users.display()
        );
        std::fs::write(&config, text).expect("a file");
        let mut command = lab.host(number).command("docker-registry").expect("the host is there");
        let spawned = command.arg("serve").arg(config).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(process) = spawned else {
            eprintln!("skipped: needs docker-registry");
            return None;
        };
        let registry = Self { process, address };
        lab.wait("docker-registry answers", SOON, || {
            let reached = lab.host(number).run(|| TcpStream::connect(&registry.address));
            reached.expect("the host is there").map(drop).map_err(|error| error.to_string())
        });
        Some(registry)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Files below `directory` in which `text` stands.
fn files_with(directory: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_with(&path, text)),
            Ok(kind) if kind.is_file() => {
                let bytes = std::fs::read(&path).unwrap_or_default();
                found.extend(bytes.windows(text.len()).any(|part| part == text.as_bytes()).then_some(path));
            }
            _ => {}
        }
    }
    found
}

#[test]
fn a_private_image_runs_where_its_service_brings_the_credential() {
    let Some(mut lab) = ClusterLab::new("private", 3) else { return };
    let Some(registry) = Locked::start(&lab, 1) else { return };
    let image = format!("{}/team/app:1", registry.address);
    lab.daemon_args = vec!["--insecure-registry".to_owned(), registry.address.clone()];
    (1..=3).for_each(|number| lab.start(number));
    lab.init(1);
    lab.join(2, "worker", 1);
    lab.join(3, "worker", 1);
    lab.until_ready(3);

    // Only the user of host 1 is logged in, and only there was the image made.
    let docker_config = lab.config().data_dir.join("user");
    std::fs::create_dir_all(&docker_config).expect("a directory");
    let as_user = |args: &[&str], input: &str| {
        let mut command = lab.host(1).rswarm(args).expect("the host is there");
        command.env("DOCKER_CONFIG", &docker_config).stdin(Stdio::piped());
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("rswarm can be run");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
        let output = child.wait_with_output().expect("rswarm can be waited for");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "`rswarm {}`: {said}", args.join(" "));
        said
    };
    let archive = workload::write_archive(workload::IMAGE, &lab.config().data_dir).expect("an archive");
    as_user(&["image", "load", "-q", "-i", &archive.to_string_lossy()], "");
    as_user(&["image", "tag", workload::IMAGE, &image], "");
    as_user(&["login", "-u", USER, "--password-stdin", &registry.address], PASSWORD);
    as_user(&["image", "push", "-q", &image], "");
    as_user(&["image", "rm", "-f", &image, workload::IMAGE], "");

    let create = ["service", "create", "--detach", "--restart-delay", "1h", "--constraint"];
    let with = |rest: &[&str]| as_user(&[&create[..], rest].concat(), "");
    let told = with(&["node.role==worker", "--name", "without", &image]);
    assert!(told.contains("unauthorized") && told.contains("--with-registry-auth"), "{told}");
    lab.wait("its task says why", SOON, || {
        let shown = lab.ok(1, &["service", "ps", "--no-trunc", "without"]);
        let says = ["Rejected", "unauthorized to read", "--with-registry-auth"];
        if says.iter().all(|word| shown.contains(word)) { Ok(()) } else { Err(shown) }
    });

    let told = with(&["node.hostname==host-2", "--name", "with", "--with-registry-auth", &image]);
    assert!(!told.contains("WARNING") && !told.contains("pinned"), "{told}");
    let task = lab.until_running(1, "with", 1, SOON).remove(0);
    let pinned = &task.spec.as_ref().unwrap().container.as_ref().unwrap().image;
    assert!(pinned.starts_with(&format!("{image}@sha256:")), "{pinned}");

    // An update keeps what the service has, and takes it to the next node.
    let constraint =
        ["--constraint-rm", "node.hostname==host-2", "--constraint-add", "node.hostname==host-3"];
    lab.ok(1, &[&["service", "update", "--detach"], &constraint[..], &["with"]].concat());
    lab.wait("it moves to the other node", SOON, || {
        let shown = lab.ok(1, &["service", "ps", "--filter", "desired-state=running", "with"]);
        if shown.contains("host-3") && shown.contains("Running") { Ok(()) } else { Err(shown) }
    });
    // And one that brings it heals the service that had none.
    as_user(&["service", "update", "--detach", "--with-registry-auth", "without"], "");
    lab.until_running(1, "without", 1, SOON);

    let shown = [
        lab.ok(1, &["service", "inspect", "with", "without"]),
        lab.ok(1, &["task", "inspect", &task.id]),
        lab.ok(1, &["service", "inspect", "--pretty", "with"]),
    ];
    assert!(!shown.concat().contains(PASSWORD));
    // Neither the managers' encrypted log nor the workers' ledgers nor what daemons said has it in clear.
    for number in 1..=3 {
        lab.host_mut(number).stop();
        let host = lab.host(number);
        for root in [&host.data_root, &host.run_root] {
            assert_eq!(files_with(root, PASSWORD), Vec::<PathBuf>::new());
        }
    }
}
