//! Building an image from files in memory or on disk, without running anything in it.
//!
//! The same input gives the same bytes, and so the same digests: entries are sorted, owned by root, of time zero, and
//! layers are not compressed (a compressor's output changes with its version). Layers are made in memory.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use crate::{
    archive::{NAME, REF_NAME},
    digest::Digest,
    error::ImageError,
    import::{ImportConfig, config_bytes},
    manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST},
    platform::Platform,
    reference::Reference,
};

/// Built images say they are from the epoch, as the time would change their digest.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Where the content of a file comes from.
#[derive(Clone, Debug)]
pub enum Content {
    Bytes(Vec<u8>),
    /// Read when the image is written; its own mode and owner do not matter.
    Path(PathBuf),
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Content {
        Content::Bytes(bytes)
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Content {
        Content::Bytes(bytes.to_vec())
    }
}

impl<const N: usize> From<&[u8; N]> for Content {
    fn from(bytes: &[u8; N]) -> Content {
        Content::Bytes(bytes.to_vec())
    }
}

impl From<&Path> for Content {
    fn from(path: &Path) -> Content {
        Content::Path(path.to_owned())
    }
}

impl From<PathBuf> for Content {
    fn from(path: PathBuf) -> Content {
        Content::Path(path)
    }
}

#[derive(Clone, Debug)]
enum Node {
    File(Content, u32),
    Directory(u32),
    Symlink(String),
}

/// An image in the making: layers of files, and how its containers start.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    layers: Vec<BTreeMap<String, Node>>,
    config: ImportConfig,
    reference: Option<Reference>,
}

impl Default for ImageBuilder {
    fn default() -> Self {
        ImageBuilder { layers: vec![BTreeMap::new()], config: ImportConfig::default(), reference: None }
    }
}

impl ImageBuilder {
    /// An image of one empty layer for this host's platform.
    pub fn new() -> Self {
        ImageBuilder::default()
    }

    /// Adds a file owned by root; missing directories on the way are made with mode 0755.
    #[must_use]
    pub fn file(self, path: &str, content: impl Into<Content>, mode: u32) -> Self {
        self.node(path, Node::File(content.into(), mode))
    }

    /// Adds a directory owned by root.
    #[must_use]
    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.node(path, Node::Directory(mode))
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.node(path, Node::Symlink(target.to_owned()))
    }

    /// Starts a further layer on top; what is added next goes there.
    #[must_use]
    pub fn next_layer(mut self) -> Self {
        self.layers.push(BTreeMap::new());
        self
    }

    /// Hides `path` of the layers below.
    #[must_use]
    pub fn remove(self, path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mark = format!("{parent}/.wh.{name}");
        self.file(&mark, Vec::new(), 0o644)
    }

    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.config.entrypoint = Some(words.into_iter().map(Into::into).collect());
        self
    }

    #[must_use]
    pub fn cmd<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.config.cmd = Some(words.into_iter().map(Into::into).collect());
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.config.env.push(format!("{name}={value}"));
        self
    }

    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.config.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    #[must_use]
    pub fn workdir(mut self, path: &str) -> Self {
        self.config.workdir = Some(path.to_owned());
        self
    }

    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.config.user = Some(user.to_owned());
        self
    }

    /// Declares a port, for example `80/tcp`.
    #[must_use]
    pub fn expose(mut self, port: &str) -> Self {
        self.config.exposed_ports.push(port.to_owned());
        self
    }

    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.config.platform = Some(platform);
        self
    }

    /// The name the archive gives the image.
    #[must_use]
    pub fn reference(mut self, reference: Reference) -> Self {
        self.reference = Some(reference);
        self
    }

    fn node(mut self, path: &str, node: Node) -> Self {
        let path = path.trim_matches('/').to_owned();
        let layer = self.layers.last_mut().expect("a builder starts with one layer");
        for (end, _) in path.match_indices('/') {
            layer.entry(path[..end].to_owned()).or_insert(Node::Directory(0o755));
        }
        layer.insert(path, node);
        self
    }

    /// Writes the image as an OCI archive; gives the digest of its manifest.
    ///
    /// # Errors
    /// `Io` with the path of a file that cannot be read; `InvalidImage` if `writer` fails or a name does not fit.
    pub fn write_oci_archive(&self, writer: impl Write) -> Result<Digest, ImageError> {
        let mut blobs: BTreeMap<Digest, Vec<u8>> = BTreeMap::new();
        let mut put = |bytes: Vec<u8>, media_type: &str| {
            let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
            blobs.insert(descriptor.digest, bytes);
            descriptor
        };
        let mut layers = Vec::new();
        for layer in &self.layers {
            layers.push(put(layer_tar(layer)?, OCI_LAYER));
        }
        // The layers are not compressed, so their digests are their diff ids.
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
        let config = put(config_bytes(&self.config.configuration(CREATED, &diff_ids)), OCI_CONFIG);
        let manifest =
            serde_json::to_vec(&Manifest::new(config, layers)).expect("a manifest is plain values");
        let mut manifest = put(manifest, OCI_MANIFEST);
        manifest.platform = Some(self.config.platform.clone().unwrap_or_else(Platform::host));
        if let Some(reference) = &self.reference {
            let name = reference.without_digest();
            let tag = name.tag().unwrap_or_default().to_owned();
            manifest.annotations =
                Some([(NAME.to_owned(), name.to_string()), (REF_NAME.to_owned(), tag)].into());
        }
        let index =
            serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [manifest] });
        let write = || -> io::Result<()> {
            let mut archive = tar::Builder::new(writer);
            append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
            append(&mut archive, "index.json", index.to_string().as_bytes(), 0o644)?;
            for (digest, bytes) in &blobs {
                append(&mut archive, &format!("blobs/sha256/{}", digest.hex()), bytes, 0o644)?;
            }
            archive.into_inner()?.flush()
        };
        write()
            .map_err(|error| ImageError::invalid("OCI archive", format!("it cannot be written: {error}")))?;
        Ok(manifest.digest)
    }
}

fn layer_tar(nodes: &BTreeMap<String, Node>) -> Result<Vec<u8>, ImageError> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, node) in nodes {
        let appended = match node {
            Node::File(Content::Bytes(bytes), mode) => append(&mut archive, path, bytes, *mode),
            Node::File(Content::Path(source), mode) => {
                let bytes = fs::read(source).map_err(ImageError::io("read", source))?;
                append(&mut archive, path, &bytes, *mode)
            }
            Node::Directory(mode) => {
                let mut header = header(tar::EntryType::Directory, *mode, 0);
                archive.append_data(&mut header, format!("{path}/"), io::empty())
            }
            Node::Symlink(target) => {
                let mut header = header(tar::EntryType::Symlink, 0o777, 0);
                archive.append_link(&mut header, path, target)
            }
        };
        appended.map_err(|error| ImageError::invalid(format!("path `{path}`"), error.to_string()))?;
    }
    Ok(archive.into_inner().expect("writing to memory does not fail"))
}

/// Adds a file owned by root and of time zero.
pub(crate) fn append(
    archive: &mut tar::Builder<impl Write>,
    path: &str,
    bytes: &[u8],
    mode: u32,
) -> io::Result<()> {
    archive.append_data(&mut header(tar::EntryType::Regular, mode, bytes.len() as u64), path, bytes)
}

pub(crate) fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
