//! Names, history, disk use, pruning, and what keeps an image.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::Cursor,
    sync::{Arc, Mutex},
};

use common::{TestStore, archive, demo, is_root, store};
use rswarm_image::{Digest, Image, ImageError, ImageStore, LoadOptions, PruneFilter, builder::ImageBuilder};

fn load(store: &TestStore, builder: &ImageBuilder) -> Image {
    store.load_bytes(&archive(builder)).unwrap().remove(0)
}

fn everything() -> PruneFilter {
    PruneFilter { all: true, ..PruneFilter::default() }
}

#[test]
fn pruning_takes_what_has_no_tag_and_with_all_what_nobody_uses() {
    if !is_root() {
        return;
    }
    let store = store();
    let old = load(&store, &demo("demo:1"));
    let new = load(&store, &demo("demo:1").env("NEW", "1"));
    assert!(store.find(&old.id.to_string()).unwrap().references.is_empty(), "its name moved");

    let pruned = store.prune(&PruneFilter::default()).unwrap();
    assert_eq!(pruned.removed.deleted, [old.id]);
    assert!(pruned.freed_bytes > 0);
    assert_eq!(store.list().len(), 1);

    let used = Arc::new(Mutex::new(Some(new.id)));
    let asked = used.clone();
    store.set_in_use(move |id| (*asked.lock().unwrap() == Some(*id)).then(|| "task `web.1`".to_owned()));
    assert!(store.prune(&everything()).unwrap().removed.deleted.is_empty());
    *used.lock().unwrap() = None;

    // Someone who is about to use it is no different.
    let hold = store.hold(&new.id).unwrap();
    assert!(store.prune(&everything()).unwrap().removed.deleted.is_empty());
    let error = store.remove("demo:1", false).unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");
    drop(hold);

    let pruned = store.prune(&everything()).unwrap();
    assert_eq!((pruned.removed.deleted, pruned.removed.untagged), (vec![new.id], vec!["demo:1".to_owned()]));
    assert!(store.is_empty());
    assert!(matches!(store.hold(&new.id), Err(ImageError::NoSuchImage { .. })));
}

#[test]
fn pruning_obeys_its_filters() {
    if !is_root() {
        return;
    }
    let store = store();
    let now = "2024-01-01T00:00:00Z".parse().unwrap();
    load(&store, &demo("keep:1").label("keep", "yes"));
    load(&store, &demo("other:1").label("stage", "test"));
    let with = |key: &str, value: &str| {
        let mut filter = everything();
        filter.add(key, value, now).unwrap();
        filter
    };
    // Built images are of 1970.
    assert!(store.prune(&with("until", "0")).unwrap().removed.deleted.is_empty());
    assert!(store.prune(&with("label", "stage=prod")).unwrap().removed.deleted.is_empty());
    assert_eq!(store.prune(&with("label!", "keep")).unwrap().removed.untagged, ["other:1"]);
    assert_eq!(store.prune(&with("until", "24h")).unwrap().removed.untagged, ["keep:1"]);
}

#[test]
fn history_tells_each_step_with_the_size_of_its_layer() {
    if !is_root() {
        return;
    }
    let store = store();
    load(&store, &demo("demo:1"));
    let (image, entries) = store.history("demo:1").unwrap();
    assert_eq!(entries.len(), 2);
    // Newest first: the upper layer has `new` and a whiteout, the lower one the program.
    assert_eq!(entries.iter().map(|entry| entry.size_bytes).collect::<Vec<_>>(), [3, 22]);
    assert!(image.size_bytes > 25, "files, and the layers as they came");
    assert!(entries.iter().all(|entry| entry.created.starts_with("1970")));
    assert!(matches!(store.history("none"), Err(ImageError::NoSuchImage { .. })));
}

#[test]
fn disk_use_counts_shared_layers_once() {
    if !is_root() {
        return;
    }
    let store = store();
    let base = || ImageBuilder::new().file("/base", vec![1; 10_000], 0o644).next_layer();
    let one = load(&store, &base().reference("one:1".parse().unwrap()).file("/one", vec![2; 1000], 0o644));
    load(&store, &base().reference("two:1".parse().unwrap()).file("/two", vec![3; 2000], 0o644));
    let alone = one.id;
    store.set_in_use(move |id| (*id == alone).then(|| "task `a.1`".to_owned()));
    let usage = store.usage().unwrap();
    assert_eq!(usage.images.len(), 2);
    let (shared, unique): (Vec<u64>, Vec<u64>) =
        usage.images.iter().map(|image| (image.shared_bytes, image.unique_bytes)).unzip();
    assert_eq!(shared[0], shared[1]);
    assert!(shared[0] >= 20_000, "packed and unpacked: {shared:?}");
    assert_eq!(usage.image_bytes, shared[0] + unique[0] + unique[1]);
    for image in &usage.images {
        assert_eq!(image.image.size_bytes, image.shared_bytes + image.unique_bytes, "one size everywhere");
    }
    let of = |name: &str| usage.images.iter().position(|image| image.image.references == [name]).unwrap();
    assert_eq!(usage.images[of("one:1")].user.as_deref(), Some("task `a.1`"));
    assert_eq!(usage.reclaimable_bytes, unique[of("two:1")]);
    let freed = store.prune(&everything()).unwrap().freed_bytes;
    assert_eq!(freed, usage.reclaimable_bytes);
}

#[test]
fn disk_use_counts_what_broken_pulls_left() {
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let open = || ImageStore::open(place.path()).unwrap();
    open().load(Cursor::new(archive(&demo("demo:1"))), &LoadOptions::default()).unwrap();
    // A pull that is cut when its layers are here leaves them without an image.
    fs::remove_file(place.path().join("images.json")).unwrap();
    fs::write(place.path().join("partial").join(Digest::of(b"x").hex()), [7; 1000]).unwrap();
    let store = open();
    let usage = store.usage().unwrap();
    assert_eq!((usage.images.len(), usage.image_bytes), (0, 0));
    assert!(usage.partial_bytes > 1000 + 25, "a download, blobs and layers: {usage:?}");
    assert_eq!(usage.reclaimable_partial_bytes, usage.partial_bytes);
    assert_eq!(store.prune(&PruneFilter::default()).unwrap().freed_bytes, usage.partial_bytes);
    assert_eq!(store.usage().unwrap().partial_bytes, 0);
}

#[test]
fn a_name_is_given_and_a_digest_is_not() {
    if !is_root() {
        return;
    }
    let store = store();
    let image = load(&store, &demo("demo:1"));
    assert_eq!(store.tag(&image.id.to_string(), "other").unwrap().references, ["demo:1", "other:latest"]);
    let pinned = format!("x@{}", Digest::of(b"x"));
    for wrong in [pinned.as_str(), "UPPER", ""] {
        assert!(matches!(store.tag("demo:1", wrong), Err(ImageError::InvalidReference { .. })), "{wrong}");
    }
}
