//! The kernel's overlayfs shows the unpacked layers as the image's author meant them, and as `umoci` unpacks them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{path::Path, process::Command};

use common::{archive, has, is_root, run, store};
use rswarm_image::{Image, builder::ImageBuilder};

/// Runs `script` in a mount namespace of its own with the image mounted at `$1`; gives its output.
fn with_mounted(store: &common::TestStore, image: &Image, script: &str, argument: &Path) -> String {
    let place = tempfile::tempdir().unwrap();
    let directories = store.rootfs(image).unwrap();
    let relative: Vec<String> = directories
        .iter()
        .map(|directory| {
            directory.strip_prefix(store.root.path().join("layers")).unwrap().display().to_string()
        })
        .collect();
    // Relative names, as a container with many layers needs; an empty directory below lets one layer stand alone.
    std::fs::create_dir(place.path().join("empty")).unwrap();
    std::fs::create_dir(place.path().join("mnt")).unwrap();
    let lower = format!("lowerdir={}:{}", relative.join(":"), place.path().join("empty").display());
    let script = format!("set -e; mount -t overlay -o '{lower}' overlay \"$1\"; {script}");
    run(Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"])
        .args([&place.path().join("mnt"), argument])
        .current_dir(store.root.path().join("layers")))
}

fn stack() -> ImageBuilder {
    ImageBuilder::new()
        .reference("stack:1".parse().unwrap())
        .file("/etc/gone", b"1", 0o644)
        .file("/etc/kept", b"1", 0o644)
        .file("/var/lib/old", b"1", 0o644)
        .file("/opt/tree/deep/file", b"1", 0o644)
        .file("/again/old", b"1", 0o644)
        .file("/changed", b"1", 0o755)
        .symlink("/lib", "usr/lib")
        .file("/usr/lib/base", b"1", 0o644)
        .next_layer()
        .remove("/etc/gone")
        .file("/var/lib/.wh..wh..opq", Vec::new(), 0o644)
        .file("/var/lib/new", b"2", 0o644)
        .remove("/opt/tree")
        .remove("/again")
        .file("/again/new", b"2", 0o4755)
        .next_layer()
        .file("/changed", b"3", 0o700)
        .file("/usr/lib/more", b"3", 0o644)
}

#[test]
fn whiteouts_and_opaque_directories_hide_what_is_below() {
    if !is_root() || !has("unshare") {
        return;
    }
    let store = store();
    let image = store.load_bytes(&archive(&stack())).unwrap().remove(0);
    let listing = with_mounted(
        &store,
        &image,
        "cd \"$1\"; find . -type f | sort; cat changed; stat -c ' %a' again/new",
        Path::new("."),
    );
    assert_eq!(
        listing,
        "./again/new\n./changed\n./etc/kept\n./usr/lib/base\n./usr/lib/more\n./var/lib/new\n3 4755\n"
    );
}

#[test]
fn umoci_unpacks_the_same_tree() {
    if !is_root() || !has("unshare") || !has("skopeo") || !has("umoci") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let bytes = archive(&stack());
    let file = common::file(place.path(), "oci.tar", &bytes);
    let layout = format!("{}:1", place.path().join("layout").display());
    let bundle = place.path().join("bundle");
    run(Command::new("skopeo")
        .args(["copy", "--insecure-policy"])
        .arg(format!("oci-archive:{}", file.display()))
        .arg(format!("oci:{layout}")));
    run(Command::new("umoci").args(["unpack", "--image", &layout]).arg(&bundle));
    let store = store();
    let image = store.load_bytes(&bytes).unwrap().remove(0);
    // Content by `diff`; kind, mode, owner, size and time of files by `find`.
    let script = "diff -r --no-dereference \"$1\" \"$2\"; \
         facts() { (cd \"$1\"; find . -mindepth 1 ! -type d -printf '%p %y %m %U %G %s %T@ %l\\n' | sort); }; \
         facts \"$1\" > /tmp/facts.$$; facts \"$2\" | diff /tmp/facts.$$ - || { rm /tmp/facts.$$; exit 1; }; rm /tmp/facts.$$; echo same";
    assert_eq!(with_mounted(&store, &image, script, &bundle.join("rootfs")), "same\n");
}
