//! Unpacked layers: `layers/<start of the diff id>/fs`, made once and shared by every image that has the layer.
//!
//! A layer appears by rename after everything in it is on disk, so one under its final name is complete. Names are
//! short because overlayfs takes all lower directories in one page of text: 127 layers fit relative to `layers/`.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    ahead::read_ahead,
    blobs::{Blobs, sync_directory, temporary_path},
    compress::decompress,
    digest::{Digest, HashingReader},
    error::ImageError,
    unpack::{self, LayerError, LayerLimits},
};

/// Hex digits of the diff id in a directory's name; the whole of it is in `info.json` and compared.
const NAME_DIGITS: usize = 26;

pub(crate) struct Layers {
    directory: PathBuf,
    temporary: PathBuf,
    limits: LayerLimits,
    /// One slot a layer. Who holds it unpacks; it holds the layer's facts once it is there.
    slots: Mutex<HashMap<Digest, Arc<Mutex<Option<LayerInfo>>>>>,
}

/// What is known of an unpacked layer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct LayerInfo {
    diff_id: Digest,
    pub entries: u64,
    /// Length of the files within, in bytes.
    pub bytes: u64,
    /// The blob that was last found to hold it.
    #[serde(default)]
    blob: Option<Digest>,
}

impl Layers {
    pub fn open(root: &Path, limits: LayerLimits) -> Result<Layers, ImageError> {
        let directory = root.join("layers");
        fs::create_dir_all(&directory).map_err(ImageError::io("create", &directory))?;
        Ok(Layers { directory, temporary: root.join("tmp"), limits, slots: Mutex::default() })
    }

    /// The directory that overlayfs takes for this layer; it exists after [`Layers::ensure`].
    pub fn path(&self, diff_id: &Digest) -> PathBuf {
        self.home(diff_id).join("fs")
    }

    fn home(&self, diff_id: &Digest) -> PathBuf {
        self.directory.join(&diff_id.hex()[..NAME_DIGITS])
    }

    fn slot(&self, diff_id: &Digest) -> Arc<Mutex<Option<LayerInfo>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(*diff_id).or_default().clone()
    }

    /// True if the layer is unpacked and was used since the store was opened.
    pub fn is_known(&self, diff_id: &Digest) -> bool {
        let slot = self.slot(diff_id);
        slot.try_lock().is_ok_and(|known| known.is_some())
    }

    /// Unpacks the layer from its blob unless that has been done; concurrent callers wait for one another.
    pub fn ensure(&self, blobs: &Blobs, diff_id: &Digest, blob: &Digest) -> Result<LayerInfo, ImageError> {
        let slot = self.slot(diff_id);
        let mut known = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            *known = self.read_info(diff_id)?;
        }
        let info = known.map_or_else(|| self.unpack(blobs, diff_id, blob), Ok)?;
        *known = Some(info);
        Ok(info)
    }

    /// The same for a blob that is said to hold the layer by someone who may be wrong: if the layer is here from another one,
    /// this one is read, too, and refused if it holds something else.
    pub fn admit(&self, blobs: &Blobs, diff_id: &Digest, blob: &Digest) -> Result<LayerInfo, ImageError> {
        let info = self.ensure(blobs, diff_id, blob)?;
        if info.blob != Some(*blob) {
            self.check(blobs, diff_id, blob)?;
            if let Some(known) = &mut *self.slot(diff_id).lock().unwrap_or_else(PoisonError::into_inner) {
                known.blob = Some(*blob);
            }
        }
        Ok(info)
    }

    /// Unpacks a stream that is not a blob yet (import), for its diff id to be found out.
    ///
    /// Gives a directory that [`StagedLayer::commit`] moves into place.
    pub fn stage(&self, source: impl Read + Send) -> Result<StagedLayer, StageError> {
        let home = StagedDirectory(temporary_path(&self.temporary, "layer"));
        let files = home.0.join("fs");
        let create = |path: &Path| fs::create_dir(path).map_err(ImageError::io("create", path));
        create(&home.0).map_err(StageError::Store)?;
        create(&files).map_err(StageError::Store)?;
        // Layers without an entry for their root get the mode that a root directory has.
        fs::set_permissions(&files, fs::Permissions::from_mode(0o755))
            .map_err(ImageError::io("set the mode of", &files))
            .map_err(StageError::Store)?;
        let (total, hashing) = read_ahead(HashingReader::new(source), |source| {
            let unpacked = unpack::unpack(source, &files, self.limits);
            let (total, rest) = unpacked.map_err(|error| self.explain(error))?;
            drain(rest, self.limits.bytes)?;
            Ok(total)
        });
        let (total, (diff_id, _)) = (total?, hashing.finish());
        let info = LayerInfo { diff_id, entries: total.entries, bytes: total.bytes, blob: None };
        Ok(StagedLayer { home, info, newest: total.newest })
    }

    /// Moves a staged layer, which `blob` was found to hold, to where its diff id says; one that is there already is kept.
    pub fn commit(&self, staged: &mut StagedLayer, blob: Digest) -> Result<LayerInfo, ImageError> {
        staged.info.blob = Some(blob);
        let info = staged.info;
        let slot = self.slot(&info.diff_id);
        let mut known = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() && self.read_info(&info.diff_id)?.is_none() {
            self.place(staged)?;
        }
        *known = Some(info);
        Ok(info)
    }

    /// Takes every unpacked layer for which `keep` says no out of sight; dropping the result deletes their files. Gives
    /// the length of those files, too.
    pub fn retain(&self, keep: impl Fn(&Digest) -> bool) -> Result<(Vec<StagedDirectory>, u64), ImageError> {
        let mut removed = Vec::new();
        let mut bytes = 0;
        for (home, info) in self.homes()? {
            if info.is_some_and(|info| keep(&info.diff_id)) {
                continue;
            }
            let slot = info.map(|info| self.slot(&info.diff_id));
            let mut known = slot.as_ref().map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner));
            // Out of sight in one step, so that a crash leaves no half of a layer under its name.
            let doomed = StagedDirectory(temporary_path(&self.temporary, "removed"));
            fs::rename(&home, &doomed.0).map_err(ImageError::io("remove", &home))?;
            removed.push(doomed);
            bytes += info.map_or(0, |info| info.bytes);
            if let Some(known) = known.as_deref_mut() {
                *known = None;
            }
        }
        Ok((removed, bytes))
    }

    /// Length of the files of the unpacked layers that `count` wants.
    pub fn bytes(&self, count: impl Fn(&Digest) -> bool) -> Result<u64, ImageError> {
        let infos = self.homes()?.into_iter().filter_map(|(_, info)| info);
        Ok(infos.filter(|info| count(&info.diff_id)).map(|info| info.bytes).sum())
    }

    /// The directory of each unpacked layer, with what is known of it.
    fn homes(&self) -> Result<Vec<(PathBuf, Option<LayerInfo>)>, ImageError> {
        let failed = || ImageError::io("list", &self.directory);
        let names = fs::read_dir(&self.directory).map_err(failed())?;
        let home = |name: io::Result<fs::DirEntry>| {
            let home = name.map_err(failed())?.path();
            let info = read_info_file(&home.join("info.json"))?;
            Ok((home, info))
        };
        names.map(home).collect()
    }

    fn read_info(&self, diff_id: &Digest) -> Result<Option<LayerInfo>, ImageError> {
        let path = self.home(diff_id).join("info.json");
        match read_info_file(&path)? {
            Some(info) if info.diff_id != *diff_id => Err(ImageError::DigestMismatch {
                what: format!("the unpacked layer described by `{}`", path.display()),
                expected: *diff_id,
                found: info.diff_id,
            }),
            info => Ok(info),
        }
    }

    fn unpack(&self, blobs: &Blobs, diff_id: &Digest, blob: &Digest) -> Result<LayerInfo, ImageError> {
        let mut staged = Self::read(blobs, blob, |content| self.stage(content))?;
        expect(diff_id, blob, staged.info.diff_id)?;
        staged.info.blob = Some(*blob);
        self.place(&staged)?;
        Ok(staged.info)
    }

    /// That the blob holds the layer.
    fn check(&self, blobs: &Blobs, diff_id: &Digest, blob: &Digest) -> Result<(), ImageError> {
        let found = Self::read(blobs, blob, |content| {
            let mut content = HashingReader::new(content);
            drain(&mut content, self.limits.bytes)?;
            Ok(content.finish().0)
        })?;
        expect(diff_id, blob, found)
    }

    /// What `with` makes of a blob's content.
    fn read<T>(
        blobs: &Blobs,
        blob: &Digest,
        with: impl FnOnce(Box<dyn Read + Send + '_>) -> Result<T, StageError>,
    ) -> Result<T, ImageError> {
        let mut compressed = HashingReader::new(blobs.open_blob(blob)?);
        let result = decompress(&mut compressed)
            .map_err(|source| StageError::Layer(LayerError::Decompress { source }))
            .and_then(|(_, content)| with(content));
        // Whatever went wrong: if the blob is not what its name says, that is why.
        blobs.confirm(blob, compressed)?;
        result.map_err(|error| match error {
            StageError::Store(error) => error,
            StageError::Layer(source) => ImageError::Layer { layer: *blob, source },
        })
    }

    /// Makes a staged layer durable under its final name.
    fn place(&self, staged: &StagedLayer) -> Result<(), ImageError> {
        let home = &staged.home.0;
        let info_path = home.join("info.json");
        let info = serde_json::to_vec(&staged.info).expect("layer facts are plain values");
        fs::write(&info_path, info).map_err(ImageError::io("write", &info_path))?;
        // One sync of the file system instead of one of each of thousands of files.
        let directory = File::open(home).map_err(ImageError::io("open", home))?;
        rustix::fs::syncfs(&directory).map_err(|e| ImageError::io("sync", home)(e.into()))?;
        let target = self.home(&staged.info.diff_id);
        fs::rename(home, &target).map_err(ImageError::io("rename into place", &target))?;
        sync_directory(&self.directory)
    }

    /// A full disk is the store's trouble and not the layer's.
    fn explain(&self, error: LayerError) -> StageError {
        match error.io_error().map(io::Error::kind) {
            Some(kind @ (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) => {
                StageError::Store(ImageError::NoSpace { path: self.directory.clone(), source: kind.into() })
            }
            _ => StageError::Layer(error),
        }
    }
}

/// A layer that is unpacked but has no name yet; dropped it leaves nothing.
pub(crate) struct StagedLayer {
    home: StagedDirectory,
    info: LayerInfo,
    /// See [`unpack::Unpacked::newest`].
    pub newest: Option<(i64, u32)>,
}

impl StagedLayer {
    pub fn diff_id(&self) -> Digest {
        self.info.diff_id
    }
}

/// Whose fault a failed unpack is.
#[derive(Debug)]
pub(crate) enum StageError {
    Store(ImageError),
    Layer(LayerError),
}

fn expect(diff_id: &Digest, blob: &Digest, found: Digest) -> Result<(), ImageError> {
    if found == *diff_id {
        return Ok(());
    }
    let what = format!("the content of layer `{blob}`");
    Err(ImageError::DigestMismatch { what, expected: *diff_id, found })
}

/// Reads what follows the archive's end mark: it belongs to the digest, but is bounded too.
fn drain(reader: impl Read, limit: u64) -> Result<(), StageError> {
    let read = io::copy(&mut reader.take(limit.saturating_add(1)), &mut io::sink())
        .map_err(|source| StageError::Layer(LayerError::Decompress { source }))?;
    if read > limit {
        let entry = "(end of archive)".to_owned();
        return Err(StageError::Layer(LayerError::TooManyBytes { entry, limit }));
    }
    Ok(())
}

fn read_info_file(path: &Path) -> Result<Option<LayerInfo>, ImageError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| ImageError::InvalidJson { what: format!("`{}`", path.display()), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ImageError::io("read", path)(error)),
    }
}

/// A directory under `tmp/` that is removed when dropped, unless renamed away before.
pub(crate) struct StagedDirectory(PathBuf);

impl Drop for StagedDirectory {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "leftover stays until the next start");
            }
            _ => {}
        }
    }
}
