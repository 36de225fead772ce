//! The user's credentials for registries: the `config.json` that Docker's tools share, and credential helpers.
//!
//! The user's files stay the user's: the daemon never reads them. A command reads what it needs and sends it along
//! with its call; only `service create` and `update --with-registry-auth` have the cluster keep it.
//!
//! Source: Docker CLI reference, "Configuration files" and `docker login`, "Credential stores".

mod config;
mod helper;

use rswarm_api::v1;

pub use config::ConfigFile;

pub use rswarm_image::DEFAULT_REGISTRY as DOCKER_HUB;

/// Under what key its credential is kept, for historical reasons.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// Why a credential cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("neither DOCKER_CONFIG nor HOME is set: there is no place for credentials")]
    NoHome,
    #[error("cannot {action} `{path}`")]
    File {
        action: &'static str,
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{path}` is not a valid configuration: {reason}")]
    Invalid { path: std::path::PathBuf, reason: String },
    #[error("credential helper `{program}` cannot be run")]
    HelperMissing {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("credential helper `{program} {action}` failed: {reason}")]
    HelperFailed { program: String, action: &'static str, reason: String },
}

/// The credential for the registry of `reference`, if the user has one. What is wrong with the configuration is told
/// as a warning, as most images need no credential.
pub fn of_image(reference: &str) -> Option<v1::RegistryAuth> {
    let registry = registry_of(reference)?;
    match ConfigFile::read().and_then(|config| config.get(&registry)) {
        Ok(auth) => auth,
        Err(error) => {
            let error = anyhow::Error::new(error);
            eprintln!("WARNING: going on without a credential for `{registry}`: {error:#}");
            None
        }
    }
}

/// The credential that a service of the image `reference` is to have: empty, with a warning, if the user has none.
///
/// # Errors
/// If the configuration or a helper fails: going on would take from a service the credential it has.
pub fn of_service(reference: &str) -> Result<v1::RegistryAuth, AuthError> {
    let Some(registry) = registry_of(reference) else { return Ok(v1::RegistryAuth::default()) };
    match ConfigFile::read()?.get(&registry)? {
        Some(auth) => Ok(v1::RegistryAuth { registry, ..auth }),
        None => {
            eprintln!("WARNING: no credential for `{registry}` here: log in with `rswarm login {registry}`");
            Ok(v1::RegistryAuth::default())
        }
    }
}

/// The registry that the daemon will ask for the image: by its own rules, so that no other gets the credential. `None`
/// for what is no reference, which the daemon refuses.
fn registry_of(reference: &str) -> Option<String> {
    let reference: rswarm_image::Reference = reference.parse().ok()?;
    Some(normal(reference.registry()).to_owned())
}

/// A registry as the user wrote it, or as a configuration has it, as `host[:port]`.
pub fn normal(registry: &str) -> &str {
    let host = registry.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or(host);
    match host {
        "" | "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        host => host,
    }
}

/// The key under which configurations and helpers know a registry.
fn key(registry: &str) -> &str {
    if registry == DOCKER_HUB { DOCKER_HUB_KEY } else { registry }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_of_a_name() {
        for (name, registry) in [
            ("nginx", "docker.io"),
            ("team/app:1", "docker.io"),
            ("index.docker.io/library/nginx", "docker.io"),
            ("localhost/x", "localhost"),
            ("127.0.0.1:5000/x/y:1", "127.0.0.1:5000"),
            ("MYHOST/x", "MYHOST"),
            ("ghcr.io/x:1", "ghcr.io"),
        ] {
            assert_eq!(registry_of(name).as_deref(), Some(registry), "{name}");
        }
        assert_eq!(registry_of("no reference"), None);
        for (written, registry) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("http://r:5000/", "r:5000"),
            ("r.example", "r.example"),
            ("", "docker.io"),
        ] {
            assert_eq!(normal(written), registry, "{written}");
        }
    }
}
