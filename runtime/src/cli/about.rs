//! What needs no container: `spec`, `features`, the version.

use oci_spec::runtime::{
    Linux, LinuxIdMappingBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, Spec,
};
use serde_json::json;

use super::create::absolute;
use super::error::{CommandError, OnFile};
use super::options::Parsed;
use super::show::print;
use crate::default_spec;

/// The runtime specification that is implemented.
const SPECIFICATION: &str = "1.2.0";

/// What `--version` says. Engines read the words after `version`, `commit:` and `spec:`.
pub(super) fn version(program: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("{program} version {version}\ncommit: v{version}\nspec: {SPECIFICATION}\n")
}

/// `spec`.
pub(super) fn spec(parsed: &Parsed) -> Result<(), CommandError> {
    let path = absolute(parsed.value("bundle").unwrap_or("."))?.join("config.json");
    let mut spec = default_spec();
    adapt(&mut spec, parsed.is_on("rootless"));
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(&spec, &mut serializer)
        .map_err(|source| CommandError::Json { path: path.clone(), source })?;
    text.push(b'\n');
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
    match file {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(CommandError::SpecExists { path })
        }
        other => other.and_then(|mut file| std::io::Write::write_all(&mut file, &text)).on("write", path),
    }
}

/// From the configuration of the library's containers to one that shows all there is, and runs a shell on a terminal.
fn adapt(spec: &mut Spec, rootless: bool) {
    spec.set_version(SPECIFICATION.to_owned());
    spec.set_hostname(Some("rswarm-runc".to_owned()));
    if let Some(root) = spec.root_mut() {
        root.set_path("rootfs".into()).set_readonly(Some(true));
    }
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(true)).set_args(Some(vec!["sh".to_owned()]));
    }
    if let Some(linux) = spec.linux_mut() {
        // A line of it for each system call would hide the rest.
        linux.set_seccomp(None);
        if rootless {
            without_privileges(linux);
        }
    }
    if rootless {
        let mounts = spec.mounts_mut().get_or_insert_default();
        mounts.iter_mut().for_each(without_group);
        mounts.retain(|mount| mount.typ().as_deref() != Some("cgroup"));
        if let Some(sys) = mounts.iter_mut().find(|mount| mount.destination().as_path() == "/sys") {
            // A sysfs of its own needs a network namespace of its own.
            let options = ["rbind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec();
            let bind =
                MountBuilder::default().destination("/sys").typ("none").source("/sys").options(options);
            *sys = bind.build().expect("no field is mandatory");
        }
    }
}

fn without_privileges(linux: &mut Linux) {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let map = |host| {
        let builder = LinuxIdMappingBuilder::default().container_id(0u32).host_id(host).size(1u32);
        Some(vec![builder.build().expect("all fields are set")])
    };
    linux.set_uid_mappings(map(uid)).set_gid_mappings(map(gid)).set_resources(None);
    let namespaces = linux.namespaces_mut().get_or_insert_default();
    namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    let user = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::User);
    namespaces.push(user.build().expect("no field is mandatory"));
}

/// Groups that are not mapped cannot own anything.
fn without_group(mount: &mut Mount) {
    let mut options = mount.options().clone().unwrap_or_default();
    options.retain(|option| !option.starts_with("gid="));
    mount.set_options(Some(options));
}

/// `features`.
pub(super) fn features() -> Result<(), CommandError> {
    let mut all = crate::features();
    all["annotations"] = json!({ "io.github.rswarm.version": env!("CARGO_PKG_VERSION") });
    print(&(serde_json::to_string_pretty(&all).unwrap_or_default() + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_configurations_that_can_be_planned() {
        let mut spec = default_spec();
        adapt(&mut spec, false);
        let text = serde_json::to_string(&spec).unwrap();
        let read: Spec = serde_json::from_str(&text).unwrap();
        let rootfs = crate::Rootfs::Directory("/".into());
        crate::plan::create(
            &read,
            &rootfs,
            "/".into(),
            "/x",
            &crate::plan::HostFacts {
                cgroups: crate::cgroup::Layout::parse(
                    "34 30 0:30 / /c/devices rw - cgroup cgroup rw,devices",
                ),
                ..Default::default()
            },
        )
        .unwrap();
    }
}
