//! The node's own keys for encrypted networks: kept on disk, told to others by their public halves, and changed now and
//! then.
//!
//! A change takes three steps, so that nothing is lost: the next key is told; once every node has it, this one goes over
//! to it; and that is told, whereupon the others forget the former one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rswarm_net::wireguard::{PrivateKey, TunnelEnd};
use rswarm_tunnel::{new_key, public_key};
use rswarm_types::netmap::NetworkMap;
use rswarm_types::node::{TunnelKey, TunnelKeys};
use rswarm_types::{NodeId, Timestamp, Version};
use serde::{Deserialize, Serialize};

/// How old a key gets. Source: Swarm changes the keys of its overlays every 12 hours.
pub const KEY_PERIOD: Duration = Duration::from_secs(12 * 60 * 60);

/// See the module.
pub struct Keys {
    path: PathBuf,
    period: Duration,
    held: Mutex<Held>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Held {
    place: u8,
    current: [u8; 32],
    /// Since when that is in use.
    since: Timestamp,
    next: Option<[u8; 32]>,
    /// The index of a map by which others may know `next`; not of interest to later daemons.
    #[serde(skip)]
    told_at: Option<Version>,
}

impl Keys {
    /// Takes up the keys in `path`, or makes the first one.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: PathBuf, period: Duration, now: Timestamp) -> io::Result<Self> {
        let held = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let held = match held {
            Some(held) => held,
            // Also in place of one that cannot be understood: the others learn of the new one.
            None => {
                let first = Held { place: 0, current: new_key()?.0, since: now, next: None, told_at: None };
                write(&path, &first)?;
                first
            }
        };
        Ok(Self { path, period, held: Mutex::new(held) })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What others are to know.
    pub fn told(&self) -> TunnelKeys {
        let held = self.held();
        let public = |key: [u8; 32]| TunnelKey(public_key(&PrivateKey(key)).0);
        TunnelKeys { place: held.place, current: public(held.current), next: held.next.map(public) }
    }

    /// This node's end of the tunnel.
    pub fn end(&self, port: u16) -> TunnelEnd {
        let held = self.held();
        TunnelEnd { port, key: PrivateKey(held.current), place: held.place }
    }

    /// Makes the next key when the present one is old enough.
    pub fn age(&self, now: Timestamp) -> io::Result<()> {
        let mut held = self.held();
        if held.next.is_some() || now.since(held.since) < self.period {
            return Ok(());
        }
        let next = Held { next: Some(new_key()?.0), ..held.clone() };
        write(&self.path, &next)?;
        *held = next;
        Ok(())
    }

    /// The index at which all must have arrived before the next key may be used; `None` while there is none, or the
    /// managers do not know it yet.
    pub fn awaits(&self, map: &NetworkMap, node: NodeId) -> Option<Version> {
        let known = map.nodes.get(&node)?.tunnel;
        let told = self.told();
        let index = (told.next.is_some() && known == Some(told)).then_some(map.index)?;
        self.held().told_at.get_or_insert(index);
        Some(index)
    }

    /// Goes over to the next key if everybody who has arrived at `index` knows it; returns whether it did.
    pub fn settled(&self, index: Version, now: Timestamp) -> io::Result<bool> {
        let mut held = self.held();
        let (Some(next), true) = (held.next, held.told_at.is_some_and(|told| told <= index)) else {
            return Ok(false);
        };
        // First on disk: a daemon that ends here has the others' packets for this key already.
        let after = Held { place: 1 - held.place, current: next, since: now, next: None, told_at: None };
        write(&self.path, &after)?;
        *held = after;
        Ok(true)
    }

    /// Forgets all, for a node that leaves its cluster.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn write(path: &Path, held: &Held) -> io::Result<()> {
    let next = path.with_extension("next");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all(&serde_json::to_vec(held)?)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rswarm_types::netmap::MapNode;

    use super::*;

    const NODE: NodeId = NodeId::from_bytes([1; 16]);

    fn map(index: u64, tunnel: Option<TunnelKeys>) -> NetworkMap {
        let node = MapNode {
            number: 1,
            name: "n1".into(),
            addr: [192, 0, 2, 1].into(),
            addresses: Default::default(),
            tunnel,
        };
        NetworkMap { index: Version(index), nodes: [(NODE, node)].into(), ..NetworkMap::default() }
    }

    #[test]
    fn the_next_key_is_used_once_all_know_it_and_kept_over_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tunnel-keys");
        let (period, start) = (Duration::from_secs(10), Timestamp(1_000_000_000));
        let open = || Keys::open(path.clone(), period, start).unwrap();
        let keys = open();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let first = keys.told();
        assert_eq!((first.place, first.next), (0, None));
        keys.age(start.after(Duration::from_secs(9))).unwrap();
        assert_eq!((keys.told(), open().told()), (first, first));

        let later = start.after(Duration::from_secs(10));
        keys.age(later).unwrap();
        let both = keys.told();
        assert!(both.next.is_some() && both.current == first.current);
        keys.age(later.after(period * 9)).unwrap();
        assert_eq!(keys.told(), both, "one at a time");
        // The managers do not know it yet: what all have arrived at says nothing.
        assert_eq!(keys.awaits(&map(5, Some(first)), NODE), None);
        assert!(!keys.settled(Version(99), later).unwrap());
        assert_eq!(keys.awaits(&map(7, Some(both)), NODE), Some(Version(7)));
        assert!(!keys.settled(Version(6), later).unwrap());
        // A daemon that comes meanwhile waits anew.
        let keys = open();
        assert_eq!(keys.told(), both);
        assert!(!keys.settled(Version(7), later).unwrap());
        assert_eq!(keys.awaits(&map(8, Some(both)), NODE), Some(Version(8)));
        assert_eq!(keys.awaits(&map(9, Some(both)), NODE), Some(Version(9)));
        assert!(keys.settled(Version(8), later).unwrap(), "known since 8");
        let now = keys.told();
        assert_eq!((now.place, Some(now.current), now.next), (1, both.next, None));
        let end = keys.end(4790);
        assert_eq!((end.port, end.place), (4790, 1));
        assert_eq!(TunnelKey(public_key(&end.key).0), now.current);
        assert_eq!(open().told(), now);
        keys.remove().unwrap();
        assert_ne!(open().told().current, now.current);
    }

    #[test]
    fn a_damaged_file_gives_way_to_a_new_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tunnel-keys");
        fs::write(&path, b"{").unwrap();
        let keys = Keys::open(path.clone(), KEY_PERIOD, Timestamp(1)).unwrap();
        assert_eq!(Keys::open(path, KEY_PERIOD, Timestamp(2)).unwrap().told(), keys.told());
    }
}
