//! From `cgroupsPath` to the unit that is meant, and where its cgroup is. Pure.
//!
//! Source: runc, `docs/systemd.md`, "cgroup path"; systemd.slice(5), systemd.unit(5).

use crate::cgroup::CgroupError;

/// The longest name that systemd takes. Source: systemd.unit(5).
const NAME_MAX: usize = 255;

/// A unit, and the slice it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnitName {
    pub slice: String,
    pub unit: String,
}

impl UnitName {
    /// Of a path `slice:prefix:name`. `user`: below the manager of a user.
    pub fn parse(path: &str, user: bool) -> Result<Self, CgroupError> {
        let parts: Vec<&str> = path.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            let expected =
                "`slice:prefix:name`, as `system.slice:rswarm:web`, where systemd manages the cgroups";
            return Err(invalid(path, expected));
        };
        let default = if user { "user.slice" } else { "system.slice" };
        let slice = if slice.is_empty() { default } else { slice };
        if expand(slice).is_none() {
            let expected =
                "the name of a slice before the first colon, as `a-b.slice` for one below `a.slice`";
            return Err(invalid(path, expected));
        }
        let unit = if is_slice(name) { name.to_owned() } else { format!("{prefix}-{name}.scope") };
        let ordinary = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'\\');
        let known = !name.is_empty() && unit.len() <= NAME_MAX && unit.bytes().all(ordinary);
        // The root slice is nobody's container.
        let of_its_own = !is_slice(name) || expand(name).is_some_and(|path| !path.is_empty());
        if !known || !of_its_own {
            let expected =
                "prefix and name out of a-z, A-Z, 0-9, `-`, `_`, `.`, `\\`, together at most 255 characters";
            return Err(invalid(path, expected));
        }
        Ok(Self { slice: slice.to_owned(), unit })
    }

    /// Of a container that says nothing about it. Not all that may be in an id may be in a unit's name.
    pub fn default_path(id: &str) -> String {
        format!(":rswarm:{}", id.replace('+', "\\x2b"))
    }

    /// Where its cgroup is, below that of the manager.
    pub fn control_group(&self) -> String {
        let slice = |name| expand(name).unwrap_or_default();
        if is_slice(&self.unit) { slice(&self.unit) } else { format!("{}/{}", slice(&self.slice), self.unit) }
    }
}

fn invalid(path: &str, expected: &'static str) -> CgroupError {
    CgroupError::UnitPath { path: path.to_owned(), expected }
}

pub(super) fn is_slice(unit: &str) -> bool {
    unit.ends_with(".slice")
}

/// `/a.slice/a-b.slice` for `a-b.slice`: a slice's name says which others it is in. `-.slice` is the root.
fn expand(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(String::new());
    }
    let ordinary = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.' | '\\');
    let mut path = String::new();
    let mut end = 0;
    for part in name.split('-') {
        if part.is_empty() || !part.chars().all(ordinary) {
            return None;
        }
        end += part.len();
        path.push_str(&format!("/{}.slice", &name[..end]));
        end += 1;
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_name_units_and_cgroups() {
        for (path, user, unit, group) in [
            ("system.slice:docker:ab", false, "docker-ab.scope", "/system.slice/docker-ab.scope"),
            (":rswarm:web", false, "rswarm-web.scope", "/system.slice/rswarm-web.scope"),
            (":rswarm:web", true, "rswarm-web.scope", "/user.slice/rswarm-web.scope"),
            ("-.slice:a:b", false, "a-b.scope", "/a-b.scope"),
            ("a-b-c.slice:p:n", false, "p-n.scope", "/a.slice/a-b.slice/a-b-c.slice/p-n.scope"),
            ("::x", false, "-x.scope", "/system.slice/-x.scope"),
            ("machine.slice:ignored:a-b.slice", false, "a-b.slice", "/a.slice/a-b.slice"),
        ] {
            let place = UnitName::parse(path, user).unwrap();
            assert_eq!((place.unit.as_str(), place.control_group().as_str()), (unit, group), "{path}");
        }
        assert_eq!(UnitName::default_path("a+b"), ":rswarm:a\\x2bb");
    }

    #[test]
    fn other_paths_are_refused_with_the_rule() {
        for (path, rule) in [
            ("/system.slice/x", "expected `slice:prefix:name`"),
            ("", "expected `slice:prefix:name`"),
            ("a:b:c:d", "expected `slice:prefix:name`"),
            ("system:a:b", "the name of a slice"),
            (".slice:a:b", "the name of a slice"),
            ("a--b.slice:a:b", "the name of a slice"),
            ("-a.slice:a:b", "the name of a slice"),
            ("a/../b.slice:a:b", "the name of a slice"),
            ("system.slice:a:", "prefix and name"),
            ("system.slice:a/b:c", "prefix and name"),
            ("system.slice:a:../x", "prefix and name"),
            ("system.slice:a:b c", "prefix and name"),
            ("system.slice:a:b@c", "prefix and name"),
            ("system.slice:a:-.slice", "prefix and name"),
            ("system.slice:a:b--c.slice", "prefix and name"),
        ] {
            let error =
                UnitName::parse(path, false).map(|place| place.control_group()).unwrap_err().to_string();
            assert!(error.contains(rule) && error.contains(&format!("`{path}`")), "{path}: {error}");
        }
        let long = format!("system.slice:a:{}", "b".repeat(250));
        assert!(UnitName::parse(&long, false).is_err());
    }

    proptest! {
        #[test]
        fn no_path_leads_out_of_its_slice(path in "[a-c./:\\-\\\\]{0,24}(\\.slice)?(:[a-b./-]{0,9}){0,3}") {
            if let Ok(place) = UnitName::parse(&path, false) {
                let group = place.control_group();
                prop_assert!(group.starts_with('/') && group.len() > 1, "{}", group);
                prop_assert!(group[1..].split('/').all(|part| !matches!(part, "" | "." | "..")), "{}", group);
            }
        }
    }
}
