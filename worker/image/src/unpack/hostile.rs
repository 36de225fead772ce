//! Random hostile layers: whatever they hold, nothing outside the directory changes, what is within is bounded, and a
//! refusal names the place.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use proptest::prelude::*;

use super::{tests::*, *};

const LIMITS: LayerLimits = LayerLimits { bytes: 1 << 20, entries: 64 };

/// One entry as a generator describes it; names may point to the directory beside the layer.
#[derive(Clone, Debug)]
struct Hostile {
    kind: u8,
    path: String,
    link: String,
    data: Vec<u8>,
    /// What the header says of the size, if it lies.
    size: Option<u64>,
    /// By an extension header: long names, and whatever else it claims.
    pax: Vec<(String, Vec<u8>)>,
}

fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        8 => prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(str::to_owned),
        2 => prop::sample::select(vec![
            "..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh...", ".wh.", ".wh..", ".wh..wh.plnk", "etc", "proc",
            "\u{202e}x", "new\nline",
        ])
        .prop_map(str::to_owned),
        1 => Just("x".repeat(90)),
    ];
    (any::<bool>(), prop::collection::vec(part, 1..5), prop::bool::weighted(0.2)).prop_map(
        |(absolute, parts, slash)| {
            format!("{}{}{}", if absolute { "/" } else { "" }, parts.join("/"), if slash { "/" } else { "" })
        },
    )
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => name(),
        2 => prop::sample::select(vec![
            "/", "..", "../..", "../../outside", "../outside/secret", "/etc/passwd", "/proc/self/root", "OUTSIDE",
            "OUTSIDE/secret", ".", "a/../../outside", "/proc/self/cwd", "//",
        ])
        .prop_map(str::to_owned),
    ]
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let kind = prop::sample::select(b"0000555522221134667gKLxSZ".to_vec());
    let size = prop_oneof![
        8 => Just(None),
        1 => prop::sample::select(vec![0, 1, 511, 512, 513, 1 << 20, 1 << 33, u64::MAX >> 1]).prop_map(Some),
    ];
    let pax = prop::collection::vec(
        (
            prop::sample::select(vec![
                "path",
                "linkpath",
                "size",
                "uid",
                "mtime",
                "SCHILY.xattr.user.x",
                "SCHILY.xattr.trusted.overlay.opaque",
                "SCHILY.xattr.trusted.overlay.redirect",
                "GNU.sparse.major",
                "GNU.sparse.realsize",
                "GNU.sparse.map",
                "GNU.sparse.name",
                "GNU.sparse.size",
            ])
            .prop_map(str::to_owned),
            prop_oneof![
                target().prop_map(String::into_bytes),
                prop::sample::select(vec![
                    "1",
                    "0",
                    "-1",
                    "99999999999999999999",
                    "0,5,10,5",
                    "5,5,0,5",
                    "1.5",
                    "\0"
                ])
                .prop_map(|text| text.as_bytes().to_vec()),
                prop::collection::vec(any::<u8>(), 0..40),
            ],
        ),
        0..3,
    );
    let pax = prop_oneof![4 => Just(Vec::new()), 1 => pax];
    (kind, name(), target(), prop::collection::vec(any::<u8>(), 0..600), size, pax)
        .prop_map(|(kind, path, link, data, size, pax)| Hostile { kind, path, link, data, size, pax })
}

impl Hostile {
    fn bytes(&self, outside: &str) -> Vec<u8> {
        let link = self.link.replace("OUTSIDE", outside);
        let cut = |text: &str| text.chars().filter(char::is_ascii).take(99).collect::<String>();
        let records: Vec<(&str, &[u8])> =
            self.pax.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
        let mut out = if records.is_empty() { Vec::new() } else { pax(&records) };
        out.extend(entry(
            ::tar::EntryType::new(self.kind),
            &cut(&self.path),
            &cut(&link),
            &self.data,
            |header| {
                if let Some(size) = self.size {
                    header.set_size(size);
                }
                header.set_device_major(8).unwrap();
            },
        ));
        out
    }
}

/// Everything about a tree that a layer could change from afar.
fn state(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let m = fs::symlink_metadata(&path).unwrap();
        let content = if m.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let facts = format!(
            "{:o} {}:{} {}.{} {} {} {content:?}",
            m.mode(),
            m.uid(),
            m.gid(),
            m.mtime(),
            m.mtime_nsec(),
            m.nlink(),
            m.size()
        );
        found.insert(path.as_os_str().as_bytes().to_vec(), facts);
        if m.is_dir() {
            found.extend(state(&path));
        }
    }
    found
}

/// Files of the layer with their lengths; panics at what must not be there.
fn inspect(root: &Path) -> (u64, u64) {
    let (mut entries, mut bytes) = (0, 0);
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let m = fs::symlink_metadata(&path).unwrap();
        let kind = m.file_type();
        assert!(!kind.is_block_device() && !kind.is_socket(), "{}", path.display());
        assert!(!kind.is_char_device() || m.rdev() == 0, "{} is a device", path.display());
        let mut list = vec![0; 4096];
        let length = rustix::fs::llistxattr(&path, &mut list[..]).unwrap();
        for key in list[..length].split(|b| *b == 0).filter(|key| key.starts_with(b"trusted.overlay.")) {
            assert_eq!(key, b"trusted.overlay.opaque", "{}", path.display());
        }
        entries += 1;
        bytes += if m.is_file() { m.size() } else { 0 };
        if kind.is_dir() {
            let (more, length) = inspect(&path);
            (entries, bytes) = (entries + more, bytes + length);
        }
    }
    (entries, bytes)
}

/// Unpacks into `layer` beside `outside`, and checks what must hold whatever came of it.
fn check(bytes: impl FnOnce(&str) -> Vec<u8>) -> Result<(), String> {
    let home = tempfile::tempdir().unwrap();
    let (layer, outside) = (home.path().join("layer"), home.path().join("outside"));
    for directory in [&layer, &outside, &outside.join("a")] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(outside.join("secret"), b"secret").unwrap();
    fs::write(outside.join("a/b"), b"b").unwrap();
    let before = state(&outside);
    let bytes = bytes(outside.to_str().unwrap());
    let result = super::unpack(bytes.as_slice(), &layer, LIMITS);
    if state(&outside) != before {
        return Err("something outside the layer changed".to_owned());
    }
    let names: Vec<_> = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    if names.len() != 2 {
        return Err(format!("something new outside the layer: {names:?}"));
    }
    let (_, length) = inspect(&layer);
    if length > LIMITS.bytes * 2 {
        return Err(format!("{length} bytes were written"));
    }
    match result {
        // Each error says where: an entry, a byte, or a directory.
        Err(error)
            if !error.to_string().contains(['`', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) =>
        {
            Err(format!("an error that names no place: {error}"))
        }
        _ => Ok(()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_layer_reaches_outside(entries in prop::collection::vec(hostile(), 1..14)) {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return Ok(());
        }
        let outcome = check(|outside| {
            let mut bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.bytes(outside)).collect();
            bytes.extend([0; 1024]);
            bytes
        });
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }

    #[test]
    fn no_damage_reaches_outside(
        entries in prop::collection::vec(hostile(), 1..6),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
        fix_sums in any::<bool>(),
    ) {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return Ok(());
        }
        let outcome = check(|outside| {
            let mut bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.bytes(outside)).collect();
            for (at, value) in &damage {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            if fix_sums {
                // Else the checksum stops nearly every damaged header.
                for block in bytes.chunks_exact_mut(512) {
                    block[148..156].fill(b' ');
                    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            bytes
        });
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }
}

#[test]
fn compressed_bombs_are_bounded() {
    if !is_root() {
        return;
    }
    use std::io::Write as _;
    // Zeros behind a header that says 2 GiB, a thousandth of that when compressed; then 64 MiB after the archive's end.
    let claims = entry(::tar::EntryType::Regular, "bomb", "", b"", |header| header.set_size(2 << 30));
    for start in [claims, [file("small", b"x"), vec![0; 1024]].concat()] {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&start).unwrap();
        for _ in 0..64 {
            encoder.write_all(&vec![0; 1 << 20]).unwrap();
        }
        let bytes = encoder.finish().unwrap();
        let place = tempfile::tempdir().unwrap();
        let limits = crate::Limits { layer: LIMITS, ..crate::Limits::default() };
        let store = crate::ImageStore::open_with(place.path(), limits).unwrap();
        let error =
            store.import(bytes.as_slice(), Some("bomb:1"), &crate::ImportConfig::default()).unwrap_err();
        let crate::ImageError::Import { source } = &error else { panic!("{error}") };
        assert!(source.to_string().contains("larger than the limit"), "{source}");
        assert!(store.list().is_empty());
    }
}
