//! Platforms (operating system, architecture, variant) and choosing among those an image offers.
//!
//! Source: OCI image-spec, `image-index.md`, "Platform Variants".

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::ImageError;

/// Operating systems and architectures that may stand alone where a platform is asked for.
const SYSTEMS: [&str; 4] = ["linux", "windows", "freebsd", "darwin"];
const ARCHITECTURES: [&str; 12] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mipsle", "mips64", "mips64le", "ppc64le", "riscv64",
    "s390x",
];

/// An operating system and architecture in the words of Go (`linux`, `amd64`), as images use them.
///
/// Prints as `os/arch[/variant]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    #[serde(rename = "architecture")]
    pub arch: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// A platform from its words; aliases such as `x86_64` and `aarch64` become the usual names.
    pub fn new(os: &str, arch: &str, variant: Option<&str>) -> Platform {
        let (arch, implied) = match arch {
            "x86_64" | "x86-64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "i386" | "x86" => ("386", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            other => (other, None),
        };
        let variant = variant.filter(|v| !v.is_empty()).or(implied);
        Platform { os: os.to_owned(), arch: arch.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// The platform this program was built for.
    pub fn host() -> Platform {
        Platform::new("linux", std::env::consts::ARCH, None)
    }

    /// How well an image of platform `offered` runs here: `None` not at all, else lower is better.
    ///
    /// 64-bit ARM is `v8` when nothing is said; 32-bit ARM runs its own variant and every older one, newest first.
    pub(crate) fn rank(&self, offered: &Platform) -> Option<u32> {
        if self.os != offered.os || self.arch != offered.arch {
            return None;
        }
        let level = |platform: &Platform| -> Option<u32> {
            let default = match platform.arch.as_str() {
                "arm64" => 8,
                "arm" => 7,
                "amd64" => 1,
                _ => 0,
            };
            match &platform.variant {
                None => Some(default),
                Some(text) => text.strip_prefix('v').and_then(|digits| digits.parse().ok()),
            }
        };
        match (level(self), level(offered)) {
            (Some(wanted), Some(offered)) => wanted.checked_sub(offered),
            _ => (self.variant == offered.variant).then_some(0),
        }
    }

    /// The position of the best match among `offered`.
    pub(crate) fn choose(&self, offered: &[Platform]) -> Option<usize> {
        offered
            .iter()
            .enumerate()
            .filter_map(|(position, platform)| self.rank(platform).map(|rank| (rank, position)))
            .min()
            .map(|(_, position)| position)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.arch)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Platform, ImageError> {
        let invalid = || ImageError::InvalidPlatform { text: text.to_owned() };
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !parts.iter().all(word) {
            return Err(invalid());
        }
        let (first, host) = (parts[0].to_lowercase(), Platform::host());
        match parts[1..] {
            // What is left out is this host's.
            [] if SYSTEMS.contains(&first.as_str()) => Ok(Platform { os: first, ..host }),
            [] => Some(Platform::new(&host.os, &first, None))
                .filter(|platform| ARCHITECTURES.contains(&platform.arch.as_str()))
                .ok_or_else(invalid),
            [arch] => Ok(Platform::new(&first, &arch.to_lowercase(), None)),
            [arch, variant] => Ok(Platform::new(&first, &arch.to_lowercase(), Some(variant))),
            _ => Err(invalid()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(wanted: &str, offered: &[&str], chosen: Option<&str>) {
        let platforms: Vec<Platform> = offered.iter().map(|text| text.parse().unwrap()).collect();
        let wanted: Platform = wanted.parse().unwrap();
        assert_eq!(wanted.choose(&platforms).map(|i| offered[i]), chosen, "{wanted} of {offered:?}");
    }

    #[test]
    fn best_platform_is_chosen() {
        check("linux/amd64", &["linux/arm64", "linux/amd64"], Some("linux/amd64"));
        check("linux/x86_64", &["linux/amd64"], Some("linux/amd64"));
        check("linux/arm64", &["linux/arm64/v8"], Some("linux/arm64/v8"));
        check("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm64"], Some("linux/arm/v6"));
        check("linux/arm/v6", &["linux/arm/v7"], None);
        check("linux/amd64", &["linux/amd64/v3"], None);
        check("linux/amd64", &["windows/amd64", "unknown/unknown"], None);
        check("linux/riscv64", &["linux/riscv64"], Some("linux/riscv64"));
    }

    #[test]
    fn what_is_left_out_is_this_hosts() {
        let host = Platform::host();
        for (text, full) in [
            ("linux", format!("linux/{}", host.arch)),
            ("Windows", format!("windows/{}", host.arch)),
            ("arm64", "linux/arm64".to_owned()),
            ("x86_64", "linux/amd64".to_owned()),
            ("armhf", "linux/arm/v7".to_owned()),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), full, "{text}");
        }
    }

    #[test]
    fn malformed_platforms_are_refused() {
        for text in ["", "linus", "linux/", "a/b/c/d", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
