//! What is in a machine when it starts: the guest's own program, kernel modules, and what the caller adds. All of it is
//! in memory, and there is no disk.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cpio::Archive;
use super::kernel::Kernel;
use super::{BUSYBOX, MODULES_LIST};
use crate::error::LabError;

const MODULES: &str = "/lib/modules";

/// Files of this machine and where the guests have them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payload {
    entries: Vec<Entry>,
    /// The program that the guest's own one makes way for, as the first process.
    pub(super) first: Option<&'static str>,
    /// More of the kernel's command line.
    pub(super) kernel_words: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    File {
        from: PathBuf,
        to: PathBuf,
        mode: u32,
    },
    Program {
        from: PathBuf,
        to: PathBuf,
    },
    Symlink {
        at: PathBuf,
        target: String,
    },
    Text {
        to: PathBuf,
        text: String,
    },
    /// A directory with all that is in it becomes the root.
    Tree {
        from: PathBuf,
    },
}

impl Payload {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a static busybox, whose applets the guest will find in `/bin`.
    ///
    /// # Errors
    /// `Missing` when this machine has none.
    pub fn busybox(self) -> Result<Self, LabError> {
        if !Path::new(BUSYBOX).exists() {
            return Err(LabError::Missing {
                what: format!("`{BUSYBOX}`"),
                remedy: "it is in the Debian package busybox-static",
            });
        }
        Ok(self.file(BUSYBOX, BUSYBOX, 0o755))
    }

    pub fn file(mut self, from: impl Into<PathBuf>, to: impl Into<PathBuf>, mode: u32) -> Self {
        self.entries.push(Entry::File { from: from.into(), to: to.into(), mode });
        self
    }

    /// A static executable. It goes without what is only of use to a debugger, as a guest holds it in memory, perhaps
    /// several times.
    pub fn program(mut self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Self {
        self.entries.push(Entry::Program { from: from.into(), to: to.into() });
        self
    }

    /// A program of this machine with the libraries that it is linked with; the guests find it in `/bin`, before an
    /// applet of the same name. Left out where there is none.
    ///
    /// # Errors
    /// `Spawn` when its libraries cannot be asked for.
    pub fn host_program(mut self, path: &str, name: &str) -> Result<Self, LabError> {
        if !Path::new(path).exists() {
            return Ok(self);
        }
        let output = Command::new("ldd").arg(path).stdin(Stdio::null()).output();
        let output = output.map_err(|source| LabError::Spawn {
            program: "ldd".into(),
            host: "this machine".to_owned(),
            source,
        })?;
        for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
            let entry = Entry::File { from: library.clone(), to: library, mode: 0o755 };
            if !self.entries.contains(&entry) {
                self.entries.push(entry);
            }
        }
        Ok(self.file(path, Path::new("/bin").join(name), 0o755))
    }

    /// systemd as it lies unpacked on this machine becomes the guest's first process.
    ///
    /// # Errors
    /// `Missing` when this machine has none.
    pub fn systemd(mut self) -> Result<Self, LabError> {
        let from = PathBuf::from(super::systemd::ROOT);
        // Written last.
        if !from.join("version").exists() {
            return Err(LabError::Missing {
                what: format!("systemd (looked for in `{}`)", from.display()),
                remedy: "`cluster-tests/vm-systemd` fetches it",
            });
        }
        self.entries.push(Entry::Tree { from });
        self.first = Some(super::systemd::PROGRAM);
        Ok(super::systemd::FILES.iter().fold(self, |all, (to, text)| all.text(*to, text)))
    }

    /// More words for the kernel's command line.
    pub fn kernel_words(mut self, words: &'static str) -> Self {
        self.kernel_words = words;
        self
    }

    /// A file of this text.
    pub fn text(mut self, to: impl Into<PathBuf>, text: &str) -> Self {
        self.entries.push(Entry::Text { to: to.into(), text: text.to_owned() });
        self
    }

    /// Where the guests have a file of this machine, if they do.
    pub(super) fn place_of(&self, file: &Path) -> Option<PathBuf> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::File { from, to, .. } if from == file => Some(to.clone()),
            _ => None,
        })
    }

    pub fn symlink(mut self, at: impl Into<PathBuf>, target: &str) -> Self {
        self.entries.push(Entry::Symlink { at: at.into(), target: target.to_owned() });
        self
    }
}

/// The paths in what `ldd` says: `name => /path (0x…)`, and the loader's own line without an arrow.
fn libraries(text: &str) -> Vec<PathBuf> {
    let words = text.lines().flat_map(str::split_whitespace);
    words.filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// Writes the archive that the kernel unpacks. `init` is the guest's program; `scratch` is a directory for files in
/// between.
///
/// # Errors
/// `Directory` with the file that could not be read or written, `Module`.
pub fn write(
    path: &Path,
    init: &Path,
    kernel: &Kernel,
    payload: &Payload,
    scratch: &Path,
) -> Result<(), LabError> {
    let file = File::create(path).map_err(LabError::directory(path))?;
    let mut archive = Archive::new(BufWriter::with_capacity(1 << 20, file));
    add_program(&mut archive, init, Path::new("/init"), scratch)?;
    let mut list = String::new();
    for module in kernel.modules()? {
        let name = module.file_name().unwrap_or_default();
        let to = Path::new(MODULES).join(name);
        list.push_str(&format!("{}\n", to.display()));
        add_file(&mut archive, &module, &to, 0o644)?;
    }
    let written = archive.file(Path::new(MODULES_LIST), 0o644, list.len() as u64, list.as_bytes());
    written.map_err(LabError::directory(path))?;
    for entry in &payload.entries {
        match entry {
            Entry::File { from, to, mode } => add_file(&mut archive, from, to, *mode)?,
            Entry::Program { from, to } => add_program(&mut archive, from, to, scratch)?,
            Entry::Symlink { at, target } => {
                archive.symlink(at, target).map_err(LabError::directory(path))?;
            }
            Entry::Text { to, text } => {
                let written = archive.file(to, 0o644, text.len() as u64, text.as_bytes());
                written.map_err(LabError::directory(path))?;
            }
            Entry::Tree { from } => add_tree(&mut archive, from, Path::new("/"))?,
        }
    }
    archive.finish().map(drop).map_err(LabError::directory(path))
}

fn add_file(
    archive: &mut Archive<impl std::io::Write>,
    from: &Path,
    to: &Path,
    mode: u32,
) -> Result<(), LabError> {
    let file = File::open(from).map_err(LabError::directory(from))?;
    let length = file.metadata().map_err(LabError::directory(from))?.len();
    archive.file(to, mode, length, file).map_err(LabError::directory(from))
}

/// All of a directory's files, links and directories; other kinds are left out.
fn add_tree(archive: &mut Archive<impl std::io::Write>, from: &Path, to: &Path) -> Result<(), LabError> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = LabError::directory(from);
    let mut entries: Vec<_> = match fs::read_dir(from) {
        Ok(entries) => entries.flatten().collect(),
        Err(error) => return Err(failed(error)),
    };
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        let metadata = fs::symlink_metadata(&path).map_err(LabError::directory(&path))?;
        if metadata.is_dir() {
            archive.directory(&to).map_err(LabError::directory(&path))?;
            add_tree(archive, &path, &to)?;
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(LabError::directory(&path))?;
            archive.symlink(&to, &target.to_string_lossy()).map_err(LabError::directory(&path))?;
        } else if metadata.is_file() {
            add_file(archive, &path, &to, metadata.permissions().mode() & 0o7777)?;
        }
    }
    Ok(())
}

fn add_program(
    archive: &mut Archive<impl std::io::Write>,
    from: &Path,
    to: &Path,
    scratch: &Path,
) -> Result<(), LabError> {
    let lean = scratch.join("lean");
    let outcome = add_file(archive, if strip(from, &lean) { &lean } else { from }, to, 0o755);
    // It may not have been made.
    let _ = fs::remove_file(&lean);
    outcome
}

/// Copies an executable without its symbols; whether that worked. Where the tool is missing it stays large.
pub fn strip(from: &Path, to: &Path) -> bool {
    let mut command = Command::new("strip");
    command.arg("-o").arg(to).arg(from);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries(text), expected);
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }
}
