//! Image manifests and indexes, of OCI and of Docker schema 2.
//!
//! Source: OCI image-spec, `manifest.md`, `image-index.md`, `media-types.md`; Docker "Image Manifest Version 2, Schema 2".

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::{digest::Digest, error::ImageError, platform::Platform};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Largest manifest, index or config that is read: the size registries themselves accept.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// overlayfs takes up to 500 layers, Docker 127; no sane image has more than these.
const MAX_LAYERS: usize = 127;

/// A pointer to content: what it is, its digest and its length in bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        Descriptor { media_type: media_type.to_owned(), digest, size, platform: None, annotations: None }
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// True for layers whose license forbids to give them away. Source: OCI image-spec, `layer.md`,
    /// "Non-Distributable Layers".
    pub fn is_nondistributable(&self) -> bool {
        self.media_type.contains(".nondistributable.") || self.media_type.contains(".foreign.")
    }

    /// True for provenance and signatures that builders put beside the images of an index.
    fn is_attestation(&self) -> bool {
        self.annotation("vnd.docker.reference.type").is_some()
            || self.platform.as_ref().is_some_and(|p| p.os == "unknown" && p.arch == "unknown")
    }
}

/// An image manifest: one config, layers from the base up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        Manifest { schema_version: 2, media_type: OCI_MANIFEST.to_owned(), config, layers }
    }

    /// The manifest's media type, which may be left out within it.
    pub fn own_media_type(&self) -> &str {
        match self.media_type.as_str() {
            "" if self.config.media_type == DOCKER_CONFIG => DOCKER_MANIFEST,
            "" => OCI_MANIFEST,
            own => own,
        }
    }

    /// Refuses what is not a container image (charts, modules, encrypted layers) by its media type, and too many layers.
    pub fn check(&self, what: &str) -> Result<(), ImageError> {
        if ![OCI_CONFIG, DOCKER_CONFIG].contains(&self.config.media_type.as_str()) {
            let media_type = self.config.media_type.clone();
            return Err(ImageError::UnsupportedMediaType {
                what: format!("the config of {what}"),
                media_type,
            });
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(ImageError::invalid(
                what,
                format!("{} layers, more than {MAX_LAYERS}", self.layers.len()),
            ));
        }
        match self.layers.iter().find(|layer| !is_layer(&layer.media_type)) {
            None => Ok(()),
            Some(layer) => Err(ImageError::UnsupportedMediaType {
                what: format!("layer `{}` of {what}", layer.digest),
                media_type: layer.media_type.clone(),
            }),
        }
    }
}

fn is_layer(media_type: &str) -> bool {
    matches!(
        media_type,
        OCI_LAYER
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
}

/// What a reference points to.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

/// Reads a manifest or an index; `what` names it in messages.
pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<Document, ImageError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        schema_version: u32,
        #[serde(default)]
        media_type: String,
        manifests: Option<serde_json::Value>,
    }
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Descriptor>,
    }
    let invalid = |source| ImageError::InvalidJson { what: format!("the manifest of {what}"), source };
    let probe: Probe = serde_json::from_slice(bytes).map_err(invalid)?;
    if probe.schema_version == 1 {
        return Err(ImageError::UnsupportedSchema { reference: what.trim_matches('`').to_owned() });
    }
    match (probe.media_type.as_str(), probe.manifests.is_some()) {
        (OCI_INDEX | DOCKER_LIST, _) | ("", true) => {
            let index: Index = serde_json::from_slice(bytes).map_err(invalid)?;
            Ok(Document::Index(index.manifests.into_iter().filter(|entry| !entry.is_attestation()).collect()))
        }
        (OCI_MANIFEST | DOCKER_MANIFEST | "", _) => {
            let manifest: Manifest = serde_json::from_slice(bytes).map_err(invalid)?;
            manifest.check(what)?;
            Ok(Document::Manifest(manifest))
        }
        (other, _) => {
            Err(ImageError::UnsupportedMediaType { what: what.to_owned(), media_type: other.to_owned() })
        }
    }
}

/// The entry of an index for `wanted`. One that names no platform is taken if it is the only one; its config decides.
pub(crate) fn choose<'a>(
    entries: &'a [Descriptor],
    wanted: &Platform,
    reference: &str,
) -> Result<&'a Descriptor, ImageError> {
    if let [only] = entries
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let (with, platforms): (Vec<&Descriptor>, Vec<Platform>) =
        entries.iter().filter_map(|entry| Some((entry, entry.platform.clone()?))).unzip();
    wanted.choose(&platforms).map(|position| with[position]).ok_or_else(|| ImageError::NoPlatform {
        reference: reference.to_owned(),
        wanted: wanted.clone(),
        available: platforms,
    })
}

/// The platform that an image's config says it is for.
pub(crate) fn config_platform(config: &ImageConfiguration) -> Platform {
    Platform::new(&config.os().to_string(), &config.architecture().to_string(), config.variant().as_deref())
}

/// Reads a config, and checks that it fits `layers` layers and runs on `wanted`.
pub(crate) fn parse_config(
    bytes: &[u8],
    layers: usize,
    wanted: &Platform,
    reference: &str,
) -> Result<(ImageConfiguration, Vec<Digest>), ImageError> {
    let config = read_config(bytes, reference)?;
    let offered = config_platform(&config);
    if wanted.rank(&offered).is_none() {
        return Err(ImageError::NoPlatform {
            reference: reference.to_owned(),
            wanted: wanted.clone(),
            available: vec![offered],
        });
    }
    let diff_ids = diff_ids(&config)?;
    if diff_ids.len() != layers {
        return Err(ImageError::invalid(
            format!("image `{reference}`"),
            format!("its config names {} layers, its manifest {layers}", diff_ids.len()),
        ));
    }
    Ok((config, diff_ids))
}

pub(crate) fn read_config(bytes: &[u8], reference: &str) -> Result<ImageConfiguration, ImageError> {
    let what = format!("the config of `{reference}`");
    serde_json::from_slice(bytes).map_err(|source| ImageError::InvalidJson { what, source })
}

/// The digests of an image's uncompressed layers, from the base up.
pub(crate) fn diff_ids(config: &ImageConfiguration) -> Result<Vec<Digest>, ImageError> {
    config.rootfs().diff_ids().iter().map(|text| text.parse()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn entry(platform: Option<&str>) -> Descriptor {
        let mut entry = Descriptor::new(OCI_MANIFEST, D.parse().unwrap(), 1);
        entry.platform = platform.map(|text| text.parse().unwrap());
        entry
    }

    #[test]
    fn missing_platform_lists_what_there_is() {
        let entries = [entry(Some("linux/amd64")), entry(Some("linux/s390x"))];
        let error = choose(&entries, &"linux/arm64".parse().unwrap(), "x").unwrap_err();
        assert_eq!(
            error.to_string(),
            "no manifest for linux/arm64 in `x`, which has linux/amd64, linux/s390x"
        );
    }

    #[test]
    fn attestations_are_no_images() {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[
                {{"digest":"{D}","size":1,"platform":{{"os":"unknown","architecture":"unknown"}}}},
                {{"digest":"{D}","size":2,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
        );
        let Document::Index(entries) = parse(text.as_bytes(), "`x`").unwrap() else { panic!("an index") };
        assert_eq!(entries.iter().map(|entry| entry.size).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let config = |media: &str| {
            format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"{media}","digest":"{D}","size":1}},"layers":[]}}"#
            )
        };
        for (text, wanted) in [
            (r#"{"schemaVersion":1,"name":"x"}"#.to_owned(), "schema 1"),
            (config("application/vnd.cncf.helm.config.v1+json"), "helm"),
            ("{".to_owned(), "not valid JSON"),
            (r#"{"schemaVersion":2,"mediaType":"text/x"}"#.to_owned(), "text/x"),
        ] {
            let message = parse(text.as_bytes(), "`x`").unwrap_err().to_string();
            assert!(message.contains(wanted), "{message}");
        }
    }

    #[test]
    fn configs_as_docker_writes_them_are_read() {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","docker_version":"1","container":"x",
                "config":{{"Hostname":"","Cmd":null,"Entrypoint":null,"Volumes":null,"ExposedPorts":{{"80/tcp":{{}}}},
                "Labels":null,"OnBuild":null,"Env":["A=b"],"Healthcheck":{{"Test":["CMD","x"],"Interval":1}},
                "ArgsEscaped":true,"Shell":["/bin/sh"]}},
                "history":[{{"created_by":"x","empty_layer":true}}],"rootfs":{{"type":"layers","diff_ids":["{D}"]}}}}"#
        );
        let (config, ids) = parse_config(text.as_bytes(), 1, &"linux/amd64".parse().unwrap(), "x").unwrap();
        assert_eq!(ids, [D.parse().unwrap()]);
        let config = config.config().as_ref().unwrap();
        assert_eq!(config.exposed_ports().as_deref().unwrap(), ["80/tcp"]);
        assert_eq!((config.cmd(), config.volumes()), (&None, &None));
    }
}
