//! Which cgroup hierarchies this host has, and where they are mounted.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The host's hierarchies. v1 ones empty = a v2 host; both = a hybrid host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub v1: Vec<Hierarchy>,
    /// Mount point of the v2 tree.
    pub unified: Option<PathBuf>,
    /// Controllers of the v2 tree: all on a v2 host, those without a v1 hierarchy of their own on a hybrid one.
    #[serde(default)]
    pub unified_controllers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// One or more, such as `cpu` and `cpuacct`, in the kernel's order; or a single `name=…`.
    pub controllers: Vec<String>,
    pub mount: PathBuf,
}

/// Options of a v1 mount that are not names of controllers.
const OTHER_OPTIONS: [&str; 7] = ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "all"];

impl Layout {
    /// Looks at this process's mounts.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn detect() -> io::Result<Self> {
        let mut layout = std::fs::read_to_string("/proc/self/mountinfo").map(|text| Self::parse(&text))?;
        if let Some(unified) = &layout.unified {
            let names = std::fs::read_to_string(unified.join("cgroup.controllers")).unwrap_or_default();
            layout.unified_controllers = names.split_ascii_whitespace().map(str::to_owned).collect();
        }
        Ok(layout)
    }

    /// The directory that the process `pid` is in with respect to `controller`, if this host has it. The v2 tree freezes
    /// without a controller.
    pub fn place_of(&self, pid: i32, controller: &str) -> Option<PathBuf> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        self.find(&text, controller)
    }

    /// In the text of `/proc/<pid>/cgroup`. Source: `cgroups(7)`.
    pub(super) fn find(&self, text: &str, controller: &str) -> Option<PathBuf> {
        let v1_name = if controller == "io" { "blkio" } else { controller };
        let v1 = self.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == v1_name));
        let on_v2 = controller == "freezer" || self.unified_controllers.iter().any(|name| name == controller);
        let mount = match v1 {
            Some(hierarchy) => &hierarchy.mount,
            None => self.unified.as_ref().filter(|_| on_v2)?,
        };
        let path = text.lines().find_map(|line| {
            let (names, path) = line.split_once(':')?.1.split_once(':')?;
            let meant =
                if v1.is_some() { names.split(',').any(|name| name == v1_name) } else { names.is_empty() };
            meant.then_some(path)
        })?;
        Some(mount.join(path.trim_start_matches('/')))
    }

    /// Every controller is on v2.
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty() && self.unified.is_some()
    }

    /// From the text of `/proc/<pid>/mountinfo`, which does not tell the v2 tree's controllers. Of several mounts of one hierarchy the first counts.
    pub fn parse(mountinfo: &str) -> Self {
        let mut layout = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4) else { continue };
            let mount = PathBuf::from(unescape(mount));
            let mut fields = right.split(' ');
            match fields.next() {
                Some("cgroup2") if layout.unified.is_none() => layout.unified = Some(mount),
                Some("cgroup") => {
                    let controllers: Vec<String> = fields
                        .nth(1)
                        .unwrap_or_default()
                        .split(',')
                        .filter(|option| !OTHER_OPTIONS.contains(option))
                        .filter(|option| option.starts_with("name=") || !option.contains('='))
                        .map(str::to_owned)
                        .collect();
                    let known = layout.v1.iter().any(|one| one.controllers == controllers);
                    if !known && !controllers.is_empty() {
                        layout.v1.push(Hierarchy { controllers, mount });
                    }
                }
                _ => {}
            }
        }
        layout
    }
}

/// Undoes the octal escapes (`\040` for a space) of mountinfo.
pub(crate) fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}
