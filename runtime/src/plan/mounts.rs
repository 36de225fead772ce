//! From an OCI mount to what the kernel is asked for. Pure.
//!
//! Source: OCI runtime-spec, "Mounts" with its table of options; `mount_setattr(2)`.

use std::path::PathBuf;

use oci_spec::runtime::Mount;

use super::PlanError;
use crate::cgroup::Cgroup;
use crate::sys::MountAttributes;

/// One mount below the container's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPlan {
    /// Absolute path in the container; made if missing.
    pub target: PathBuf,
    pub kind: MountKind,
    /// For the mount itself.
    pub attributes: MountAttributes,
    /// For it and all mounts below (`rro` and its like, `rprivate` and its like).
    pub recursive: MountAttributes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A new instance of a file system; `options` are its own, with or without a value.
    FileSystem { name: String, source: Option<String>, options: Vec<(String, Option<String>)> },
    /// A file or directory of the host; `recursive` brings the mounts below along.
    Bind { source: PathBuf, recursive: bool },
    /// The container's own part of each cgroup hierarchy.
    Cgroup(Cgroup),
}

const ATIME_MASK: u64 = libc::MOUNT_ATTR__ATIME;

/// Per-mount options: name, bits to set, bits to clear.
const ATTRIBUTES: [(&str, u64, u64); 18] = [
    ("ro", libc::MOUNT_ATTR_RDONLY, 0),
    ("rw", 0, libc::MOUNT_ATTR_RDONLY),
    ("nosuid", libc::MOUNT_ATTR_NOSUID, 0),
    ("suid", 0, libc::MOUNT_ATTR_NOSUID),
    ("nodev", libc::MOUNT_ATTR_NODEV, 0),
    ("dev", 0, libc::MOUNT_ATTR_NODEV),
    ("noexec", libc::MOUNT_ATTR_NOEXEC, 0),
    ("exec", 0, libc::MOUNT_ATTR_NOEXEC),
    ("nodiratime", libc::MOUNT_ATTR_NODIRATIME, 0),
    ("diratime", 0, libc::MOUNT_ATTR_NODIRATIME),
    ("nosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, 0),
    ("symfollow", 0, libc::MOUNT_ATTR_NOSYMFOLLOW),
    ("noatime", libc::MOUNT_ATTR_NOATIME, ATIME_MASK),
    ("atime", libc::MOUNT_ATTR_RELATIME, ATIME_MASK),
    ("relatime", libc::MOUNT_ATTR_RELATIME, ATIME_MASK),
    ("norelatime", libc::MOUNT_ATTR_STRICTATIME, ATIME_MASK),
    ("strictatime", libc::MOUNT_ATTR_STRICTATIME, ATIME_MASK),
    ("nostrictatime", libc::MOUNT_ATTR_RELATIME, ATIME_MASK),
];

const PROPAGATIONS: [(&str, u64); 4] = [
    ("private", libc::MS_PRIVATE),
    ("slave", libc::MS_SLAVE),
    ("shared", libc::MS_SHARED),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// Options of OCI or other runtimes that are neither the kernel's nor ours.
const REFUSED: [&str; 5] = ["idmap", "ridmap", "tmpcopyup", "copy-symlink", "src-nofollow"];

/// The propagation of the container's whole tree: private when not given. `shared` would carry the container's mounts
/// to the host, and the kernel cannot pivot out of it.
pub(super) fn root_propagation(option: Option<&str>) -> Result<u64, PlanError> {
    match option.unwrap_or_default() {
        "" | "private" | "rprivate" => Ok(libc::MS_PRIVATE),
        "slave" | "rslave" => Ok(libc::MS_SLAVE),
        other => Err(PlanError::Invalid {
            field: "linux.rootfsPropagation",
            value: other.to_owned(),
            reason: "expected private or slave".to_owned(),
        }),
    }
}

/// Names of all mount options that are neither a file system's own nor `key=value`.
pub fn mount_options() -> Vec<String> {
    let flags = ATTRIBUTES.iter().map(|(name, ..)| *name).chain(PROPAGATIONS.iter().map(|(name, _)| *name));
    let both = flags.flat_map(|name| [name.to_owned(), format!("r{name}")]);
    let mut all: Vec<String> = both.chain(["bind", "rbind", "defaults"].map(str::to_owned)).collect();
    all.sort();
    all
}

impl MountPlan {
    pub(super) fn of(mount: &Mount, cgroup: &Cgroup) -> Result<Self, PlanError> {
        let target = mount.destination().clone();
        let invalid = |reason: &str| PlanError::Invalid {
            field: "mounts",
            value: target.display().to_string(),
            reason: reason.to_owned(),
        };
        if !target.is_absolute() {
            return Err(invalid("expected an absolute destination"));
        }
        let mapped =
            |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|list: &Vec<_>| !list.is_empty());
        if mapped(mount.uid_mappings()) || mapped(mount.gid_mappings()) {
            return Err(invalid("id-mapped mounts are not supported yet"));
        }
        let mut attributes = MountAttributes::default();
        let mut recursive = MountAttributes::default();
        let mut bind = None;
        let mut options = Vec::new();
        for option in mount.options().iter().flatten().map(String::as_str) {
            if matches!(option, "bind" | "rbind") {
                bind = Some(option == "rbind" || bind == Some(true));
            } else if option == "defaults" {
                // Says nothing.
            } else if REFUSED.iter().any(|name| option.split('=').next() == Some(name)) {
                return Err(invalid(&format!("option `{option}` is not supported yet")));
            } else if apply_attribute(option, &mut attributes) || apply_propagation(option, &mut attributes) {
            } else if let Some(inner) = option.strip_prefix('r')
                && (apply_attribute(inner, &mut recursive) || apply_propagation(inner, &mut recursive))
            {
            } else {
                let (key, value) =
                    option.split_once('=').map_or((option, None), |(k, v)| (k, Some(v.to_owned())));
                options.push((key.to_owned(), value));
            }
        }
        let name = mount.typ().clone().unwrap_or_default();
        let source = mount.source().clone();
        let kind = if let Some(recursive) = bind.or((name == "bind").then_some(false)) {
            if let Some((key, _)) = options.first() {
                return Err(invalid(&format!("option `{key}` has no meaning for a bind mount")));
            }
            let source = source.ok_or_else(|| invalid("a bind mount needs a source"))?;
            if !source.is_absolute() {
                return Err(invalid("expected an absolute source"));
            }
            MountKind::Bind { source, recursive }
        } else if name == "cgroup" || name == "cgroup2" {
            MountKind::Cgroup(cgroup.clone())
        } else if name.is_empty() {
            return Err(invalid("a mount that is no bind mount needs a type"));
        } else {
            let source = source.map(|source| source.to_string_lossy().into_owned());
            MountKind::FileSystem { name, source, options }
        };
        Ok(Self { target, kind, attributes, recursive })
    }
}

fn apply_attribute(option: &str, attributes: &mut MountAttributes) -> bool {
    let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| *name == option) else { return false };
    // The last word wins.
    attributes.set = attributes.set & !clear | set;
    attributes.clear = attributes.clear & !set | clear;
    true
}

fn apply_propagation(option: &str, attributes: &mut MountAttributes) -> bool {
    let Some((_, bits)) = PROPAGATIONS.iter().find(|(name, _)| *name == option) else { return false };
    attributes.propagation = *bits;
    true
}
