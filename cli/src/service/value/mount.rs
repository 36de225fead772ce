//! Mounts: `type=bind|tmpfs,source=…,target=…` and their options. Source: swarm-parity 1.3.

use rswarm_types::task::{Mount, MountKind};

use super::{Parsed, ValueError, boolean, bytes, csv};

const KINDS: &str = "type=bind or type=tmpfs";

/// Reads `--mount`.
///
/// A source that starts with `./` is meant in the client's working directory, as in Docker.
pub fn mount(text: &str) -> Parsed<Mount> {
    // Docker's default is a volume, which is then refused by name like a written one.
    let mut kind = "volume".to_owned();
    let (mut source, mut target, mut read_only) = (String::new(), String::new(), false);
    let (mut size, mut permissions, mut only_for) = (0, 0, None);
    for field in csv(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.trim().to_ascii_lowercase(), value),
            None => (field.trim().to_ascii_lowercase(), ""),
        };
        let switch = || if field.contains('=') { boolean(value) } else { Ok(true) };
        match key.as_str() {
            "type" => kind = value.to_ascii_lowercase(),
            "source" | "src" => source = value.to_owned(),
            "target" | "dst" | "destination" => target = value.to_owned(),
            "readonly" | "ro" => read_only = switch()?,
            // Hints for Docker Desktop's file sharing; there is one consistency on Linux.
            "consistency" => {
                if !["default", "consistent", "cached", "delegated"].contains(&value) {
                    return Err(ValueError::new("default, consistent, cached or delegated", value));
                }
            }
            "bind-propagation" => {
                only_for = Some(("bind", key.clone()));
                default_only(&key, value, "rprivate", "bind-propagation=rprivate")?;
            }
            "bind-recursive" => {
                only_for = Some(("bind", key.clone()));
                default_only(&key, value, "enabled", "bind-recursive=enabled")?;
            }
            "bind-create-src" | "bind-nonrecursive" => {
                if switch()? {
                    return Err(ValueError::unsupported(
                        format!("`{key}`"),
                        "a source that exists on the nodes",
                    ));
                }
            }
            "tmpfs-size" => {
                only_for = Some(("tmpfs", key.clone()));
                size = bytes(value)?;
            }
            "tmpfs-mode" => {
                only_for = Some(("tmpfs", key.clone()));
                permissions = u32::from_str_radix(value, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777)
                    .ok_or_else(|| ValueError::new("permissions in octal, like 1770", value))?;
            }
            "volume-driver" | "volume-opt" | "volume-label" | "volume-nocopy" | "volume-subpath"
            | "image-subpath" => return Err(ValueError::unsupported(format!("`{key}`"), KINDS)),
            key => {
                return Err(ValueError::new("a key of --mount, like type, source, target or readonly", key));
            }
        }
    }
    if let Some((needed, option)) = only_for
        && needed != kind
    {
        return Err(ValueError::new(format!("type={needed} for `{option}`"), format!("type={kind}")));
    }
    let kind = match kind.as_str() {
        "bind" => MountKind::Bind,
        "tmpfs" => MountKind::Tmpfs { size_bytes: size, mode: permissions },
        "volume" | "npipe" | "cluster" | "image" => {
            return Err(ValueError::unsupported(format!("mount type `{kind}`"), KINDS));
        }
        _ => return Err(ValueError::new(KINDS, kind)),
    };
    if !target.starts_with('/') || target.trim_end_matches('/').is_empty() {
        return Err(ValueError::new("target=/an/absolute/path other than /", text));
    }
    match kind {
        MountKind::Bind => source = absolute(&source)?,
        MountKind::Tmpfs { .. } if !source.is_empty() => {
            return Err(ValueError::new("no source for type=tmpfs", source));
        }
        MountKind::Tmpfs { .. } => {}
    }
    Ok(Mount { kind, source, target, read_only })
}

/// An option of which only Docker's default is there.
fn default_only(key: &str, value: &str, default: &str, expected: &'static str) -> Parsed<()> {
    if value == default {
        return Ok(());
    }
    Err(ValueError::unsupported(format!("`{key}={value}`"), expected))
}

fn absolute(source: &str) -> Parsed<String> {
    if source.starts_with('/') {
        return Ok(source.to_owned());
    }
    let error = || ValueError::new("source=/an/absolute/path for type=bind", source);
    if source != "." && !source.starts_with("./") {
        return Err(error());
    }
    let path = std::path::absolute(source).map_err(|_| error())?;
    path.into_os_string().into_string().map_err(|_| error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str, target: &str, read_only: bool) -> Mount {
        Mount { kind: MountKind::Bind, source: source.to_owned(), target: target.to_owned(), read_only }
    }

    fn tmpfs(size_bytes: u64, mode: u32) -> Mount {
        Mount {
            kind: MountKind::Tmpfs { size_bytes, mode },
            source: String::new(),
            target: "/t".to_owned(),
            read_only: false,
        }
    }

    #[test]
    fn binds_and_tmpfs() {
        let cwd = std::env::current_dir().unwrap();
        let here = cwd.join("data").to_str().unwrap().to_owned();
        for (text, expected) in [
            ("type=bind,source=/a,target=/b", bind("/a", "/b", false)),
            ("type=bind,src=/a,dst=/b,ro", bind("/a", "/b", true)),
            ("type=bind,src=/a,destination=/b,readonly=false", bind("/a", "/b", false)),
            ("type=bind,src=./data,dst=/b", bind(&here, "/b", false)),
            (
                "type=bind,src=/a,dst=/b,bind-propagation=rprivate,bind-recursive=enabled,consistency=cached",
                bind("/a", "/b", false),
            ),
            (r#"type=bind,"source=/a,b",target=/b"#, bind("/a,b", "/b", false)),
            ("type=tmpfs,target=/t", tmpfs(0, 0)),
            ("type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1770", tmpfs(64 << 20, 0o1770)),
        ] {
            assert_eq!(mount(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_or_missing_is_named() {
        for (text, part) in [
            ("source=data,target=/b", "mount type `volume` is not supported yet: expected type=bind"),
            ("type=image,source=x,target=/b", "mount type `image` is not supported yet"),
            ("type=nfs,target=/b", "expected type=bind or type=tmpfs, found `nfs`"),
            ("type=bind,source=/a", "target=/an/absolute/path"),
            ("type=bind,source=/a,target=b", "target=/an/absolute/path"),
            ("type=bind,source=/a,target=/", "other than /"),
            ("type=bind,target=/b", "source=/an/absolute/path"),
            ("type=bind,source=a,target=/b", "source=/an/absolute/path"),
            ("type=tmpfs,source=/a,target=/b", "no source"),
            ("type=bind,source=/a,target=/b,tmpfs-size=1m", "expected type=tmpfs for `tmpfs-size`"),
            ("type=tmpfs,target=/b,bind-propagation=rprivate", "expected type=bind for `bind-propagation`"),
            (
                "type=bind,source=/a,target=/b,bind-propagation=shared",
                "`bind-propagation=shared` is not supported",
            ),
            ("type=tmpfs,target=/b,tmpfs-mode=9", "octal"),
            ("type=tmpfs,target=/b,tmpfs-size=x", "a size"),
            ("type=bind,source=/a,target=/b,readonly=x", "true or false"),
            ("type=bind,source=/a,target=/b,volume-nocopy", "`volume-nocopy` is not supported"),
            ("type=bind,source=/a,target=/b,z", "a key of --mount"),
        ] {
            let error = mount(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
