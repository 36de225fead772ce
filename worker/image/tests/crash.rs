//! Killing the process at any moment leaves a store that is whole.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use common::{archive, demo, gzip, is_root, repacked};
use rswarm_image::{Digest, ImageStore, LoadOptions, PruneFilter, builder::ImageBuilder};

const ROOT: &str = "RSWARM_TEST_CRASH_ROOT";
const ROUNDS: u64 = 40;

fn image(number: u8) -> ImageBuilder {
    let base = demo("crash:1").env("N", &number.to_string());
    base.next_layer().file("/number", vec![number; 200_000], 0o644)
}

/// Run by the test below in a process of its own: writes and removes images until it is killed.
#[test]
fn a_busy_store() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let store = ImageStore::open(Path::new(&root)).unwrap();
    for number in (0..7u8).cycle() {
        let bytes = archive(&image(number));
        store.load(bytes.as_slice(), &LoadOptions::default()).unwrap();
        store.tag("crash:1", &format!("crash:n{number}")).unwrap();
        // The same image once more, by a second manifest.
        let bytes = repacked(&image(number), "crash:packed", gzip);
        store.load(bytes.as_slice(), &LoadOptions::default()).unwrap();
        if number == 3 {
            store.remove("crash:n1", true).ok();
        }
        if number == 5 {
            store.prune(&PruneFilter { all: true, ..PruneFilter::default() }).unwrap();
        }
    }
}

/// What must hold of a store however its writer ended.
fn check(root: &Path) -> usize {
    let store = ImageStore::open(root).unwrap();
    for image in store.list() {
        assert!(!image.layers.is_empty());
        for (directory, bytes) in store.rootfs(&image).unwrap().iter().zip(0..) {
            assert!(directory.is_dir(), "{} of layer {bytes}", directory.display());
        }
        let top = store.rootfs(&image).unwrap()[0].join("number");
        assert_eq!(fs::read(top).unwrap().len(), 200_000);
        // Every blob is what its name says: saving verifies them.
        store.save(&[image.manifest_digest.to_string()], std::io::sink()).unwrap();
    }
    let blobs: BTreeSet<String> = common::names(&root.join("blobs/sha256")).into_iter().collect();
    for blob in &blobs {
        let found = Digest::of(&fs::read(root.join("blobs/sha256").join(blob)).unwrap());
        assert_eq!(&found.hex(), blob);
    }
    assert_eq!(common::names(&root.join("tmp")), Vec::<String>::new());
    // Once collected, nothing is left that no image needs.
    store.collect_garbage().unwrap();
    let needed: usize =
        store.list().iter().flat_map(|image| image.layers.clone()).collect::<BTreeSet<_>>().len();
    assert_eq!(common::names(&root.join("layers")).len(), needed);
    store.list().len()
}

#[test]
fn a_killed_writer_leaves_a_whole_store() {
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for round in 0..ROUNDS {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_busy_store", "--nocapture"])
            .env(ROOT, place.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Moments spread over what one cycle takes; from the very start on.
        std::thread::sleep(Duration::from_micros(5_000 + round * 13_577 % 400_000));
        assert!(writer.try_wait().unwrap().is_none(), "the writer works until it is killed");
        writer.kill().unwrap();
        writer.wait().unwrap();
        seen += check(place.path());
    }
    assert!(seen > 0, "some of the rounds got as far as an image");
}
