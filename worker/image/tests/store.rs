//! The store on the real file system: what goes in comes out, bad input leaves nothing, crashes leave nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::{Cursor, Read},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Instant,
};

use common::{archive, chain, demo, gzip, has, is_root, names, repacked, run, store, tar_of, zstd};
use rswarm_image::{
    Digest, ImageError, ImageStore, ImportConfig, LayerLimits, Limits, LoadOptions, Origin, Platform,
    builder::ImageBuilder,
};

/// Which directories these are: one that was made anew is another.
fn inodes(directories: &[PathBuf]) -> Vec<u64> {
    directories.iter().map(|directory| fs::metadata(directory).unwrap().ino()).collect()
}

#[test]
fn built_image_loads_with_everything_it_says() {
    if !is_root() {
        return;
    }
    let store = store();
    let bytes = archive(&demo("demo:1"));
    let [image] = store.load_bytes(&bytes).unwrap().try_into().unwrap();
    assert_eq!(image.references, ["demo:1"]);
    assert_eq!((image.origin, image.layers.len()), (Origin::Local, 2));
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.entrypoint().as_deref().unwrap(), ["/bin/app"]);
    assert_eq!(config.cmd().as_deref().unwrap(), ["--serve"]);
    assert_eq!(config.env().as_deref().unwrap(), ["A=b"]);
    assert_eq!(config.labels().as_ref().unwrap()["z"], "1");
    assert_eq!(config.exposed_ports().as_deref().unwrap(), ["80/tcp"]);
    assert_eq!((config.user().as_deref(), config.working_dir().as_deref()), (Some("7:8"), Some("/srv")));

    let directories = store.rootfs(&image).unwrap();
    assert_eq!(fs::read_to_string(directories[0].join("etc/new")).unwrap(), "new", "the topmost is first");
    assert_eq!(fs::read_to_string(directories[1].join("etc/old")).unwrap(), "old");
    let relative: usize =
        directories.iter().map(|d| d.strip_prefix(store.root.path()).unwrap().as_os_str().len()).sum();
    assert!(
        relative / 2 * 127 < 4096 + 127 * "layers/".len(),
        "127 of them fit one page relative to layers/"
    );

    for compressed in [gzip(&bytes), zstd(&bytes)] {
        assert_eq!(store.load_bytes(&compressed).unwrap()[0].id, image.id);
    }
    assert_eq!(names(&store.root.path().join("tmp")), Vec::<String>::new());
}

#[test]
fn building_twice_gives_the_same_digest() {
    let once = demo("demo:1").write_oci_archive(std::io::sink()).unwrap();
    assert_eq!(once, demo("demo:1").write_oci_archive(std::io::sink()).unwrap());
    assert_ne!(once, demo("demo:1").env("X", "y").write_oci_archive(std::io::sink()).unwrap());
    assert_eq!(archive(&demo("demo:1")), archive(&demo("demo:1")));
}

#[test]
fn images_are_found_by_every_name_they_have() {
    if !is_root() {
        return;
    }
    let store = store();
    let image = store.load_bytes(&archive(&demo("127.0.0.1:5000/team/demo:1"))).unwrap().remove(0);
    let id = image.id.hex();
    for name in [
        "127.0.0.1:5000/team/demo:1".to_owned(),
        format!("127.0.0.1:5000/team/demo@{}", image.manifest_digest),
        format!("127.0.0.1:5000/team/demo:1@{}", image.manifest_digest),
        format!("sha256:{id}"),
        image.manifest_digest.to_string(),
        id.clone(),
        id[..6].to_owned(),
    ] {
        assert_eq!(store.find(&name).unwrap().id, image.id, "{name}");
    }
    for name in
        ["127.0.0.1:5000/team/demo", "demo:1", "zz", "", "../x", &format!("other@{}", image.manifest_digest)]
    {
        assert!(store.get(name).is_none(), "{name}");
    }
    let error = store.find("nothing").unwrap_err().to_string();
    assert_eq!(error, "no such image: `nothing`");
}

#[test]
fn a_tag_moves_to_the_image_loaded_last_and_survives_reopening() {
    if !is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (first, second);
    {
        let store = ImageStore::open(root.path()).unwrap();
        let load = |builder: &ImageBuilder| {
            store.load(Cursor::new(archive(builder)), &LoadOptions::default()).unwrap().remove(0).image
        };
        first = load(&demo("demo:1"));
        store.tag("demo:1", "other:2").unwrap();
        second = load(&demo("demo:1").env("V", "2"));
        assert_ne!(first.id, second.id);
    }
    // What a crash in the middle of an unpack leaves.
    fs::create_dir_all(root.path().join("tmp/layer-1-1/fs/half")).unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    assert_eq!(names(&root.path().join("tmp")), Vec::<String>::new());
    assert_eq!(store.get("demo:1").unwrap().id, second.id);
    assert_eq!(store.get("other:2").unwrap().id, first.id);
    assert_eq!(
        store.list().iter().flat_map(|i| i.references.clone()).collect::<Vec<_>>(),
        ["demo:1", "other:2"]
    );
    let unpacked = || names(&root.path().join("layers"));
    let before = unpacked();
    let first_layers = inodes(&store.rootfs(&second).unwrap());
    assert_eq!(inodes(&store.rootfs(&second).unwrap()), first_layers);
    assert_eq!(unpacked(), before, "nothing is unpacked again");

    let error = ImageStore::open(root.path()).unwrap_err();
    assert!(matches!(error, ImageError::Locked { .. }), "{error}");
}

#[test]
fn removing_deletes_only_what_nobody_needs() {
    if !is_root() {
        return;
    }
    let store = store();
    let one = store.load_bytes(&archive(&demo("demo:1"))).unwrap().remove(0);
    let two = store
        .load_bytes(&archive(&demo("demo:2").next_layer().file("/more", b"m", 0o644)))
        .unwrap()
        .remove(0);
    assert_eq!(one.layers, two.layers[..2], "layers are shared");
    assert_eq!(store.names("layers").len(), 3);
    store.tag("demo:1", "second").unwrap();

    let removed = store.remove("second", false).unwrap();
    assert_eq!((removed.untagged, removed.deleted), (vec!["second:latest".to_owned()], vec![]));
    store.tag("demo:1", "second").unwrap();
    let error = store.remove(&one.id.short(), false).unwrap_err().to_string();
    assert!(error.contains("demo:1, second:latest"), "{error}");

    let used = one.id;
    let user = Arc::new(std::sync::Mutex::new(Some("container `web.1`".to_owned())));
    let asked = user.clone();
    store.set_in_use(move |id| asked.lock().unwrap().clone().filter(|_| *id == used));
    store.remove("second", false).unwrap();
    let error = store.remove("demo:1", false).unwrap_err().to_string();
    assert_eq!(error, "image `demo:1` is used by container `web.1`: remove that first, or force");
    assert!(store.get("demo:1").is_some(), "a refusal changes nothing");
    let forced = store.remove("demo:1", true).unwrap();
    assert_eq!(forced.deleted, []);
    assert!(store.get("demo:1").is_none() && store.get(&one.id.to_string()).is_some());
    *user.lock().unwrap() = None;
    assert_eq!(store.remove(&one.id.to_string(), false).unwrap().deleted, [one.id]);
    assert_eq!(store.rootfs(&two).unwrap().len(), 3);
    assert_eq!(store.names("layers").len(), 3, "the other image needs them");
    store.remove("demo:2", false).unwrap();
    assert!(store.is_empty());
}

#[test]
fn concurrent_callers_unpack_once() {
    if !is_root() {
        return;
    }
    let store = store();
    let image = store.load_bytes(&archive(&demo("demo:1"))).unwrap().remove(0);
    let root = store.root.path().to_owned();
    let common::TestStore { store: inner, root: _root } = store;
    drop(inner);
    fs::remove_dir_all(root.join("layers")).unwrap();
    let store = ImageStore::open(&root).unwrap();
    let found: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| inodes(&store.rootfs(&image).unwrap()))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(found.iter().all(|inodes| *inodes == found[0]));
    assert_eq!(names(&root.join("layers")).len(), 2);
    let calls = (0..100).map(|_| {
        let start = Instant::now();
        store.rootfs(&image).unwrap();
        start.elapsed()
    });
    let quickest = calls.min().unwrap();
    assert!(quickest.as_millis() < 1, "{quickest:?}");
}

/// Replaces `from` in the bytes of an archive; only sound where the length stays.
fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from).expect("the text is there");
    let mut changed = bytes.to_vec();
    changed[at..at + to.len()].copy_from_slice(to);
    changed
}

#[test]
fn bad_archives_are_refused_and_leave_nothing() {
    if !is_root() {
        return;
    }
    let good = archive(&demo("demo:1"));
    let config_layers = |layers: &[(&str, &[u8])], diff_ids: usize| {
        let ids: Vec<String> =
            layers.iter().take(diff_ids).map(|(_, data)| Digest::of(data).to_string()).collect();
        let config = serde_json::json!({
            "os": "linux", "architecture": Platform::host().arch, "rootfs": { "type": "layers", "diff_ids": ids }
        });
        let names: Vec<&str> = layers.iter().map(|(name, _)| *name).collect();
        let manifest =
            serde_json::json!([{ "Config": "c.json", "RepoTags": null, "Layers": names }]).to_string();
        let config = config.to_string();
        let mut files = vec![("c.json", config.as_bytes()), ("manifest.json", manifest.as_bytes())];
        files.extend(layers);
        tar_of(&files)
    };
    let traversal = {
        let mut layer = tar_of(&[("aa/evil", b"x")]);
        layer[..2].copy_from_slice(b"..");
        let mut header = tar::Header::from_byte_slice(&layer[..512]).clone();
        header.set_cksum();
        layer[..512].copy_from_slice(header.as_bytes());
        layer
    };
    let foreign = archive(&demo("demo:1").platform("linux/s390x".parse().unwrap()));
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (b"not an archive".to_vec(), &["truncated"]),
        (vec![b'x'; 4096], &["no valid tar header"]),
        (Vec::new(), &["not an image archive"]),
        (tar_of(&[("readme", b"x")]), &["not an image archive", "index.json"]),
        (good[..good.len() / 2].to_vec(), &["image archive"]),
        (gzip(&good)[..500].to_vec(), &["image archive"]),
        (replace(&good, b"echo one", b"echo two"), &["digest mismatch", "blobs/sha256/"]),
        (replace(&good, b"\"schemaVersion\":2", b"\"schemaVersion\":["), &["index.json"]),
        (foreign, &["no manifest for linux/", "linux/s390x"]),
        (tar_of(&[("manifest.json", b"[]")]), &["names no image"]),
        (tar_of(&[("manifest.json", br#"[{"Config":"x.json","Layers":[]}]"#)]), &["lacks `x.json`"]),
        (tar_of(&[("index.json", br#"{"schemaVersion":2,"manifests":[]}"#)]), &["names no image"]),
        (config_layers(&[("l.tar", &traversal)], 1), &["layer `sha256:", "`../evil`", "outside"]),
        (config_layers(&[("l.tar", &tar_of(&[("a", b"b")]))], 0), &["0 layers", "manifest 1"]),
        (config_layers(&[("l.tar", b"\xfd7zXZ\0xz")], 1), &["`xz` is not supported"]),
        (config_layers(&[("l.tar", &[b'1'; 1024])], 1), &["layer `sha256:", "no valid tar header"]),
    ];
    let store = store();
    for (bytes, wanted) in cases {
        let error = chain(&store.load_bytes(&bytes).expect_err(&format!("{wanted:?}")));
        for word in wanted {
            assert!(error.contains(word), "`{word}` in: {error}");
        }
        assert!(store.is_empty(), "{error}: {:?}", store.names("blobs/sha256"));
    }
    let wrong_diff_id = {
        let layer = tar_of(&[("a", b"b")]);
        let archive = config_layers(&[("l.tar", &layer)], 1);
        let id = Digest::of(&layer).hex();
        replace(&archive, id.as_bytes(), "0".repeat(64).as_bytes())
    };
    let error = store.load_bytes(&wrong_diff_id).unwrap_err().to_string();
    assert!(error.starts_with("digest mismatch of the content of layer"), "{error}");
    assert!(store.is_empty());
}

#[test]
fn archives_larger_than_the_limit_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits { layer: LayerLimits { bytes: 100, entries: 10 }, archive_bytes: 20_000 };
    let store = ImageStore::open_with(root.path(), limits).unwrap();
    let bomb = gzip(&tar_of(&[("huge", &vec![0; 1 << 20])]));
    assert!(bomb.len() < 20_000, "{}", bomb.len());
    let error = store.load(Cursor::new(&bomb), &LoadOptions::default()).unwrap_err().to_string();
    assert_eq!(error, "image archive at `huge` is larger than the limit of 20000 bytes");
    let error = chain(&store.import(Cursor::new(&bomb), None, &ImportConfig::default()).unwrap_err());
    assert!(error.contains("limit of 100 bytes at entry `huge`"), "{error}");
}

#[test]
fn other_content_under_a_known_layers_name_is_refused() {
    if !is_root() {
        return;
    }
    let (good, store) = (demo("demo:1"), store());
    let image = store.load_bytes(&archive(&good)).unwrap().remove(0);
    // The same layers in other blobs are the same image.
    store.load_bytes(&repacked(&good, "again:1", gzip)).unwrap();
    let flip = |layer: &[u8]| match layer.windows(8).any(|window| window == b"echo one") {
        true => replace(layer, b"echo one", b"echo two"),
        false => layer.to_vec(),
    };
    let error = store.load_bytes(&repacked(&good, "demo:1", flip)).unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
    let kept = store.find("demo:1").unwrap();
    assert_eq!(kept.manifest_digest, image.manifest_digest, "the name stays");
    // What was let in once is not read again for each container.
    let images = ["demo:1", "again:1"].map(|name| store.find(name).unwrap());
    fs::remove_dir_all(store.root.path().join("blobs/sha256")).unwrap();
    for image in images {
        assert_eq!(store.rootfs(&image).unwrap().len(), 2);
    }
}

#[test]
fn damaged_store_names_what_is_damaged_and_heals() {
    if !is_root() {
        return;
    }
    let bytes = archive(&demo("demo:1"));
    let root = tempfile::tempdir().unwrap();
    let load = |store: &ImageStore| {
        store.load(Cursor::new(&bytes), &LoadOptions::default()).unwrap().remove(0).image
    };
    let image = load(&ImageStore::open(root.path()).unwrap());
    // The lower layer's blob is the larger one that holds the app.
    let blobs = root.path().join("blobs/sha256");
    let layer = names(&blobs)
        .into_iter()
        .find(|name| fs::read(blobs.join(name)).unwrap().windows(8).any(|w| w == b"echo one"))
        .unwrap();
    fs::remove_dir_all(root.path().join("layers")).unwrap();
    fs::write(blobs.join(&layer), replace(&fs::read(blobs.join(&layer)).unwrap(), b"echo one", b"echo two"))
        .unwrap();
    {
        let store = ImageStore::open(root.path()).unwrap();
        let error = store.rootfs(&image).unwrap_err().to_string();
        assert!(error.contains(&format!("blob `sha256:{layer}`")) && error.contains("is corrupt"), "{error}");
        let error = store.rootfs(&image).unwrap_err();
        assert!(matches!(error, ImageError::MissingBlob { .. }), "the corrupt blob is gone: {error}");
        load(&store);
        assert_eq!(store.rootfs(&image).unwrap().len(), 2, "loading again heals");
    }
    // A damaged config: the image is left out, and can be loaded again.
    let config = blobs.join(image.id.hex());
    fs::write(&config, "{}").unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    assert!(store.get("demo:1").is_none());
    let error = store.raw_config(&image).unwrap_err().to_string();
    assert!(error.contains("is corrupt") && error.contains(&image.id.hex()), "{error}");
    load(&store);
    assert!(store.get("demo:1").is_some());
    drop(store);

    fs::write(root.path().join("images.json"), "{ torn").unwrap();
    let error = ImageStore::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("images.json") && error.contains("corrupt"), "{error}");
}

#[test]
fn imported_root_file_system_becomes_an_image() {
    if !is_root() {
        return;
    }
    let store = store();
    let tar = tar_of(&[("bin/sh", b"shell")]);
    let config = ImportConfig {
        entrypoint: Some(vec!["/bin/sh".into()]),
        env: vec!["A=1".into()],
        message: Some("imported".into()),
        ..ImportConfig::default()
    };
    for bytes in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let image = store.import(Cursor::new(bytes), Some("base:1"), &config).unwrap();
        assert_eq!(
            (image.references.as_slice(), image.layers.as_slice()),
            (&["base:1".to_owned()][..], &[Digest::of(&tar)][..])
        );
        let directory = store.rootfs(&image).unwrap().remove(0);
        assert_eq!(fs::read_to_string(directory.join("bin/sh")).unwrap(), "shell");
        assert_eq!(image.config.config().as_ref().unwrap().env().as_deref().unwrap(), ["A=1"]);
    }
    let before = store.list().len();
    let error = chain(&store.import(Cursor::new(&tar[..700]), None, &config).unwrap_err());
    assert!(error.starts_with("root file system archive cannot be imported"), "{error}");
    let error = store.import(Cursor::new(&tar), Some("BAD NAME"), &config).unwrap_err().to_string();
    assert!(error.contains("`BAD NAME`"), "{error}");
    let pinned = format!("name:1@{}", Digest::of(b"x"));
    let error = store.import(Cursor::new(&tar), Some(&pinned), &config).unwrap_err().to_string();
    assert!(error.contains(&pinned) && error.contains("no digest"), "{error}");
    assert_eq!((store.list().len(), store.names("tmp")), (before, vec![]));
}

#[test]
fn the_same_archive_imports_as_the_same_image_everywhere() {
    if !is_root() {
        return;
    }
    let mut archive = tar::Builder::new(Vec::new());
    for (path, time) in [("old", 1_000_000_000), ("new", 1_700_000_000), ("mid", 1_500_000_000)] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(time);
        header.set_size(0);
        archive.append_data(&mut header, path, &[][..]).unwrap();
    }
    let tar = archive.into_inner().unwrap();
    let import = |store: &ImageStore, name: &str, tar: &[u8]| {
        store.import(Cursor::new(tar), Some(name), &ImportConfig::default()).unwrap()
    };
    let (here, there) = (store(), store());
    let (first, second) = (import(&here, "base:1", &tar), import(&there, "base:1", &tar));
    assert_eq!((first.id, first.manifest_digest), (second.id, second.manifest_digest));
    assert_eq!(first.created.as_deref(), Some("2023-11-14T22:13:20Z"));
    let empty = import(&here, "empty:1", &tar_of(&[]));
    assert_eq!(empty.created.as_deref(), Some("1970-01-01T00:00:00Z"));
}

#[test]
fn what_was_loaded_is_known_by_its_names_in_the_archive() {
    if !is_root() {
        return;
    }
    let store = store();
    let image = store.load_bytes(&archive(&demo("demo:1"))).unwrap().remove(0);
    store.tag("demo:1", "a/further:name").unwrap();
    let save = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut bytes = Vec::new();
        store.save(&names, &mut bytes).unwrap();
        bytes
    };
    let of_id = image.id.to_string();
    for (saved, names) in [
        (&["demo:1"][..], &["demo:1"][..]),
        (&["demo:1", "a/further:name"], &["a/further:name", "demo:1"]),
        (&[of_id.as_str()], &[]),
    ] {
        let loaded = store.load(Cursor::new(save(saved)), &LoadOptions::default()).unwrap().remove(0);
        assert_eq!(loaded.names, names, "{saved:?}");
        assert_eq!(loaded.image.references, ["a/further:name", "demo:1"]);
    }
}

#[test]
fn a_repository_is_saved_with_all_its_tags() {
    if !is_root() {
        return;
    }
    let (store, copy) = (store(), store());
    for builder in [demo("app:1"), demo("app:2").env("TWO", "2"), demo("r:5000/app:3").env("THREE", "3")] {
        store.load_bytes(&archive(&builder)).unwrap();
    }
    store.tag("app:1", "other:1").unwrap();
    let mut bytes = Vec::new();
    store.save(&["app".to_owned()], &mut bytes).unwrap();
    let loaded = copy.load_bytes(&bytes).unwrap();
    let mut names: Vec<String> = loaded.into_iter().flat_map(|image| image.references).collect();
    names.sort();
    assert_eq!(names, ["app:1", "app:2"]);
    let error = store.save(&["none".to_owned()], &mut Vec::new()).unwrap_err();
    assert!(matches!(error, ImageError::NoSuchImage { .. }), "{error}");
}

#[test]
fn the_newest_images_are_listed_first() {
    if !is_root() {
        return;
    }
    let store = store();
    for (name, time) in [("c:1", 1_000_000_000), ("b:1", 1_000_000_000), ("a:1", 0), ("d:1", 1_700_000_000)] {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(time);
        header.set_size(0);
        archive.append_data(&mut header, name, &[][..]).unwrap();
        let tar = archive.into_inner().unwrap();
        store.import(Cursor::new(tar), Some(name), &ImportConfig::default()).unwrap();
    }
    let names: Vec<String> = store.list().into_iter().flat_map(|image| image.references).collect();
    assert_eq!(names, ["d:1", "b:1", "c:1", "a:1"]);
}

#[test]
fn an_image_of_too_many_layers_is_refused_in_every_kind_of_archive() {
    if !is_root() {
        return;
    }
    let of = |layers: u32| {
        let first = ImageBuilder::new().reference("deep:1".parse().unwrap()).file("/0", vec![], 0o644);
        (1..layers).fold(first, |builder, n| builder.next_layer().file(&format!("/{n}"), vec![], 0o644))
    };
    let store = store();
    for bytes in [archive(&of(128)), repacked(&of(128), "deep:1", <[u8]>::to_vec)] {
        let error = store.load_bytes(&bytes).unwrap_err().to_string();
        assert!(error.contains("deep:1") && error.contains("128 layers, more than 127"), "{error}");
    }
    for place in ["blobs/sha256", "layers", "tmp"] {
        assert_eq!(store.names(place), Vec::<String>::new(), "{place}");
    }
    let [image] =
        store.load_bytes(&repacked(&of(127), "deep:1", <[u8]>::to_vec)).unwrap().try_into().unwrap();
    assert_eq!(image.layers.len(), 127);
}

#[test]
fn unusable_roots_are_named() {
    let place = tempfile::tempdir().unwrap();
    let file = common::file(place.path(), "file", b"");
    let error = ImageStore::open(&file.join("x")).unwrap_err().to_string();
    assert!(error.contains(file.to_str().unwrap()), "{error}");
}

/// A file system of a few hundred kilobytes, gone with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Option<SmallDisk> {
        let place = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "image-test"])
            .arg(place.path())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("skipped: needs mount of tmpfs");
            return None;
        }
        Some(SmallDisk(place))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    if !is_root() {
        return;
    }
    let Some(disk) = SmallDisk::new("1m") else { return };
    let store = ImageStore::open(&disk.0.path().join("images")).unwrap();
    let big = archive(&ImageBuilder::new().reference("big".parse().unwrap()).file(
        "/data",
        vec![7; 4 << 20],
        0o644,
    ));
    for archive in [big.clone(), gzip(&big)] {
        let error = store.load(Cursor::new(&archive), &LoadOptions::default()).unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, ImageError::NoSpace { .. }) && text.contains(disk.0.path().to_str().unwrap()),
            "{text}"
        );
    }
    // The archive fits, what is in it does not.
    let layer = gzip(&tar_of(&[("data", &[0; 2 << 20][..])]));
    let error = store.import(Cursor::new(layer), None, &ImportConfig::default()).unwrap_err();
    assert!(matches!(error, ImageError::NoSpace { .. }), "{error}");
    let small = archive(&demo("small"));
    store.load(Cursor::new(small), &LoadOptions::default()).unwrap();
    assert_eq!(names(&disk.0.path().join("images/tmp")), Vec::<String>::new());
    drop(store);
}

/// skopeo is the peer: a docker archive that it makes of our image is the same image.
#[test]
fn docker_archives_of_skopeo_load() {
    if !is_root() || !has("skopeo") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let oci = common::file(place.path(), "oci.tar", &archive(&demo("team/demo:1")));
    let docker = place.path().join("docker.tar");
    run(Command::new("skopeo")
        .arg("copy")
        .arg("--insecure-policy")
        .arg(format!("oci-archive:{}", oci.display()))
        .arg(format!("docker-archive:{}:team/demo:2", docker.display())));
    let store = store();
    let mut bytes = Vec::new();
    fs::File::open(&docker).unwrap().read_to_end(&mut bytes).unwrap();
    let image = store.load_bytes(&bytes).unwrap().remove(0);
    assert_eq!(image.references, ["team/demo:2"]);
    let directories = store.rootfs(&image).unwrap();
    assert_eq!(fs::read_to_string(directories[1].join("bin/app")).unwrap(), "#!/bin/sh\necho one\n");
    assert_eq!(image.config.config().as_ref().unwrap().cmd().as_deref().unwrap(), ["--serve"]);
    // And back: the same content under the same id from both kinds of archive.
    let from_oci = store.load_bytes(&fs::read(&oci).unwrap()).unwrap().remove(0);
    assert_eq!(from_oci.layers, image.layers);
}
