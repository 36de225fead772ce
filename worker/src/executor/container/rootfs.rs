//! Reads a file of an image without mounting it: looks through the layers as overlayfs would show them.
//!
//! Links are followed within the image and never lead out of it: each name is looked up by itself, and only plain
//! directories are entered. Layers do not change, so nothing can be swapped underneath.
//!
//! Source: Linux, `Documentation/filesystems/overlayfs.rst`: whiteouts are character devices 0:0, opaque directories
//! carry the extended attribute `trusted.overlay.opaque` = `y`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;

/// As the kernel's own limit.
const LINKS_MAX: usize = 40;

/// The content of the regular file `path` in the image made of `layers` (topmost first), up to `limit` bytes of it.
/// `None` if there is no such file.
///
/// # Errors
/// Of reading a layer; too many links are an error as well.
pub fn read_file(layers: &[PathBuf], path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = locate(layers, path)? else { return Ok(None) };
    // Not following what locate has seen not to be a link, and not waiting on a pipe.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(&file, flags, rustix::fs::Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut content = Vec::new();
    file.take(limit).read_to_end(&mut content)?;
    Ok(Some(content))
}

/// Where on the node the file lies that the image shows at `path`.
fn locate(layers: &[PathBuf], path: &str) -> io::Result<Option<PathBuf>> {
    let mut todo = names(Path::new(path));
    // The path so far, links resolved, and the layers that have a directory there, topmost first.
    let mut walked: Vec<(OsString, Vec<PathBuf>)> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == OsStr::new("..") {
            walked.pop();
            continue;
        }
        let parents = walked.last().map_or(layers, |(_, directories)| directories);
        let Some(found) = look_up(parents, &name)? else { return Ok(None) };
        match found {
            Found::Directories(directories) => walked.push((name, directories)),
            Found::Link(target) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(io::Error::other(format!("too many links in `{path}`")));
                }
                if target.is_absolute() {
                    walked.clear();
                }
                for name in names(&target).into_iter().rev() {
                    todo.push_front(name);
                }
            }
            Found::File(file) => return Ok(todo.is_empty().then_some(file)),
        }
    }
    Ok(None)
}

enum Found {
    Directories(Vec<PathBuf>),
    Link(PathBuf),
    File(PathBuf),
}

/// What the directories `parents`, merged, have under `name`.
fn look_up(parents: &[PathBuf], name: &OsStr) -> io::Result<Option<Found>> {
    let mut directories = Vec::new();
    for parent in parents {
        let path = parent.join(name);
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            let opaque = is_opaque(&path);
            directories.push(path);
            if opaque {
                break;
            }
        } else if !directories.is_empty() || is_whiteout(&metadata) {
            // A directory above hides what is none, and a whiteout everything below.
            break;
        } else if kind.is_symlink() {
            return Ok(Some(Found::Link(fs::read_link(&path)?)));
        } else {
            return Ok(Some(Found::File(path)));
        }
    }
    Ok((!directories.is_empty()).then_some(Found::Directories(directories)))
}

fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn is_opaque(directory: &Path) -> bool {
    let mut value = [0; 1];
    rustix::fs::lgetxattr(directory, "trusted.overlay.opaque", &mut value).is_ok_and(|n| value[..n] == *b"y")
}

fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsStr::from_bytes(b"..").to_owned()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn put(layer: &Path, path: &str, content: &str) {
        let path = layer.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn check(layers: &[PathBuf], path: &str, expected: Option<&str>) {
        let found = read_file(layers, path, 100).unwrap();
        assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{path}");
    }

    #[test]
    fn the_topmost_file_counts_and_links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let (top, base) = (dir.path().join("top"), dir.path().join("base"));
        put(&base, "etc/passwd", "base");
        put(&base, "etc/group", "group");
        put(&base, "usr/lib/real", "real");
        put(&top, "etc/passwd", "top");
        put(dir.path(), "secret", "secret");
        symlink("/usr/lib", base.join("lib")).unwrap();
        symlink("../../../../../../secret", top.join("etc/up")).unwrap();
        symlink("../usr/lib/real", top.join("etc/near")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        symlink("/etc/passwd/", top.join("trailing")).unwrap();
        let layers = [top, base];
        check(&layers, "/etc/passwd", Some("top"));
        check(&layers, "etc/group", Some("group"));
        check(&layers, "/lib/real", Some("real"));
        check(&layers, "/etc/near", Some("real"));
        check(&layers, "/etc/up", None);
        check(&layers, "/trailing", Some("top"));
        check(&layers, "/etc", None);
        check(&layers, "/etc/passwd/x", None);
        check(&layers, "/nothing/here", None);
        assert!(read_file(&layers, "/loop", 100).unwrap_err().to_string().contains("too many links"));
        assert_eq!(read_file(&layers, "/etc/passwd", 2).unwrap().unwrap(), b"to");
    }

    #[test]
    fn whiteouts_and_opaque_directories_hide_what_is_below() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root for whiteouts");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (top, base) = (dir.path().join("top"), dir.path().join("base"));
        put(&base, "etc/gone", "base");
        put(&base, "data/old", "base");
        put(&top, "data/new", "top");
        fs::create_dir_all(top.join("etc")).unwrap();
        let mode = rustix::fs::Mode::empty();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            top.join("etc/gone"),
            rustix::fs::FileType::CharacterDevice,
            mode,
            0,
        )
        .unwrap();
        let layers = [top.clone(), base];
        check(&layers, "/etc/gone", None);
        check(&layers, "/data/old", Some("base"));
        let flags = rustix::fs::XattrFlags::empty();
        match rustix::fs::setxattr(top.join("data"), "trusted.overlay.opaque", b"y", flags) {
            Ok(()) => {
                check(&layers, "/data/old", None);
                check(&layers, "/data/new", Some("top"));
            }
            Err(error) => eprintln!("skipped: needs trusted attributes on the temporary directory: {error}"),
        }
    }
}
