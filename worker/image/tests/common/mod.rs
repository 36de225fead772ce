//! What several tests of the image store need: stores in temporary places, archives, and peers found on this machine.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    io::{Cursor, Read},
    path::{Path, PathBuf},
    process::Command,
};

use rswarm_image::{Image, ImageError, ImageStore, LoadOptions, builder::ImageBuilder};
use tempfile::TempDir;

/// A store of its own that goes with the test.
pub struct TestStore {
    pub store: ImageStore,
    pub root: TempDir,
}

impl std::ops::Deref for TestStore {
    type Target = ImageStore;

    fn deref(&self) -> &ImageStore {
        &self.store
    }
}

pub fn store() -> TestStore {
    let root = tempfile::tempdir().unwrap();
    TestStore { store: ImageStore::open(root.path()).unwrap(), root }
}

impl TestStore {
    /// Files below `directory` of the store, sorted, by name.
    pub fn names(&self, directory: &str) -> Vec<String> {
        names(&self.root.path().join(directory))
    }

    pub fn load_bytes(&self, archive: &[u8]) -> Result<Vec<Image>, ImageError> {
        let loaded = self.load(Cursor::new(archive), &LoadOptions::default())?;
        Ok(loaded.into_iter().map(|loaded| loaded.image).collect())
    }

    /// True if nothing at all is kept.
    pub fn is_empty(&self) -> bool {
        self.list().is_empty()
            && ["blobs/sha256", "layers", "tmp"].iter().all(|place| self.names(place).is_empty())
    }
}

pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Two layers, the upper of which changes, removes and adds.
pub fn demo(name: &str) -> ImageBuilder {
    ImageBuilder::new()
        .reference(name.parse().unwrap())
        .file("/bin/app", b"#!/bin/sh\necho one\n", 0o755)
        .file("/etc/old", b"old", 0o644)
        .symlink("/sbin", "bin")
        .next_layer()
        .remove("/etc/old")
        .file("/etc/new", b"new", 0o600)
        .entrypoint(["/bin/app"])
        .cmd(["--serve"])
        .env("A", "b")
        .label("z", "1")
        .label("a", "2")
        .workdir("/srv")
        .user("7:8")
        .expose("80/tcp")
}

pub fn archive(builder: &ImageBuilder) -> Vec<u8> {
    let mut bytes = Vec::new();
    builder.write_oci_archive(&mut bytes).unwrap();
    bytes
}

/// The same image as `docker save` writes it, with each layer made into what `pack` gives: another manifest, the same id.
pub fn repacked(builder: &ImageBuilder, name: &str, pack: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut files = std::collections::HashMap::new();
    for entry in tar::Archive::new(archive(builder).as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        files.insert(path, data);
    }
    let json = |path: &str| -> serde_json::Value { serde_json::from_slice(&files[path]).unwrap() };
    let blob = |descriptor: &serde_json::Value| {
        format!("blobs/sha256/{}", descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:"))
    };
    let manifest = json(&blob(&json("index.json")["manifests"][0]));
    let layers: Vec<(String, Vec<u8>)> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| (format!("{}.layer", &blob(layer)[13..33]), pack(&files[&blob(layer)])))
        .collect();
    let names: Vec<&str> = layers.iter().map(|(name, _)| name.as_str()).collect();
    let list =
        serde_json::json!([{ "Config": "config.json", "RepoTags": [name], "Layers": names }]).to_string();
    let mut content: Vec<(&str, &[u8])> =
        layers.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
    content.push(("config.json", &files[&blob(&manifest["config"])]));
    content.push(("manifest.json", list.as_bytes()));
    tar_of(&content)
}

/// A tar archive of plain files.
pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, *data).unwrap();
    }
    archive.into_inner().unwrap()
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
}

/// The error with all its causes, as a user reads it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// True if the tool is installed; else says which test part is skipped for want of it.
pub fn has(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(tool).is_file());
    if !found {
        eprintln!("skipped: needs {tool}");
    }
    found
}

/// Unpacking sets owners and makes whiteouts.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Runs a command that must succeed; gives its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A file with `bytes` in a place that goes with the test.
pub fn file(directory: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}
