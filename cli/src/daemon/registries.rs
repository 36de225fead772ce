//! Registries that need no verified TLS, as given to `init` or `join`. They are kept in the data root, so that every
//! daemon on it knows them, however it is started: by hand, by its unit, or after a reboot.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::settings;

/// Reads one: `HOST`, `HOST:PORT` or a network like `10.0.0.0/8`.
pub fn parse(text: &str) -> Result<String, String> {
    let character = |c: char| c.is_ascii_alphanumeric() || "-_.:[]".contains(c);
    let fine = match text.split_once('/') {
        Some((address, bits)) => is_network(address, bits),
        None => !text.is_empty() && text.chars().all(character),
    };
    if fine {
        return Ok(text.to_owned());
    }
    Err(format!(
        "expected HOST, HOST:PORT or a network like 10.0.0.0/8, with up to 32 bits or, of IPv6, 128, found `{text}`"
    ))
}

fn is_network(address: &str, bits: &str) -> bool {
    let most = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

/// Those kept at `path`.
pub fn load(path: &Path) -> anyhow::Result<Vec<String>> {
    Ok(settings::read(path, "a list of registries")?.unwrap_or_default())
}

/// What [`remember`] did, to take it back.
#[derive(Debug)]
pub struct Remembered {
    path: PathBuf,
    before: Vec<String>,
}

impl Remembered {
    pub fn forget(self) -> anyhow::Result<()> {
        settings::write(&self.path, &self.before)
    }
}

/// Adds registries to those kept at `path`; `None` if all are there already.
pub fn remember(path: &Path, registries: &[String]) -> anyhow::Result<Option<Remembered>> {
    let before = load(path)?;
    let mut all = before.clone();
    all.extend(registries.iter().filter(|new| !before.contains(new)).cloned());
    if all == before {
        return Ok(None);
    }
    settings::write(path, &all)?;
    Ok(Some(Remembered { path: path.to_owned(), before }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_hosts_or_networks() {
        for (text, fine) in [
            ("registry.local", true),
            ("registry.local:5000", true),
            ("[fd00::1]:5000", true),
            ("10.0.0.0/8", true),
            ("10.0.0.0/32", true),
            ("fd00::/128", true),
            ("10.0.0.0/33", false),
            ("fd00::/129", false),
            ("registry.local/8", false),
            ("http://registry.local", false),
            ("registry.local/team", false),
            ("", false),
            ("/8", false),
        ] {
            assert_eq!(parse(text).is_ok(), fine, "{text}");
        }
    }

    #[test]
    fn what_is_remembered_adds_up_and_can_be_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.json");
        assert!(load(&path).unwrap().is_empty());
        remember(&path, &["a:1".to_owned()]).unwrap().unwrap();
        assert!(remember(&path, &["a:1".to_owned()]).unwrap().is_none());
        let more = remember(&path, &["b".to_owned(), "a:1".to_owned()]).unwrap().unwrap();
        assert_eq!(load(&path).unwrap(), ["a:1", "b"]);
        more.forget().unwrap();
        assert_eq!(load(&path).unwrap(), ["a:1"]);
        std::fs::write(&path, "nonsense").unwrap();
        assert!(load(&path).unwrap_err().to_string().contains("expected a list of registries"));
    }
}
