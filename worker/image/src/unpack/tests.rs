//! Layers, honest and hostile, unpacked on the real file system. As root: ownership and whiteouts need it.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::PathBuf,
    process::Command,
};

use ::tar::{EntryType, Header};
use tempfile::TempDir;

use super::*;

/// One entry with its data, padded; `path` and `link` go in as they are.
pub(super) fn entry(
    kind: EntryType,
    path: &str,
    link: &str,
    data: &[u8],
    change: impl FnOnce(&mut Header),
) -> Vec<u8> {
    let mut header = Header::new_gnu();
    let fields = header.as_gnu_mut().unwrap();
    fields.name[..path.len()].copy_from_slice(path.as_bytes());
    fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(data.len() as u64);
    change(&mut header);
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

pub(super) fn file(path: &str, data: &[u8]) -> Vec<u8> {
    entry(EntryType::Regular, path, "", data, |_| {})
}

fn directory(path: &str) -> Vec<u8> {
    entry(EntryType::Directory, path, "", b"", |header| header.set_mode(0o755))
}

fn symlink(path: &str, target: &str) -> Vec<u8> {
    entry(EntryType::Symlink, path, target, b"", |_| {})
}

pub(super) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let mut length = key.len() + value.len() + 3;
        length += length.to_string().len();
        if length.to_string().len() + key.len() + value.len() + 3 > length {
            length += 1;
        }
        data.extend(format!("{length} {key}=").bytes().chain(value.iter().copied()).chain(*b"\n"));
    }
    entry(EntryType::XHeader, "PaxHeaders/x", "", &data, |_| {})
}

struct Outcome {
    /// `layer/` is what was unpacked into; its surroundings show whether anything escaped.
    home: TempDir,
    result: Result<Unpacked, LayerError>,
}

impl Outcome {
    fn path(&self, path: &str) -> PathBuf {
        self.home.path().join("layer").join(path)
    }

    fn ok(self) -> Self {
        if let Err(error) = &self.result {
            panic!("{error}: {:?}", error.io_error());
        }
        self
    }

    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 256];
        let length = rustix::fs::lgetxattr(self.path(path), name, &mut value[..]).ok()?;
        value.truncate(length);
        Some(value)
    }

    fn is_whiteout(&self, path: &str) -> bool {
        let metadata = fs::symlink_metadata(self.path(path)).unwrap();
        metadata.file_type().is_char_device() && metadata.rdev() == 0
    }

    fn is_opaque(&self, path: &str) -> bool {
        self.xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
    }
}

fn unpack_with(entries: &[Vec<u8>], limits: LayerLimits) -> Outcome {
    unpack_bytes(&[entries.concat(), vec![0; 1024]].concat(), limits)
}

fn unpack_bytes(bytes: &[u8], limits: LayerLimits) -> Outcome {
    let home = tempfile::tempdir().unwrap();
    let layer = home.path().join("layer");
    fs::create_dir(&layer).unwrap();
    let result = super::unpack(bytes, &layer, limits).map(|(unpacked, _)| unpacked);
    Outcome { home, result }
}

fn unpack(entries: &[Vec<u8>]) -> Outcome {
    unpack_with(entries, LayerLimits::default())
}

/// False, with a note, where these tests cannot run.
pub(super) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

fn refused(entries: &[Vec<u8>], wanted: &[&str]) {
    let outcome = unpack(entries);
    let error = outcome.result.as_ref().expect_err("the layer is refused").to_string();
    for word in wanted {
        assert!(error.contains(word), "`{word}` in: {error}");
    }
    let around: Vec<_> = fs::read_dir(outcome.home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(around, ["layer"], "nothing outside of the layer");
}

#[test]
fn an_attribute_that_cannot_be_set_is_named() {
    if !is_root() {
        return;
    }
    let outcome = unpack(&[pax(&[("SCHILY.xattr.security.capability", b"junk")]), file("usr/cap", b"yy")]);
    let error = outcome.result.as_ref().unwrap_err();
    let cause = error.io_error().unwrap();
    assert!(error.to_string().contains("`usr/cap`"), "{error}");
    assert_eq!(cause.to_string(), "its attribute `security.capability` of 4 bytes is refused");
    let errno = std::error::Error::source(cause).unwrap().downcast_ref::<io::Error>().unwrap().raw_os_error();
    assert_eq!((cause.kind(), errno), (io::ErrorKind::InvalidInput, Some(22)));
}

#[test]
fn attributes_are_kept() {
    if !is_root() {
        return;
    }
    let capability = b"\x01\0\0\x02\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let outcome = unpack(&[
        entry(EntryType::Directory, "./", "", b"", |h| h.set_mode(0o751)),
        directory("usr/"),
        entry(EntryType::Regular, "usr/su", "", b"x", |h| {
            h.set_mode(0o4755);
            h.set_uid(12);
            h.set_gid(34);
        }),
        pax(&[
            ("mtime", b"1234567890.5"),
            ("uid", b"3000000"),
            ("SCHILY.xattr.user.note", b"a\0=\nb"),
            ("SCHILY.xattr.security.capability", capability),
        ]),
        file("usr/cap", b"yy"),
        entry(EntryType::Link, "usr/su2", "usr/su", b"", |_| {}),
        symlink("usr/link", "../nowhere"),
        entry(EntryType::Link, "usr/link2", "usr/link", b"", |_| {}),
        entry(EntryType::Fifo, "usr/pipe", "", b"", |_| {}),
        entry(EntryType::Directory, "late/tmp", "", b"", |h| h.set_mode(0o1777)),
    ])
    .ok();
    assert_eq!(outcome.result.as_ref().unwrap().bytes, 3);
    let su = fs::metadata(outcome.path("usr/su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()), (0o4755, 12, 34, 1_000_000_000));
    assert_eq!(su.ino(), fs::metadata(outcome.path("usr/su2")).unwrap().ino());
    let cap = fs::metadata(outcome.path("usr/cap")).unwrap();
    assert_eq!((cap.uid(), cap.mtime(), cap.mtime_nsec()), (3_000_000, 1_234_567_890, 500_000_000));
    assert_eq!(outcome.xattr("usr/cap", "user.note").unwrap(), b"a\0=\nb");
    assert_eq!(outcome.xattr("usr/cap", "security.capability").unwrap(), capability);
    assert_eq!(fs::read_link(outcome.path("usr/link2")).unwrap().as_os_str(), "../nowhere");
    assert!(fs::metadata(outcome.path("usr/pipe")).unwrap().file_type().is_fifo());
    assert_eq!(fs::metadata(outcome.path("")).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(fs::metadata(outcome.path("late")).unwrap().mode() & 0o7777, 0o755, "made on the way");
    assert_eq!(fs::metadata(outcome.path("late/tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(
        fs::metadata(outcome.path("usr")).unwrap().mtime(),
        1_000_000_000,
        "in spite of later entries"
    );
}

#[test]
fn whiteouts_take_the_form_of_overlayfs() {
    if !is_root() {
        return;
    }
    let outcome = unpack(&[
        file(".wh.gone", b""),
        file("etc/.wh.conf", b""),
        directory("var/"),
        file("var/.wh..wh..opq", b""),
        file("var/new", b"1"),
        file(".wh..wh.plnk", b""),
        file(".wh..wh.orph/1", b"5"),
        file("var/.wh..wh.plnk/.wh..wh..opq", b""),
        file(".wh..wh.plnk/1.2", b"6"),
        entry(EntryType::Link, "kept-link", ".wh..wh.plnk/1.2", b"", |_| {}),
        // In one layer: whiteout before, after, and of the parent of what follows.
        file(".wh.again", b""),
        directory("again"),
        file("kept", b"2"),
        file(".wh.kept", b""),
        directory("dir"),
        file("dir/x", b"3"),
        file(".wh.dir", b""),
        file(".wh.parent", b""),
        file("parent/child", b"4"),
        entry(EntryType::Char, "node", "", b"", |h| {
            h.set_device_major(0).unwrap();
            h.set_device_minor(0).unwrap();
        }),
    ])
    .ok();
    assert!(outcome.is_whiteout("gone") && outcome.is_whiteout("etc/conf") && outcome.is_whiteout("node"));
    assert!(!outcome.is_opaque("etc"));
    for opaque in ["var", "again", "dir", "parent"] {
        assert!(outcome.is_opaque(opaque), "{opaque}");
    }
    for (path, content) in
        [("var/new", "1"), ("kept", "2"), ("dir/x", "3"), ("parent/child", "4"), ("kept-link", "6")]
    {
        assert_eq!(fs::read_to_string(outcome.path(path)).unwrap(), content);
    }
    let mut names: Vec<_> = fs::read_dir(outcome.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(
        names,
        ["again", "dir", "etc", "gone", "kept", "kept-link", "node", "parent", "var"],
        "no marks are left"
    );
}

#[test]
fn links_lead_within_the_layer() {
    if !is_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let absolute = outside.path().to_str().unwrap();
    let outcome = unpack(&[
        symlink("absolute", absolute),
        file("absolute/a", b"a"),
        symlink("up", "../../../../../.."),
        file("up/b", b"b"),
        directory("usr/lib"),
        symlink("lib", "usr/lib"),
        file("lib/c", b"c"),
        symlink("run", "/var/run"), // Only a lower layer has it.
        file("run/d", b"d"),
        file("/etc/e", b"e"),
        symlink("target", absolute),
        file("target", b"f"),
    ])
    .ok();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing followed the link out");
    let inner = absolute.trim_start_matches('/').to_owned() + "/a";
    for (path, content) in [
        (inner.as_str(), "a"),
        ("b", "b"),
        ("usr/lib/c", "c"),
        ("var/run/d", "d"),
        ("etc/e", "e"),
        ("target", "f"),
    ] {
        assert_eq!(fs::read_to_string(outcome.path(path)).unwrap(), content, "{path}");
    }
    assert_eq!(fs::read_dir(outcome.home.path()).unwrap().count(), 1);
}

#[test]
fn hostile_entries_are_refused_by_name() {
    if !is_root() {
        return;
    }
    refused(&[file("../escape", b"x")], &["`../escape`", "outside"]);
    refused(&[file("a/../../escape", b"x")], &["`a/../../escape`", "outside"]);
    refused(&[pax(&[("path", b"b/../../escape")]), file("harmless", b"x")], &["`b/../../escape`", "outside"]);
    refused(&[directory("..")], &["`..`"]);
    refused(&[file("a", b""), file("a/b", b"")], &["`a/b`"]);
    refused(&[symlink("loop", "loop"), file("loop/x", b"")], &["`loop/x`"]);
    refused(&[entry(EntryType::Link, "x", "../../etc/passwd", b"", |_| {})], &["`x`", "outside"]);
    refused(
        &[entry(EntryType::Link, "x", "/etc/passwd", b"", |_| {})],
        &["`x`", "`/etc/passwd`", "does not have"],
    );
    refused(&[file(".wh.y", b""), entry(EntryType::Link, "x", "y", b"", |_| {})], &["`x`", "`y`"]);
    let outward = [symlink("s", "/etc"), entry(EntryType::Link, "x", "s/passwd", b"", |_| {})];
    refused(&outward, &["`x`", "`s/passwd`"]);
    for (kind, minor) in [(EntryType::Char, 3), (EntryType::Block, 0)] {
        let node = entry(kind, "dev/node", "", b"", |h| {
            h.set_device_major(1).unwrap();
            h.set_device_minor(minor).unwrap();
        });
        refused(&[node], &["`dev/node`", &format!("1:{minor}"), "device"]);
    }
    refused(&[file(".wh.", b"")], &["`.wh.`"]);
    refused(&[file("d/.wh...", b"")], &["`d/.wh...`"]);
    refused(&[entry(EntryType::new(b'V'), "volume", "", b"", |_| {})], &["`volume`", "type `V`"]);
    refused(&[file("", b"x")], &["invalid name"]);
    for key in ["uid", "gid"] {
        // Who is given this owner stays root's.
        refused(&[pax(&[(key, b"4294967295")]), file("x", b"")], &["`x`", &format!("{key} 4294967295")]);
    }
}

#[test]
fn of_several_entries_of_one_name_the_last_counts() {
    if !is_root() {
        return;
    }
    let link = |path: &str, target: &str| entry(EntryType::Link, path, target, b"", |_| {});
    let outcome = unpack(&[
        file("file", b"old"),
        link("kept", "file"),
        file("file", b"new"),
        directory("to-file"),
        file("to-file/in/it", b"x"),
        file("to-file", b"f"),
        file("to-directory", b"x"),
        directory("to-directory"),
        file("to-directory/in", b"d"),
        symlink("to-link", "file"),
        symlink("to-link", "kept"),
        directory("twice"),
        file("twice/in", b"t"),
        entry(EntryType::Directory, "twice", "", b"", |header| header.set_mode(0o700)),
    ])
    .ok();
    for (path, content) in [
        ("file", "new"),
        ("kept", "old"),
        ("to-file", "f"),
        ("to-directory/in", "d"),
        ("to-link", "old"),
        ("twice/in", "t"),
    ] {
        assert_eq!(fs::read_to_string(outcome.path(path)).unwrap(), content, "{path}");
    }
    assert_eq!(fs::metadata(outcome.path("twice")).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn sparse_files_that_lie_are_refused() {
    if !is_root() {
        return;
    }
    let sparse = |size: &str, map: &str, data: &[u8]| {
        let records: [(&str, &[u8]); 2] =
            [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
        [pax(&records), file("sparse", data)]
    };
    let fine = unpack(&sparse("1000000", "0,2,999998,2", b"abcd")).ok();
    assert_eq!(fs::metadata(fine.path("sparse")).unwrap().len(), 1_000_000);
    assert_eq!(fine.result.as_ref().unwrap().bytes, 1_000_000, "holes count");
    for (size, map, wanted) in [
        ("1125899906842624", "0,4", "larger than the limit"),
        ("10", "0,4,2,0", "invalid sparse map"),  // One over the other.
        ("10", "8,4", "invalid sparse map"),      // Beyond the end.
        ("10", "0,1", "disagrees with its size"), // More data than pieces.
        ("10", "0,5", "disagrees with its size"), // Less.
        ("10", "0,4,8", "invalid sparse map"),    // Half a pair.
        ("10", "18446744073709551615,4", "invalid sparse map"),
        ("10", "x,4", "invalid sparse map"),
        ("-1", "0,4", "GNU.sparse.size=-1"),
    ] {
        refused(&sparse(size, map, b"abcd"), &["`sparse`", wanted]);
    }
    let many = (0..70_000).map(|n| format!("{n},0")).collect::<Vec<_>>().join(",");
    refused(&sparse("100000", &many, b""), &["`sparse`", "invalid sparse map"]);
}

#[test]
fn long_names_are_kept_as_far_as_file_systems_go() {
    if !is_root() {
        return;
    }
    let named = |path: &str| [pax(&[("path", path.as_bytes())]), file("short", b"x")];
    let deep = vec!["d".repeat(200); 15].join("/");
    let outcome = unpack(&named(&deep)).ok();
    assert_eq!(fs::read(outcome.path(&deep)).unwrap(), b"x");
    let (wide, deeper) = ("w".repeat(256), vec!["d".repeat(200); 30].join("/"));
    refused(&named(&wide), &[&format!("`{wide}`")]);
    refused(&named(&deeper), &[&format!("`{deeper}`")]);
    let target = "t".repeat(5000);
    let link = [pax(&[("linkpath", target.as_bytes())]), symlink("link", "")];
    refused(&link, &["`link`"]);
}

#[test]
fn bombs_are_bounded() {
    let limits = LayerLimits { bytes: 1000, entries: 3 };
    let error = |entries: &[Vec<u8>]| unpack_with(entries, limits).result.unwrap_err().to_string();
    let huge = entry(EntryType::Regular, "huge", "", b"", |h| h.set_size(1 << 50));
    assert_eq!(error(&[huge]), "layer is larger than the limit of 1000 bytes at entry `huge`");
    let many: Vec<_> = (0..4).map(|i| entry(EntryType::Fifo, &format!("f{i}"), "", b"", |_| {})).collect();
    if is_root() {
        assert_eq!(error(&many), "layer has more than 3 entries at entry `f3`");
    }
    if is_root() {
        // One entry, but a directory for each part of its name.
        assert_eq!(
            error(&[file("a/b/c/d", b""), file("e", b"")]),
            "layer has more than 3 entries at entry `e`"
        );
    }
    let long_name = entry(EntryType::GNULongName, "././@LongLink", "", b"", |h| h.set_size(1 << 40));
    assert!(error(&[long_name]).contains("extension header"), "not read into memory");
}

#[test]
fn attributes_that_steer_overlayfs_are_left_out() {
    if !is_root() {
        return;
    }
    let redirect: &[(&str, &[u8])] =
        &[("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), ("SCHILY.xattr.user.ok", b"1")];
    let outcome = unpack(&[pax(redirect), directory("d")]).ok();
    assert_eq!(outcome.xattr("d", "trusted.overlay.redirect"), None);
    assert_eq!(outcome.xattr("d", "user.ok").unwrap(), b"1");
}

#[test]
fn damaged_archives_are_refused() {
    if !is_root() {
        return;
    }
    let whole = [file("one", &[1; 700]), file("two", b"2")].concat();
    for (length, wanted) in
        [(300, "truncated"), (900, "`one`"), (512 + 1024 + 100, "truncated"), (512 + 1024 + 512, "`two`")]
    {
        let error = unpack_bytes(&whole[..length], LayerLimits::default()).result.unwrap_err().to_string();
        assert!(error.contains(wanted), "{length}: {error}");
    }
    let mut flipped = whole.clone();
    flipped[512 + 1024 + 3] ^= 1;
    let error = unpack_bytes(&flipped, LayerLimits::default()).result.unwrap_err().to_string();
    assert_eq!(error, "no valid tar header at byte 1536: its checksum is wrong");
    assert!(unpack_bytes(b"this is no tar archive at all", LayerLimits::default()).result.is_err());
}

/// GNU tar is the peer: what it packs in each of its formats comes out the same.
#[test]
fn archives_of_gnu_tar_come_out_the_same() {
    if !is_root() {
        return;
    }
    if Command::new("tar").arg("--version").output().is_err() {
        eprintln!("skipped: needs GNU tar");
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(150));
    fs::create_dir(source.path().join("d".repeat(120))).unwrap();
    fs::write(source.path().join(&long), "long").unwrap();
    std::os::unix::fs::symlink("t".repeat(200), source.path().join("link")).unwrap();
    fs::write(source.path().join(OsStr::from_bytes(b"not\xffutf8")), "bytes").unwrap();
    let sparse = File::create(source.path().join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    for piece in 0..30u64 {
        std::os::unix::fs::FileExt::write_at(&sparse, b"piece", piece * 200_000).unwrap();
    }
    for options in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--xattrs"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
    ] {
        let packed = Command::new("tar")
            .args(options)
            .args(["-cf", "-", "."])
            .current_dir(source.path())
            .output()
            .unwrap();
        assert!(packed.status.success());
        let outcome = unpack_bytes(&packed.stdout, LayerLimits::default()).ok();
        let same = Command::new("diff")
            .arg("-r")
            .arg("--no-dereference")
            .arg(source.path())
            .arg(outcome.path(""))
            .output()
            .unwrap();
        assert!(same.status.success(), "{options:?}: {}", String::from_utf8_lossy(&same.stdout));
        if options.contains(&"--sparse") {
            let blocks = fs::metadata(outcome.path("sparse")).unwrap().blocks();
            assert!(blocks * 512 < 4 << 20, "{options:?}: holes stay holes, {blocks} blocks");
        }
    }
    let old = Command::new("tar")
        .args(["--format=posix", "--sparse", "--sparse-version=0.0", "-cf", "-", "sparse"])
        .current_dir(source.path())
        .output()
        .unwrap();
    let error = unpack_bytes(&old.stdout, LayerLimits::default()).result.unwrap_err().to_string();
    assert!(error.contains("sparse format 0.0"), "{error}");
}
