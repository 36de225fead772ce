//! Where a node keeps things. Everything the daemon writes lies below two roots, so that several nodes can live on one
//! machine.

use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

/// Where the one daemon of a host keeps things.
const DATA_ROOT: &str = "/var/lib/rswarm";
const RUN_ROOT: &str = "/run/rswarm";

/// Under what help lists them, apart from a command's own options.
const GLOBAL: &str = "Which daemon (for every command)";

/// The roots of one node; global flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Paths {
    /// Directory for what must survive a reboot; also by RSWARM_DATA_ROOT
    #[arg(
        long,
        global = true,
        default_value_os_t = from_environment("RSWARM_DATA_ROOT", DATA_ROOT),
        value_name = "DIR",
        help_heading = GLOBAL
    )]
    pub data_root: PathBuf,
    /// Directory for what must not: the socket and the files of running containers; also by RSWARM_RUN_ROOT
    #[arg(
        long,
        global = true,
        default_value_os_t = from_environment("RSWARM_RUN_ROOT", RUN_ROOT),
        value_name = "DIR",
        help_heading = GLOBAL
    )]
    pub run_root: PathBuf,
}

/// A root's default. Read here and not by the parser, which would repeat such a root in the usage of every mistake.
fn from_environment(variable: &str, otherwise: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| otherwise.into(), PathBuf::from)
}

impl Paths {
    /// Whether the daemon of these roots is the host's own, which its unit starts.
    pub fn are_the_hosts(&self) -> bool {
        self.run_root == Path::new(RUN_ROOT) && self.data_root == Path::new(DATA_ROOT)
    }

    /// Whether these roots may be those of two daemons: enough to call the one, and not to touch what is the other's.
    pub fn only_run_root_is_named(&self) -> bool {
        self.run_root != Path::new(RUN_ROOT) && self.data_root == Path::new(DATA_ROOT)
    }

    /// The daemon's unix socket.
    pub fn socket(&self) -> PathBuf {
        self.run_root.join("rswarm.sock")
    }

    /// What a daemon that was started by `init` or `join` without systemd writes its log to.
    pub fn log(&self) -> PathBuf {
        self.data_root.join("daemon.log")
    }

    /// Certificate, key and root.
    pub fn identity(&self) -> PathBuf {
        self.data_root.join("identity")
    }

    /// Addresses of this node and of the managers it knows.
    pub fn settings(&self) -> PathBuf {
        self.data_root.join("node.json")
    }

    /// Registries that need no verified TLS.
    pub fn registries(&self) -> PathBuf {
        self.data_root.join("registries.json")
    }

    /// What the daemon is doing to its membership, while that takes several files.
    pub fn change(&self) -> PathBuf {
        self.data_root.join("membership.change")
    }

    /// Raft log and snapshots.
    pub fn manager(&self) -> PathBuf {
        self.data_root.join("manager")
    }

    /// Running and ended containers with their logs.
    pub fn containers(&self) -> PathBuf {
        self.data_root.join("containers")
    }

    /// Content store and unpacked layers.
    pub fn images(&self) -> PathBuf {
        self.data_root.join("images")
    }
}

/// Makes a root directory that only root can enter, and gives its absolute path.
///
/// Layers and containers hold programs that run with root's rights when started, and environments with secrets: other
/// users of the host must not reach them. A directory that others can enter is closed to them if it is one of ours or
/// empty, else refused, since closing it would break what else is in it.
pub fn make_private(root: &Path) -> anyhow::Result<PathBuf> {
    let cannot = || format!("cannot use `{}` as a root directory", root.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root).with_context(cannot)?;
    let root = root.canonicalize().with_context(cannot)?;
    if std::fs::metadata(&root).with_context(cannot)?.permissions().mode() & 0o077 != 0 {
        let mut entries = std::fs::read_dir(&root).with_context(cannot)?.filter_map(Result::ok);
        let ours = ["lock", "daemon.log", "rswarm.sock"].iter().any(|name| root.join(name).exists());
        anyhow::ensure!(
            ours || entries.next().is_none(),
            "`{}` is open to other users and holds other files: use a directory of its own as root directory",
            root.display()
        );
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o700)).with_context(cannot)?;
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_run_root_without_its_data_root_is_no_node() {
        let named = |data: &str, run: &str| {
            Paths { data_root: data.into(), run_root: run.into() }.only_run_root_is_named()
        };
        assert!(!named(DATA_ROOT, RUN_ROOT));
        assert!(!named("/a/data", "/a/run"));
        assert!(named(DATA_ROOT, "/a/run"));
    }

    #[test]
    fn a_unit_starts_the_hosts_own_daemon_alone() {
        let own =
            |data: &str, run: &str| Paths { data_root: data.into(), run_root: run.into() }.are_the_hosts();
        assert!(own(DATA_ROOT, RUN_ROOT));
        assert!(!own("/a/data", RUN_ROOT) && !own(DATA_ROOT, "/a/run"));
    }

    #[test]
    fn roots_are_closed_to_others_and_shared_directories_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fresh = make_private(&dir.path().join("a/b")).unwrap();
        assert_eq!(mode(&fresh), 0o700);

        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::write(fresh.join("lock"), "1").unwrap();
        std::fs::set_permissions(&fresh, open.clone()).unwrap();
        assert_eq!(mode(&make_private(&fresh).unwrap()), 0o700, "one of ours is closed");

        let shared = dir.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::set_permissions(&shared, open).unwrap();
        std::fs::write(shared.join("theirs"), "").unwrap();
        let refusal = make_private(&shared).unwrap_err().to_string();
        assert!(refusal.contains("open to other users"), "{refusal}");
        assert_eq!(mode(&shared), 0o755);
    }
}
