//! Leaving nothing: ends what runs on hosts and removes what was made for it. Works from names and paths alone, so it
//! does not matter who made the lab, whether that process lives, or how far it came.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use rswarm_net::lab as wire;
use rswarm_runtime::cgroup::Layout;
use rswarm_runtime::{Containers, ShimCommand};

use crate::error::LabError;
use crate::processes::{self, Process};
use crate::{LabConfig, host};

/// How long killed processes may take to be gone. Only one that hangs in the kernel gets near it.
const END: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
/// How long a cgroup may still hold processes that are found no more: they lose their words some time before their place.
const LEAVING: Duration = Duration::from_secs(5);
/// The cgroup of shims, beside those of containers. Known from the runtime.
const SHIMS: &str = "shims";

/// Ends and removes a lab.
pub fn lab(config: &LabConfig) -> Result<(), LabError> {
    let mut errors = Vec::new();
    for number in numbers(config) {
        let name = host::name(number);
        let netns = PathBuf::from(format!("/run/rswarm-lab/rswlab-{}-{number}", config.name));
        let data_root = config.data_dir.join(&name);
        end_host(&netns, &data_root, &mut errors);
    }
    if let Err(error) = wire::Lab::destroy_named(&config.name) {
        errors.push(text(&error));
    }
    for directory in [&config.data_dir, &config.run_dir] {
        unmount_below(directory, &mut errors);
        remove(directory, &mut errors);
    }
    for directory in [&config.data_dir, &config.run_dir] {
        // What several labs share goes with the last of them.
        if let Some(parent) = directory.parent()
            && parent.file_name().is_some_and(|name| name.to_string_lossy().starts_with("rswarm-"))
        {
            let _ = fs::remove_dir(parent);
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(LabError::Leftovers(errors)) }
}

/// The hosts there are or were, by namespaces and directories.
fn numbers(config: &LabConfig) -> BTreeSet<usize> {
    let mut found: BTreeSet<usize> = wire::Lab::namespaces_of(&config.name)
        .iter()
        .filter_map(|path| path.file_name()?.to_str()?.rsplit_once('-')?.1.parse().ok())
        .collect();
    for directory in [&config.data_dir, &config.run_dir] {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        found
            .extend(entries.filter_map(|entry| {
                entry.file_name().to_str()?.strip_prefix("host-")?.parse::<usize>().ok()
            }));
    }
    found
}

/// Kills everything on a host at once, as when the power fails: nothing gets to write down how it ended.
pub fn kill_all(netns: &Path, data_root: &Path) -> Result<(), LabError> {
    let deadline = Instant::now() + END;
    loop {
        let mut found = processes::of_host(netns, data_root);
        if found.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            let left =
                found.iter().map(|process| format!("process {} ({})", process.pid, process.words.join(" ")));
            return Err(LabError::Leftovers(left.collect()));
        }
        // The daemon first, lest it start anew what dies; then shims, lest they note the end of their containers.
        found.sort_by_key(|process| (!process.is_daemon(), !process.is_shim()));
        found.iter().for_each(Process::kill);
        std::thread::sleep(POLL);
    }
    // A container whose shim died while it was being made is known by its record only.
    let containers = containers(data_root);
    for id in containers.list().unwrap_or_default() {
        let _ = containers.open(&id);
    }
    Ok(())
}

fn containers(data_root: &Path) -> Containers {
    Containers::new(data_root.join("containers"), ShimCommand::default())
}

fn end_host(netns: &Path, data_root: &Path, errors: &mut Vec<String>) {
    let mut parents = cgroup_parents(netns, data_root);
    if let Err(error) = kill_all(netns, data_root) {
        errors.push(text(&error));
    }
    let containers = containers(data_root);
    for id in containers.list().unwrap_or_default() {
        if let Err(error) = containers.open(&id).and_then(|container| container.delete()) {
            errors.push(text(&error));
        }
    }
    let Ok(layout) = Layout::detect() else { return };
    let mounts: Vec<PathBuf> = layout.v1.into_iter().map(|one| one.mount).chain(layout.unified).collect();
    while let Some(parent) = parents.pop_last() {
        let relative = parent.trim_matches('/');
        if relative.is_empty() {
            continue;
        }
        for mount in &mounts {
            // These hold nothing any more, or belong to others as well: then removing them fails, as it should.
            let directory = mount.join(relative);
            remove_left(&directory.join(SHIMS));
            for directory in directory.ancestors().take_while(|directory| directory != mount) {
                let _ = fs::remove_dir(directory);
            }
        }
    }
}

/// Removes a cgroup that everybody has left or is leaving.
fn remove_left(cgroup: &Path) {
    let deadline = Instant::now() + LEAVING;
    while fs::remove_dir(cgroup).is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
        && Instant::now() < deadline
    {
        std::thread::sleep(POLL);
    }
}

/// The cgroups above those of the host's containers: read from the requests their shims were started with, and from
/// where the shims are.
fn cgroup_parents(netns: &Path, data_root: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(data_root.join("containers")).into_iter().flatten().flatten();
    let requested = entries.filter_map(|entry| {
        let request = fs::read(entry.path().join("shim.json")).ok()?;
        let request: serde_json::Value = serde_json::from_slice(&request).ok()?;
        let (parent, _) = request.get("cgroup")?.as_str()?.rsplit_once('/')?;
        Some(parent.to_owned())
    });
    let shims = processes::of_host(netns, data_root).into_iter().filter(Process::is_shim);
    let lived_in = shims.flat_map(|shim| {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", shim.pid)).unwrap_or_default();
        let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2)?.strip_suffix("/shims"));
        paths.map(str::to_owned).collect::<Vec<_>>()
    });
    requested.chain(lived_in).collect()
}

fn unmount_below(directory: &Path, errors: &mut Vec<String>) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    // The last mount first: it may lie on another.
    let points: Vec<PathBuf> = points.filter(|point| point.starts_with(directory)).collect();
    for point in points.iter().rev() {
        if let Err(error) = umount2(point, MntFlags::MNT_DETACH) {
            errors.push(format!("failed to unmount `{}`: {error}", point.display()));
        }
    }
}

fn remove(directory: &Path, errors: &mut Vec<String>) {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            errors.push(format!("failed to remove `{}`: {error}", directory.display()));
        }
        _ => {}
    }
}

/// An error and its causes on one line.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_whose_last_process_is_leaving_is_removed() {
        let layout = Layout::detect().expect("the mounts can be read");
        let mounts = layout.v1.iter().map(|one| &one.mount).chain(layout.unified.iter());
        let Some(mount) = mounts.last().filter(|_| nix::unistd::geteuid().is_root()) else {
            return eprintln!(
                "skipped: `a_cgroup_whose_last_process_is_leaving_is_removed` needs root and cgroups"
            );
        };
        let cgroup = mount.join(format!("rswarm-test-sweep-{}", std::process::id()));
        fs::create_dir(&cgroup).expect("a cgroup can be made");
        let mut last = std::process::Command::new("/bin/sleep").arg("0.1").spawn().expect("sleep runs");
        let joined = fs::write(cgroup.join("cgroup.procs"), last.id().to_string());
        remove_left(&cgroup);
        let left = cgroup.exists();
        last.wait().expect("it ends");
        let _ = fs::remove_dir(&cgroup);
        joined.expect("it can be moved there");
        assert!(!left);
    }
}
