//! Pulling when things go wrong: restarts, limits, mirrors, proxies, tokens that expire.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/server.rs"]
mod server;

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{chain, demo, is_root, store};
use rswarm_image::{Credentials, ImageError, ImageStore, Mirror, PullOptions, builder::ImageBuilder};
use server::{Answer, Repository, Request, Server};

fn one_layer() -> ImageBuilder {
    ImageBuilder::new().file("/data", vec![b'x'; 300_000], 0o644)
}

/// Serves one layer that each time is cut after 100,000 further bytes; notes where each request starts.
fn cutting(repository: Repository, starts: Arc<Mutex<Vec<usize>>>) -> Server {
    let layer = repository.layers[0];
    let whole = repository.content[&layer].clone();
    let inner = repository.clone().answers();
    Server::start(repository.with(move |request| {
        if !request.path.ends_with(&layer.to_string()) {
            return inner(request);
        }
        let start = request.range_start().unwrap_or(0);
        starts.lock().unwrap().push(start);
        let answer =
            if start > 0 { Answer::partial(whole[start..].to_vec()) } else { Answer::ok(whole.clone()) };
        answer.cut_after(100_000)
    }))
}

fn partial(whole: &[u8], from: usize, range: &str) -> Answer {
    Answer::partial(whole[from..].to_vec()).with_header("Content-Range", range)
}

fn partial_bytes(root: &Path) -> u64 {
    let files = fs::read_dir(root.join("partial")).into_iter().flatten();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_after_a_restart() {
    if !is_root() {
        return;
    }
    let repository = Repository::of(&one_layer());
    let place = tempfile::tempdir().unwrap();
    // The first daemon goes away when part of the layer is here: the registry stalls after that.
    let (layer, whole) = (repository.layers[0], repository.content[&repository.layers[0]].clone());
    let inner = repository.clone().answers();
    let requests = AtomicUsize::new(0);
    let starts = Arc::new(Mutex::new(Vec::new()));
    let noted = starts.clone();
    let server = Server::start(repository.with(move |request| {
        if !request.path.ends_with(&layer.to_string()) {
            return inner(request);
        }
        let start = request.range_start().unwrap_or(0);
        noted.lock().unwrap().push(start);
        match requests.fetch_add(1, Ordering::SeqCst) {
            0 => Answer::ok(whole.clone()).cut_after(150_000),
            1 => Answer::status(503).after(Duration::from_secs(30)),
            _ => Answer::partial(whole[start..].to_vec()),
        }
    }));
    let name = format!("{}/demo:1", server.host);
    {
        let store = ImageStore::open(place.path()).unwrap();
        let (pulled, name) = (store.clone(), name.clone());
        let task = tokio::spawn(async move { pulled.pull(&name, &PullOptions::default()).await.map(drop) });
        let deadline = Instant::now() + Duration::from_secs(20);
        while partial_bytes(place.path()) < 150_000 || starts.lock().unwrap().len() < 2 {
            assert!(Instant::now() < deadline, "{} bytes are here", partial_bytes(place.path()));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let usage = store.usage().unwrap();
        assert!(usage.partial_bytes >= 150_000 && usage.reclaimable_partial_bytes == 0, "{usage:?}");
        task.abort();
        assert!(task.await.is_err());
        assert!(store.list().is_empty());
        let usage = store.usage().unwrap();
        assert_eq!(usage.reclaimable_partial_bytes, usage.partial_bytes);
    }
    // The writer of the aborted pull lets go of the store as soon as it notices.
    let deadline = Instant::now() + Duration::from_secs(10);
    let store = loop {
        match ImageStore::open(place.path()) {
            Ok(store) => break store,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let image = store.pull(&name, &PullOptions::default()).await.unwrap();
    assert_eq!(fs::read(store.rootfs(&image).unwrap()[0].join("data")).unwrap(), vec![b'x'; 300_000]);
    let starts = starts.lock().unwrap().clone();
    assert_eq!(*starts.last().unwrap(), 150_000, "{starts:?}");
    assert_eq!(partial_bytes(place.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_part_of_a_download_is_fetched_again() {
    if !is_root() {
        return;
    }
    let repository = Repository::of(&one_layer());
    let store = store();
    let partial = store.root.path().join("partial").join(repository.layers[0].hex());
    fs::write(&partial, vec![7; 1000]).unwrap();
    let starts = Arc::new(Mutex::new(Vec::new()));
    let server = cutting(repository, starts.clone());
    store.pull(&format!("{}/demo:1", server.host), &PullOptions::default()).await.unwrap();
    let starts = starts.lock().unwrap().clone();
    assert_eq!(starts[0], 1000);
    assert!(starts[1..].contains(&0), "{starts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_cannot_resume_sends_all_again() {
    if !is_root() {
        return;
    }
    type Resumed = fn(&[u8], usize) -> Answer;
    let ways: [(&str, Resumed); 4] = [
        ("refused", |_, _| Answer::status(416)),
        ("from the start", |whole, _| partial(whole, 0, "bytes 0-9/*")),
        ("from elsewhere", |whole, start| partial(whole, start + 1, &format!("bytes {}-9/*", start + 1))),
        ("nonsense", |whole, _| partial(whole, 0, "0")),
    ];
    for (way, resumed) in ways {
        let repository = Repository::of(&one_layer());
        let layer = repository.layers[0];
        let whole = repository.content[&layer].clone();
        let inner = repository.clone().answers();
        let asked = AtomicUsize::new(0);
        let server = Server::start(repository.with(move |request| {
            if !request.path.ends_with(&layer.to_string()) {
                return inner(request);
            }
            match (request.range_start(), asked.fetch_add(1, Ordering::SeqCst)) {
                (Some(start), _) => resumed(&whole, start),
                (None, 0) => Answer::ok(whole.clone()).cut_after(whole.len() / 2),
                (None, _) => Answer::ok(whole.clone()),
            }
        }));
        let store = store();
        let name = format!("{}/demo:1", server.host);
        let pulled = store.pull(&name, &PullOptions::default()).await;
        let image = pulled.unwrap_or_else(|error| panic!("{way}: {}", chain(&error)));
        let data = fs::read(store.rootfs(&image).unwrap()[0].join("data")).unwrap();
        assert!(data == vec![b'x'; 300_000], "{way}");
        let most = if way == "from the start" { 2 } else { 3 };
        assert_eq!(server.count(&layer.to_string()), most, "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_changes_between_http_and_tls_is_still_reached() {
    if !is_root() {
        return;
    }
    let repository = Repository::of(&demo("demo:1"));
    let server = Server::start(repository.clone().with(repository.answers()));
    let store = store();
    let name = format!("{}/demo:1", server.host);
    for tls in [false, true, false] {
        server.speak_tls(tls);
        store
            .pull(&name, &PullOptions::default())
            .await
            .unwrap_or_else(|error| panic!("TLS: {tls}: {}", chain(&error)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_pause_gets_it() {
    if !is_root() {
        return;
    }
    for (status, after) in [(429, "1"), (503, "1")] {
        let repository = Repository::of(&demo("demo:1"));
        let inner = repository.clone().answers();
        let asked = AtomicUsize::new(0);
        let server = Server::start(repository.with(move |request| {
            if request.path.contains("/manifests/") && asked.fetch_add(1, Ordering::SeqCst) == 0 {
                return Answer::status(status).with_header("Retry-After", after);
            }
            inner(request)
        }));
        let start = Instant::now();
        store().pull(&format!("{}/demo:1", server.host), &PullOptions::default()).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    }
    // One that wants too long a pause is named at once, with what it said.
    let repository = Repository::of(&demo("demo:1"));
    let server = Server::start(repository.with(|request| {
        if request.path == "/v2/" {
            return Answer::ok(Vec::new());
        }
        Answer::status(429).with_header("Retry-After", "3600")
    }));
    let start = Instant::now();
    let error = store().pull(&format!("{}/demo:1", server.host), &PullOptions::default()).await.unwrap_err();
    assert!(matches!(error, ImageError::RateLimited { .. }), "{error}");
    assert!(error.to_string().contains("3600 s"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(60), "it did not wait");
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_and_passed_over_when_they_fail() {
    if !is_root() {
        return;
    }
    let whole = Repository::of(&demo("demo:1"));
    let answers = whole.clone().answers();
    let mirror = Server::start(whole.clone().with(answers.clone()));
    let origin = Server::start(whole.clone().with(answers.clone()));
    // Has the manifest, but not the layers.
    let layers = whole.layers.clone();
    let half = Server::start(whole.clone().with({
        let answers = answers.clone();
        move |request: &Request| {
            if layers.iter().any(|layer| request.path.ends_with(&layer.to_string())) {
                return Answer::status(404);
            }
            answers(request)
        }
    }));
    let name = format!("{}/demo:1", origin.host);
    let with = |servers: &[&Server]| {
        let mirrors = servers
            .iter()
            .map(|server| Mirror { registry: origin.host.clone(), url: format!("http://{}", server.host) });
        let auth = Credentials::Password { username: "user".into(), password: "secret".into() };
        PullOptions { mirrors: mirrors.collect(), auth: Some(auth), ..PullOptions::default() }
    };
    let image = store().pull(&name, &with(&[&mirror])).await.unwrap();
    assert_eq!(image.references, [name.as_str()], "it keeps the name it was asked by");
    assert_eq!(origin.count("/manifests/1"), 0);
    assert!(mirror.count("/manifests/1") > 0);

    store().pull(&name, &with(&[&half])).await.unwrap();
    assert_eq!(origin.count("/manifests/1"), 0);
    for layer in &whole.layers {
        assert_eq!(origin.count(&layer.to_string()), 1, "what the mirror lacks comes from the registry");
    }
    // A mirror that is not there, and a reference that no one has.
    let gone = Mirror { registry: origin.host.clone(), url: "http://127.0.0.1:1".into() };
    let options = PullOptions { mirrors: vec![gone], ..PullOptions::default() };
    store().pull(&name, &options).await.unwrap();
    assert!(origin.count("/manifests/1") > 0);
    let missing = format!("{}/demo@{}", origin.host, rswarm_image::Digest::of(b"none"));
    let error = store().pull(&missing, &with(&[&mirror])).await.unwrap_err();
    assert!(matches!(error, ImageError::NotInRegistry { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_answers_wrongly_is_passed_over() {
    if !is_root() {
        return;
    }
    type Lie = fn(&Request, &[u8]) -> Answer;
    let cases: [(&str, &str, Lie); 5] = [
        ("a page", "/manifests/1", |_, _| Answer::ok(b"<html>".to_vec())),
        ("nothing", "/manifests/1", |_, _| Answer::ok(Vec::new())),
        ("other bytes", "", |_, layer| Answer::ok(vec![7; layer.len()])),
        ("too much", "", |_, layer| Answer::ok(vec![7; 3 * layer.len()])),
        ("more than the layer", "", |_, layer| Answer::ok([layer, b"more"].concat())),
    ];
    for (case, path, lie) in cases {
        let repository = Repository::of(&one_layer());
        let layer = repository.layers[0];
        let origin = Server::start(repository.clone().with(repository.clone().answers()));
        let path = if path.is_empty() { layer.to_string() } else { path.to_owned() };
        let inner = repository.clone().answers();
        let content = repository.content[&layer].clone();
        let lying = path.clone();
        let mirror = Server::start(repository.with(move |request| {
            if request.path.ends_with(&lying) { lie(request, &content) } else { inner(request) }
        }));
        let mirrors = vec![Mirror { registry: origin.host.clone(), url: format!("http://{}", mirror.host) }];
        let options = PullOptions { mirrors, ..PullOptions::default() };
        let store = store();
        let pulled = store.pull(&format!("{}/demo:1", origin.host), &options).await;
        let image = pulled.unwrap_or_else(|error| panic!("{case}: {}", chain(&error)));
        assert_eq!(store.rootfs(&image).unwrap().len(), 1);
        assert_eq!(mirror.count(&path), 1, "{case}");
        assert_eq!(partial_bytes(store.root.path()), 0, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_shared_renewed_and_exchanged() {
    if !is_root() {
        return;
    }
    let repository = Repository::of(&demo("demo:1"));
    let inner = repository.clone().answers();
    let issued = Arc::new(AtomicUsize::new(0));
    let (count, asked) = (issued.clone(), Arc::new(Mutex::new(Vec::new())));
    let log = asked.clone();
    let server = Server::start(repository.with(move |request| {
        if request.path.starts_with("/token") {
            log.lock().unwrap().push((request.method.clone(), request.path.clone(), request.body.clone()));
            let password = request.header("authorization") == Some("Basic dXNlcjpzZWNyZXQ="); // user:secret
            let identity = request.method == "POST"
                && request.body.contains("grant_type=refresh_token")
                && request.body.contains("refresh_token=id+token%26")
                && request.body.contains("service=s");
            if !password && !identity {
                return Answer::status(401);
            }
            let number = count.fetch_add(1, Ordering::SeqCst);
            let offline = if request.path.contains("offline_token=true") {
                r#","refresh_token":"id token&""#
            } else {
                ""
            };
            return Answer::ok(format!(r#"{{"access_token":"t{number}"{offline}}}"#).into_bytes());
        }
        // Each token is good for one kind of request only, as if it had expired.
        let current = format!("Bearer t{}", count.load(Ordering::SeqCst).wrapping_sub(1));
        let stale = request.path.contains("/blobs/") && current == "Bearer t0";
        if request.header("authorization") == Some(&current) && !stale {
            return inner(request);
        }
        let host = request.header("host").unwrap_or_default();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
        Answer::status(401).with_header("WWW-Authenticate", &challenge)
    }));
    let name = format!("{}/demo:1", server.host);
    let password = Credentials::Password { username: "user".into(), password: "secret".into() };
    let with = |auth: Credentials| PullOptions { auth: Some(auth), ..PullOptions::default() };
    store().pull(&name, &with(password.clone())).await.unwrap();
    assert_eq!(issued.load(Ordering::SeqCst), 2, "one at first, one for all that found it expired");

    let identity = store().login(&server.host, &password, &PullOptions::default()).await.unwrap();
    assert_eq!(identity.as_deref(), Some("id token&"));
    store().pull(&name, &with(Credentials::IdentityToken("id token&".into()))).await.unwrap();
    let (method, _, body) = asked.lock().unwrap().last().unwrap().clone();
    assert_eq!(method, "POST");
    assert!(body.contains("scope=repository%3Ademo%3Apull"), "{body}");
    let error = store().pull(&name, &with(Credentials::IdentityToken("old".into()))).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }) && !chain(&error).contains("old"), "{error}");
}

/// Registries send layers elsewhere; who serves them there has no claim on the user's password.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_the_registry_sends_us_to_learns_no_password() {
    if !is_root() {
        return;
    }
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = heard.clone();
    let foreign = Server::start(Repository::of(&demo("none:1")).with(move |request| {
        log.lock().unwrap().push((request.path.clone(), request.header("authorization").map(str::to_owned)));
        let host = request.header("host").unwrap_or_default();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"s\"");
        Answer::status(401).with_header("WWW-Authenticate", &challenge)
    }));
    let repository = Repository::of(&demo("demo:1"));
    let (inner, elsewhere) = (repository.clone().answers(), foreign.host.clone());
    let server = Server::start(repository.with(move |request| {
        if request.path.contains("/blobs/") {
            let place = format!("http://{elsewhere}{}", request.path);
            return Answer::status(307).with_header("Location", &place);
        }
        inner(request)
    }));
    let password = Credentials::Password { username: "user".into(), password: "secret".into() };
    let options = PullOptions { auth: Some(password), ..PullOptions::default() };
    let error = store().pull(&format!("{}/demo:1", server.host), &options).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{}", chain(&error));
    let heard = heard.lock().unwrap();
    assert!(!heard.is_empty(), "we were sent there");
    let told = |(path, authorization): &(String, Option<String>)| {
        path.starts_with("/token") || authorization.is_some()
    };
    assert!(!heard.iter().any(told), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_prune_takes_what_a_pull_brings() {
    if !is_root() {
        return;
    }
    let repository = Repository::of(&demo("demo:1"));
    let server = Server::start(repository.clone().with(repository.answers()));
    let store = store();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (pruned, stopped) = (store.store.clone(), stop.clone());
    let pruner = std::thread::spawn(move || {
        let all = rswarm_image::PruneFilter { all: true, ..Default::default() };
        let mut removed = 0;
        while !stopped.load(Ordering::SeqCst) {
            removed += pruned.prune(&all).unwrap().removed.deleted.len();
        }
        removed
    });
    let name = format!("{}/demo:1", server.host);
    let mut held = 0;
    for _ in 0..60 {
        let image = store
            .pull(&name, &PullOptions::default())
            .await
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        // Once held it stays whole; before that it may be gone again, and that is said.
        if let Ok(_hold) = store.hold(&image.id) {
            held += 1;
            let directories = store.rootfs(&image).unwrap();
            assert_eq!(fs::read_to_string(directories[0].join("etc/new")).unwrap(), "new");
        }
    }
    stop.store(true, Ordering::SeqCst);
    let removed = pruner.join().unwrap();
    assert!(held > 0 && removed > 0, "{held} held, {removed} removed");
}

/// Run by the test below in a process of its own, as the environment is the process'.
#[tokio::test(flavor = "multi_thread")]
async fn through_the_proxy_of_the_environment() {
    let Ok(name) = std::env::var("RSWARM_TEST_PULL") else { return };
    let options =
        PullOptions { insecure_registries: vec!["registry.test:5000".into()], ..PullOptions::default() };
    store().pull(&name, &options).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
}

#[test]
fn proxies_come_from_the_environment() {
    if !is_root() {
        return;
    }
    let repository = Repository::of(&demo("demo:1"));
    let inner = repository.clone().answers();
    // A proxy is sent the whole address; this one answers itself.
    let server = Server::start(repository.with(move |request| {
        match request.path.strip_prefix("http://registry.test:5000") {
            Some(path) => inner(&Request {
                method: request.method.clone(),
                path: path.to_owned(),
                body: String::new(),
                headers: Default::default(),
            }),
            None => Answer::status(502),
        }
    }));
    for (direct, succeeds) in [("registry.test:5000", false), ("registry.test:5001,10.0.0.0/8", true)] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "through_the_proxy_of_the_environment", "--nocapture"])
            .env("RSWARM_TEST_PULL", "registry.test:5000/demo:1")
            .env("HTTP_PROXY", format!("http://{}", server.host))
            .env("http_proxy", format!("http://{}", server.host))
            .env("HTTPS_PROXY", format!("http://{}", server.host))
            .env("NO_PROXY", direct)
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success() && said.contains("1 passed"), succeeds, "{said}");
        assert_eq!(server.count("/manifests/1") > 0, succeeds, "whether the proxy was used");
    }
}
