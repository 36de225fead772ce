//! `config.json`: read with everything in it, so that writing it back loses nothing of other tools.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD as STANDARD_NO_PAD};
use rswarm_api::v1;
use serde_json::{Map, Value, json};

use super::{AuthError, helper, key, normal};

/// Largest configuration that is read.
const MAX_BYTES: u64 = 1 << 20;

/// The user's configuration.
#[derive(Clone)]
pub struct ConfigFile {
    path: PathBuf,
    content: Map<String, Value>,
}

impl ConfigFile {
    /// Reads `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`; one that is not there is empty.
    pub fn read() -> Result<ConfigFile, AuthError> {
        let directory = match std::env::var_os("DOCKER_CONFIG").filter(|value| !value.is_empty()) {
            Some(directory) => PathBuf::from(directory),
            None => {
                let home = std::env::var_os("HOME").filter(|value| !value.is_empty());
                PathBuf::from(home.ok_or(AuthError::NoHome)?).join(".docker")
            }
        };
        ConfigFile::read_from(&directory.join("config.json"))
    }

    fn read_from(path: &Path) -> Result<ConfigFile, AuthError> {
        let file = |source| AuthError::File { action: "read", path: path.to_owned(), source };
        let invalid = |reason: String| AuthError::Invalid { path: path.to_owned(), reason };
        let bytes = match std::fs::read(path) {
            Ok(bytes) if bytes.len() as u64 > MAX_BYTES => {
                return Err(invalid(format!("it is larger than {MAX_BYTES} bytes")));
            }
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(file(error)),
        };
        let content = if bytes.trim_ascii().is_empty() {
            Map::new()
        } else {
            match serde_json::from_slice(&bytes) {
                Ok(Value::Object(content)) => content,
                Ok(_) => return Err(invalid("expected an object".to_owned())),
                Err(error) => return Err(invalid(error.to_string())),
            }
        };
        Ok(ConfigFile { path: path.to_owned(), content })
    }

    /// The credential for `registry` (`host[:port]`), from its helper or from the file.
    pub fn get(&self, registry: &str) -> Result<Option<v1::RegistryAuth>, AuthError> {
        if let Some(program) = self.helper(registry) {
            return helper::get(&program, key(registry));
        }
        let auths = self.content.get("auths").and_then(Value::as_object);
        // Tools differ in how they write a registry: with a scheme, with a path, or plainly.
        let entry = auths.and_then(|auths| {
            let alike = || auths.iter().find(|(name, _)| normal(name) == registry).map(|(_, entry)| entry);
            auths.get(key(registry)).or_else(alike)
        });
        let Some(entry) = entry else { return Ok(None) };
        let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut auth = v1::RegistryAuth {
            username: text("username"),
            password: text("password"),
            identity_token: text("identitytoken"),
            registry_token: text("registrytoken"),
            ..Default::default()
        };
        let pair = text("auth");
        if !pair.is_empty() {
            let invalid = || AuthError::Invalid {
                path: self.path.clone(),
                reason: format!("the `auth` of `{registry}` is not the base64 of `user:password`"),
            };
            // Some tools leave the padding out.
            let decoded = STANDARD_NO_PAD.decode(pair.trim_end_matches('='));
            let decoded = decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let decoded = decoded.ok_or_else(invalid)?;
            let (username, password) = decoded.split_once(':').ok_or_else(invalid)?;
            auth.username = username.to_owned();
            auth.password = password.trim_end_matches('\0').to_owned();
        }
        Ok((auth != v1::RegistryAuth::default()).then_some(auth))
    }

    /// Keeps `auth` for `registry`: by its helper if there is one, else in the file. Gives the file's path in the
    /// latter case, as there everyone who can read the file can read the password.
    pub fn store(&mut self, registry: &str, auth: &v1::RegistryAuth) -> Result<Option<&Path>, AuthError> {
        if let Some(program) = self.helper(registry) {
            helper::store(&program, key(registry), auth)?;
            // Named without its secret, so that other tools know of the login.
            self.set(registry, json!({}))?;
            return Ok(None);
        }
        let pair = BASE64_STANDARD.encode(format!("{}:{}", auth.username, auth.password));
        let entry = if auth.identity_token.is_empty() {
            json!({ "auth": pair })
        } else {
            json!({ "auth": BASE64_STANDARD.encode(format!("{}:", auth.username)), "identitytoken": auth.identity_token })
        };
        self.set(registry, entry)?;
        Ok(Some(&self.path))
    }

    /// Forgets the credential for `registry`; false if there was none.
    pub fn erase(&mut self, registry: &str) -> Result<bool, AuthError> {
        let mut found = false;
        if let Some(program) = self.helper(registry) {
            found = helper::get(&program, key(registry))?.is_some();
            helper::erase(&program, key(registry))?;
        }
        if let Some(auths) = self.content.get_mut("auths").and_then(Value::as_object_mut) {
            let before = auths.len();
            auths.retain(|name, _| normal(name) != registry);
            if auths.len() < before {
                found = true;
                self.write()?;
            }
        }
        Ok(found)
    }

    /// The program that keeps the credential of `registry`, if it is not the file.
    fn helper(&self, registry: &str) -> Option<String> {
        let helpers = self.content.get("credHelpers").and_then(Value::as_object);
        let own = helpers.and_then(|helpers| {
            helpers.get(key(registry)).or_else(|| helpers.get(registry)).and_then(Value::as_str)
        });
        let name = own.or_else(|| self.content.get("credsStore").and_then(Value::as_str))?;
        (!name.is_empty()).then(|| format!("docker-credential-{name}"))
    }

    fn set(&mut self, registry: &str, entry: Value) -> Result<(), AuthError> {
        let auths = self.content.entry("auths").or_insert_with(|| json!({}));
        let Some(auths) = auths.as_object_mut() else {
            let reason = "its `auths` is not an object".to_owned();
            return Err(AuthError::Invalid { path: self.path.clone(), reason });
        };
        auths.retain(|name, _| normal(name) != registry);
        auths.insert(key(registry).to_owned(), entry);
        self.write()
    }

    /// Replaces the file in one step; a link to it stays a link. A new one is readable by its owner alone, another keeps
    /// its mode.
    fn write(&self) -> Result<(), AuthError> {
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let failed = |source| AuthError::File { action: "write", path: path.clone(), source };
        let unfinished = path.with_file_name(format!(".config.json.{}", std::process::id()));
        let write = || {
            if let Some(directory) = path.parent() {
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            }
            let mut file = std::fs::File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&unfinished)?;
            if let Ok(known) = path.metadata() {
                file.set_permissions(known.permissions())?;
            }
            let mut bytes = serde_json::to_vec_pretty(&self.content)?;
            bytes.push(b'\n');
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&unfinished, &path)
        };
        let written = write();
        if written.is_err() {
            let _ = std::fs::remove_file(&unfinished);
        }
        written.map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn config(text: &str) -> (tempfile::TempDir, ConfigFile) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        let config = ConfigFile::read_from(&path).unwrap();
        (place, config)
    }

    fn password(username: &str, password: &str) -> v1::RegistryAuth {
        v1::RegistryAuth { username: username.into(), password: password.into(), ..Default::default() }
    }

    #[test]
    fn credentials_are_found_however_the_registry_is_written() {
        let (_place, config) = config(
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"aHViOng="},"https://r:5000":{"auth":"dXNlcjpzZWNyZXQ="},
               "tok":{"identitytoken":"abc"},"empty":{}}}"#,
        );
        assert_eq!(config.get("docker.io").unwrap(), Some(password("hub", "x")));
        assert_eq!(config.get("r:5000").unwrap(), Some(password("user", "secret")));
        assert_eq!(config.get("tok").unwrap().unwrap().identity_token, "abc");
        assert_eq!(config.get("empty").unwrap(), None);
        assert_eq!(config.get("other").unwrap(), None);
    }

    #[test]
    fn a_new_file_is_private_and_a_known_one_keeps_its_mode() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("docker");
        let path = directory.join("config.json");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let store = || {
            let mut config = ConfigFile::read_from(&path).unwrap();
            config.store("r:5000", &password("user", "a")).unwrap();
        };
        store();
        assert_eq!((mode(&directory), mode(&path)), (0o700, 0o600));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        store();
        assert_eq!(mode(&path), 0o640);
    }

    #[test]
    fn what_is_written_keeps_what_others_wrote() {
        let (_place, mut config) = config(r#"{"psFormat":"x","auths":{"http://r:5000/":{"auth":"eDp5"}}}"#);
        let path = config.store("r:5000", &password("user", "a:b")).unwrap().unwrap().to_owned();
        let mut again = ConfigFile::read_from(&path).unwrap();
        assert_eq!(again.get("r:5000").unwrap(), Some(password("user", "a:b")));
        assert_eq!(again.content["auths"].as_object().unwrap().len(), 1);
        assert_eq!(again.content["psFormat"], "x");
        assert!(again.erase("r:5000").unwrap());
        assert!(!again.erase("r:5000").unwrap());
        assert_eq!(ConfigFile::read_from(&path).unwrap().get("r:5000").unwrap(), None);
    }

    #[test]
    fn broken_configurations_are_named() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("config.json");
        for text in ["{", "[]"] {
            std::fs::write(&path, text).unwrap();
            let error = ConfigFile::read_from(&path).err().unwrap().to_string();
            assert!(error.contains("config.json"), "{error}");
        }
        std::fs::write(&path, r#"{"auths":{"r":{"auth":"!!"}}}"#).unwrap();
        let error = ConfigFile::read_from(&path).unwrap().get("r").unwrap_err().to_string();
        assert!(error.contains("`auth` of `r`"), "{error}");
    }

    #[test]
    fn helpers_keep_what_the_file_does_not() {
        let (place, mut config) = config(r#"{"credsStore":"test","credHelpers":{"r:1":"none"}}"#);
        assert_eq!(config.helper("r:1").as_deref(), Some("docker-credential-none"));
        assert_eq!(config.helper("r:2").as_deref(), Some("docker-credential-test"));
        let error = config.store("r:1", &password("a", "b")).unwrap_err().to_string();
        assert!(error.contains("docker-credential-none"), "{error}");
        // A store in a few lines of shell, found by its full path.
        let program = place.path().join("helper");
        let kept = place.path().join("kept");
        std::fs::write(
            &program,
            format!(
                "#!/bin/sh\ncase \"$1\" in\nstore) cat > {kept};;\nget) cat > /dev/null; if [ -e {kept} ]; then cat {kept}; \
                 else echo 'credentials not found in native keychain'; exit 1; fi;;\nerase) cat > /dev/null; rm -f {kept};;\nesac\n",
                kept = kept.display()
            ),
        )
        .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = program.to_str().unwrap();
        assert_eq!(helper::get(program, "r").unwrap(), None);
        helper::store(program, "r", &password("user", "s\"ecret")).unwrap();
        assert_eq!(helper::get(program, "r").unwrap(), Some(password("user", "s\"ecret")));
        let token = v1::RegistryAuth { identity_token: "abc".into(), ..Default::default() };
        helper::store(program, "r", &token).unwrap();
        assert_eq!(helper::get(program, "r").unwrap(), Some(token));
        helper::erase(program, "r").unwrap();
        assert_eq!(helper::get(program, "r").unwrap(), None);
    }
}
