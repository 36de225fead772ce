//! What is wrong with a configuration, found before anything is made: by [`parse`] what has the wrong type, by [`check`]
//! and the other parts of the plan what has the right type and no meaning.
//!
//! Source: OCI runtime-spec, "Configuration" and "Linux Container Configuration".

use std::borrow::Cow;
use std::fmt::Display;
use std::path::Path;

use oci_spec::runtime::{Capability, LinuxDeviceType, LinuxResources, PosixRlimit, Process, Spec};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::namespaces::{Namespaces, host_id};
use super::objects::{Objects, is_plain_capability};
use super::{HostFacts, PlanError};

/// A configuration that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration is not JSON: {reason}")]
    Syntax { reason: String },
    #[error("`{field}` has the invalid value `{value}`: {reason}")]
    Field { field: String, value: String, reason: String },
}

/// So much of a value is shown.
const SHOWN_MAX: usize = 120;
/// `NGROUPS_MAX`.
const GROUPS_MAX: usize = 65_536;
/// `HOST_NAME_MAX`.
const NAME_MAX: usize = 64;

/// Reads a `config.json`. Capabilities that this runtime has never heard of are left out, and named in the second part
/// of the result: nobody could grant them, and the specification wants a warning and no error.
///
/// # Errors
/// Field, value and rule of what has the wrong type; what is no JSON at all.
pub fn parse(bytes: &[u8]) -> Result<(Spec, Vec<String>), ConfigError> {
    if let Ok(spec) = read(bytes) {
        return Ok((spec, Vec::new()));
    }
    // Something is wrong, and there is time to find out what.
    let mut value = document(bytes)?;
    let mut unknown = Vec::new();
    if let Some(process) = value.get_mut("process") {
        complete_process(process);
        unknown = leave_out_unknown_capabilities(process);
    }
    let spec = deserialize(&value)?;
    Ok((spec, unknown))
}

/// The same for a process alone, as `exec` is given it.
///
/// # Errors
/// As [`parse`].
pub fn parse_process(bytes: &[u8]) -> Result<Process, ConfigError> {
    let mut value = document(bytes)?;
    complete_process(&mut value);
    leave_out_unknown_capabilities(&mut value);
    deserialize(&value)
}

/// The same for limits alone, as `update` is given them.
///
/// # Errors
/// As [`parse`].
pub fn parse_resources(bytes: &[u8]) -> Result<LinuxResources, ConfigError> {
    deserialize(&document(bytes)?)
}

/// What to say of a capability that [`parse`] left out.
pub fn unknown_capability(name: &str) -> String {
    format!("nobody can grant the capability `{name}`: it is left out")
}

/// Names of scheduler flags in the specification, and those that the library has for them.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// Who is not named is root, as with runc.
fn complete_process(process: &mut Value) {
    if let Some(process) = process.as_object_mut()
        && process.get("user").is_none_or(Value::is_null)
    {
        process.insert("user".to_owned(), serde_json::json!({ "uid": 0, "gid": 0 }));
    }
    let flags = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        if let Some((_, name)) = SCHEDULER_FLAGS.iter().find(|(name, _)| flag == name) {
            *flag = (*name).into();
        }
    }
}

fn document(bytes: &[u8]) -> Result<Value, ConfigError> {
    serde_json::from_slice(bytes).map_err(|error| ConfigError::Syntax { reason: error.to_string() })
}

fn read(bytes: &[u8]) -> serde_json::Result<Spec> {
    let mut text = serde_json::Deserializer::from_slice(bytes);
    let spec = Spec::deserialize(Objects::of(&mut text))?;
    text.end().map(|()| spec)
}

fn deserialize<T: DeserializeOwned>(value: &Value) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(Objects::of(value)).map_err(|error| {
        let path = error.path();
        let field =
            Some(path.to_string()).filter(|path| path != ".").unwrap_or_else(|| "document".to_owned());
        let found = path.iter().try_fold(value, |value, segment| match segment {
            serde_path_to_error::Segment::Seq { index } => value.get(index),
            serde_path_to_error::Segment::Map { key } => value.get(key),
            _ => Some(value),
        });
        let mut shown = found.map_or_else(String::new, Value::to_string);
        if shown.len() > SHOWN_MAX {
            let end = (0..=SHOWN_MAX).rev().find(|end| shown.is_char_boundary(*end)).unwrap_or(0);
            shown.truncate(end);
            shown.push('…');
        }
        ConfigError::Field { field, value: shown, reason: error.inner().to_string() }
    })
}

fn leave_out_unknown_capabilities(process: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(Value::as_array_mut) {
        set.retain(|name| {
            let Some(text) = name.as_str() else { return true };
            let known =
                is_plain_capability(text) && serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !known && !unknown.iter().any(|other| other == text) {
                unknown.push(text.to_owned());
            }
            known
        });
    }
    unknown
}

fn invalid(field: impl Into<Cow<'static, str>>, value: impl Display, reason: impl Into<String>) -> PlanError {
    PlanError::Invalid {
        field: field.into(),
        value: value.to_string().replace('\0', "\\0"),
        reason: reason.into(),
    }
}

/// What [`is_variable`] is about.
pub(super) const VARIABLE: &str = "expected `NAME=value` without a zero byte";

pub(super) fn is_variable(entry: &str) -> bool {
    entry.find('=').is_some_and(|at| at > 0) && !entry.contains('\0')
}

/// Bits of a mode that engines give beside the permissions: the kernel's for the type of a file, and Go's.
const TYPE_BITS: u32 = 0o170_000 | 1 << 21 | 1 << 25 | 1 << 26;

/// The number that calls of the kernel read as "leave it as it is", and that nobody therefore has.
const NOBODY: u32 = u32::MAX;

/// A user or group whose number is one.
fn check_id(field: impl Into<Cow<'static, str>>, id: u32) -> Result<(), PlanError> {
    if id != NOBODY {
        return Ok(());
    }
    let reason = "expected 0 to 4294967294: the kernel reads this number as no user or group at all";
    Err(invalid(field, id, reason))
}

/// Rules that concern one field and nothing else.
///
/// # Errors
/// The first field that breaks one.
pub fn check(spec: &Spec) -> Result<(), PlanError> {
    check_version(spec.version())?;
    for (field, name) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        let Some(name) = name else { continue };
        if name.len() > NAME_MAX || name.contains('\0') {
            return Err(invalid(
                field,
                name,
                format!("expected at most {NAME_MAX} bytes without a zero byte"),
            ));
        }
    }
    if let Some((key, _)) = spec.annotations().iter().flatten().find(|(key, _)| key.is_empty()) {
        return Err(invalid("annotations", key, "expected a name that is not empty"));
    }
    if spec.vm().is_some() {
        return Err(super::not_supported("vm"));
    }
    if let Some(process) = spec.process() {
        check_process(process)?;
    }
    let Some(linux) = spec.linux() else { return Ok(()) };
    for (field, paths) in
        [("linux.maskedPaths", linux.masked_paths()), ("linux.readonlyPaths", linux.readonly_paths())]
    {
        for (at, path) in paths.iter().flatten().enumerate() {
            if !path.starts_with('/') || path.contains('\0') {
                let field = format!("{field}[{at}]");
                return Err(invalid(field, path, "expected an absolute path without a zero byte"));
            }
        }
    }
    for (at, device) in linux.devices().iter().flatten().enumerate() {
        let path = device.path();
        let field = |name: &str| format!("linux.devices[{at}].{name}");
        if !is_plain(path) {
            return Err(invalid(field("path"), path.display(), "expected an absolute path of a file"));
        }
        for (name, id) in [("uid", device.uid()), ("gid", device.gid())] {
            check_id(field(name), id.unwrap_or(0))?;
        }
        if let Some(mode) = device.file_mode().filter(|mode| mode & !(0o7777 | TYPE_BITS) != 0) {
            return Err(invalid(field("fileMode"), mode, "expected at most 0o7777, which is 4095"));
        }
        let numbered = device.typ() != LinuxDeviceType::P;
        for (name, number, max) in
            [("major", device.major(), (1 << 12) - 1), ("minor", device.minor(), (1 << 20) - 1)]
        {
            if numbered && !(0..=max).contains(&number) {
                return Err(invalid(
                    field(name),
                    number,
                    format!("expected 0 to {max} for `{}`", path.display()),
                ));
            }
        }
    }
    Ok(())
}

/// 1.0.0 to 1.3.x, with whatever a release candidate has behind.
fn check_version(version: &str) -> Result<(), PlanError> {
    let numbers = version.split(['-', '+']).next().unwrap_or_default();
    let mut parts = numbers.split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten(), parts.next().flatten(), parts.next()) {
        (Some(1), Some(0..=3), Some(_), None) => Ok(()),
        _ => Err(invalid("ociVersion", version, "expected 1.0.0 to 1.3.x")),
    }
}

pub(super) fn check_process(process: &Process) -> Result<(), PlanError> {
    let user = process.user();
    check_id("process.user.uid", user.uid())?;
    check_id("process.user.gid", user.gid())?;
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    if groups.len() > GROUPS_MAX {
        let value = format!("{} groups", groups.len());
        return Err(invalid("process.user.additionalGids", value, format!("expected at most {GROUPS_MAX}")));
    }
    for (at, group) in groups.iter().enumerate() {
        check_id(format!("process.user.additionalGids[{at}]"), *group)?;
    }
    for (at, word) in process.args().iter().flatten().enumerate() {
        if word.contains('\0') {
            return Err(invalid(format!("process.args[{at}]"), word, "it contains a zero byte"));
        }
    }
    for (at, entry) in process.env().iter().flatten().enumerate() {
        if !is_variable(entry) {
            return Err(invalid(format!("process.env[{at}]"), entry, VARIABLE));
        }
    }
    super::process::exec_affinity(process)?;
    if let Some(umask) = user.umask().filter(|umask| *umask > 0o777) {
        return Err(invalid("process.user.umask", umask, "expected at most 0o777, which is 511"));
    }
    if let Some(adjustment) = process.oom_score_adj().filter(|value| !(-1000..=1000).contains(value)) {
        return Err(invalid("process.oomScoreAdj", adjustment, "expected -1000 to 1000"));
    }
    if let Some(size) = process.console_size() {
        for (field, cells) in
            [("process.consoleSize.width", size.width()), ("process.consoleSize.height", size.height())]
        {
            if cells > u64::from(u16::MAX) {
                return Err(invalid(field, cells, format!("expected at most {}", u16::MAX)));
            }
        }
    }
    let limits: Vec<_> = process.rlimits().iter().flatten().map(PosixRlimit::typ).collect();
    if let Some((at, twice)) = limits.iter().enumerate().find(|(at, kind)| limits[..*at].contains(kind)) {
        return Err(invalid(format!("process.rlimits[{at}].type"), twice, "it is there twice"));
    }
    let cwd = process.cwd();
    if !cwd.is_absolute() || cwd.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(invalid("process.cwd", cwd.display(), "expected an absolute path without a zero byte"));
    }
    Ok(())
}

/// Absolute, and ending in a name.
fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.file_name().is_some() && !path.as_os_str().as_encoded_bytes().contains(&0)
}

/// Rules about fields that only some namespaces allow.
pub(super) fn check_namespaces(
    spec: &Spec,
    process: &Process,
    namespaces: &Namespaces,
    host: &HostFacts,
) -> Result<(), PlanError> {
    let user = process.user();
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    if let Some(maps) = &namespaces.maps {
        let ids =
            [("process.user.uid", &maps.uids, user.uid()), ("process.user.gid", &maps.gids, user.gid())];
        let more = groups.iter().map(|group| ("process.user.additionalGids", &maps.gids, *group));
        for (field, map, id) in ids.into_iter().chain(more) {
            if host_id(map, id).is_none() {
                return Err(invalid(field, id, "the mappings of the user namespace do not contain it"));
            }
        }
    }
    if host.rootless {
        if !namespaces.has(libc::CLONE_NEWUSER) {
            let reason = "without privileges on the host a container needs a user namespace";
            return Err(invalid("linux.namespaces", "no user namespace", reason));
        }
        let single =
            namespaces.maps.as_ref().is_none_or(|maps| maps.gids.len() == 1 && maps.gids[0].size == 1);
        if let Some(group) = groups.first().filter(|_| single) {
            let reason = "without privileges on the host, and with one group mapped, groups cannot be set";
            return Err(invalid("process.user.additionalGids", group, reason));
        }
        if namespaces.birth.time.is_some() {
            let reason = "without privileges on the host a time namespace cannot be made";
            return Err(invalid("linux.namespaces", "time", reason));
        }
    }
    if namespaces.creates(libc::CLONE_NEWNS) {
        return Ok(());
    }
    let filled = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let linux = spec.linux().as_ref();
    let refused = [
        ("mounts", spec.mounts().as_ref().is_some_and(|mounts| !mounts.is_empty())),
        ("root.readonly", spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly) == Some(true)),
        ("linux.maskedPaths", linux.is_some_and(|linux| filled(linux.masked_paths()))),
        ("linux.readonlyPaths", linux.is_some_and(|linux| filled(linux.readonly_paths()))),
        ("linux.devices", linux.is_some_and(|l| l.devices().as_ref().is_some_and(|list| !list.is_empty()))),
        ("linux.sysctl", linux.is_some_and(|l| l.sysctl().as_ref().is_some_and(|map| !map.is_empty()))),
        ("linux.rootfsPropagation", linux.is_some_and(|linux| linux.rootfs_propagation().is_some())),
    ];
    let Some((field, _)) = refused.iter().find(|(_, set)| *set) else { return Ok(()) };
    let reason = "the container joins a mount namespace, whose file systems are others' and stay as they are";
    Err(invalid(*field, "set", reason))
}
