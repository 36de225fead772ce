//! Kernel settings of the container's namespaces. Pure.
//!
//! Source: OCI runtime-spec, "Sysctl"; `namespaces(7)` for what belongs to which namespace.

use oci_spec::runtime::Linux;

use super::namespaces::Namespaces;
use super::{Inside, PlanError};

/// Sysctls that belong to the IPC namespace, beside all of `fs.mqueue`.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

pub(super) fn sysctls(
    linux: &Linux,
    namespaces: &Namespaces,
    inside: &mut Vec<Inside>,
) -> Result<(), PlanError> {
    let mut all: Vec<_> = linux.sysctl().iter().flatten().collect();
    all.sort();
    for (name, value) in all {
        let field = "linux.sysctl";
        if name.contains(['/', '\0']) || name.split('.').any(str::is_empty) {
            let reason = "expected names separated by dots".to_owned();
            return Err(PlanError::Invalid { field, value: name.clone(), reason });
        }
        if value.contains('\0') {
            let reason = format!("the value of {name} contains a zero byte");
            return Err(PlanError::Invalid { field, value: value.replace('\0', "\\0"), reason });
        }
        if name.starts_with("net.") {
            namespaces.require(libc::CLONE_NEWNET, field, name)?;
        } else if name.starts_with("fs.mqueue.") || IPC_SYSCTLS.contains(&name.as_str()) {
            namespaces.require(libc::CLONE_NEWIPC, field, name)?;
        } else if name == "kernel.hostname" {
            let reason = "as with runc, expected `hostname` for that".to_owned();
            return Err(PlanError::Invalid { field, value: name.clone(), reason });
        } else if name == "kernel.domainname" {
            namespaces.require(libc::CLONE_NEWUTS, field, name)?;
        } else {
            let reason = "it is not a setting of a namespace, so it would change the host".to_owned();
            return Err(PlanError::Invalid { field, value: name.clone(), reason });
        }
        inside.push(Inside::Sysctl { name: name.clone(), value: value.clone() });
    }
    Ok(())
}
