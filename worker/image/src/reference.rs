//! Image references as Docker reads them: `nginx`, `host:5000/team/app:1.2@sha256:…`.
//!
//! Source: `distribution/reference`, `reference.go` (grammar) and `normalize.go` (defaults: `docker.io`, `library/`,
//! `latest`).

use std::{fmt, str::FromStr};

use crate::{digest::Digest, error::ImageError};

/// The registry meant when a reference names none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag meant when a reference names neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
const OFFICIAL_PREFIX: &str = "library/";
/// Longest repository name (host and path) that registries accept.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;
/// As a name it would make `sha256:…` mean two things.
const DIGEST_ALGORITHM: &str = "sha256";

/// A normalised reference: registry, repository path, and a tag, a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's `host[:port]`, for example `docker.io`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry, for example `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.path
    }

    /// The tag; `None` only where a digest was given without one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference is pinned.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Registry and path, without tag or digest: `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// The same reference pinned to `digest`; a tag is kept.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { digest: Some(digest), ..self.clone() }
    }

    /// The same reference without its digest (`latest` if it had no tag).
    #[must_use]
    pub fn without_digest(&self) -> Reference {
        let tag = self.tag.clone().unwrap_or_else(|| DEFAULT_TAG.to_owned());
        Reference { tag: Some(tag), digest: None, ..self.clone() }
    }

    /// `name@digest`, without a tag: the key under which a store knows content.
    pub fn pinned_name(&self, digest: Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// The name as a user would write it: `nginx`, `team/app`, `host:5000/app`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        self.path.strip_prefix(OFFICIAL_PREFIX).unwrap_or(&self.path).to_owned()
    }

    /// The whole reference as a user would write it, tag and digest included.
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_name(), self.suffix())
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map_or(String::new(), |tag| format!(":{tag}"));
        let digest = self.digest.map_or(String::new(), |digest| format!("@{digest}"));
        tag + &digest
    }
}

/// Prints the full, normalised form: `docker.io/library/nginx:latest`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.path, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Reference, ImageError> {
        let invalid = |reason: String| ImageError::InvalidReference { reference: text.to_owned(), reason };
        if text.is_empty() {
            return Err(invalid("it is empty".into()));
        }
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid("64 hex digits are an image id, not a name".into()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse::<Digest>().map_err(|e| invalid(e.to_string()))?))
            }
            None => (text, None),
        };
        // A colon after the last slash starts a tag; one before it belongs to the registry's port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag).map_err(invalid)?;
        }
        let (registry, path) = split_name(name);
        if registry == DEFAULT_REGISTRY
            && path.strip_prefix(OFFICIAL_PREFIX).unwrap_or(path) == DIGEST_ALGORITHM
        {
            return Err(invalid(format!("`{DIGEST_ALGORITHM}` is a digest algorithm, and no name")));
        }
        let path = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("{OFFICIAL_PREFIX}{path}")
        } else {
            path.to_owned()
        };
        check_registry(&registry).map_err(invalid)?;
        check_path(&path).map_err(invalid)?;
        if registry.len() + 1 + path.len() > MAX_NAME {
            return Err(invalid(format!("its name is longer than {MAX_NAME} characters")));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Reference { registry, path, tag, digest })
    }
}

/// Splits `host/path`; the first part is a host only if it looks like one (`.`, `:`, `localhost`, an upper-case letter).
fn split_name(name: &str) -> (String, &str) {
    match name.split_once('/') {
        Some((host, path))
            if host.contains(['.', ':'])
                || host == "localhost"
                || host.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            let host = if host == "index.docker.io" { DEFAULT_REGISTRY } else { host };
            (host.to_owned(), path)
        }
        _ => (DEFAULT_REGISTRY.to_owned(), name),
    }
}

fn check_registry(registry: &str) -> Result<(), String> {
    let bad = || format!("`{registry}` is not a valid registry host");
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or_else(bad)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
        ("ipv6", if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(bad)?) })
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if !host.split('.').all(label) {
        return Err(bad());
    }
    match port {
        Some(port)
            if port.is_empty()
                || !port.bytes().all(|b| b.is_ascii_digit())
                || port.parse::<u16>().is_err() =>
        {
            Err(bad())
        }
        _ => Ok(()),
    }
}

fn check_path(path: &str) -> Result<(), String> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("a repository name must be lower case".into());
    }
    for part in path.split('/') {
        if part.is_empty() {
            return Err("a part of its name is empty".into());
        }
        if !valid_component(part) {
            return Err(format!(
                "`{part}` is not a valid name: expected lower-case letters and digits, with `.`, `_`, `__` or `-` between them"
            ));
        }
    }
    Ok(())
}

/// `[a-z0-9]+` groups joined by `.`, `_`, `__` or any number of `-`.
fn valid_component(part: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(first) || !alphanumeric(last) {
        return false;
    }
    bytes
        .split(alphanumeric)
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

fn check_tag(tag: &str) -> Result<(), String> {
    let first_ok = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !first_ok
        || !tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        || tag.len() > MAX_TAG
    {
        return Err(format!(
            "`{tag}` is not a valid tag: expected up to {MAX_TAG} letters, digits, `_`, `.` or `-`, not starting with `.` or `-`"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn check(text: &str, full: &str, familiar: &str) {
        let reference: Reference = text.parse().unwrap();
        assert_eq!(
            (reference.to_string().as_str(), reference.familiar().as_str()),
            (full, familiar),
            "{text}"
        );
        assert_eq!(full.parse::<Reference>().unwrap(), reference);
    }

    #[test]
    fn references_normalise_as_docker_does() {
        check("nginx", "docker.io/library/nginx:latest", "nginx:latest");
        check("nginx:1.25", "docker.io/library/nginx:1.25", "nginx:1.25");
        check("team/app", "docker.io/team/app:latest", "team/app:latest");
        check("docker.io/nginx", "docker.io/library/nginx:latest", "nginx:latest");
        check("index.docker.io/library/nginx", "docker.io/library/nginx:latest", "nginx:latest");
        check("localhost/x", "localhost/x:latest", "localhost/x:latest");
        check("127.0.0.1:5000/x/y:tag", "127.0.0.1:5000/x/y:tag", "127.0.0.1:5000/x/y:tag");
        check("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest");
        check("team/sha256:1", "docker.io/team/sha256:1", "team/sha256:1");
        check("a__b/c---d.e_f", "docker.io/a__b/c---d.e_f:latest", "a__b/c---d.e_f:latest");
        check(&format!("nginx@{D}"), &format!("docker.io/library/nginx@{D}"), &format!("nginx@{D}"));
        check(&format!("r.io:1/x/y:t@{D}"), &format!("r.io:1/x/y:t@{D}"), &format!("r.io:1/x/y:t@{D}"));
    }

    #[test]
    fn invalid_references_are_refused_with_the_reason() {
        for (text, wanted) in [
            ("", "empty"),
            ("NGINX", "lower case"),
            ("nginx:", "tag"),
            ("nginx:-x", "tag"),
            ("a//b", "empty"),
            ("-a", "`-a`"),
            ("a..b", "`a..b`"),
            ("a___b", "`a___b`"),
            ("host:99999/x", "host:99999"),
            ("nginx@sha256:12", "64"),
            ("nginx@sha512:12", "sha256"),
            ("http://x/y", "host"),
            ("a b", "`a b`"),
            (&"a".repeat(64), "image id"),
            (&"x".repeat(300), "255"),
            ("../x", "host"),
            ("sha256", "digest algorithm"),
            (D, "digest algorithm"),
            ("docker.io/library/sha256:1", "digest algorithm"),
        ] {
            let message = text.parse::<Reference>().unwrap_err().to_string();
            assert!(message.contains(wanted), "{text}: {message}");
        }
    }
}
