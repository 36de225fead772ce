//! From an OCI mount to what the kernel is asked for. Pure.
//!
//! Source: OCI runtime-spec, "Mounts" with its table of options; `mount_setattr(2)`; runc for `tmpcopyup`.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::PlanError;
use super::namespaces::{IdMaps, Namespaces, id_maps};
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
    /// SELinux context of the files that are the container's alone.
    pub label: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A new instance of a file system; `options` are its own, with or without a value.
    FileSystem {
        name: String,
        source: Option<String>,
        options: Vec<(String, Option<String>)>,
        /// What the image has at the target is copied into it (`tmpcopyup`).
        copy_up: bool,
    },
    /// A file or directory of the host.
    Bind {
        source: PathBuf,
        /// Mounts below come along.
        recursive: bool,
        ids: Option<MountIds>,
        /// The number of the descriptor that the creator hands over, where it is the one to open the source.
        given: Option<usize>,
    },
    /// The container's own part of each cgroup hierarchy.
    Cgroup(Cgroup),
}

/// How the owners of a mount's files appear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountIds {
    pub maps: IdSource,
    /// Also on the mounts below.
    pub recursive: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdSource {
    Maps(IdMaps),
    /// Those of an existing user namespace.
    Namespace(PathBuf),
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

/// Options of a whole file system, not of a mount: on a bind mount they change nothing, as with `mount(8)`.
const FILE_SYSTEM_OPTIONS: [&str; 8] =
    ["sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand", "iversion"];
/// Options that say nothing that is not so anyway.
const EMPTY_OPTIONS: [&str; 3] = ["defaults", "silent", "loud"];

/// Options of other runtimes, and one that makes no sense for a new mount.
const REFUSED: [&str; 4] = ["copy-symlink", "src-nofollow", "dest-nofollow", "remount"];

/// Every option that has a meaning for any mount, as `features` reports them. File systems have more of their own.
pub(crate) fn known_options() -> Vec<String> {
    let attributes = ATTRIBUTES.iter().map(|(name, ..)| *name);
    let propagations = PROPAGATIONS.iter().map(|(name, _)| *name);
    let both = attributes.chain(propagations);
    let recursive = both.clone().map(|name| format!("r{name}"));
    let others = ["bind", "rbind", "idmap", "ridmap", "tmpcopyup"];
    let others = others.into_iter().chain(EMPTY_OPTIONS).chain(FILE_SYSTEM_OPTIONS);
    let mut all: Vec<String> = both.chain(others).map(str::to_owned).chain(recursive).collect();
    all.sort();
    all
}

/// How mounts spread between the host, the container's set-up and the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Propagation {
    /// For all mounts that the process has from the host, before anything is mounted: never shared, or the
    /// container's own mounts would appear on the host.
    pub tree: u64,
    /// For the container's root, once it is that.
    pub root: Option<u64>,
}

/// `linux.rootfsPropagation`: private when not given.
pub(super) fn root_propagation(option: Option<&str>) -> Result<Propagation, PlanError> {
    let name = option.unwrap_or_default();
    Ok(match name.strip_prefix('r').unwrap_or(name) {
        "" | "private" => Propagation { tree: libc::MS_PRIVATE, root: None },
        "slave" => Propagation { tree: libc::MS_SLAVE, root: None },
        "shared" => Propagation { tree: libc::MS_SLAVE, root: Some(libc::MS_SHARED) },
        "unbindable" => Propagation { tree: libc::MS_PRIVATE, root: Some(libc::MS_UNBINDABLE) },
        _ => {
            return Err(PlanError::Invalid {
                field: "linux.rootfsPropagation".into(),
                value: name.to_owned(),
                reason: "expected private, slave, shared or unbindable, or one of them with an `r` in front"
                    .to_owned(),
            });
        }
    })
}

/// What the options of a mount say, each for itself.
#[derive(Default)]
struct Options {
    attributes: MountAttributes,
    recursive: MountAttributes,
    /// Whether recursively, if at all.
    bind: Option<bool>,
    ids: Option<bool>,
    copy_up: bool,
    /// Of the file system.
    own: Vec<(String, Option<String>)>,
    /// Of a file system too, but harmless on a bind mount.
    general: Vec<(String, Option<String>)>,
}

impl Options {
    fn add(&mut self, option: &str) -> Result<(), String> {
        if option.contains('\0') {
            return Err("it contains a zero byte".to_owned());
        }
        let name = option.split('=').next().unwrap_or_default();
        match option {
            "bind" | "rbind" => self.bind = Some(option == "rbind" || self.bind == Some(true)),
            "idmap" | "ridmap" => self.ids = Some(option == "ridmap"),
            "tmpcopyup" => self.copy_up = true,
            _ if EMPTY_OPTIONS.contains(&option) => {}
            _ if REFUSED.contains(&name) => return Err("the option is not supported".to_owned()),
            _ if FILE_SYSTEM_OPTIONS.contains(&option) => self.general.push((option.to_owned(), None)),
            _ if apply_attribute(option, &mut self.attributes)
                || apply_propagation(option, &mut self.attributes) => {}
            _ if option.strip_prefix('r').is_some_and(|inner| {
                apply_attribute(inner, &mut self.recursive) || apply_propagation(inner, &mut self.recursive)
            }) => {}
            _ => {
                let (key, value) =
                    option.split_once('=').map_or((option, None), |(k, v)| (k, Some(v.to_owned())));
                if key.is_empty() {
                    return Err("the option has no name".to_owned());
                }
                self.own.push((key.to_owned(), value));
            }
        }
        Ok(())
    }
}

/// Where a mount goes. A relative destination is allowed for old configurations.
pub(super) fn target(mount: &Mount) -> PathBuf {
    Path::new("/").join(mount.destination())
}

/// Whether a mount shows something of the host. Source: OCI runtime-spec, "Mounts".
pub(crate) fn is_bind(mount: &Mount) -> bool {
    let bind = |option: &String| option == "bind" || option == "rbind";
    mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(bind)
}

impl MountPlan {
    /// Of the mount number `at`.
    pub(super) fn of(
        at: usize,
        mount: &Mount,
        cgroup: &Cgroup,
        namespaces: &Namespaces,
    ) -> Result<Self, PlanError> {
        let given = mount.destination();
        let invalid = |field: &str, value: &str, reason: &str| PlanError::Invalid {
            field: format!("mounts[{at}].{field}").into(),
            value: value.escape_debug().to_string(),
            reason: reason.to_owned(),
        };
        if given.as_os_str().is_empty() {
            return Err(invalid("destination", "", "expected a path in the container"));
        }
        let target = target(mount);
        let has_zero = |path: &Path| path.as_os_str().as_encoded_bytes().contains(&0);
        for (field, path) in [("destination", Some(given)), ("source", mount.source().as_ref())] {
            if let Some(path) = path.filter(|path| has_zero(path)) {
                return Err(invalid(field, &path.to_string_lossy(), "it contains a zero byte"));
            }
        }
        let mut options = Options::default();
        for option in mount.options().iter().flatten() {
            options.add(option).map_err(|reason| invalid("options", option, &reason))?;
        }
        let ids = mount_ids(at, mount, options.ids, namespaces)?;
        let name = mount.typ().clone().unwrap_or_default();
        let source = mount.source().clone();
        let kind = if let Some(recursive) = options.bind.or((name == "bind").then_some(false)) {
            // With a value it is one of a file system's, and changes nothing, as with `mount(8)`.
            if let Some((key, _)) = options.own.iter().find(|(_, value)| value.is_none()) {
                return Err(invalid("options", key, "the option has no meaning for a bind mount"));
            }
            if options.copy_up {
                return Err(invalid("options", "tmpcopyup", "the option is for a tmpfs"));
            }
            let source = source.ok_or_else(|| invalid("source", "", "a bind mount needs one"))?;
            if !source.is_absolute() {
                return Err(invalid("source", &source.to_string_lossy(), "expected an absolute path"));
            }
            MountKind::Bind { source, recursive, ids, given: None }
        } else if ids.is_some() {
            return Err(invalid("type", &name, "only bind mounts can map ids"));
        } else if name == "cgroup" || name == "cgroup2" {
            MountKind::Cgroup(cgroup.clone())
        } else if name.is_empty() {
            return Err(invalid("type", "", "a mount that is no bind mount needs one"));
        } else if name.contains('\0') {
            return Err(invalid("type", &name, "it contains a zero byte"));
        } else if options.copy_up && name != "tmpfs" {
            return Err(invalid("options", "tmpcopyup", "the option is for a tmpfs"));
        } else {
            let source = source.map(|source| source.to_string_lossy().into_owned());
            let copy_up = options.copy_up;
            let mut own = options.own;
            own.append(&mut options.general);
            MountKind::FileSystem { name, source, options: own, copy_up }
        };
        let Options { attributes, recursive, .. } = options;
        Ok(Self { target, kind, attributes, recursive, label: None })
    }

    /// `label` is for its files, unless they are the host's or the kernel's, which show themselves with their own.
    pub(super) fn set_label(&mut self, label: Option<&String>) {
        let own = match &self.kind {
            MountKind::FileSystem { name, .. } => name != "proc" && name != "sysfs",
            MountKind::Cgroup(_) => true,
            MountKind::Bind { .. } => false,
        };
        self.label = label.filter(|_| own).cloned();
    }
}

/// The ids of a mount: its own maps, else those of the container's user namespace.
fn mount_ids(
    at: usize,
    mount: &Mount,
    option: Option<bool>,
    namespaces: &Namespaces,
) -> Result<Option<MountIds>, PlanError> {
    let field = |name: &str| format!("mounts[{at}].{name}");
    let invalid = |name: &str, value: &str, reason: &str| PlanError::Invalid {
        field: field(name).into(),
        value: value.to_owned(),
        reason: reason.to_owned(),
    };
    let uids = id_maps(&field("uidMappings"), mount.uid_mappings().as_deref())?;
    let gids = id_maps(&field("gidMappings"), mount.gid_mappings().as_deref())?;
    if uids.is_empty() != gids.is_empty() {
        let (missing, other) =
            if uids.is_empty() { ("uidMappings", "gidMappings") } else { ("gidMappings", "uidMappings") };
        return Err(invalid(missing, "[]", &format!("expected some, as in `{other}`")));
    }
    // Maps without the option mean the same as with `idmap`.
    let Some(recursive) = option.or((!uids.is_empty()).then_some(false)) else { return Ok(None) };
    let maps = if !uids.is_empty() {
        IdSource::Maps(IdMaps { uids, gids })
    } else if let Some(path) = namespaces.user_path() {
        IdSource::Namespace(path.clone())
    } else if let Some(maps) = &namespaces.maps {
        IdSource::Maps(maps.clone())
    } else {
        let reason = "to map ids the mount needs mappings, or the container a user namespace";
        return Err(invalid("options", if recursive { "ridmap" } else { "idmap" }, reason));
    };
    Ok(Some(MountIds { maps, recursive }))
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
