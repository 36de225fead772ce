//! One image by several manifests: the same config, layers compressed in other ways.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/peer.rs"]
mod peer;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Cursor,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use common::{TestStore, demo, gzip, is_root, repacked, run, store, zstd};
use peer::{Protection, Registry};
use proptest::prelude::*;
use rswarm_image::{Digest, Image, ImageError, ImageStore, LoadOptions, Origin, PruneFilter, PullOptions};

fn plain(data: &[u8]) -> Vec<u8> {
    data.to_vec()
}

type Pack = fn(&[u8]) -> Vec<u8>;

const PACKS: [Pack; 3] = [plain, gzip, zstd];

fn load(store: &ImageStore, archive: &[u8]) -> Image {
    store.load(Cursor::new(archive), &LoadOptions::default()).unwrap().remove(0).image
}

/// `demo:plain` and `demo:gzip`, one image.
fn pair() -> (TestStore, Image, Image) {
    let store = store();
    let plain = load(&store, &repacked(&demo("x"), "demo:plain", plain));
    let gzip = load(&store, &repacked(&demo("x"), "demo:gzip", gzip));
    assert_eq!(plain.id, gzip.id);
    assert_ne!(plain.manifest_digest, gzip.manifest_digest);
    (store, plain, gzip)
}

fn manifest_of(store: &ImageStore, name: &str) -> Option<Digest> {
    store.get(name).map(|image| image.manifest_digest)
}

#[test]
fn each_name_keeps_the_manifest_it_was_given_for() {
    if !is_root() {
        return;
    }
    let (store, plain, gzip) = pair();
    assert_eq!(manifest_of(&store, "demo:plain"), Some(plain.manifest_digest));
    assert_eq!(manifest_of(&store, "demo:gzip"), Some(gzip.manifest_digest));
    store.tag("demo:plain", "copy:1").unwrap();
    assert_eq!(manifest_of(&store, "copy:1"), Some(plain.manifest_digest));
    assert_eq!(store.rootfs(&plain).unwrap(), store.rootfs(&gzip).unwrap(), "unpacked once");
    assert_eq!(store.names("layers").len(), 2);

    // An archive of both has both, also where one of them has no name.
    let of_gzip = gzip.manifest_digest.to_string();
    let mut bytes = Vec::new();
    store.save(&["demo:plain".to_owned(), of_gzip], &mut bytes).unwrap();
    let other = common::store();
    let loaded = other.load_bytes(&bytes).unwrap();
    let names: BTreeMap<Digest, Vec<String>> =
        loaded.into_iter().map(|image| (image.manifest_digest, image.references)).collect();
    assert_eq!(names[&plain.manifest_digest], ["demo:plain"]);
    assert_eq!(names[&gzip.manifest_digest], Vec::<String>::new());
}

#[test]
fn removing_a_name_takes_its_manifest_alone() {
    if !is_root() {
        return;
    }
    let (store, plain, gzip) = pair();
    let user = Arc::new(Mutex::new(Some("container `web.1`".to_owned())));
    let (asked, used) = (user.clone(), plain.id);
    store.set_in_use(move |id| asked.lock().unwrap().clone().filter(|_| *id == used));
    let error = store.remove(&plain.id.to_string(), false).unwrap_err();
    assert!(matches!(&error, ImageError::SeveralNames { names, .. } if names.len() == 2), "{error}");

    // The container keeps its image by the other manifest.
    let before = store.names("blobs/sha256").len();
    let removed = store.remove("demo:plain", false).unwrap();
    assert_eq!(removed.untagged, ["demo:plain"]);
    assert_eq!(removed.deleted, [plain.manifest_digest]);
    assert_eq!(store.names("blobs/sha256").len(), before - 3, "two layers and the manifest");
    assert_eq!(store.rootfs(&gzip).unwrap().len(), 2);
    let error = store.remove("demo:gzip", false).unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");

    // What lost its name to another manifest goes with the last name of the image.
    load(&store, &repacked(&demo("x"), "demo:gzip", PACKS[0]));
    assert_eq!(store.list().len(), 2);
    *user.lock().unwrap() = None;
    assert_eq!(store.remove("demo:gzip", false).unwrap().deleted, [gzip.id]);
    assert!(store.is_empty());
}

#[test]
fn a_displaced_manifest_is_counted_and_pruned_by_its_digest() {
    if !is_root() {
        return;
    }
    let (store, plain, gzip) = pair();
    // Someone uses the image: by any of its manifests.
    let used = plain.id;
    store.set_in_use(move |id| (*id == used).then(|| "container `web.1`".to_owned()));
    assert_eq!(store.usage().unwrap().reclaimable_bytes, 0);
    store.tag("demo:gzip", "demo:plain").unwrap();
    let dangling = store.find(&plain.manifest_digest.to_string()).unwrap();
    assert!(dangling.references.is_empty() && dangling.digests.is_empty());
    let preferred = store.find(&plain.id.to_string()).unwrap();
    assert_eq!(preferred.manifest_digest, gzip.manifest_digest, "an id means the manifest with a name");

    let usage = store.usage().unwrap();
    let files = |place: &str| -> u64 {
        let path = |name: &String| store.root.path().join(place).join(name);
        store.names(place).iter().map(|name| fs::metadata(path(name)).unwrap().len()).sum()
    };
    let unpacked: u64 = store.history("demo:gzip").unwrap().1.iter().map(|step| step.size_bytes).sum();
    assert_eq!(usage.images.len(), 2);
    assert_eq!(usage.image_bytes, files("blobs/sha256") + unpacked);
    let pruned = store.prune(&PruneFilter::default()).unwrap();
    assert_eq!(pruned.removed.deleted, [plain.manifest_digest]);
    assert_eq!(pruned.freed_bytes, usage.reclaimable_bytes);
    assert!(pruned.freed_bytes > 0);
    assert_eq!(store.usage().unwrap().image_bytes, files("blobs/sha256") + unpacked);
    assert_eq!(store.names("layers").len(), 2, "the other manifest needs them");
    assert!(
        store.prune(&PruneFilter { all: true, ..PruneFilter::default() }).unwrap().removed.deleted.is_empty()
    );
}

/// As a store of before there were several manifests of an image wrote it: with a pinned name of one it lost.
#[test]
fn a_store_of_before_opens_and_heals() {
    if !is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("images.json");
    let read = || -> serde_json::Value { serde_json::from_slice(&fs::read(&path).unwrap()).unwrap() };
    let gzip_archive = repacked(&demo("x"), "r.io/demo:1", gzip);
    let lost = load(&common::store(), &gzip_archive).manifest_digest;
    let plain = load(&ImageStore::open(root.path()).unwrap(), &repacked(&demo("x"), "r.io/demo:1", plain));
    let mut index = read();
    let image = &mut index["images"][plain.id.to_string()];
    assert!(image.get("others").is_none(), "one manifest is written as ever: {image}");
    image["digests"] = serde_json::json!([format!("r.io/demo@{lost}")]);
    fs::write(&path, index.to_string()).unwrap();

    let store = ImageStore::open(root.path()).unwrap();
    assert_eq!(manifest_of(&store, "r.io/demo:1"), Some(plain.manifest_digest));
    let gzip = load(&store, &gzip_archive);
    assert_eq!(gzip.manifest_digest, lost);
    assert_eq!(manifest_of(&store, &format!("r.io/demo@{lost}")), Some(lost));
    assert!(store.find(&plain.manifest_digest.to_string()).unwrap().digests.is_empty());
    drop(store);

    // A daemon of before reads the manifest with a name, and would only lose the other.
    let image = &read()["images"][plain.id.to_string()];
    assert_eq!(image["manifest"], lost.to_string());
    assert_eq!(image["tags"], serde_json::json!(["r.io/demo:1"]));
    assert_eq!(image["others"][0]["manifest"], plain.manifest_digest.to_string());
    let store = ImageStore::open(root.path()).unwrap();
    assert_eq!(store.list().len(), 2);
}

/// A config (of two), packed in one of three ways.
type Source = (usize, usize);

#[derive(Clone, Debug)]
enum Step {
    Load(Source, usize),
    Tag(usize, usize),
    RemoveName(usize),
    RemoveImage(usize, bool),
    Prune(bool),
    Reopen,
}

const NAMES: [&str; 4] = ["a:1", "a:2", "b:1", "c:1"];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => ((0..2usize, 0..3usize), 0..NAMES.len()).prop_map(|(source, name)| Step::Load(source, name)),
        3 => (0..NAMES.len(), 0..NAMES.len()).prop_map(|(from, to)| Step::Tag(from, to)),
        3 => (0..NAMES.len()).prop_map(Step::RemoveName),
        1 => (0..2usize, any::<bool>()).prop_map(|(config, force)| Step::RemoveImage(config, force)),
        1 => any::<bool>().prop_map(Step::Prune),
        1 => Just(Step::Reopen),
    ]
}

/// What the store should have.
#[derive(Default)]
struct Model {
    names: BTreeMap<usize, Source>,
    manifests: BTreeSet<Source>,
}

impl Model {
    fn has_name(&self, wanted: impl Fn(&Source) -> bool) -> bool {
        self.names.values().any(wanted)
    }

    /// Gives whether the store should do it.
    fn apply(&mut self, step: &Step) -> bool {
        match *step {
            Step::Load(source, name) => {
                self.names.insert(name, source);
                self.manifests.insert(source);
            }
            Step::Tag(from, to) => {
                let Some(source) = self.names.get(&from).copied() else { return false };
                self.names.insert(to, source);
            }
            Step::RemoveName(name) => {
                let Some(source) = self.names.remove(&name) else { return false };
                if !self.has_name(|other| other.0 == source.0) {
                    self.manifests.retain(|other| other.0 != source.0);
                } else if !self.has_name(|other| *other == source) {
                    self.manifests.remove(&source);
                }
            }
            Step::RemoveImage(config, force) => {
                let names = self.names.values().filter(|source| source.0 == config).count();
                if !self.manifests.iter().any(|source| source.0 == config) || names > 1 && !force {
                    return false;
                }
                self.names.retain(|_, source| source.0 != config);
                self.manifests.retain(|source| source.0 != config);
            }
            Step::Prune(all) => {
                if all {
                    *self = Model::default();
                }
                let named: BTreeSet<Source> = self.names.values().copied().collect();
                self.manifests.retain(|source| named.contains(source));
            }
            Step::Reopen => {}
        }
        true
    }
}

/// What one load alone leaves in a store.
struct Known {
    image: Image,
    /// Length of the files in its layers.
    unpacked: u64,
    blobs: BTreeSet<String>,
}

fn archive_of((config, pack): Source, name: &str) -> Vec<u8> {
    repacked(&demo("x").env("CONFIG", &config.to_string()), name, PACKS[pack])
}

fn known() -> BTreeMap<Source, Known> {
    let one = |source: Source| {
        let store = store();
        let image = load(&store, &archive_of(source, "a:1"));
        let unpacked = store.history("a:1").unwrap().1.iter().map(|step| step.size_bytes).sum();
        (source, Known { image, unpacked, blobs: store.names("blobs/sha256").into_iter().collect() })
    };
    (0..2).flat_map(|config| (0..3).map(move |pack| (config, pack))).map(one).collect()
}

fn check(store: &ImageStore, root: &Path, model: &Model, known: &BTreeMap<Source, Known>) {
    for (position, name) in NAMES.iter().enumerate() {
        let wanted = model.names.get(&position).map(|source| known[source].image.manifest_digest);
        assert_eq!(manifest_of(store, name), wanted, "{name}");
    }
    let listed: BTreeSet<Digest> = store.list().iter().map(|image| image.manifest_digest).collect();
    let wanted = model.manifests.iter().map(|source| known[source].image.manifest_digest).collect();
    assert_eq!(listed, wanted);
    let blobs: BTreeSet<String> = common::names(&root.join("blobs/sha256")).into_iter().collect();
    let wanted: BTreeSet<String> =
        model.manifests.iter().flat_map(|source| known[source].blobs.iter().cloned()).collect();
    assert_eq!(blobs, wanted);
    let lengths = blobs.iter().map(|blob| fs::metadata(root.join("blobs/sha256").join(blob)).unwrap().len());
    let unpacked = if model.manifests.is_empty() { 0 } else { known[&(0, 0)].unpacked };
    assert_eq!(store.usage().unwrap().image_bytes, lengths.sum::<u64>() + unpacked);
    for image in store.list() {
        store.save(&[image.manifest_digest.to_string()], std::io::sink()).unwrap();
    }
}

#[test]
fn names_manifests_and_blobs_stay_in_step_whatever_is_done() {
    if !is_root() {
        return;
    }
    let known = known();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let steps = prop::collection::vec(step(), 1..16);
    let run = |steps: Vec<Step>| {
        let root = tempfile::tempdir().unwrap();
        let mut store = Some(ImageStore::open(root.path()).unwrap());
        let mut model = Model::default();
        for step in &steps {
            let open = store.take().unwrap();
            let wanted = model.apply(step);
            let done = match *step {
                Step::Load(source, name) => {
                    load(&open, &archive_of(source, NAMES[name]));
                    true
                }
                Step::Tag(from, to) => open.tag(NAMES[from], NAMES[to]).is_ok(),
                Step::RemoveName(name) => open.remove(NAMES[name], false).is_ok(),
                Step::RemoveImage(config, force) => {
                    open.remove(&known[&(config, 0)].image.id.to_string(), force).is_ok()
                }
                Step::Prune(all) => open.prune(&PruneFilter { all, ..PruneFilter::default() }).is_ok(),
                Step::Reopen => true,
            };
            assert_eq!(done, wanted, "{step:?}");
            store = if matches!(step, Step::Reopen) {
                drop(open);
                Some(ImageStore::open(root.path()).unwrap())
            } else {
                Some(open)
            };
            check(store.as_ref().unwrap(), root.path(), &model, &known);
        }
        Ok(())
    };
    runner.run(&steps, run).unwrap();
}

/// skopeo sends one image twice, compressed in two ways; each name is pulled, pushed, inspected and removed by itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_pulled_by_a_name_is_what_its_copies_push() {
    let Some(registry) = Registry::start(Protection::None) else { return };
    let name = |repository: &str, tag: &str| format!("{}/{repository}:{tag}", registry.host);
    // Left to itself, skopeo sends the layers it sent before however they were compressed.
    let push = |pack: Pack| {
        let (scratch, place) = (store(), tempfile::tempdir().unwrap());
        let image = load(&scratch, &repacked(&demo("x"), "demo:1", pack));
        let mut bytes = Vec::new();
        scratch.save(&["demo:1".to_owned()], &mut bytes).unwrap();
        let file = common::file(place.path(), "oci.tar", &bytes);
        run(Command::new("skopeo")
            .args(["copy", "--insecure-policy", "--dest-tls-verify=false", "--preserve-digests"])
            .arg(format!("oci-archive:{}", file.display()))
            .arg(format!("docker://{}", name("team/demo", "latest"))));
        image.manifest_digest
    };
    let remote = |name: &str| {
        let format = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}"];
        run(Command::new("skopeo").args(format).arg(format!("docker://{name}"))).trim().to_owned()
    };
    let options = PullOptions::default();
    let store = store();
    let old = push(gzip);
    let first = store.pull(&name("team/demo", "latest"), &options).await.unwrap();
    store.tag(&name("team/demo", "latest"), &name("copy", "old")).unwrap();
    let new = push(zstd);
    let second = store.pull(&name("team/demo", "latest"), &options).await.unwrap();
    assert_eq!((first.id, first.manifest_digest, second.manifest_digest), (second.id, old, new));
    store.tag(&name("team/demo", "latest"), &name("copy", "new")).unwrap();

    for (tag, digest) in [("old", old), ("new", new)] {
        let pushed = store.push(&name("copy", tag), &options).await.unwrap();
        assert_eq!(pushed.digest, digest, "{tag}");
        assert_eq!(remote(&name("copy", tag)), digest.to_string());
        let image = store.find(&name("copy", tag)).unwrap();
        let pinned =
            ["copy", "team/demo"].map(|repository| format!("{}/{repository}@{digest}", registry.host));
        assert_eq!((image.digests.as_slice(), image.origin), (&pinned[..], Origin::Registry), "{tag}");
        assert_eq!(manifest_of(&store, &pinned[1]), Some(digest));
    }

    // The name that moved in the registry moved here; the older manifest goes with its own last name alone.
    let gone = store.remove(&name("copy", "old"), false).unwrap();
    assert_eq!(gone.deleted, Vec::<Digest>::new(), "it has a pinned name in the other repository");
    let pruned = store.prune(&PruneFilter::default()).unwrap().removed;
    assert_eq!(pruned.untagged, [format!("{}/team/demo@{old}", registry.host)]);
    assert_eq!(pruned.deleted, [old]);
    let pushed = store.push(&name("copy", "new"), &options).await.unwrap();
    assert_eq!(pushed.digest, new);
    let again = store.pull(&format!("{}/team/demo@{old}", registry.host), &options).await.unwrap();
    assert_eq!((again.id, again.manifest_digest), (second.id, old));
}
