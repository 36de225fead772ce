//! What images take and how it is given back: history, disk use, pruning.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use crate::{
    blobs::Blobs,
    digest::Digest,
    error::ImageError,
    manifest::MAX_DOCUMENT,
    store::{Image, ImageStore, Removed},
};

/// One step in the making of an image, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryEntry {
    /// RFC 3339; empty if the image does not say.
    pub created: String,
    pub created_by: String,
    pub comment: String,
    /// Length of the files in the step's layer in bytes; 0 if it made none.
    pub size_bytes: u64,
}

/// What one manifest of an image takes on disk, in bytes.
#[derive(Clone, Debug)]
pub struct ImageUsage {
    pub image: Image,
    /// Layers, packed and unpacked, and configs that others have as well.
    pub shared_bytes: u64,
    /// What goes with it.
    pub unique_bytes: u64,
    /// Who uses it, if anyone does.
    pub user: Option<String>,
}

/// What the store takes on disk, in bytes.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    pub images: Vec<ImageUsage>,
    /// Blobs and unpacked layers of all images, each counted once.
    pub image_bytes: u64,
    /// Of these, what goes if every image that nobody uses is removed.
    pub reclaimable_bytes: u64,
    /// Downloads under way or broken off, with those of their layers that are whole.
    pub partial_bytes: u64,
    /// Of these, what no operation under way relies on.
    pub reclaimable_partial_bytes: u64,
}

/// Which images [`ImageStore::prune`] may remove.
#[derive(Clone, Debug, Default)]
pub struct PruneFilter {
    /// Also those that have a tag.
    pub all: bool,
    /// Only those made before this.
    pub until: Option<jiff::Timestamp>,
    /// Only those with all these labels; `None` means any value.
    pub labels: Vec<(String, Option<String>)>,
    /// None of those with any of these labels.
    pub without_labels: Vec<(String, Option<String>)>,
}

/// What [`ImageStore::prune`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub removed: Removed,
    pub freed_bytes: u64,
}

/// Something on disk that images share.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Blob(Digest),
    /// Unpacked, by diff id.
    Layer(Digest),
}

impl PruneFilter {
    /// Adds one `key=value` as `docker image prune --filter` takes it: `until`, `label`, `label!`, `dangling`.
    ///
    /// # Errors
    /// `InvalidFilter`.
    pub fn add(&mut self, key: &str, value: &str, now: jiff::Timestamp) -> Result<(), ImageError> {
        let invalid = |reason: &str| ImageError::InvalidFilter {
            filter: format!("{key}={value}"),
            reason: reason.to_owned(),
        };
        let label = |text: &str| match text.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (text.to_owned(), None),
        };
        match key {
            "until" => {
                let at = moment(value, now).ok_or_else(|| {
                    invalid("expected a time span like `24h`, or a time like `2024-05-01T12:00:00Z`")
                })?;
                self.until = Some(self.until.map_or(at, |known| known.min(at)));
            }
            "label" => self.labels.push(label(value)),
            "label!" => self.without_labels.push(label(value)),
            "dangling" => match value {
                "true" | "1" => self.all = false,
                "false" | "0" => self.all = true,
                _ => return Err(invalid("expected `true` or `false`")),
            },
            _ => return Err(invalid("expected `until`, `label`, `label!` or `dangling`")),
        }
        Ok(())
    }

    fn admits(&self, image: &Image) -> bool {
        if !self.all && !image.references.is_empty() {
            return false;
        }
        if let Some(until) = self.until
            && image.created_at().is_none_or(|created| created >= until)
        {
            return false;
        }
        let labels =
            image.config.config().as_ref().and_then(|config| config.labels().clone()).unwrap_or_default();
        let has = |(key, value): &(String, Option<String>)| {
            labels.get(key).is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        };
        self.labels.iter().all(has) && !self.without_labels.iter().any(has)
    }
}

/// A span back from now (`1h30m`, `2 days`), a time, a date, or seconds since the epoch.
fn moment(text: &str, now: jiff::Timestamp) -> Option<jiff::Timestamp> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Some(at);
    }
    if let Ok(span) = text.parse::<jiff::SignedDuration>() {
        return now.checked_sub(span).ok();
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return jiff::Timestamp::from_second(seconds).ok();
    }
    let at: jiff::civil::DateTime = text.parse().ok()?;
    Some(at.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

impl Image {
    /// What belongs to it, with its length in bytes: its documents, and of each layer blob and files.
    pub(crate) fn parts(&self, blobs: &Blobs) -> HashMap<Part, u64> {
        let blob = |digest: &Digest| {
            let length = std::fs::metadata(blobs.path(digest)).map_or(0, |metadata| metadata.len());
            (Part::Blob(*digest), length)
        };
        let documents = [self.id, self.manifest_digest];
        let layers = self.layers.iter().zip(&self.layer_bytes);
        documents
            .iter()
            .chain(&self.blobs)
            .map(blob)
            .chain(layers.map(|(diff_id, bytes)| (Part::Layer(*diff_id), *bytes)))
            .collect()
    }
}

impl ImageStore {
    /// How the image was made, newest step first.
    ///
    /// # Errors
    /// `NoSuchImage`, `AmbiguousId`; `MissingBlob` or `CorruptBlob` of its config.
    pub fn history(&self, reference_or_id: &str) -> Result<(Image, Vec<HistoryEntry>), ImageError> {
        #[derive(Deserialize)]
        struct Config {
            #[serde(default)]
            history: Option<Vec<Step>>,
        }
        #[derive(Deserialize)]
        struct Step {
            #[serde(default)]
            created: Option<String>,
            #[serde(default)]
            created_by: String,
            #[serde(default)]
            comment: String,
            #[serde(default)]
            empty_layer: bool,
        }
        let image = self.find(reference_or_id)?;
        let bytes = self.inner.blobs.read(&image.id, MAX_DOCUMENT)?;
        let what = format!("the history of `{reference_or_id}`");
        let config: Config =
            serde_json::from_slice(&bytes).map_err(|source| ImageError::InvalidJson { what, source })?;
        let mut sizes = image.layer_bytes.iter().copied();
        let mut entries: Vec<HistoryEntry> = config
            .history
            .unwrap_or_default()
            .into_iter()
            .map(|step| HistoryEntry {
                created: step.created.unwrap_or_default(),
                created_by: step.created_by,
                comment: step.comment,
                size_bytes: if step.empty_layer { 0 } else { sizes.next().unwrap_or_default() },
            })
            .collect();
        // Builders may leave the history out: the layers are there all the same.
        entries.extend(sizes.map(|size_bytes| HistoryEntry { size_bytes, ..HistoryEntry::default() }));
        entries.reverse();
        Ok((image, entries))
    }

    /// What the images take on disk. Reads no layer, so it is quick also for many.
    ///
    /// # Errors
    /// `Io` with the path.
    pub fn usage(&self) -> Result<Usage, ImageError> {
        let images = self.list();
        let users: Vec<Option<String>> = {
            let state = self.state();
            images.iter().map(|image| self.user_of_manifest(&state, image)).collect()
        };
        let mut sizes: HashMap<Part, u64> = HashMap::new();
        let mut owners: HashMap<Part, usize> = HashMap::new();
        let mut contents = Vec::new();
        for image in &images {
            let parts = image.parts(&self.inner.blobs);
            for (part, bytes) in &parts {
                sizes.insert(*part, *bytes);
                *owners.entry(*part).or_default() += 1;
            }
            contents.push(parts);
        }
        let used = contents.iter().zip(&users).filter(|(_, user)| user.is_some());
        let needed: HashSet<Part> = used.flat_map(|(parts, _)| parts.keys().copied()).collect();
        let usage = |((image, parts), user): ((Image, HashMap<Part, u64>), Option<String>)| {
            let shared_bytes =
                parts.iter().filter(|(part, _)| owners[part] > 1).map(|(_, bytes)| bytes).sum();
            let all: u64 = parts.values().sum();
            ImageUsage { image, shared_bytes, unique_bytes: all - shared_bytes, user }
        };
        Ok(Usage {
            image_bytes: sizes.values().sum(),
            reclaimable_bytes: sizes.iter().filter(|(part, _)| !needed.contains(part)).map(|(_, b)| b).sum(),
            partial_bytes: self.bytes_beside(false)?,
            reclaimable_partial_bytes: self.bytes_beside(true)?,
            images: images.into_iter().zip(contents).zip(users).map(usage).collect(),
        })
    }

    /// Removes images that nobody uses and that `filter` admits, and what only they needed; also what broken
    /// downloads left. Blocking.
    ///
    /// # Errors
    /// Index write errors, after which nothing has changed; `Io` with the path while files are deleted.
    pub fn prune(&self, filter: &PruneFilter) -> Result<Pruned, ImageError> {
        let mut removed = Removed::default();
        {
            let mut state = self.state();
            let mut index = state.index.clone();
            let candidates: Vec<Image> = state
                .images
                .values()
                .filter(|image| filter.admits(image) && self.user_of_manifest(&state, image).is_none())
                .cloned()
                .collect();
            for image in &candidates {
                removed.untagged.extend(image.references.iter().chain(&image.digests).cloned());
            }
            let manifests: Vec<Digest> = candidates.iter().map(|image| image.manifest_digest).collect();
            removed.deleted = index.remove(&manifests);
            if !removed.deleted.is_empty() {
                self.replace(&mut state, index)?;
            }
        }
        let freed_bytes = self.collect(true)?;
        Ok(Pruned { removed, freed_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_as_docker_reads_them() {
        let now: jiff::Timestamp = "2024-05-02T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("24h", Some("2024-05-01T12:00:00Z")),
            ("1h30m", Some("2024-05-02T10:30:00Z")),
            ("2024-01-01T00:00:00Z", Some("2024-01-01T00:00:00Z")),
            ("2024-01-01T00:00:00", Some("2024-01-01T00:00:00Z")),
            ("2024-01-01", Some("2024-01-01T00:00:00Z")),
            ("0", Some("1970-01-01T00:00:00Z")),
            ("soon", None),
        ] {
            let mut filter = PruneFilter::default();
            let added = filter.add("until", text, now);
            assert_eq!(filter.until.map(|at| at.to_string()), expected.map(str::to_owned), "{text}");
            assert_eq!(added.is_ok(), expected.is_some(), "{text}");
        }
        let mut filter = PruneFilter::default();
        filter.add("label", "a=b", now).unwrap();
        filter.add("label!", "keep", now).unwrap();
        filter.add("dangling", "false", now).unwrap();
        assert!(filter.all);
        assert_eq!(filter.labels, [("a".to_owned(), Some("b".to_owned()))]);
        assert_eq!(filter.without_labels, [("keep".to_owned(), None)]);
        for (key, value) in [("dangling", "maybe"), ("name", "x")] {
            assert!(matches!(filter.add(key, value, now), Err(ImageError::InvalidFilter { .. })), "{key}");
        }
    }
}
