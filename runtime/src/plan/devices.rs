//! Device nodes and links of the container's `/dev`. Pure.
//!
//! Source: OCI runtime-spec, "Devices" and "Default Devices", "Dev symbolic links".

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDeviceType, Mount};

use super::mounts::{is_bind, target};
use super::{Device, Inside, PlanError};

/// The device nodes every container has. Source: OCI runtime-spec, "Default Devices".
const DEFAULT_DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

pub(super) fn devices(linux: &Linux, mounts: &[Mount], inside: &mut Vec<Inside>) -> Result<(), PlanError> {
    // A /dev of the host has its nodes, and must not get ours.
    let host_dev = mounts.iter().any(|mount| target(mount) == Path::new("/dev") && is_bind(mount));
    let asked = linux.devices().as_deref().unwrap_or_default();
    // What the configuration has in the place of one of these is meant.
    let is_asked = |path: &Path| asked.iter().any(|device| device.path() == path);
    if !host_dev {
        let defaults = DEFAULT_DEVICES.map(|(name, major, minor)| {
            let path = PathBuf::from(format!("/dev/{name}"));
            Device { path, kind: libc::S_IFCHR, major, minor, mode: 0o666, uid: 0, gid: 0 }
        });
        inside.extend(defaults.into_iter().filter(|device| !is_asked(&device.path)).map(Inside::Device));
        let links = DEVICE_LINKS
            .iter()
            .filter(|(name, _)| *name == "ptmx" || !is_asked(&Path::new("/dev").join(name)));
        inside.extend(links.map(|(name, target)| Inside::DeviceLink { name, target }));
    }
    for (at, device) in asked.iter().enumerate() {
        // A privileged container is given all of the host's nodes; this one is the link into its own devpts.
        if device.path().as_path() == Path::new("/dev/ptmx") {
            continue;
        }
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
            LinuxDeviceType::B => libc::S_IFBLK,
            LinuxDeviceType::P => libc::S_IFIFO,
            LinuxDeviceType::A => {
                let field = format!("linux.devices[{at}].type").into();
                let reason = "expected `c`, `u`, `b` or `p`: `a` is only for rules".to_owned();
                return Err(PlanError::Invalid { field, value: "a".to_owned(), reason });
            }
        };
        inside.push(Inside::Device(Device {
            path: device.path().clone(),
            kind,
            major: u32::try_from(device.major()).unwrap_or(0),
            minor: u32::try_from(device.minor()).unwrap_or(0),
            mode: device.file_mode().unwrap_or(0o666) & 0o7777,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        }));
    }
    Ok(())
}
