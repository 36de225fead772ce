//! Whether a credential that the cluster keeps for a registry may be shown to the one that has an image.

use rswarm_image::{Credentials, Reference};
use rswarm_types::task::{RegistryAuth, RegistrySecret};

/// What the registry of `image` is shown: `auth` if it is meant for it. Neither for what is no reference nor for a
/// secret that is not known here.
pub fn credentials_for(image: &str, auth: Option<&RegistryAuth>) -> Option<Credentials> {
    let auth = auth.filter(|auth| is_meant_for(auth, image))?;
    credentials(auth)
}

/// Whether `auth` is for the registry of `image`.
pub(crate) fn is_meant_for(auth: &RegistryAuth, image: &str) -> bool {
    image.parse().is_ok_and(|reference: Reference| reference.registry() == auth.registry)
}

/// The same for the image store; `None` if the secret is not known here.
pub fn credentials(auth: &RegistryAuth) -> Option<Credentials> {
    Some(match auth.secret.clone() {
        RegistrySecret::Password { username, password } => Credentials::Password { username, password },
        RegistrySecret::IdentityToken(token) => Credentials::IdentityToken(token),
        RegistrySecret::RegistryToken(token) => Credentials::RegistryToken(token),
        RegistrySecret::Withheld => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_shown_to_its_own_registry_alone() {
        let auth = |registry: &str| RegistryAuth {
            registry: registry.to_owned(),
            secret: RegistrySecret::RegistryToken("t".to_owned()),
        };
        for (registry, image, shown) in [
            ("docker.io", "nginx", true),
            ("docker.io", "team/app:1", true),
            ("docker.io", "r:5000/team/app", false),
            (
                "r:5000",
                "r:5000/team/app:1@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                true,
            ),
            ("r:5000", "r:5001/team/app", false),
            ("r:5000", "r/team/app", false),
            ("r:5000", "no reference", false),
        ] {
            assert_eq!(credentials_for(image, Some(&auth(registry))).is_some(), shown, "{registry} {image}");
        }
        assert!(credentials_for("nginx", None).is_none());
        let withheld = RegistryAuth { secret: RegistrySecret::Withheld, ..auth("docker.io") };
        assert!(credentials_for("nginx", Some(&withheld)).is_none());
    }
}
