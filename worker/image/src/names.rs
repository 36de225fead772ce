//! Which manifest a name means, and which names there are: tags and pinned names belong to manifests, ids to images.

use std::{cmp::Reverse, collections::BTreeSet};

use crate::{
    digest::Digest,
    error::ImageError,
    index::{Index, Record},
    manifest::config_platform,
    platform::Platform,
    reference::Reference,
    store::{Image, State},
};

impl State {
    /// The manifest that `text` means; of several of an image the preferred one.
    pub fn find(&self, text: &str) -> Result<Digest, ImageError> {
        self.find_all(text).map(|manifests| manifests[0])
    }

    /// The manifests that `text` means: one for a name or the digest of a manifest; for an id, or the beginning of one,
    /// all of that image, the preferred one first. Never none.
    pub fn find_all(&self, text: &str) -> Result<Vec<Digest>, ImageError> {
        let missing = || ImageError::NoSuchImage { reference: text.to_owned() };
        if let Ok(digest) = text.parse::<Digest>() {
            let manifests = match self.images.contains_key(&digest) {
                true => vec![digest],
                false => self.manifests_of(&digest),
            };
            return if manifests.is_empty() { Err(missing()) } else { Ok(manifests) };
        }
        if let Ok(reference) = text.parse::<Reference>()
            && let Some(manifest) = self.find_reference(&reference)
        {
            return Ok(vec![manifest]);
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.is_empty()
            || prefix.len() > 64
            || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(missing());
        }
        let ids = self.images.values().map(|image| image.id).filter(|id| id.hex().starts_with(prefix));
        let matches: Vec<Digest> = ids.collect::<BTreeSet<_>>().into_iter().collect();
        match matches.as_slice() {
            [] => Err(missing()),
            [id] => Ok(self.manifests_of(id)),
            several => Err(ImageError::AmbiguousId { prefix: text.to_owned(), matches: several.len() }),
        }
    }

    fn manifests_of(&self, id: &Digest) -> Vec<Digest> {
        let mut manifests = self.index.manifests_of(id);
        manifests.retain(|manifest| self.images.contains_key(manifest));
        manifests
    }

    /// By digest if the reference has one, else by tag. Any of its names with the manifest's digest counts as pinned name.
    ///
    /// The digest of an index may stand for manifests of several platforms: this host's goes before others.
    pub fn find_reference(&self, reference: &Reference) -> Option<Digest> {
        let name = reference.name();
        let named = |record: &Record| {
            record.tags.iter().any(|tag| is_of(tag, ':', &name))
                || record.digests.iter().any(|pinned| is_of(pinned, '@', &name))
        };
        let matches = |manifest: &Digest, record: &Record| match reference.digest() {
            None => record.tags.contains(&reference.to_string()),
            Some(digest) => {
                record.digests.contains(&reference.pinned_name(digest))
                    || *manifest == digest && named(record)
            }
        };
        let foreign = |image: &Image| Platform::host().rank(&config_platform(&image.config)).is_none();
        self.images
            .iter()
            .filter(|(manifest, _)| matches(manifest, &self.index.manifests[manifest]))
            .min_by_key(|(manifest, image)| (reference.digest() != Some(**manifest), foreign(image)))
            .map(|(manifest, _)| *manifest)
    }
}

impl Record {
    /// True if nothing but its digest or the image's id means it.
    pub fn is_nameless(&self) -> bool {
        self.tags.is_empty() && self.digests.is_empty()
    }
}

impl Index {
    /// The manifests of an image, the preferred one first: with a tag, else with a pinned name, else the lowest digest.
    pub fn manifests_of(&self, id: &Digest) -> Vec<Digest> {
        let mut found: Vec<_> = self.manifests.iter().filter(|(_, record)| record.id == *id).collect();
        found.sort_by_key(|(_, record)| Reverse((!record.tags.is_empty(), !record.digests.is_empty())));
        found.into_iter().map(|(manifest, _)| *manifest).collect()
    }

    /// Adds a manifest. Pinned names with its digest are its own: a store of before there were several manifests of an
    /// image may have given them to another one.
    pub fn add(&mut self, manifest: Digest, record: Record) {
        let mark = format!("@{manifest}");
        for other in self.manifests.values_mut() {
            other.digests.retain(|name| !name.ends_with(&mark));
        }
        self.manifests.insert(manifest, record);
    }

    /// Gives `tag` to one manifest alone.
    pub fn assign(&mut self, tag: &str, manifest: Digest) {
        for (other, record) in &mut self.manifests {
            if *other == manifest {
                record.tags.insert(tag.to_owned());
            } else {
                record.tags.remove(tag);
            }
        }
    }

    /// Takes manifests out. Gives the ids of images that are gone with them, and the digests of manifests of the others.
    pub fn remove(&mut self, manifests: &[Digest]) -> Vec<Digest> {
        let taken: Vec<(Digest, Record)> = manifests
            .iter()
            .filter_map(|manifest| self.manifests.remove(manifest).map(|record| (*manifest, record)))
            .collect();
        let remains = |id: Digest| self.manifests.values().any(|record| record.id == id);
        let gone = taken.iter().map(|(manifest, record)| match remains(record.id) {
            true => *manifest,
            false => record.id,
        });
        gone.collect::<BTreeSet<Digest>>().into_iter().collect()
    }

    /// Takes from the manifests that `text` means the names that removing `text` removes; gives them as a user writes
    /// them.
    pub fn take_names(
        &mut self,
        manifests: &[Digest],
        text: &str,
        force: bool,
    ) -> Result<Vec<String>, ImageError> {
        if let [manifest] = manifests
            && let Some(record) = self.manifests.get_mut(manifest)
            && let Ok(reference) = text.parse::<Reference>()
            && (reference.digest().is_some() || record.tags.contains(&reference.to_string()))
        {
            return Ok(take_name(record, &reference).iter().map(|name| familiar(name)).collect());
        }
        let tags = manifests.iter().flat_map(|manifest| &self.manifests[manifest].tags);
        let names: Vec<String> = tags.map(|name| familiar(name)).collect();
        if names.len() > 1 && !force {
            return Err(ImageError::SeveralNames { image: text.to_owned(), names });
        }
        let mut gone = Vec::new();
        for manifest in manifests {
            if let Some(record) = self.manifests.get_mut(manifest) {
                gone.extend(std::mem::take(&mut record.tags));
                gone.extend(std::mem::take(&mut record.digests));
            }
        }
        Ok(gone.iter().map(|name| familiar(name)).collect())
    }
}

fn take_name(record: &mut Record, reference: &Reference) -> Vec<String> {
    let name = reference.name();
    let mut gone = Vec::new();
    if reference.tag().is_some() {
        gone.extend(record.tags.take(&reference.without_digest().to_string()));
    }
    // Pinned names go when they are meant themselves, or with the last tag of their repository.
    if reference.digest().is_some() || !record.tags.iter().any(|tag| is_of(tag, ':', &name)) {
        gone.extend(record.digests.extract_if(.., |full| is_of(full, '@', &name)));
    }
    if gone.is_empty() {
        // A local image found by name and manifest digest: it has no pinned name, only tags.
        gone.extend(record.tags.extract_if(.., |full| is_of(full, ':', &name)));
    }
    gone
}

/// Refuses what cannot be a new name.
pub(crate) fn check_new(reference: &Reference) -> Result<(), ImageError> {
    if reference.digest().is_none() {
        return Ok(());
    }
    let reason = "a new name has a tag and no digest".to_owned();
    Err(ImageError::InvalidReference { reference: reference.familiar(), reason })
}

/// Whether a full `name:tag` or `name@digest`, by its `mark`, is one of `name`.
fn is_of(full: &str, mark: char, name: &str) -> bool {
    full.rsplit_once(mark).is_some_and(|(of, _)| of == name)
}

/// A full name as a user writes it.
pub(crate) fn familiar(full: &str) -> String {
    full.parse::<Reference>().map_or_else(|_| full.to_owned(), |reference| reference.familiar())
}
