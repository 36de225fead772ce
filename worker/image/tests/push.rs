//! Pushing to Debian's `docker-registry`, and what `skopeo` and `umoci` then find there; archives likewise.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/peer.rs"]
mod peer;
#[path = "common/server.rs"]
mod server;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use common::{TestStore, archive, chain, demo, has, is_root, run, store};
use peer::{Protection, Registry, copy_to_layout};
use rswarm_image::{
    Credentials, Digest, Image, ImageError, ImportConfig, Progress, PullOptions, builder::ImageBuilder,
};
use server::{Answer, Repository, Server};

fn load(store: &TestStore, builder: &ImageBuilder) -> Image {
    store.load_bytes(&archive(builder)).unwrap().remove(0)
}

/// Options that note what is reported.
fn watched() -> (PullOptions, Arc<Mutex<Vec<Progress>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let progress: rswarm_image::ProgressSink = Arc::new(move |event| sink.lock().unwrap().push(event));
    (PullOptions { progress: Some(progress), ..PullOptions::default() }, seen)
}

fn count(seen: &Mutex<Vec<Progress>>, wanted: fn(&Progress) -> bool) -> usize {
    seen.lock().unwrap().iter().filter(|event| wanted(event)).count()
}

/// Bytes that no compressor makes smaller, the same for the same seed.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length.div_ceil(8))
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(length)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_images_keep_their_digest_and_are_sent_once() {
    let Some(registry) = Registry::start(Protection::None) else { return };
    let store = store();
    let image = load(&store, &demo("demo:1"));
    let name = format!("{}/team/demo:1", registry.host);
    store.tag("demo:1", &name).unwrap();

    let (options, seen) = watched();
    let pushed = store.push(&name, &options).await.unwrap();
    assert_eq!((pushed.digest, pushed.tag.as_str()), (image.manifest_digest, "1"));
    assert_eq!(pushed.reference, name);
    // Two layers and the config.
    assert_eq!(count(&seen, |event| matches!(event, Progress::Ready { .. })), 3);
    let pinned = format!("{}/team/demo@{}", registry.host, pushed.digest);
    assert_eq!(store.get(&pinned).unwrap().id, image.id);

    let (options, seen) = watched();
    store.push(&name, &options).await.unwrap();
    assert_eq!(count(&seen, |event| matches!(event, Progress::Present { .. })), 3);

    // Another repository of the same registry takes the blobs from the first one.
    let other = format!("{}/other:2", registry.host);
    store.tag("demo:1", &other).unwrap();
    let (options, seen) = watched();
    store.push(&other, &options).await.unwrap();
    assert_eq!(count(&seen, |event| matches!(event, Progress::Mounted { .. })), 3);

    let elsewhere = common::store();
    for name in [&name, &other] {
        let pulled = elsewhere.pull(name, &PullOptions::default()).await.unwrap();
        assert_eq!((pulled.id, pulled.manifest_digest), (image.id, image.manifest_digest));
    }
    let inspected =
        run(Command::new("skopeo").args(["inspect", "--tls-verify=false"]).arg(format!("docker://{name}")));
    assert!(inspected.contains(&image.manifest_digest.to_string()), "{inspected}");

    for (wrong, wanted) in
        [(format!("{}/none:1", registry.host), "no such image"), (pinned.clone(), "takes a name and a tag")]
    {
        let error = store.push(&wrong, &PullOptions::default()).await.unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

/// Another byte in the middle of a blob, its length as before.
fn damage(store: &TestStore, blob: &Digest) {
    let path = store.root.path().join("blobs/sha256").join(blob.hex());
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_blobs_are_not_pushed_and_the_next_pull_brings_them_anew() {
    if !is_root() {
        return;
    }
    let repository = Repository::of(&demo("demo:1"));
    let source = Server::start(repository.clone().with(repository.clone().answers()));
    let taken = Arc::new(Mutex::new(Vec::new()));
    let log = taken.clone();
    // A registry that has nothing yet.
    let target = Server::start(repository.clone().with(move |request| match request.method.as_str() {
        "HEAD" => Answer::status(404),
        "POST" => Answer::status(202).with_header("Location", "/upload"),
        "PUT" => {
            log.lock().unwrap().push(request.path.clone());
            Answer::status(201)
        }
        _ => Answer::ok(Vec::new()),
    }));
    let store = store();
    let name = format!("{}/demo:1", source.host);
    let pinned = format!("{}/demo@{}", source.host, repository.manifest);
    let copy = format!("{}/demo:1", target.host);
    store.pull(&name, &PullOptions::default()).await.unwrap();
    store.tag(&name, &copy).unwrap();
    let Repository { manifest, config, layers, .. } = repository;
    for blob in [layers[0], layers[1], config, manifest] {
        for (by_push, again) in [(true, &name), (false, &pinned)] {
            damage(&store, &blob);
            taken.lock().unwrap().clear();
            let failed = match by_push {
                true => store.push(&copy, &PullOptions::default()).await.map(drop),
                false => store.save(std::slice::from_ref(&name), std::io::sink()),
            };
            let error = failed.unwrap_err();
            assert!(matches!(error, ImageError::CorruptBlob { digest, .. } if digest == blob), "{error}");
            let sent = taken.lock().unwrap().clone();
            assert!(
                !sent.iter().any(|path| path.contains(&blob.hex()) || path.contains("/manifests/")),
                "{sent:?}"
            );
            // What uses the image goes on meanwhile.
            assert_eq!(store.rootfs(&store.get(&name).unwrap()).unwrap().len(), 2);
            let image = store.pull(again, &PullOptions::default()).await.unwrap();
            store.save(std::slice::from_ref(&name), std::io::sink()).unwrap();
            assert_eq!(image.references.len(), 2);
        }
    }
    store.push(&copy, &PullOptions::default()).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(taken.lock().unwrap().len(), 4, "two layers, the config and the manifest");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_manifests_are_pushed_as_they_are() {
    let Some(registry) = Registry::start(Protection::None) else { return };
    let digest = registry.push(&demo("demo:1"), "team/demo:1", &["--format", "v2s2"]);
    let store = store();
    let name = format!("{}/team/demo:1", registry.host);
    store.pull(&name, &PullOptions::default()).await.unwrap();
    let copy = format!("{}/copy:1", registry.host);
    store.tag(&name, &copy).unwrap();
    assert_eq!(store.push(&copy, &PullOptions::default()).await.unwrap().digest, digest);
}

/// Forwards to a registry, and cuts a connection each time another `every` bytes went there, `cuts` times.
struct Cutter {
    host: String,
    left: Arc<AtomicI64>,
}

impl Cutter {
    fn before(registry: &str, every: usize, cuts: i64) -> Cutter {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let left = Arc::new(AtomicI64::new(cuts));
        let (target, counter) = (registry.to_owned(), left.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(&target)) else { return };
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || {
                    let (mut from, mut to) = back;
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let counter = counter.clone();
                std::thread::spawn(move || forward(client, server, every, &counter));
            }
        });
        Cutter { host, left }
    }
}

fn forward(mut client: TcpStream, mut server: TcpStream, every: usize, cuts: &AtomicI64) {
    let mut buffer = vec![0u8; 64 * 1024];
    let mut sent = 0;
    while let Ok(count) = client.read(&mut buffer) {
        if count == 0 || server.write_all(&buffer[..count]).is_err() {
            break;
        }
        sent += count;
        if sent >= every && cuts.fetch_sub(1, Ordering::SeqCst) > 0 {
            break;
        }
    }
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_layers_go_in_chunks_and_survive_cut_connections() {
    let Some(registry) = Registry::start(Protection::None) else { return };
    let data = noise(40 << 20, 7);
    let builder =
        ImageBuilder::new().reference("large:1".parse().unwrap()).file("/data", data.clone(), 0o644);
    let store = store();
    let image = load(&store, &builder);
    // Cut within the first and within the second chunk.
    let cutter = Cutter::before(&registry.host, 10 << 20, 2);
    let name = format!("{}/large:1", cutter.host);
    store.tag("large:1", &name).unwrap();
    let (options, seen) = watched();
    let pushed = store.push(&name, &options).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(pushed.digest, image.manifest_digest);
    assert!(cutter.left.load(Ordering::SeqCst) <= 0, "both cuts happened");
    assert!(count(&seen, |event| matches!(event, Progress::Uploading { .. })) > 100);
    let elsewhere = common::store();
    let direct = format!("{}/large:1", registry.host);
    let pulled = elsewhere.pull(&direct, &PullOptions::default()).await.unwrap();
    assert!(fs::read(elsewhere.rootfs(&pulled).unwrap()[0].join("data")).unwrap() == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_users_lets_in_who_logs_in() {
    let Some(registry) = Registry::start(Protection::Password) else { return };
    let store = store();
    load(&store, &demo("demo:1"));
    let name = format!("{}/demo:1", registry.host);
    store.tag("demo:1", &name).unwrap();
    let user = |password: &str| Credentials::Password { username: "user".into(), password: password.into() };
    let with = |password: &str| PullOptions { auth: Some(user(password)), ..PullOptions::default() };

    let error = store.push(&name, &PullOptions::default()).await.unwrap_err().to_string();
    assert!(error.contains("unauthorized to write") && error.contains("`rswarm login "), "{error}");
    let error = store.push(&name, &with("wrong")).await.unwrap_err().to_string();
    assert!(error.contains("unauthorized to write") && !error.contains("wrong"), "{error}");
    store.push(&name, &with("secret")).await.unwrap();

    let error = common::store().pull(&name, &PullOptions::default()).await.unwrap_err().to_string();
    assert!(error.contains("unauthorized to read"), "{error}");
    common::store().pull(&name, &with("secret")).await.unwrap();

    let options = PullOptions::default();
    assert_eq!(store.login(&registry.host, &user("secret"), &options).await.unwrap(), None);
    let error = store.login(&registry.host, &user("wrong"), &options).await.unwrap_err();
    assert!(matches!(error, ImageError::LoginRefused { .. }), "{error}");
    for no_host in ["nohost", "a b:1", "UPPER/x"] {
        assert!(store.login(no_host, &user("secret"), &options).await.is_err(), "{no_host}");
    }
}

/// A token server for `docker-registry`: gives who knows the password what they ask for, in `mine/` alone.
struct TokenServer {
    key: rcgen::KeyPair,
    certificate: rcgen::Certificate,
}

impl TokenServer {
    fn new() -> TokenServer {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["test".to_owned()]).unwrap().self_signed(&key).unwrap();
        TokenServer { key, certificate }
    }

    /// The answer to a request for a token, by its path with the query.
    fn answer(&self, path: &str, authorization: Option<&str>) -> Answer {
        if authorization != Some("Basic dXNlcjpzZWNyZXQ=") {
            return Answer::status(401); // user:secret
        }
        let url = reqwest::Url::parse(&format!("http://x{path}")).unwrap();
        let scopes = url.query_pairs().filter(|(key, _)| key == "scope").map(|(_, value)| value.into_owned());
        let access: Vec<serde_json::Value> = scopes
            .filter_map(|scope| {
                let mut parts = scope.splitn(3, ':').map(str::to_owned);
                let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
                let actions: Vec<&str> = actions.split(',').collect();
                name.starts_with("mine/")
                    .then(|| serde_json::json!({ "type": kind, "name": name, "actions": actions }))
            })
            .collect();
        Answer::ok(
            serde_json::json!({ "token": self.token(&access), "expires_in": 300 }).to_string().into_bytes(),
        )
    }

    /// Source: Docker registry documentation, "Token Authentication Implementation"; RFC 7515, RFC 7518 section 3.4.
    fn token(&self, access: &[serde_json::Value]) -> String {
        use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
        use rcgen::SigningKey as _;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let header = serde_json::json!({
            "typ": "JWT", "alg": "ES256", "x5c": [BASE64_STANDARD.encode(self.certificate.der())],
        });
        let claims = serde_json::json!({
            "iss": "test", "sub": "user", "aud": "test", "exp": now + 300, "nbf": now - 60, "iat": now, "jti": "1",
            "access": access,
        });
        let part = |value: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        // Two integers in DER; the token wants each as 32 plain bytes.
        let der = self.key.sign(signed.as_bytes()).unwrap();
        let mut signature = Vec::new();
        let mut rest = &der[2..];
        for _ in 0..2 {
            let (integer, after) = rest[2..].split_at(rest[1] as usize);
            let plain = &integer[integer.len().saturating_sub(32)..];
            signature.extend(std::iter::repeat_n(0, 32 - plain.len()).chain(plain.iter().copied()));
            rest = after;
        }
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_a_token_server_is_given_tokens_for_what_is_done() {
    let issuer = Arc::new(TokenServer::new());
    let (asked, log) = (issuer.clone(), Arc::new(Mutex::new(Vec::new())));
    let paths = log.clone();
    let tokens = Server::start(Repository::of(&demo("none:1")).with(move |request| {
        paths.lock().unwrap().push(request.path.clone());
        asked.answer(&request.path, request.header("authorization"))
    }));
    let realm = format!("http://{}/token", tokens.host);
    let protection = Protection::Token { realm: &realm, certificate: &issuer.certificate.pem() };
    let Some(registry) = Registry::start(protection) else { return };
    let store = store();
    let image = load(&store, &demo("demo:1"));
    let user = |password: &str| PullOptions {
        auth: Some(Credentials::Password { username: "user".into(), password: password.into() }),
        ..PullOptions::default()
    };
    for repository in ["mine/one", "mine/two", "theirs/x"] {
        store.tag("demo:1", &format!("{}/{repository}:1", registry.host)).unwrap();
    }
    let name = |repository: &str| format!("{}/{repository}:1", registry.host);
    store.push(&name("mine/one"), &user("secret")).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    // To mount from one repository into another takes rights in both.
    let (options, seen) = watched();
    let options = PullOptions { auth: user("secret").auth, ..options };
    store.push(&name("mine/two"), &options).await.unwrap();
    assert_eq!(
        count(&seen, |event| matches!(event, Progress::Mounted { .. })),
        3,
        "{:?}",
        seen.lock().unwrap()
    );
    let pulled = common::store().pull(&name("mine/two"), &user("secret")).await.unwrap();
    assert_eq!(pulled.id, image.id);
    for (repository, options) in
        [("theirs/x", user("secret")), ("mine/one", user("wrong")), ("mine/one", PullOptions::default())]
    {
        let error = store.push(&name(repository), &options).await.unwrap_err();
        assert!(matches!(error, ImageError::Unauthorized { .. }), "{repository}: {error}");
    }
    let credentials = user("secret").auth.unwrap();
    store.login(&registry.host, &credentials, &PullOptions::default()).await.unwrap();
    assert!(log.lock().unwrap().iter().any(|path| path.contains("offline_token=true")));
}

#[test]
fn saved_archives_are_read_by_skopeo_and_by_ourselves() {
    if !is_root() || !has("skopeo") {
        return;
    }
    let store = store();
    let one = load(&store, &demo("demo:1"));
    let two = load(&store, &demo("team/two:2").env("TWO", "2"));
    store.tag("demo:1", "also:3").unwrap();
    let mut bytes = Vec::new();
    let names = ["demo:1", "also:3", "team/two:2"].map(str::to_owned);
    store.save(&names, &mut bytes).unwrap();
    let mut again = Vec::new();
    store.save(&names, &mut again).unwrap();
    assert_eq!(Digest::of(&bytes), Digest::of(&again), "the same images give the same bytes");

    let place = tempfile::tempdir().unwrap();
    let file = common::file(place.path(), "saved.tar", &bytes);
    for (source, image) in [
        (format!("docker-archive:{}:demo:1", file.display()), &one),
        (format!("docker-archive:{}:also:3", file.display()), &one),
        (format!("docker-archive:{}:team/two:2", file.display()), &two),
        (format!("oci-archive:{}:3", file.display()), &one),
        (format!("oci-archive:{}:2", file.display()), &two),
    ] {
        let config = run(Command::new("skopeo").args(["inspect", "--config", "--raw"]).arg(&source));
        assert_eq!(Digest::of(config.trim_end().as_bytes()), image.id, "{source}");
        let layout = place.path().join(format!("layout-{}", source.len()));
        copy_to_layout(&source, &layout);
        fs::remove_dir_all(&layout).unwrap();
    }

    let copy = common::store();
    let loaded = copy.load_bytes(&bytes).unwrap();
    assert_eq!(loaded.len(), 2);
    for image in [&one, &two] {
        let found = copy.find(&image.id.to_string()).unwrap();
        assert_eq!(found.manifest_digest, image.manifest_digest);
    }
    assert_eq!(copy.get("also:3").unwrap().id, one.id);

    // By id an image goes without its names.
    let mut bytes = Vec::new();
    store.save(&[one.id.to_string()], &mut bytes).unwrap();
    let copy = common::store();
    assert_eq!(copy.load_bytes(&bytes).unwrap()[0].references, Vec::<String>::new());

    let error = store.save(&["none:1".to_owned()], &mut Vec::new()).unwrap_err();
    assert!(matches!(error, ImageError::NoSuchImage { .. }), "{error}");
}

#[test]
fn a_damaged_blob_makes_no_archive() {
    if !is_root() {
        return;
    }
    let store = store();
    let image = load(&store, &demo("demo:1"));
    let blob = store.root.path().join("blobs/sha256").join(image.layers[0].hex());
    let mut bytes = fs::read(&blob).unwrap();
    bytes[700] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let error = store.save(&["demo:1".to_owned()], &mut Vec::new()).unwrap_err();
    assert!(matches!(error, ImageError::CorruptBlob { digest, .. } if digest == image.layers[0]), "{error}");
}

/// What a tree holds that matters: kind and mode, owner, time, content or link, extended attributes, by path.
fn facts(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut facts = BTreeMap::new();
    let mut links: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let metadata = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_owned();
            let content = if metadata.is_file() {
                Digest::of(&fs::read(&path).unwrap()).to_string()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else {
                String::new()
            };
            if metadata.is_dir() {
                directories.push(path.clone());
            }
            let mut attributes = Vec::new();
            let mut buffer = vec![0u8; 64 * 1024];
            let length = rustix::fs::llistxattr(&path, &mut buffer[..]).unwrap();
            for key in buffer[..length].split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
                let mut value = vec![0u8; 64 * 1024];
                let length =
                    rustix::fs::lgetxattr(&path, std::ffi::OsStr::from_bytes(key), &mut value[..]).unwrap();
                attributes.push((String::from_utf8_lossy(key).into_owned(), value[..length].to_vec()));
            }
            attributes.sort();
            let first = links.entry(metadata.ino()).or_insert_with(|| name.clone()).clone();
            let hard = if metadata.nlink() > 1 && !metadata.is_dir() {
                first.display().to_string()
            } else {
                String::new()
            };
            facts.insert(
                name,
                format!(
                    "{:o} {}:{} {}.{:09} {content} {hard} {attributes:?}",
                    metadata.mode(),
                    metadata.uid(),
                    metadata.gid(),
                    metadata.mtime(),
                    metadata.mtime_nsec()
                ),
            );
        }
    }
    facts
}

#[tokio::test(flavor = "multi_thread")]
async fn umoci_unpacks_what_we_pushed_as_we_do() {
    if !has("umoci") || !has("tar") {
        return;
    }
    let Some(registry) = Registry::start(Protection::None) else { return };
    let place = tempfile::tempdir().unwrap();
    let tree = place.path().join("tree");
    let long = "d".repeat(120);
    let script = format!(
        "set -e; mkdir -p $1/{long}/{long} $1/etc $1/tmp; cd $1; umask 022
         echo one > etc/one; ln etc/one etc/two; ln -s ../etc/one tmp/link; ln -s /nowhere etc/dangling; mkfifo etc/fifo
         echo deep > {long}/{long}/file; chmod 1777 tmp; echo s > etc/setuid; chown 7:8 etc/setuid; chmod 4755 etc/setuid
         chown -h 5:6 etc/dangling; chown 300000:400000 tmp; touch -d '2001-02-03 04:05:06.789' etc/one
         truncate -s 3M etc/sparse; echo end >> etc/sparse; : > 'etc/name with space'; : > etc/ünïcode"
    );
    run(Command::new("sh").args(["-c", &script, "sh"]).arg(&tree));
    for (path, key, value) in [
        ("etc/one", "user.note", &b"some \0 bytes"[..]),
        ("etc", "user.dir", b"d"),
        // CAP_NET_BIND_SERVICE, permitted and effective: linux/capability.h, VFS_CAP_REVISION_2.
        ("etc/sparse", "security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ] {
        rustix::fs::setxattr(tree.join(path), key, value, rustix::fs::XattrFlags::empty()).unwrap();
    }
    let tar = place.path().join("tree.tar");
    run(Command::new("tar")
        .args(["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "-C"])
        .arg(&tree)
        .arg("-cf")
        .arg(&tar)
        .arg("."));

    let store = store();
    let name = format!("{}/tree:1", registry.host);
    let image = store.import(fs::File::open(&tar).unwrap(), Some(&name), &ImportConfig::default()).unwrap();
    store.push(&name, &PullOptions::default()).await.unwrap();
    let layout = place.path().join("layout");
    copy_to_layout(&format!("docker://{name}"), &layout);
    let bundle = place.path().join("bundle");
    run(Command::new("umoci")
        .arg("unpack")
        .arg("--image")
        .arg(format!("{}:1", layout.display()))
        .arg(&bundle));

    let (ours, theirs) = (facts(&store.rootfs(&image).unwrap()[0]), facts(&bundle.join("rootfs")));
    assert!(ours.len() > 12, "{ours:?}");
    for (path, fact) in &ours {
        assert_eq!(Some(fact), theirs.get(path), "{}", path.display());
    }
    assert_eq!(ours.len(), theirs.len());
    // And both are what was packed.
    for (path, fact) in facts(&tree) {
        assert_eq!(Some(&fact), ours.get(&path), "{}", path.display());
    }
}
