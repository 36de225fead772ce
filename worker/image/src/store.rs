//! The image store: which images there are, under which names, and what keeps them alive.

use std::{
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
    layers::Layers,
    manifest::{self, MAX_DOCUMENT},
    partial::Partials,
    reference::Reference,
    registry::Registries,
    unpack::LayerLimits,
};

/// Threads that unpack layers of one image at a time: unpacking is bound by the disk and by decompression.
const UNPACK_THREADS: usize = 4;

/// One image of the store, as of the moment it was asked for.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the config; what Docker calls the image id.
    pub id: Digest,
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// Its names as a user writes them (`nginx:1.25`), sorted.
    pub references: Vec<String>,
    /// Its pinned names (`nginx@sha256:…`), sorted: of the manifest and of the index it was chosen from.
    pub digests: Vec<String>,
    pub origin: Origin,
    /// When it was built, RFC 3339; `None` if it does not say.
    pub created: Option<String>,
    /// Length of all files in all layers, in bytes; layers may be shared with other images.
    pub size_bytes: u64,
    pub config: ImageConfiguration,
    /// Diff ids (digests of the uncompressed layers) from the base up.
    pub layers: Vec<Digest>,
    /// The blobs of the layers, likewise.
    pub(crate) blobs: Vec<Digest>,
    /// Length of the files in each layer, likewise.
    pub(crate) layer_bytes: Vec<u64>,
}

/// What [`ImageStore::remove`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that no longer exist.
    pub untagged: Vec<String>,
    /// Ids of images that are gone with their last name.
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
    pub images: BTreeMap<Digest, Image>,
    /// Blobs and layers that an operation under way relies on, with the number of such operations.
    pins: HashMap<Digest, usize>,
    /// Images that someone is about to use, likewise.
    holds: HashMap<Digest, usize>,
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
        for (id, record) in &index.images {
            match blobs.read(id, MAX_DOCUMENT).and_then(|config| image(*id, record, &config)) {
                Ok(image) => drop(images.insert(*id, image)),
                Err(error) => tracing::warn!(image = %id, %error, "image is left out: pull or load it again"),
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

    /// The image meant by a name (`nginx`, `host:5000/x:1`, `x@sha256:…`), an id, or the unique beginning of an id.
    pub fn get(&self, reference_or_id: &str) -> Option<Image> {
        self.find(reference_or_id).ok()
    }

    /// Like [`ImageStore::get`], with the reason why there is none.
    ///
    /// # Errors
    /// `NoSuchImage`, `AmbiguousId`.
    pub fn find(&self, reference_or_id: &str) -> Result<Image, ImageError> {
        let state = self.state();
        state.find(reference_or_id).map(|id| state.images[&id].clone())
    }

    /// All images, by first name, then those without a name, by id.
    pub fn list(&self) -> Vec<Image> {
        let mut images: Vec<Image> = self.state().images.values().cloned().collect();
        images.sort_by(|a, b| {
            (a.references.is_empty(), &a.references, a.id).cmp(&(
                b.references.is_empty(),
                &b.references,
                b.id,
            ))
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
        self.unpack_all(&layers)?;
        Ok(image.layers.iter().rev().map(|diff_id| self.inner.layers.path(diff_id)).collect())
    }

    /// Gives `image` the further name `reference`, taking it from the image that had it.
    ///
    /// # Errors
    /// `InvalidReference`; `NoSuchImage`; index write errors, after which nothing has changed.
    pub fn tag(&self, image: &str, reference: &str) -> Result<Image, ImageError> {
        let reference: Reference = reference.parse()?;
        if reference.digest().is_some() {
            return Err(ImageError::InvalidReference {
                reference: reference.familiar(),
                reason: "a new name has a tag and no digest".to_owned(),
            });
        }
        let mut state = self.state();
        let id = state.find(image)?;
        let mut index = state.index.clone();
        index.assign(&reference.without_digest().to_string(), id);
        self.replace(&mut state, index)?;
        Ok(state.images[&id].clone())
    }

    /// Removes a name and, with its last name, the image and what only it needed.
    ///
    /// By id, all its names go; with several of them only if `force`. An image in use is refused; with `force` it
    /// loses its names but stays until nobody uses it.
    ///
    /// # Errors
    /// `NoSuchImage`, `AmbiguousId`, `InUse`, `SeveralNames`.
    pub fn remove(&self, reference_or_id: &str, force: bool) -> Result<Removed, ImageError> {
        let mut state = self.state();
        let id = state.find(reference_or_id)?;
        let mut index = state.index.clone();
        let record = index.images.get_mut(&id).expect("a found image has a record");
        let mut removed =
            Removed { untagged: take_names(record, reference_or_id, force)?, deleted: Vec::new() };
        if record.tags.is_empty() && record.digests.is_empty() {
            match self.user(&state, &id) {
                Some(user) if !force => {
                    return Err(ImageError::InUse { image: reference_or_id.to_owned(), user });
                }
                Some(_) => {}
                None => {
                    let _ = index.images.remove(&id);
                    removed.deleted.push(id);
                }
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
    pub(crate) fn user(&self, state: &State, id: &Digest) -> Option<String> {
        let in_use = self.inner.in_use.read().unwrap_or_else(PoisonError::into_inner);
        let about_to = || state.holds.contains_key(id).then(|| "a container being prepared".to_owned());
        in_use.as_ref().and_then(|ask| ask(id)).or_else(about_to)
    }

    /// Keeps an image from being removed while the result lives, until its user is known to whoever was registered by
    /// [`ImageStore::set_in_use`].
    ///
    /// # Errors
    /// `NoSuchImage` if it has been removed meanwhile.
    pub fn hold(&self, id: &Digest) -> Result<Hold, ImageError> {
        let mut state = self.state();
        if !state.images.contains_key(id) {
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
        let mut needed: HashSet<Digest> = state.pins.keys().copied().collect();
        for (id, record) in &state.index.images {
            needed.extend([*id, record.manifest]);
            needed.extend(record.layers.iter().flat_map(|layer| [layer.blob, layer.diff_id]));
        }
        let mut freed = inner.partials.retain(|digest| needed.contains(digest), also_partial)?;
        let directory = inner.blobs.directory();
        for file in fs::read_dir(directory).map_err(ImageError::io("list", directory))? {
            let file = file.map_err(ImageError::io("list", directory))?;
            let digest = format!("sha256:{}", file.file_name().to_string_lossy()).parse();
            if digest.as_ref().is_ok_and(|digest| needed.contains(digest)) {
                continue;
            }
            freed += file.metadata().map_or(0, |metadata| metadata.len());
            fs::remove_file(file.path()).map_err(ImageError::io("remove", file.path()))?;
        }
        let (removed, layer_bytes) = inner.layers.retain(|diff_id| needed.contains(diff_id))?;
        // Deleting many files takes time that nobody else needs to wait for.
        drop(state);
        drop(removed);
        Ok(freed + layer_bytes)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image that has exactly this name.
    pub(crate) fn find_name(&self, reference: &Reference) -> Result<Image, ImageError> {
        let state = self.state();
        let id = state
            .find_reference(reference)
            .ok_or_else(|| ImageError::NoSuchImage { reference: reference.familiar() })?;
        Ok(state.images[&id].clone())
    }

    /// Repositories of `registry` that are known to have, or to have had, the blob: those of pinned names of images
    /// that need it.
    pub(crate) fn repositories_with(&self, blob: &Digest, registry: &str) -> Vec<String> {
        let state = self.state();
        let with = state
            .index
            .images
            .iter()
            .filter(|(id, record)| *id == blob || record.layers.iter().any(|layer| layer.blob == *blob));
        let repositories: BTreeSet<String> = with
            .flat_map(|(_, record)| &record.digests)
            .filter_map(|name| name.parse::<Reference>().ok())
            .filter(|name| name.registry() == registry)
            .map(|name| name.repository().to_owned())
            .collect();
        repositories.into_iter().collect()
    }

    /// Gives an image the further name `name@digest`.
    pub(crate) fn add_pinned_name(&self, id: &Digest, name: &str) -> Result<(), ImageError> {
        let mut state = self.state();
        let mut index = state.index.clone();
        match index.images.get_mut(id) {
            // It was removed while it was pushed.
            None => return Ok(()),
            Some(record) => {
                if !record.digests.insert(name.to_owned()) {
                    return Ok(());
                }
            }
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

    /// Unpacks layers, given by diff id and blob, a few at a time; the first error wins.
    pub(crate) fn unpack_all(&self, layers: &[(Digest, Digest)]) -> Result<Vec<LayerRecord>, ImageError> {
        let unpack = |(diff_id, blob): &(Digest, Digest)| {
            let info = self.inner.layers.ensure(&self.inner.blobs, diff_id, blob)?;
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

    /// Adds an image whose blobs are all there; tags move here from other images. Durable when it returns.
    pub(crate) fn commit(&self, new: NewImage) -> Result<Image, ImageError> {
        let config = self.inner.blobs.read(&new.id, MAX_DOCUMENT)?;
        let mut state = self.state();
        let mut index = state.index.clone();
        let mut record = Record {
            manifest: new.manifest,
            origin: new.origin,
            tags: BTreeSet::new(),
            digests: new.digests,
            layers: new.layers,
        };
        if let Some(old) = index.images.get(&new.id) {
            record.tags.clone_from(&old.tags);
            record.digests.extend(old.digests.iter().cloned());
            if old.origin == Origin::Registry {
                record.origin = Origin::Registry;
            }
        }
        let image = image(new.id, &record, &config)?;
        index.images.insert(new.id, record);
        for tag in &new.tags {
            index.assign(tag, new.id);
        }
        state.images.insert(new.id, image);
        self.replace(&mut state, index)?;
        Ok(state.images[&new.id].clone())
    }

    /// Makes `index` the current one, on disk first, and brings the images' names in line with it.
    pub(crate) fn replace(&self, state: &mut State, index: Index) -> Result<(), ImageError> {
        let written = index.write(&self.inner.root);
        if written.is_ok() {
            state.index = index;
        }
        let State { index, images, .. } = state;
        images.retain(|id, _| index.images.contains_key(id));
        for (id, image) in images {
            (image.references, image.digests) = names(&index.images[id]);
        }
        written
    }
}

impl State {
    pub fn find(&self, text: &str) -> Result<Digest, ImageError> {
        let missing = || ImageError::NoSuchImage { reference: text.to_owned() };
        if let Ok(digest) = text.parse::<Digest>() {
            let by_manifest =
                || self.index.images.iter().find(|(_, record)| record.manifest == digest).map(|(id, _)| *id);
            let found = if self.images.contains_key(&digest) { Some(digest) } else { by_manifest() };
            return found.filter(|id| self.images.contains_key(id)).ok_or_else(missing);
        }
        if let Ok(reference) = text.parse::<Reference>()
            && let Some(id) = self.find_reference(&reference)
        {
            return Ok(id);
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.is_empty()
            || prefix.len() > 64
            || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(missing());
        }
        let matches: Vec<Digest> =
            self.images.keys().filter(|id| id.hex().starts_with(prefix)).copied().collect();
        match matches.as_slice() {
            [] => Err(missing()),
            [id] => Ok(*id),
            several => Err(ImageError::AmbiguousId { prefix: text.to_owned(), matches: several.len() }),
        }
    }

    /// By digest if the reference has one, else by tag. A local image's name and manifest digest count as pinned name.
    fn find_reference(&self, reference: &Reference) -> Option<Digest> {
        let named = |tag: &String| tag.rsplit_once(':').is_some_and(|(name, _)| name == reference.name());
        let matches = |record: &Record| match reference.digest() {
            None => record.tags.contains(&reference.to_string()),
            Some(digest) => {
                record.digests.contains(&reference.pinned_name(digest))
                    || record.manifest == digest && record.tags.iter().any(named)
            }
        };
        let found = self.index.images.iter().find(|(_, record)| matches(record)).map(|(id, _)| *id);
        found.filter(|id| self.images.contains_key(id))
    }
}

impl Index {
    /// Gives `tag` to the image `id` alone.
    fn assign(&mut self, tag: &str, id: Digest) {
        for (other, record) in &mut self.images {
            if *other == id {
                record.tags.insert(tag.to_owned());
            } else {
                record.tags.remove(tag);
            }
        }
    }
}

/// Takes from `record` the names that removing `text` removes.
fn take_names(record: &mut Record, text: &str, force: bool) -> Result<Vec<String>, ImageError> {
    let reference = text
        .parse::<Reference>()
        .ok()
        .filter(|reference| reference.digest().is_some() || record.tags.contains(&reference.to_string()));
    let Some(reference) = reference else {
        if record.tags.len() > 1 && !force {
            let names = record.tags.iter().map(|name| familiar(name)).collect();
            return Err(ImageError::SeveralNames { image: text.to_owned(), names });
        }
        let gone = [std::mem::take(&mut record.tags), std::mem::take(&mut record.digests)];
        return Ok(gone.iter().flatten().map(|name| familiar(name)).collect());
    };
    let name = reference.name();
    let of_name = |full: &String, mark: char| full.rsplit_once(mark).is_some_and(|(n, _)| n == name);
    let mut gone = Vec::new();
    if reference.tag().is_some() {
        gone.extend(record.tags.take(&reference.without_digest().to_string()));
    }
    // Pinned names go when they are meant themselves, or with the last tag of their repository.
    if reference.digest().is_some() || !record.tags.iter().any(|tag| of_name(tag, ':')) {
        gone.extend(record.digests.extract_if(.., |full| of_name(full, '@')));
    }
    if gone.is_empty() {
        // A local image found by name and manifest digest: it has no pinned name, only tags.
        gone.extend(record.tags.extract_if(.., |full| of_name(full, ':')));
    }
    Ok(gone.iter().map(|name| familiar(name)).collect())
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

fn image(id: Digest, record: &Record, config: &[u8]) -> Result<Image, ImageError> {
    let config = manifest::read_config(config, &id.to_string())?;
    let (references, digests) = names(record);
    Ok(Image {
        id,
        manifest_digest: record.manifest,
        references,
        digests,
        origin: record.origin,
        created: config.created().clone(),
        size_bytes: record.layers.iter().map(|layer| layer.unpacked).sum(),
        config,
        layers: record.layers.iter().map(|layer| layer.diff_id).collect(),
        blobs: record.layers.iter().map(|layer| layer.blob).collect(),
        layer_bytes: record.layers.iter().map(|layer| layer.unpacked).collect(),
    })
}

pub(crate) fn familiar(full: &str) -> String {
    full.parse::<Reference>().map_or_else(|_| full.to_owned(), |reference| reference.familiar())
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
