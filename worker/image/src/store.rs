//! The image store: which images there are, under which names, and what keeps them alive.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use oci_spec::image::ImageConfiguration;

use crate::{
    blobs::Blobs,
    digest::Digest,
    error::ImageError,
    index::{Index, LayerRecord, Origin, Record},
    layers::{LayerInfo, Layers},
    manifest::{self, MAX_DOCUMENT},
    names::{check_new, familiar},
    partial::Partials,
    reference::Reference,
    registry::Registries,
    unpack::LayerLimits,
};

/// Threads that unpack layers of one image at a time: unpacking is bound by the disk and by decompression.
const UNPACK_THREADS: usize = 4;

/// One image of the store by one of its manifests, as of the moment it was asked for.
///
/// The same image may have come with several manifests: each is listed by itself, under the same id, with its own names.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the config; what Docker calls the image id.
    pub id: Digest,
    /// Digest of the manifest that the names below mean.
    pub manifest_digest: Digest,
    /// Names as a user writes them (`nginx:1.25`), sorted.
    pub references: Vec<String>,
    /// Pinned names (`nginx@sha256:…`), sorted, as registries have it: of the manifest, or of an index it was chosen from.
    pub digests: Vec<String>,
    pub origin: Origin,
    /// When it was built, RFC 3339; `None` if it does not say.
    pub created: Option<String>,
    /// What it takes on disk: documents, layers as they came, and their files; all may be shared with other images.
    pub size_bytes: u64,
    pub config: ImageConfiguration,
    /// Diff ids (digests of the uncompressed layers) from the base up.
    pub layers: Vec<Digest>,
    /// The blobs of the layers, likewise.
    pub(crate) blobs: Vec<Digest>,
    /// Length of the files in each layer, likewise.
    pub(crate) layer_bytes: Vec<u64>,
}

impl Image {
    pub(crate) fn created_at(&self) -> Option<jiff::Timestamp> {
        self.created.as_ref()?.parse().ok()
    }
}

/// What [`ImageStore::remove`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that no longer exist.
    pub untagged: Vec<String>,
    /// Ids of images that are gone with their last name; of a manifest that is gone while its image has others, its
    /// digest.
    pub deleted: Vec<Digest>,
}

/// Bounds on what archives and layers may bring.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub layer: LayerLimits,
    /// Decompressed length of an archive given to `load` or `import`, in bytes.
    pub archive_bytes: u64,
}

impl Limits {
    /// Four of the largest layers.
    pub const MAX_ARCHIVE_BYTES: u64 = 256 << 30;
}

impl Default for Limits {
    fn default() -> Self {
        Limits { layer: LayerLimits::default(), archive_bytes: Self::MAX_ARCHIVE_BYTES }
    }
}

/// Says who uses an image (by id), for example ``container `web.1` ``; `None` if nobody does.
type InUse = Box<dyn Fn(&Digest) -> Option<String> + Send + Sync>;

/// The images of one host. Clones share one store; all methods may be called concurrently.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    root: PathBuf,
    pub blobs: Blobs,
    pub layers: Layers,
    pub partials: Partials,
    pub limits: Limits,
    pub registries: Registries,
    state: Mutex<State>,
    in_use: RwLock<Option<InUse>>,
    /// Held as long as the store is open; the lock goes with the descriptor.
    _lock: File,
}

#[derive(Default)]
pub(crate) struct State {
    pub index: Index,
    /// By manifest, as in the index; those with a damaged config are left out.
    pub images: BTreeMap<Digest, Image>,
    /// Blobs and layers that an operation under way relies on, with the number of such operations.
    pins: HashMap<Digest, usize>,
    /// Images that someone is about to use, likewise.
    holds: HashMap<Digest, usize>,
}

/// What of the store must stay. Two sets, as the blob of a layer that is not compressed has the layer's own digest.
struct Needed {
    blobs: HashSet<Digest>,
    layers: HashSet<Digest>,
}

impl State {
    /// By all manifests; if `also_operations`, also by operations under way.
    fn needed(&self, also_operations: bool) -> Needed {
        let mut blobs: HashSet<Digest> = self.pins.keys().filter(|_| also_operations).copied().collect();
        let mut layers = blobs.clone();
        for (manifest, record) in &self.index.manifests {
            blobs.extend([*manifest, record.id]);
            blobs.extend(record.layers.iter().map(|layer| layer.blob));
            layers.extend(record.layers.iter().map(|layer| layer.diff_id));
        }
        Needed { blobs, layers }
    }
}

impl fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageStore").field("root", &self.inner.root).finish_non_exhaustive()
    }
}

impl ImageStore {
    /// Opens the store at `root`, making it if needed, and clears what an interrupted operation left.
    ///
    /// # Errors
    /// `Locked` if it is open elsewhere; `NotWritable`, `NoSpace` or `CorruptIndex` with the path. An image whose
    /// config is damaged is left out with a warning, so that it can be pulled or loaded again.
    pub fn open(root: &Path) -> Result<ImageStore, ImageError> {
        ImageStore::open_with(root, Limits::default())
    }

    /// [`ImageStore::open`] with other bounds than the default ones.
    pub fn open_with(root: &Path, limits: Limits) -> Result<ImageStore, ImageError> {
        fs::create_dir_all(root).map_err(ImageError::io("create", root))?;
        let root = root.canonicalize().map_err(ImageError::io("open", root))?;
        let lock = lock(&root)?;
        let temporary = root.join("tmp");
        clear(&temporary)?;
        let index = Index::read(&root)?;
        let blobs = Blobs::open(&root)?;
        let layers = Layers::open(&root, limits.layer)?;
        let mut images = BTreeMap::new();
        for (manifest, record) in &index.manifests {
            match blobs
                .read(&record.id, MAX_DOCUMENT)
                .and_then(|config| image(&blobs, *manifest, record, &config))
            {
                Ok(image) => drop(images.insert(*manifest, image)),
                Err(error) => {
                    tracing::warn!(image = %record.id, %error, "image is left out: pull or load it again");
                }
            }
        }
        let state = State { index, images, ..State::default() };
        let inner = Inner {
            blobs,
            layers,
            partials: Partials::open(&root)?,
            root,
            limits,
            registries: Registries::default(),
            state: Mutex::new(state),
            in_use: RwLock::new(None),
            _lock: lock,
        };
        Ok(ImageStore { inner: Arc::new(inner) })
    }

    /// Registers who can tell whether an image is in use; asked by [`ImageStore::remove`]. It must not call the store.
    pub fn set_in_use(&self, in_use: impl Fn(&Digest) -> Option<String> + Send + Sync + 'static) {
        *self.inner.in_use.write().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(in_use));
    }

    /// The image meant by a name (`nginx`, `host:5000/x:1`, `x@sha256:…`), the digest of a manifest, an id, or the
    /// unique beginning of an id. Of several manifests of one id one with a name is taken.
    pub fn get(&self, reference_or_id: &str) -> Option<Image> {
        self.find(reference_or_id).ok()
    }

    /// Like [`ImageStore::get`], with the reason why there is none.
    ///
    /// # Errors
    /// `NoSuchImage`, `AmbiguousId`.
    pub fn find(&self, reference_or_id: &str) -> Result<Image, ImageError> {
        let state = self.state();
        state.find(reference_or_id).map(|manifest| state.images[&manifest].clone())
    }

    /// All images, each manifest by itself: the newest first, as Docker lists them; those of one time by first name, then
    /// those without a name, by id.
    pub fn list(&self) -> Vec<Image> {
        let mut images: Vec<Image> = self.state().images.values().cloned().collect();
        images.sort_by_cached_key(|image| {
            let names = (image.references.is_empty(), image.references.clone());
            (Reverse(image.created_at()), names, image.id, image.manifest_digest)
        });
        images
    }

    /// The config as its builder wrote it, with fields that [`ImageConfiguration`] does not know (health checks).
    ///
    /// # Errors
    /// `MissingBlob` or `CorruptBlob`.
    pub fn raw_config(&self, image: &Image) -> Result<Vec<u8>, ImageError> {
        self.inner.blobs.read(&image.id, MAX_DOCUMENT)
    }

    /// The directories that make up the image's root file system, topmost first, as overlayfs wants `lowerdir`.
    ///
    /// Unpacks what is not unpacked yet; callers of the same layer wait for one another. Blocking, but for an image
    /// that was used before it takes microseconds. Only valid while the image exists: see [`ImageStore::set_in_use`].
    ///
    /// # Errors
    /// `CorruptBlob`, `MissingBlob`, `DigestMismatch`, `Layer` with the entry at fault, `NoSpace`.
    pub fn rootfs(&self, image: &Image) -> Result<Vec<PathBuf>, ImageError> {
        let layers: Vec<(Digest, Digest)> =
            image.layers.iter().copied().zip(image.blobs.iter().copied()).collect();
        self.unpack_all(&layers, Layers::ensure)?;
        Ok(image.layers.iter().rev().map(|diff_id| self.inner.layers.path(diff_id)).collect())
    }

    /// Gives the manifest that `image` means the further name `reference`, taking it from the one that had it.
    ///
    /// # Errors
    /// `InvalidReference`; `NoSuchImage`; index write errors, after which nothing has changed.
    pub fn tag(&self, image: &str, reference: &str) -> Result<Image, ImageError> {
        let reference: Reference = reference.parse()?;
        check_new(&reference)?;
        let mut state = self.state();
        let manifest = state.find(image)?;
        let mut index = state.index.clone();
        index.assign(&reference.without_digest().to_string(), manifest);
        self.replace(&mut state, index)?;
        Ok(state.images[&manifest].clone())
    }

    /// Removes a name; with the last name of a manifest that manifest, with the last one of all the image, and what
    /// only they needed.
    ///
    /// By id, all names of all manifests go; with several of them only if `force`. The last name of an image in use is
    /// refused; with `force` the image loses it but stays, until it is pruned.
    ///
    /// # Errors
    /// `NoSuchImage`, `AmbiguousId`, `InUse`, `SeveralNames`.
    pub fn remove(&self, reference_or_id: &str, force: bool) -> Result<Removed, ImageError> {
        let mut state = self.state();
        let mut meant = state.find_all(reference_or_id)?;
        let mut index = state.index.clone();
        let untagged = index.take_names(&meant, reference_or_id, force)?;
        meant.retain(|manifest| index.manifests[manifest].is_nameless());
        let mut removed = Removed { untagged, deleted: Vec::new() };
        if let Some(first) = meant.first() {
            let id = index.manifests[first].id;
            let all = index.manifests_of(&id);
            // Manifests that had lost their names before go with the last one that has any.
            let last = all.iter().all(|manifest| index.manifests[manifest].is_nameless());
            match self.user(&state, &id).filter(|_| last) {
                Some(user) if !force => {
                    return Err(ImageError::InUse { image: reference_or_id.to_owned(), user });
                }
                Some(_) => {}
                None => removed.deleted = index.remove(if last { &all } else { &meant }),
            }
        }
        self.replace(&mut state, index)?;
        drop(state);
        if !removed.deleted.is_empty() {
            self.collect_garbage()?;
        }
        Ok(removed)
    }

    /// Who uses an image or is about to, if anyone does.
    fn user(&self, state: &State, id: &Digest) -> Option<String> {
        let in_use = self.inner.in_use.read().unwrap_or_else(PoisonError::into_inner);
        let about_to = || state.holds.contains_key(id).then(|| "a container being prepared".to_owned());
        in_use.as_ref().and_then(|ask| ask(id)).or_else(about_to)
    }

    /// Who needs a manifest, if anyone does: the user of its image, unless it has no name and the image has another.
    pub(crate) fn user_of_manifest(&self, state: &State, image: &Image) -> Option<String> {
        let preferred = || state.index.manifests_of(&image.id).first() == Some(&image.manifest_digest);
        let named = !state.index.manifests[&image.manifest_digest].is_nameless();
        if named || preferred() { self.user(state, &image.id) } else { None }
    }

    /// Keeps an image from being removed while the result lives, until its user is known to whoever was registered by
    /// [`ImageStore::set_in_use`].
    ///
    /// # Errors
    /// `NoSuchImage` if it has been removed meanwhile.
    pub fn hold(&self, id: &Digest) -> Result<Hold, ImageError> {
        let mut state = self.state();
        if !state.images.values().any(|image| image.id == *id) {
            return Err(ImageError::NoSuchImage { reference: id.to_string() });
        }
        *state.holds.entry(*id).or_default() += 1;
        Ok(Hold { store: self.clone(), id: *id })
    }

    /// Deletes blobs and unpacked layers that no image needs and no operation under way relies on, and downloads that
    /// nobody went on with for a day. Gives the bytes freed.
    ///
    /// # Errors
    /// `Io` with the path; what was deleted until then stays deleted.
    pub fn collect_garbage(&self) -> Result<u64, ImageError> {
        self.collect(false)
    }

    /// [`ImageStore::collect_garbage`]; if `also_partial`, of all downloads that are not under way.
    pub(crate) fn collect(&self, also_partial: bool) -> Result<u64, ImageError> {
        let inner = &self.inner;
        let state = self.state();
        let needed = state.needed(true);
        let mut freed = inner.partials.retain(|digest| needed.blobs.contains(digest), also_partial)?;
        for (path, length) in self.blobs_beside(&needed)? {
            fs::remove_file(&path).map_err(ImageError::io("remove", path))?;
            freed += length;
        }
        let (removed, layer_bytes) = inner.layers.retain(|diff_id| needed.layers.contains(diff_id))?;
        // Deleting many files takes time that nobody else needs to wait for.
        drop(state);
        drop(removed);
        Ok(freed + layer_bytes)
    }

    /// Blobs that are not needed, with their lengths.
    fn blobs_beside(&self, needed: &Needed) -> Result<Vec<(PathBuf, u64)>, ImageError> {
        let directory = self.inner.blobs.directory();
        let mut found = Vec::new();
        for file in fs::read_dir(directory).map_err(ImageError::io("list", directory))? {
            let file = file.map_err(ImageError::io("list", directory))?;
            let digest = format!("sha256:{}", file.file_name().to_string_lossy()).parse();
            if !digest.is_ok_and(|digest| needed.blobs.contains(&digest)) {
                found.push((file.path(), file.metadata().map_or(0, |metadata| metadata.len())));
            }
        }
        Ok(found)
    }

    /// Bytes of downloads, blobs and unpacked layers that no image has and, if `also_operations`, no operation under way
    /// relies on.
    pub(crate) fn bytes_beside(&self, also_operations: bool) -> Result<u64, ImageError> {
        let needed = self.state().needed(also_operations);
        let partial = self.inner.partials.bytes(|digest| !needed.blobs.contains(digest));
        let blobs: u64 = self.blobs_beside(&needed)?.iter().map(|(_, length)| length).sum();
        let layers = self.inner.layers.bytes(|diff_id| !needed.layers.contains(diff_id))?;
        Ok(partial + blobs + layers)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image that has exactly this name.
    pub(crate) fn find_name(&self, reference: &Reference) -> Result<Image, ImageError> {
        let state = self.state();
        let manifest = state
            .find_reference(reference)
            .ok_or_else(|| ImageError::NoSuchImage { reference: reference.familiar() })?;
        Ok(state.images[&manifest].clone())
    }

    /// Repositories of `registry` that are known to have, or to have had, the blob: those of pinned names of manifests
    /// that need it.
    pub(crate) fn repositories_with(&self, blob: &Digest, registry: &str) -> Vec<String> {
        let state = self.state();
        let manifests = state.index.manifests.values();
        let repositories: BTreeSet<String> = manifests
            .filter(|record| record.id == *blob || record.layers.iter().any(|layer| layer.blob == *blob))
            .flat_map(|record| &record.digests)
            .filter_map(|name| name.parse::<Reference>().ok())
            .filter(|name| name.registry() == registry)
            .map(|name| name.repository().to_owned())
            .collect();
        repositories.into_iter().collect()
    }

    /// Gives a manifest the further name `name@digest`.
    pub(crate) fn add_pinned_name(&self, manifest: &Digest, name: &str) -> Result<(), ImageError> {
        let mut state = self.state();
        let mut index = state.index.clone();
        let record = index.manifests.get_mut(manifest);
        if !record.is_some_and(|record| record.digests.insert(name.to_owned())) {
            // Known already, or removed while it was pushed.
            return Ok(());
        }
        self.replace(&mut state, index)
    }

    /// Keeps blobs and layers from garbage collection while the result lives.
    pub(crate) fn pin(&self, digests: impl IntoIterator<Item = Digest>) -> Pins {
        let digests: Vec<Digest> = digests.into_iter().collect();
        let mut state = self.state();
        for digest in &digests {
            *state.pins.entry(*digest).or_default() += 1;
        }
        Pins { store: self.clone(), digests }
    }

    /// Unpacks layers, given by diff id and blob, a few at a time and each by `one`; the first error wins.
    pub(crate) fn unpack_all(
        &self,
        layers: &[(Digest, Digest)],
        one: fn(&Layers, &Blobs, &Digest, &Digest) -> Result<LayerInfo, ImageError>,
    ) -> Result<Vec<LayerRecord>, ImageError> {
        let unpack = |(diff_id, blob): &(Digest, Digest)| {
            let info = one(&self.inner.layers, &self.inner.blobs, diff_id, blob)?;
            Ok(LayerRecord { diff_id: *diff_id, blob: *blob, unpacked: info.bytes })
        };
        if layers.iter().all(|(diff_id, _)| self.inner.layers.is_known(diff_id)) {
            return layers.iter().map(unpack).collect();
        }
        // Each thread takes the next layer, as they differ in size.
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let position = next.fetch_add(1, Ordering::Relaxed);
                let Some(layer) = layers.get(position) else { return done };
                done.push((position, unpack(layer)));
            }
        };
        let mut results: Vec<(usize, Result<LayerRecord, ImageError>)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..layers.len().min(UNPACK_THREADS)).map(|_| scope.spawn(work)).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
            };
            threads.into_iter().flat_map(join).collect()
        });
        results.sort_by_key(|(position, _)| *position);
        results.into_iter().map(|(_, result)| result).collect()
    }

    /// Adds a manifest whose blobs are all there; tags move here from others, which stay. Durable when it returns.
    pub(crate) fn commit(&self, new: NewImage) -> Result<Image, ImageError> {
        let NewImage { id, manifest, mut origin, tags, mut digests, layers } = new;
        let config = self.inner.blobs.read(&id, MAX_DOCUMENT)?;
        let mut state = self.state();
        let mut index = state.index.clone();
        let mut kept = BTreeSet::new();
        if let Some(old) = index.manifests.remove(&manifest) {
            kept = old.tags;
            digests.extend(old.digests);
            if old.origin == Origin::Registry {
                origin = Origin::Registry;
            }
        }
        let record = Record { id, origin, tags: kept, digests, layers };
        let image = image(&self.inner.blobs, manifest, &record, &config)?;
        index.add(manifest, record);
        for tag in &tags {
            index.assign(tag, manifest);
        }
        state.images.insert(manifest, image);
        self.replace(&mut state, index)?;
        Ok(state.images[&manifest].clone())
    }

    /// Makes `index` the current one, on disk first, and brings the images' names in line with it.
    pub(crate) fn replace(&self, state: &mut State, index: Index) -> Result<(), ImageError> {
        let written = index.write(&self.inner.root);
        if written.is_ok() {
            state.index = index;
        }
        let State { index, images, .. } = state;
        images.retain(|manifest, _| index.manifests.contains_key(manifest));
        for (manifest, image) in images {
            (image.references, image.digests) = names(&index.manifests[manifest]);
        }
        written
    }
}

/// What [`ImageStore::commit`] is told of a new image.
pub(crate) struct NewImage {
    pub id: Digest,
    pub manifest: Digest,
    pub origin: Origin,
    /// Full `name:tag`.
    pub tags: Vec<String>,
    /// Full `name@digest`.
    pub digests: BTreeSet<String>,
    pub layers: Vec<LayerRecord>,
}

/// Keeps an image while it lives: see [`ImageStore::hold`].
pub struct Hold {
    store: ImageStore,
    id: Digest,
}

impl Drop for Hold {
    fn drop(&mut self) {
        release(&mut self.store.state().holds, &self.id);
    }
}

fn release(counts: &mut HashMap<Digest, usize>, digest: &Digest) {
    if let Some(count) = counts.get_mut(digest) {
        *count -= 1;
        if *count == 0 {
            counts.remove(digest);
        }
    }
}

/// Keeps content alive until it is part of an image.
pub(crate) struct Pins {
    store: ImageStore,
    digests: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for digest in &self.digests {
            release(&mut state.pins, digest);
        }
    }
}

fn image(blobs: &Blobs, manifest: Digest, record: &Record, config: &[u8]) -> Result<Image, ImageError> {
    let config = manifest::read_config(config, &record.id.to_string())?;
    let (references, digests) = names(record);
    let mut image = Image {
        id: record.id,
        manifest_digest: manifest,
        references,
        digests,
        origin: record.origin,
        created: config.created().clone(),
        size_bytes: 0,
        config,
        layers: record.layers.iter().map(|layer| layer.diff_id).collect(),
        blobs: record.layers.iter().map(|layer| layer.blob).collect(),
        layer_bytes: record.layers.iter().map(|layer| layer.unpacked).collect(),
    };
    image.size_bytes = image.parts(blobs).values().sum();
    Ok(image)
}

/// Tags and pinned names as a user writes them.
fn names(record: &Record) -> (Vec<String>, Vec<String>) {
    (
        record.tags.iter().map(|name| familiar(name)).collect(),
        record.digests.iter().map(|name| familiar(name)).collect(),
    )
}

fn lock(root: &Path) -> Result<File, ImageError> {
    let path = root.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(ImageError::io("open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ImageError::Locked { root: root.to_owned() }),
        Err(error) => Err(ImageError::io("lock", path)(error.into())),
    }
}

/// Empties the directory of unfinished things.
fn clear(temporary: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(ImageError::io("clear", temporary)(error));
        }
        _ => {}
    }
    fs::create_dir(temporary).map_err(ImageError::io("create", temporary))
}
