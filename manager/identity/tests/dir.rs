//! Credentials on disk: modes, damage, and crashes in the middle of a change.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::Cluster;
use rswarm_identity::{Credentials, CredentialsError, DirError, IdentityDir};
use rswarm_types::Role;

const FILES: [&str; 3] = ["node.key", "node.pem", "root.pem"];

fn saved(credentials: &Credentials) -> (tempfile::TempDir, IdentityDir) {
    let parent = tempfile::tempdir().unwrap();
    let dir = IdentityDir::new(parent.path().join("a/identity"));
    dir.save(credentials).unwrap();
    (parent, dir)
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn same(a: &Credentials, b: &Credentials) -> bool {
    a.cert_pem() == b.cert_pem() && a.key().to_pem() == b.key().to_pem() && a.roots() == b.roots()
}

#[test]
fn credentials_round_trip_with_closed_modes_and_can_be_cleared() {
    let credentials = Cluster::new(1).node(1, Role::Manager);
    let (_parent, dir) = saved(&credentials);
    assert_eq!(names(dir.path()), FILES);
    assert_eq!(mode(dir.path()), 0o700);
    for file in FILES {
        assert_eq!(mode(&dir.path().join(file)), 0o600, "{file}");
    }
    assert!(same(&dir.load().unwrap().unwrap(), &credentials));
    dir.clear().unwrap();
    assert!(dir.load().unwrap().is_none());
    dir.clear().unwrap();
    assert!(IdentityDir::new("/nonexistent/identity").load().unwrap().is_none());
}

/// The steps of `save`, each as a crash after it would leave the directory.
#[test]
fn a_crash_during_renewal_leaves_old_or_new_credentials() {
    let cluster = Cluster::new(1);
    let (old, new) = (cluster.node(1, Role::Worker), cluster.node(1, Role::Manager));
    let next_key = ("node.key.next", new.key().to_pem());
    let certificate = ("node.pem", new.cert_pem().to_owned());
    let torn = ("node.pem.tmp", "-----BEGIN".to_owned());
    let cases: [(&[&(&str, String)], &Credentials); 4] =
        [(&[], &old), (&[&next_key], &old), (&[&next_key, &torn], &old), (&[&next_key, &certificate], &new)];
    for (writes, expected) in cases {
        let (_parent, dir) = saved(&old);
        for (name, text) in writes {
            fs::write(dir.path().join(name), text).unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        for _ in 0..2 {
            assert!(same(&dir.load().unwrap().unwrap(), expected));
            assert!(!dir.path().join("node.key.next").exists());
        }
        dir.save(&new).unwrap();
        assert_eq!(names(dir.path()), FILES);
        assert!(same(&dir.load().unwrap().unwrap(), &new));
    }
}

#[test]
fn a_crash_during_the_first_save_leaves_no_member_or_a_whole_one() {
    let credentials = Cluster::new(1).node(1, Role::Worker);
    for (removed, renamed, member) in [
        (&["node.pem", "root.pem"][..], true, false),
        (&["node.pem"][..], true, false),
        (&[][..], true, true),
        (&[][..], false, true),
    ] {
        let (_parent, dir) = saved(&credentials);
        for name in removed {
            fs::remove_file(dir.path().join(name)).unwrap();
        }
        if renamed {
            fs::rename(dir.path().join("node.key"), dir.path().join("node.key.next")).unwrap();
        }
        assert_eq!(dir.load().unwrap().is_some(), member, "{removed:?} {renamed}");
    }
}

#[test]
fn damage_is_named_with_its_file_and_a_way_out() {
    let cluster = Cluster::new(1);
    let credentials = cluster.node(1, Role::Worker);
    for file in FILES {
        let (_parent, dir) = saved(&credentials);
        let path = dir.path().join(file);
        fs::remove_file(&path).unwrap();
        let error = dir.load().unwrap_err();
        assert!(matches!(&error, DirError::Missing { path: found } if *found == path), "{error}");
        assert!(error.to_string().contains("join again"));
    }
    let other = Cluster::new(2).node(1, Role::Worker);
    let cases = [
        ("node.key", cluster.node(1, Role::Worker).key().to_pem(), "node.key"),
        ("node.key", "garbage".to_owned(), "node.key"),
        ("node.pem", other.cert_pem().to_owned(), "node.pem"),
        ("node.pem", "garbage".to_owned(), "node.pem"),
        ("root.pem", other.roots().pem().to_owned(), "node.pem"),
        ("root.pem", String::new(), "root.pem"),
    ];
    for (file, text, blamed) in cases {
        let (_parent, dir) = saved(&credentials);
        fs::write(dir.path().join(file), &text).unwrap();
        let error = dir.load().unwrap_err();
        let expected = dir.path().join(blamed).display().to_string();
        assert!(error.to_string().contains(&format!("`{expected}`")), "{file} <- {text:?}: {error}");
    }
    let (_parent, dir) = saved(&credentials);
    fs::write(dir.path().join("node.key"), cluster.node(1, Role::Worker).key().to_pem()).unwrap();
    let error = dir.load().unwrap_err();
    assert!(matches!(error, DirError::Credentials { source: CredentialsError::KeyMismatch, .. }));
}

#[test]
fn a_key_open_to_others_is_refused() {
    let (_parent, dir) = saved(&Cluster::new(1).node(1, Role::Worker));
    let key = dir.path().join("node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = dir.load().unwrap_err();
    assert!(matches!(&error, DirError::Open { path, mode: 0o640 } if *path == key), "{error}");
    assert!(error.to_string().contains("chmod 600"));
    let file =
        IdentityDir::new("/dev/null/identity").save(&Cluster::new(1).node(1, Role::Worker)).unwrap_err();
    assert!(matches!(file, DirError::CreateDir { .. }));
}
