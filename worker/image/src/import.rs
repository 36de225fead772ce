//! Making a one-layer image from a root file system's tar archive.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::Read,
};

use oci_spec::image::{Arch, Config, History, ImageConfiguration, Os, RootFs};

use crate::{
    archive::{compression_of, layer_media_type},
    compress::decompress,
    digest::Digest,
    error::ImageError,
    index::{LayerRecord, Origin},
    layers::StageError,
    manifest::{Descriptor, Manifest, OCI_CONFIG},
    names::check_new,
    platform::Platform,
    reference::Reference,
    store::{Image, ImageStore, NewImage},
};

/// How containers of an imported or built image start; `None` and empty mean "not said".
#[derive(Clone, Debug, Default)]
pub struct ImportConfig {
    /// `None` means this host's.
    pub platform: Option<Platform>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub workdir: Option<String>,
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// `port/protocol`.
    pub exposed_ports: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub volumes: Vec<String>,
    pub stop_signal: Option<String>,
    /// What history shall say about the layer.
    pub message: Option<String>,
}

impl ImportConfig {
    /// The image config for layers with these diff ids, from the base up; `created` is RFC 3339.
    pub(crate) fn configuration(&self, created: &str, diff_ids: &[Digest]) -> ImageConfiguration {
        let platform = self.platform.clone().unwrap_or_else(Platform::host);
        let given = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
        let mut config = Config::default();
        config
            .set_entrypoint(self.entrypoint.clone())
            .set_cmd(self.cmd.clone())
            .set_env(given(&self.env))
            .set_working_dir(self.workdir.clone())
            .set_user(self.user.clone())
            .set_exposed_ports(given(&self.exposed_ports))
            .set_volumes(given(&self.volumes))
            .set_stop_signal(self.stop_signal.clone());
        if !self.labels.is_empty() {
            config.set_labels(Some(self.labels.clone().into_iter().collect::<HashMap<_, _>>()));
        }
        let history = diff_ids.iter().map(|_| {
            let mut history = History::default();
            history.set_created(Some(created.to_owned())).set_comment(self.message.clone());
            history
        });
        let mut rootfs = RootFs::default();
        rootfs.set_diff_ids(diff_ids.iter().map(Digest::to_string).collect());
        let mut image = ImageConfiguration::default();
        image
            .set_created(Some(created.to_owned()))
            .set_os(Os::from(platform.os.as_str()))
            .set_architecture(Arch::from(platform.arch.as_str()))
            .set_variant(platform.variant)
            .set_config(Some(config))
            .set_history(Some(history.collect()))
            .set_rootfs(rootfs);
        image
    }
}

/// The bytes of a config, with sorted keys: the maps within have no order of their own.
pub(crate) fn config_bytes(config: &ImageConfiguration) -> Vec<u8> {
    let mut value = serde_json::to_value(config).expect("an image config has string keys and plain values");
    value.sort_all_objects();
    serde_json::to_vec(&value).expect("a JSON value can be written")
}

impl ImageStore {
    /// Makes an image of one layer from a root file system's tar archive, plain or compressed. Blocking.
    ///
    /// The same archive gives the same image on every host: it counts as created at the newest time in the archive.
    ///
    /// # Errors
    /// `InvalidReference`; `Import` with the entry at fault; `TooLarge`; then nothing was added.
    pub fn import(
        &self,
        reader: impl Read + Send,
        reference: Option<&str>,
        config: &ImportConfig,
    ) -> Result<Image, ImageError> {
        let reference: Option<Reference> = reference.map(str::parse).transpose()?;
        reference.iter().try_for_each(check_new)?;
        let mut writer = self.inner.blobs.writer()?;
        writer.copy(reader, self.inner.limits.archive_bytes, "root file system archive")?;
        let blob = writer.finish();
        let source = std::fs::File::open(blob.path()).map_err(ImageError::io("open", blob.path()))?;
        let mut staged = decompress(source)
            .map_err(|source| StageError::Layer(crate::LayerError::Decompress { source }))
            .and_then(|(_, reader)| self.inner.layers.stage(reader))
            .map_err(|error| match error {
                StageError::Store(error) => error,
                StageError::Layer(source) => ImageError::Import { source },
            })?;
        let diff_id = staged.diff_id();
        let created = created(staged.newest);
        let config = config_bytes(&config.configuration(&created, &[diff_id]));
        let layer = Descriptor::new(layer_media_type(compression_of(&blob)?), blob.digest, blob.size);
        let descriptor = Descriptor::new(OCI_CONFIG, Digest::of(&config), config.len() as u64);
        let manifest = serde_json::to_vec(&Manifest::new(descriptor, vec![layer]))
            .expect("a manifest has string keys and plain values");
        let _pins = self.pin([diff_id, blob.digest, Digest::of(&config), Digest::of(&manifest)]);
        blob.commit()?;
        let info = self.inner.layers.commit(&mut staged, blob.digest)?;
        self.commit(NewImage {
            id: self.inner.blobs.put(&config)?,
            manifest: self.inner.blobs.put(&manifest)?,
            origin: Origin::Local,
            tags: reference.iter().map(|reference| reference.without_digest().to_string()).collect(),
            digests: BTreeSet::new(),
            layers: vec![LayerRecord { diff_id, blob: blob.digest, unpacked: info.bytes }],
        })
    }
}

/// A time as in an image config; the epoch for none, and for one that no calendar has.
fn created(time: Option<(i64, u32)>) -> String {
    let (seconds, nanos) = time.unwrap_or_default();
    jiff::Timestamp::new(seconds, i32::try_from(nanos).unwrap_or_default()).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_archives_become_those_of_images() {
        for (time, expected) in [
            (None, "1970-01-01T00:00:00Z"),
            (Some((1_700_000_000, 500_000_000)), "2023-11-14T22:13:20.5Z"),
            (Some((-1, 500_000_000)), "1969-12-31T23:59:59.5Z"),
            (Some((i64::MAX, 0)), "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(created(time), expected, "{time:?}");
        }
    }
}
