//! The disk's side of a membership: the files that make this node a member, and the word that tells the next daemon what
//! this one was killed in.
//!
//! Files come and go one by one, so a change that takes several is announced first, in a file of its own, and that is
//! removed when the change is complete. [`settle`] brings what it finds to one end: a cluster that was being founded is
//! complete once the certificate is there, and nobody was told of it before; a cluster that was being left is gone.
//! Joining needs no word: settings and certificate are all of it, and a manager that has no log yet asks to be let in
//! again.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use rswarm_identity::{Credentials, IdentityDir};
use rswarm_types::error::chain;

use super::settings::Settings;
use crate::paths::Paths;

/// What may have been left half done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// `init`, until it has been answered.
    Founding,
    /// Removing the files of a membership.
    Leaving,
}

impl Change {
    const fn word(self) -> &'static str {
        match self {
            Self::Founding => "founding",
            Self::Leaving => "leaving",
        }
    }
}

/// Announces a change; returns once that is on disk.
pub fn begin(paths: &Paths, change: Change) -> anyhow::Result<()> {
    let path = paths.change();
    let next = path.with_extension("next");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&next)?;
        file.write_all(change.word().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&next, &path)?;
        sync_parent(&path)
    };
    let written = write();
    if written.is_err() {
        let _ = std::fs::remove_file(&next);
    }
    written.with_context(|| format!("cannot write `{}`", path.display()))
}

/// The change is complete.
pub fn end(paths: &Paths) -> anyhow::Result<()> {
    let path = paths.change();
    remove(&path, |path| std::fs::remove_file(path))?;
    sync_parent(&path).with_context(|| format!("cannot write `{}`", path.display()))
}

fn announced(paths: &Paths) -> anyhow::Result<Option<Change>> {
    let path = paths.change();
    match std::fs::read_to_string(&path) {
        Ok(text) => [Change::Founding, Change::Leaving]
            .into_iter()
            .find(|change| change.word() == text.trim())
            .map(Some)
            .with_context(|| format!("`{}` is damaged: expected `founding` or `leaving`", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    }
}

/// Finishes or takes back what an earlier daemon was killed in.
///
/// Nothing is deleted without such a word: files that nobody announced to be half done are somebody's cluster.
pub fn settle(paths: &Paths) -> anyhow::Result<()> {
    let Some(change) = announced(paths)? else { return Ok(()) };
    if change == Change::Founding && IdentityDir::new(paths.identity()).load()?.is_some() {
        tracing::info!("the cluster that was being founded when the daemon was killed is complete");
        return end(paths);
    }
    tracing::warn!(
        change = change.word(),
        "the daemon was killed while its node changed its membership: cleaning up"
    );
    forget(paths)
}

/// Makes this node a member for every daemon to come.
pub fn enter(paths: &Paths, settings: &Settings, credentials: &Credentials) -> anyhow::Result<()> {
    // The certificate comes last: it is what the next daemon goes by.
    settings.save(&paths.settings())?;
    Ok(IdentityDir::new(paths.identity()).save(credentials)?)
}

/// Removes all traces of a membership from disk.
pub fn forget(paths: &Paths) -> anyhow::Result<()> {
    // A full disk is no reason to keep what is to be deleted.
    if let Err(error) = begin(paths, Change::Leaving) {
        tracing::warn!(
            error = chain(&*error),
            "a kill in the next moment would leave files of the cluster behind"
        );
    }
    IdentityDir::new(paths.identity()).clear()?;
    remove(&paths.settings(), |path| std::fs::remove_file(path))?;
    remove(&paths.manager(), |path| std::fs::remove_dir_all(path))?;
    // The word goes only when nothing of what it is about can come back.
    sync_parent(&paths.settings())
        .with_context(|| format!("cannot write `{}`", paths.data_root.display()))?;
    end(paths)
}

/// Removes a file or a directory, if it is there.
pub fn remove(path: &Path, how: impl FnOnce(&Path) -> std::io::Result<()>) -> anyhow::Result<()> {
    match how(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove `{}`", path.display()))
        }
        _ => Ok(()),
    }
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::SocketAddr;

    use rswarm_identity::{Identity, NodeKey, RootCa};
    use rswarm_types::{ClusterId, NodeId, Role, Timestamp, Version};

    use super::*;

    fn paths(dir: &tempfile::TempDir) -> Paths {
        Paths { data_root: dir.path().to_owned(), run_root: dir.path().join("run") }
    }

    fn credentials() -> Credentials {
        let now = Timestamp::now();
        let root = RootCa::generate(now).unwrap();
        let claims = Identity {
            node: NodeId::from_bytes([1; 16]),
            role: Role::Manager,
            cluster: ClusterId::from_bytes([2; 16]),
        };
        let key = NodeKey::generate().unwrap();
        let hour = std::time::Duration::from_secs(3600);
        let issued = root.issue(&key.csr_pem().unwrap(), &claims, hour, now, Version(0), &[]).unwrap();
        Credentials::new(root.cert_pem(), &issued.pem, key).unwrap()
    }

    fn settings() -> Settings {
        let addr = SocketAddr::from(([127, 0, 0, 1], 2377));
        Settings { listen_addr: addr, advertise_addr: addr, data_path_addr: None, managers: Vec::new() }
    }

    /// As `init` leaves the disk before it writes settings and certificate.
    fn log_of_a_manager(paths: &Paths) {
        fs::create_dir_all(paths.manager().join("log")).unwrap();
        fs::write(paths.manager().join("member"), "1").unwrap();
    }

    fn left(paths: &Paths) -> [bool; 3] {
        let identity = IdentityDir::new(paths.identity()).load().unwrap().is_some();
        [identity, paths.settings().exists(), paths.manager().exists()]
    }

    #[test]
    fn a_cluster_founded_halfway_is_taken_back_and_a_complete_one_kept() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(&dir);
        begin(&paths, Change::Founding).unwrap();
        log_of_a_manager(&paths);
        settle(&paths).unwrap();
        assert_eq!(left(&paths), [false; 3], "killed after the log");

        begin(&paths, Change::Founding).unwrap();
        log_of_a_manager(&paths);
        settings().save(&paths.settings()).unwrap();
        // The first file of an identity that never got its last.
        fs::create_dir_all(paths.identity()).unwrap();
        fs::write(paths.identity().join("node.key.next"), "half a key").unwrap();
        settle(&paths).unwrap();
        assert_eq!(left(&paths), [false; 3], "killed after the settings");
        assert_eq!(fs::read_dir(paths.identity()).unwrap().count(), 0);

        begin(&paths, Change::Founding).unwrap();
        log_of_a_manager(&paths);
        enter(&paths, &settings(), &credentials()).unwrap();
        settle(&paths).unwrap();
        assert_eq!(left(&paths), [true; 3], "killed after the certificate");
        assert!(!paths.change().exists());
    }

    #[test]
    fn a_cluster_left_halfway_is_left_wherever_it_stopped() {
        for stop in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let paths = paths(&dir);
            log_of_a_manager(&paths);
            enter(&paths, &settings(), &credentials()).unwrap();
            begin(&paths, Change::Leaving).unwrap();
            if stop > 0 {
                fs::remove_file(paths.identity().join("node.key")).unwrap();
            }
            if stop > 1 {
                IdentityDir::new(paths.identity()).clear().unwrap();
            }
            if stop > 2 {
                fs::remove_file(paths.settings()).unwrap();
            }
            settle(&paths).unwrap();
            assert_eq!(left(&paths), [false; 3], "stopped at {stop}");
            assert!(!paths.change().exists());
        }
    }

    #[test]
    fn nothing_is_deleted_that_was_not_announced() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(&dir);
        log_of_a_manager(&paths);
        settle(&paths).unwrap();
        assert_eq!(left(&paths), [false, false, true], "a log without a certificate is somebody's cluster");
        fs::write(paths.change(), "some other word").unwrap();
        let error = settle(&paths).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
        assert!(paths.manager().exists());
        // A certificate that cannot be read is no reason to take it for absent.
        begin(&paths, Change::Founding).unwrap();
        enter(&paths, &settings(), &credentials()).unwrap();
        fs::write(paths.identity().join("node.pem"), "nonsense").unwrap();
        assert!(settle(&paths).is_err());
        assert!(paths.manager().exists() && paths.settings().exists());
    }
}
