//! Which namespaces a container has, and how its first process comes into them. Pure.
//!
//! Most are made together with the process. Those it joins are entered beforehand, by the process itself where that
//! works, else by an intermediary that then makes the process (see [`Birth`]).
//!
//! Source: OCI runtime-spec, "Linux Container Configuration / Namespaces", "User namespace mappings" and "Offset for
//! Time Namespace"; `namespaces(7)`, `user_namespaces(7)`, `time_namespaces(7)`.

use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};

use super::{HostFacts, Label, PlanError};

/// A range of ids: `size` of them from `container` on inside are those from `host` on outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    pub container: u32,
    pub host: u32,
    pub size: u32,
}

/// The ids of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    pub uids: Vec<IdMap>,
    pub gids: Vec<IdMap>,
}

/// What has to be done before the container's first process can be made. An intermediary does it, makes the process as
/// its sibling and is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Birth {
    /// Namespaces to enter: `CLONE_NEW*` and path. The order is the kernel's business and settled on the way.
    pub join: Vec<(i32, PathBuf)>,
    /// A new time namespace with these lines of `/proc/self/timens_offsets`.
    pub time: Option<String>,
    /// What it takes before.
    pub labels: Vec<Label>,
}

/// The namespaces of a container, by what happens to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Namespaces {
    /// `CLONE_NEW*` bits, without the cgroup namespace, which can only be made inside the cgroup, and without the time
    /// namespace, which a process enters at birth only.
    pub created: u64,
    pub cgroup: bool,
    /// Entered by the process itself.
    pub joined: Vec<(i32, PathBuf)>,
    pub birth: Birth,
    /// Ids of the user namespace, if there is one and they are known.
    pub maps: Option<IdMaps>,
    /// Of those that are entered, the host's own.
    pub of_host: u64,
}

/// As many ranges as the kernel takes for one map.
const RANGES_MAX: usize = 340;
/// Half of the seconds that the kernel's 64 bits of nanoseconds hold. Source: Linux `kernel/time/namespace.c`.
const CLOCK_MAX: i64 = i64::MAX / 1_000_000_000 / 2;

impl Namespaces {
    pub fn of(linux: &Linux, host: &HostFacts) -> Result<Self, PlanError> {
        let mut all = Self { of_host: host.joined, ..Self::default() };
        let mut joined: Vec<(i32, PathBuf)> = Vec::new();
        let mut seen = 0;
        for (at, namespace) in linux.namespaces().iter().flatten().enumerate() {
            let kind = kind(namespace.typ());
            let invalid = |field: &str, value: String, reason: &str| PlanError::Invalid {
                field: format!("linux.namespaces[{at}].{field}").into(),
                value: value.escape_debug().to_string(),
                reason: reason.to_owned(),
            };
            if seen & kind as u64 != 0 {
                let reason = "a container has one namespace of each kind";
                return Err(invalid("type", name(kind).to_owned(), reason));
            }
            seen |= kind as u64;
            // An empty path is none, as with runc.
            match namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
                Some(path) if !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0) => {
                    let reason = "expected an absolute path without a zero byte";
                    return Err(invalid("path", path.display().to_string(), reason));
                }
                Some(path) => joined.push((kind, path.clone())),
                None if kind == libc::CLONE_NEWCGROUP => all.cgroup = true,
                None if kind == libc::CLONE_NEWTIME => all.birth.time = Some(String::new()),
                None => all.created |= kind as u64,
            }
        }
        if seen & libc::CLONE_NEWNS as u64 == 0 {
            return Err(PlanError::Missing { field: "linux.namespaces: mount" });
        }
        all.time(linux, seen, host.uptime)?;
        all.maps(linux, seen)?;
        // A process cannot enter these itself, or not without losing sight of what it needs to enter the others.
        let early = libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWTIME;
        if joined.iter().any(|(kind, _)| kind & early != 0) {
            all.birth.join = joined;
        } else {
            all.joined = joined;
        }
        Ok(all)
    }

    fn time(&mut self, linux: &Linux, seen: u64, uptime: Duration) -> Result<(), PlanError> {
        let Some(offsets) = linux.time_offsets().as_ref().filter(|offsets| !offsets.is_empty()) else {
            return Ok(());
        };
        let invalid = |field: &str, value: &str, reason: &str| PlanError::Invalid {
            field: format!("linux.timeOffsets{field}").into(),
            value: value.escape_debug().to_string(),
            reason: reason.to_owned(),
        };
        let Some(text) = self.birth.time.as_mut() else {
            let reason = if seen & libc::CLONE_NEWTIME as u64 == 0 {
                "the container has no time namespace"
            } else {
                "the container joins a time namespace, whose offsets are settled"
            };
            return Err(invalid("", &offsets.keys().cloned().collect::<Vec<_>>().join(", "), reason));
        };
        let mut sorted: Vec<_> = offsets.iter().collect();
        sorted.sort_by_key(|(clock, _)| *clock);
        for (clock, offset) in sorted {
            if !matches!(clock.as_str(), "monotonic" | "boottime") {
                return Err(invalid("", clock, "expected monotonic or boottime"));
            }
            let (seconds, nanos) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            if nanos >= 1_000_000_000 {
                let field = format!(".{clock}.nanosecs");
                return Err(invalid(&field, &nanos.to_string(), "expected less than 1000000000 nanoseconds"));
            }
            // The clock of a container shows no time before the host began, nor one that the kernel could not count on from.
            let least = -i64::try_from(uptime.as_secs()).unwrap_or(i64::MAX);
            if !(least..=CLOCK_MAX + least).contains(&seconds) {
                let reason =
                    format!("expected {least} to {}: this host has run for {} s", CLOCK_MAX + least, -least);
                return Err(invalid(&format!(".{clock}.secs"), &seconds.to_string(), &reason));
            }
            text.push_str(&format!("{clock} {seconds} {nanos}\n"));
        }
        Ok(())
    }

    fn maps(&mut self, linux: &Linux, seen: u64) -> Result<(), PlanError> {
        let uids = id_maps("linux.uidMappings", linux.uid_mappings().as_deref())?;
        let gids = id_maps("linux.gidMappings", linux.gid_mappings().as_deref())?;
        let made = self.creates(libc::CLONE_NEWUSER);
        for (field, maps) in [("linux.uidMappings", &uids), ("linux.gidMappings", &gids)] {
            if made && maps.is_empty() {
                return Err(PlanError::Missing { field });
            }
            if seen & libc::CLONE_NEWUSER as u64 == 0 && !maps.is_empty() {
                return Err(PlanError::Invalid {
                    field: field.into(),
                    value: format!("{} ranges", maps.len()),
                    reason: "the container has no user namespace".to_owned(),
                });
            }
            if !maps.is_empty() && host_id(maps, 0).is_none() {
                return Err(PlanError::Invalid {
                    field: field.into(),
                    value: format!("{} ranges", maps.len()),
                    reason: "id 0 of the container is not among them, and it is set up as that".to_owned(),
                });
            }
        }
        self.maps = (!uids.is_empty() && !gids.is_empty()).then_some(IdMaps { uids, gids });
        Ok(())
    }

    pub fn creates(&self, kind: i32) -> bool {
        self.created & kind as u64 != 0
    }

    pub fn joins(&self, kind: i32) -> bool {
        self.joined.iter().chain(&self.birth.join).any(|(joined, _)| *joined == kind)
    }

    /// Has its own, or another container's, namespace of this kind: not the host's.
    pub fn has(&self, kind: i32) -> bool {
        self.creates(kind) || self.joins(kind)
    }

    /// The container must have its own namespace of this kind, or `field` would change the host.
    pub fn require(&self, kind: i32, field: &'static str, value: &str) -> Result<(), PlanError> {
        if self.has(kind) && self.of_host & kind as u64 == 0 {
            return Ok(());
        }
        let reason = "the container shares this namespace with the host".to_owned();
        Err(PlanError::Invalid { field: field.into(), value: value.to_owned(), reason })
    }

    /// The user namespace it joins.
    pub fn user_path(&self) -> Option<&PathBuf> {
        self.birth.join.iter().find(|(kind, _)| *kind == libc::CLONE_NEWUSER).map(|(_, path)| path)
    }
}

/// The host's id for one of the container's.
pub fn host_id(maps: &[IdMap], id: u32) -> Option<u32> {
    let range = maps.iter().find(|map| id >= map.container && id - map.container < map.size)?;
    Some(range.host + (id - range.container))
}

/// One list of mappings, checked as the kernel would.
pub(super) fn id_maps(field: &str, mappings: Option<&[LinuxIdMapping]>) -> Result<Vec<IdMap>, PlanError> {
    let mappings = mappings.unwrap_or_default();
    if mappings.len() > RANGES_MAX {
        return Err(PlanError::Invalid {
            field: field.to_owned().into(),
            value: format!("{} ranges", mappings.len()),
            reason: format!("expected at most {RANGES_MAX}"),
        });
    }
    let mut maps: Vec<IdMap> = Vec::with_capacity(mappings.len());
    for (at, mapping) in mappings.iter().enumerate() {
        let invalid = |value: String, reason: String| {
            let field = format!("{field}[{at}]").into();
            Err(PlanError::Invalid { field, value, reason })
        };
        let map = IdMap { container: mapping.container_id(), host: mapping.host_id(), size: mapping.size() };
        let value = format!("{} {} {}", map.container, map.host, map.size);
        if map.size == 0 {
            return invalid(value, "expected a size of 1 or more".to_owned());
        }
        // The last id of all stands for "none".
        if map.container.checked_add(map.size).is_none() || map.host.checked_add(map.size).is_none() {
            return invalid(value, "the range ends above the largest id".to_owned());
        }
        let overlaps = |a: u32, b: u32, size: u32| a < b + size && b < a + map.size;
        if let Some(other) = maps.iter().find(|other| {
            overlaps(map.container, other.container, other.size) || overlaps(map.host, other.host, other.size)
        }) {
            let reason =
                format!("it overlaps with the range {} {} {}", other.container, other.host, other.size);
            return invalid(value, reason);
        }
        maps.push(map);
    }
    Ok(maps)
}

/// As the kernel wants it in `/proc/<pid>/uid_map`.
pub fn map_text(maps: &[IdMap]) -> String {
    maps.iter().map(|map| format!("{} {} {}\n", map.container, map.host, map.size)).collect()
}

pub(super) fn kind(kind: LinuxNamespaceType) -> i32 {
    match kind {
        LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
        LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET,
        LinuxNamespaceType::User => libc::CLONE_NEWUSER,
        LinuxNamespaceType::Time => libc::CLONE_NEWTIME,
    }
}

/// The specification's name of a `CLONE_NEW*` flag.
pub fn name(kind: i32) -> &'static str {
    match kind {
        libc::CLONE_NEWNS => "mount",
        libc::CLONE_NEWCGROUP => "cgroup",
        libc::CLONE_NEWUTS => "uts",
        libc::CLONE_NEWIPC => "ipc",
        libc::CLONE_NEWPID => "pid",
        libc::CLONE_NEWNET => "network",
        libc::CLONE_NEWUSER => "user",
        libc::CLONE_NEWTIME => "time",
        _ => "unknown",
    }
}
