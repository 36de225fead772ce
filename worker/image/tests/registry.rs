//! Pulling: from Debian's `docker-registry` as the real peer, and from a small server that can misbehave.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/peer.rs"]
mod peer;
#[path = "common/server.rs"]
mod server;

use std::{
    fs,
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use common::{chain, demo, is_root, store};
use peer::{Protection, Registry};
use rswarm_image::{Credentials, Digest, ImageError, Origin, Progress, PullOptions, builder::ImageBuilder};
use server::{Answer, Repository, Server};

#[tokio::test(flavor = "multi_thread")]
async fn images_pushed_by_skopeo_are_pulled_by_tag_and_by_digest() {
    let Some(registry) = Registry::start(Protection::None) else { return };
    for (kind, options) in [
        ("gzip", &["--format", "oci", "--dest-compress-format", "gzip"][..]),
        ("zstd", &["--format", "oci", "--dest-compress-format", "zstd"]),
        ("docker", &["--format", "v2s2"]),
    ] {
        let digest = registry.push(&demo("demo:1"), &format!("team/demo:{kind}"), options);
        let name = format!("{}/team/demo:{kind}", registry.host);
        let store = store();
        let resolved = store.resolve_digest(&name, &PullOptions::default()).await.unwrap();
        assert_eq!(resolved.digest, digest);
        assert_eq!(resolved.reference, format!("{name}@{digest}"));
        assert_eq!(resolved.platforms, [rswarm_image::Platform::host()]);
        assert!(store.is_empty(), "resolving stores nothing");

        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let options = PullOptions {
            progress: Some(Arc::new(move |p| sink.lock().unwrap().push(p))),
            ..PullOptions::default()
        };
        let image = store.pull(&name, &options).await.unwrap();
        assert_eq!((image.manifest_digest, image.origin), (digest, Origin::Registry));
        assert_eq!(image.references, [name.as_str()]);
        assert_eq!(image.digests, [format!("{}/team/demo@{digest}", registry.host)]);
        let directories = store.rootfs(&image).unwrap();
        assert_eq!(fs::read_to_string(directories[0].join("etc/new")).unwrap(), "new");
        let ready = seen.lock().unwrap().iter().filter(|p| matches!(p, Progress::Ready { .. })).count();
        assert_eq!(ready, 2);

        let pinned = common::store();
        let image = pinned.pull(&resolved.reference, &PullOptions::default()).await.unwrap();
        assert_eq!((image.manifest_digest, image.references.len()), (digest, 0));
        assert_eq!(pinned.get(&resolved.reference).unwrap().id, image.id);
    }
    let error =
        store().pull(&format!("{}/team/none", registry.host), &PullOptions::default()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no such image in its registry: `{}/team/none:latest`", registry.host)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_with_tls_are_verified() {
    // This address leads to loopback, too, but is none: it counts as a registry elsewhere.
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["0.0.0.0".to_owned()]).unwrap().self_signed(&key).unwrap();
    let Some(registry) = Registry::start(Protection::Tls(&certificate.pem(), &key.serialize_pem())) else {
        return;
    };
    let digest = registry.push(&demo("demo:1"), "demo:1", &[]);
    let name = format!("{}/demo:1", registry.host.replace("127.0.0.1", "0.0.0.0"));
    let error = chain(&store().resolve_digest(&name, &PullOptions::default()).await.unwrap_err());
    assert!(error.contains("no verified TLS connection") && error.contains("certificate"), "{error}");
    let trusted = tempfile::tempdir().unwrap();
    let place = trusted.path().join(registry.host.replace("127.0.0.1", "0.0.0.0"));
    std::fs::create_dir(&place).unwrap();
    let authority = common::file(&place, "ca.crt", b"no certificate");
    let trusting = PullOptions {
        certificate_directories: vec![trusted.path().to_owned(), "/nonexistent".into()],
        ..PullOptions::default()
    };
    let error = store().resolve_digest(&name, &trusting).await.unwrap_err().to_string();
    assert!(error.contains(authority.to_str().unwrap()) && error.contains("PEM"), "{error}");
    std::fs::write(&authority, certificate.pem()).unwrap();
    assert_eq!(store().resolve_digest(&name, &trusting).await.unwrap().digest, digest);
    assert_eq!(store().pull(&name, &trusting).await.unwrap().manifest_digest, digest);
    let insecure = PullOptions { insecure_registries: vec!["0.0.0.0".to_owned()], ..PullOptions::default() };
    assert_eq!(store().resolve_digest(&name, &insecure).await.unwrap().digest, digest);
    let loopback = format!("{}/demo:1", registry.host);
    assert_eq!(store().resolve_digest(&loopback, &PullOptions::default()).await.unwrap().digest, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pulls_download_each_layer_once() {
    if !is_root() {
        return;
    }
    let repository = Repository::of(&demo("demo:1"));
    let server = Server::start(repository.clone().with(repository.answers()));
    let store = store();
    let name = format!("{}/demo:1", server.host);
    let options = PullOptions::default();
    let pulls = futures::future::join_all((0..6).map(|_| store.pull(&name, &options))).await;
    let ids: Vec<Digest> = pulls.into_iter().map(|image| image.unwrap().id).collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
    for layer in &server.repository.layers {
        assert_eq!(server.count(&format!("/blobs/{layer}")), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_several_platforms_has_the_digest_of_its_index() {
    if !is_root() {
        return;
    }
    let mut repository = Repository::of(&demo("demo:1"));
    let manifest = repository.manifest;
    let host = rswarm_image::Platform::host();
    let entry = |digest: Digest, size: usize, arch: &str| serde_json::json!({ "digest": digest, "size": size, "platform": { "os": "linux", "architecture": arch } });
    let size = repository.content[&manifest].len();
    let entries = [entry(Digest::of(b"other"), 1, "s390x"), entry(manifest, size, &host.arch)];
    let bytes = serde_json::json!({ "schemaVersion": 2, "manifests": entries }).to_string().into_bytes();
    let index = Digest::of(&bytes);
    repository.content.insert(index, bytes);
    repository.manifest = index;
    let server = Server::start(repository.clone().with(repository.answers()));
    let name = format!("{}/demo", server.host);
    let (of_index, of_manifest) = (format!("{name}@{index}"), format!("{name}@{manifest}"));
    for (pulled, told, found) in [
        (format!("{name}:1"), index, [&of_index, &of_manifest]),
        (of_index.clone(), index, [&of_index, &of_manifest]),
        (of_manifest.clone(), manifest, [&of_manifest, &of_manifest]),
    ] {
        let store = store();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let options = PullOptions {
            progress: Some(Arc::new(move |progress| {
                if let Progress::Manifest { digest, .. } = progress {
                    sink.lock().unwrap().push(digest);
                }
            })),
            ..PullOptions::default()
        };
        let image = store.pull(&pulled, &options).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), [told], "{pulled}");
        assert_eq!(image.digests, [format!("{name}@{told}")], "{pulled}");
        // By every digest it is found without asking, also after a collection of garbage.
        store.collect_garbage().unwrap();
        let asked = server.count(&manifest.to_string());
        for pinned in found {
            assert_eq!(store.find(pinned).unwrap().manifest_digest, manifest, "{pulled}, {pinned}");
            assert_eq!(store.pull(pinned, &PullOptions::default()).await.unwrap().id, image.id);
        }
        assert_eq!(server.count(&manifest.to_string()), asked, "{pulled}");
        assert!(store.find(&format!("other@{manifest}")).is_err());
        let removed = store.remove(&pulled, false).unwrap();
        assert!(removed.deleted == [image.id] && store.is_empty(), "{pulled}: {removed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_downloads_resume() {
    if !is_root() {
        return;
    }
    let builder = ImageBuilder::new().file("/data", vec![b'x'; 300_000], 0o644);
    for honours_range in [true, false] {
        let repository = Repository::of(&builder);
        let layer = format!("/blobs/{}", repository.layers[0]);
        let whole = repository.content[&repository.layers[0]].clone();
        let inner = repository.clone().answers();
        let requests = AtomicUsize::new(0);
        let server = Server::start(repository.with(move |request| {
            if !request.path.ends_with(&layer) {
                return inner(request);
            }
            match (requests.fetch_add(1, Ordering::SeqCst), request.range_start()) {
                (0, None) => Answer::ok(whole.clone()).cut_after(100_000),
                (1, Some(start)) if honours_range => {
                    Answer::partial(whole[start..].to_vec()).cut_after(100_000)
                }
                (1, Some(_)) => Answer::status(503),
                (_, Some(start)) if honours_range => Answer::partial(whole[start..].to_vec()),
                (_, Some(_)) => Answer::ok(whole.clone()),
                (n, None) => panic!("request {n} starts again"),
            }
        }));
        let store = store();
        let image = store.pull(&format!("{}/demo:1", server.host), &PullOptions::default()).await.unwrap();
        assert_eq!(fs::read(store.rootfs(&image).unwrap()[0].join("data")).unwrap(), vec![b'x'; 300_000]);
        assert_eq!(store.names("tmp"), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn misbehaving_registries_are_told_apart() {
    if !is_root() {
        return;
    }
    type Change = Box<dyn Fn(&server::Request, &Repository) -> Option<Answer> + Send + Sync>;
    let foreign = demo("demo:1").platform("linux/s390x".parse().unwrap());
    let of = |change: Change, builder: &ImageBuilder| {
        let repository = Repository::of(builder);
        let (inner, copy) = (repository.clone().answers(), repository.clone());
        Server::start(repository.with(move |r| change(r, &copy).unwrap_or_else(|| inner(r))))
    };
    let manifest = |answer: fn() -> Answer| -> Change {
        Box::new(move |r, _| r.path.contains("/manifests/").then(answer))
    };
    let index = || {
        let entry = |arch: &str| serde_json::json!({ "digest": Digest::of(b"x"), "size": 1, "platform": { "os": "linux", "architecture": arch } });
        let index =
            serde_json::json!({ "schemaVersion": 2, "manifests": [entry("s390x"), entry("ppc64le")] });
        Answer::ok(index.to_string().into_bytes())
    };
    let cases: Vec<(Change, &ImageBuilder, &[&str])> = vec![
        (manifest(|| Answer::status(404)), &foreign, &["no such image in its registry"]),
        (manifest(|| Answer::status(403)), &foreign, &["unauthorized to read"]),
        (manifest(|| Answer::status(418)), &foreign, &["answered 418"]),
        (manifest(|| Answer::status(500)), &foreign, &["answered 500"]),
        (manifest(|| Answer::ok(br#"{"schemaVersion":1}"#.to_vec())), &foreign, &["schema 1", "/demo:1`"]),
        (manifest(|| Answer::ok(b"<html>".to_vec())), &foreign, &["not valid JSON"]),
        (manifest(|| Answer::ok(vec![b' '; 5 << 20])), &foreign, &["larger than the limit"]),
        (manifest(index), &foreign, &["no manifest for linux/", "linux/s390x, linux/ppc64le"]),
        (Box::new(|_, _| None), &foreign, &["no manifest for linux/", "which has linux/s390x"]),
    ];
    for (change, builder, wanted) in cases {
        let server = of(change, builder);
        let store = store();
        let error = chain(
            &store.pull(&format!("{}/demo:1", server.host), &PullOptions::default()).await.unwrap_err(),
        );
        for word in wanted {
            assert!(error.contains(word), "`{word}` in: {error}");
        }
        assert!(store.list().is_empty());
    }
    let good = demo("demo:1");
    for (change, wanted) in [
        (
            Box::new(|r: &server::Request, repo: &Repository| {
                let layer = repo.layers[0];
                r.path
                    .ends_with(&layer.to_string())
                    .then(|| Answer::ok(vec![b'x'; repo.content[&layer].len()]))
            }) as Change,
            "digest mismatch of a layer",
        ),
        (
            Box::new(|r: &server::Request, _: &Repository| {
                r.path.contains("/blobs/").then(|| Answer::status(404))
            }),
            "its registry has lost `sha256:",
        ),
        (
            Box::new(|r: &server::Request, repo: &Repository| {
                let layer = repo.layers[0];
                let longer = || Answer::ok([repo.content[&layer].as_slice(), b"more"].concat());
                r.path.ends_with(&layer.to_string()).then(longer)
            }),
            "were announced",
        ),
        (
            Box::new(|r: &server::Request, repo: &Repository| {
                r.path.ends_with(&repo.config.to_string()).then(|| Answer::ok(b"{}".to_vec()))
            }),
            "digest mismatch of the config",
        ),
    ] {
        let server = of(change, &good);
        let store = store();
        let error =
            store.pull(&format!("{}/demo:1", server.host), &PullOptions::default()).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(wanted) || wanted == "bytes were announced" && text.contains("were announced"),
            "{text}"
        );
        assert!(store.list().is_empty());
        // The download of the other layer is given up as well; its writer clears up when it notices.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !store.names("tmp").is_empty() {
            assert!(Instant::now() < deadline, "left: {:?}", store.names("tmp"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    // By digest, whatever else the registry serves under it is refused.
    let other = Digest::of(b"other");
    let lying: Change = Box::new(move |r, repo| {
        r.path
            .ends_with(&format!("/manifests/{other}"))
            .then(|| Answer::ok(repo.content[&repo.manifest].clone()))
    });
    let server = of(lying, &good);
    let error =
        store().pull(&format!("{}/demo@{other}", server.host), &PullOptions::default()).await.unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { expected, .. } if expected == other), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_registry_is_reported_soon() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = Instant::now();
    let error = store().pull(&format!("127.0.0.1:{port}/x"), &PullOptions::default()).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Unreachable { .. }) && chain(&error).contains("refused"),
        "{}",
        chain(&error)
    );
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn passing_faults_are_waited_out() {
    if !is_root() {
        return;
    }
    let repository = Repository::of(&demo("demo:1"));
    let inner = repository.clone().answers();
    let faults = AtomicUsize::new(0);
    let server = Server::start(repository.with(move |request| {
        if request.path.contains("/manifests/") && faults.fetch_add(1, Ordering::SeqCst) < 2 {
            return Answer::status(503);
        }
        inner(request)
    }));
    store().pull(&format!("{}/demo:1", server.host), &PullOptions::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_that_want_to_know_who_asks() {
    if !is_root() {
        return;
    }
    for bearer in [true, false] {
        let repository = Repository::of(&demo("demo:1"));
        let inner = repository.clone().answers();
        let server = Server::start(repository.with(move |request| {
            let basic = request.header("authorization") == Some("Basic dXNlcjpzZWNyZXQ="); // user:secret
            if request.path.starts_with("/token") {
                let scoped = request.path.contains("scope=repository%3Ademo%3Apull")
                    && request.path.contains("service=s");
                return if basic && scoped {
                    Answer::ok(br#"{"token":"abc"}"#.to_vec())
                } else {
                    Answer::status(401)
                };
            }
            let known = if bearer { request.header("authorization") == Some("Bearer abc") } else { basic };
            if known {
                return inner(request);
            }
            let host = request.header("host").unwrap_or_default();
            Answer::status(401).with_header(
                "WWW-Authenticate",
                &if bearer {
                    format!("Bearer realm=\"http://{host}/token\",service=\"s\"")
                } else {
                    "Basic realm=\"r\"".into()
                },
            )
        }));
        let name = format!("{}/demo:1", server.host);
        let with = |password: &str| PullOptions {
            auth: Some(Credentials::Password { username: "user".into(), password: password.into() }),
            ..PullOptions::default()
        };
        store().pull(&name, &with("secret")).await.unwrap();
        for options in [with("wrong"), PullOptions::default()] {
            let error = store().pull(&name, &options).await.unwrap_err();
            assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
            assert!(!chain(&error).contains("wrong"), "the password is not told: {error}");
        }
    }
}
