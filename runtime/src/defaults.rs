//! The default container: what Docker gives one, as an OCI configuration to start from.
//!
//! Source: moby's `oci/defaults.go` and `oci/caps/defaults.go`; Docker Engine documentation, "Runtime privilege and
//! Linux capabilities".

use std::collections::HashSet;

use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, Mount, MountBuilder,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use crate::seccomp;

/// The 14 capabilities of a container that asks for nothing.
pub const DEFAULT_CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

pub(crate) const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

pub(crate) const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A container as Docker would make it: own namespaces, Docker's mounts, capabilities, seccomp profile, devices,
/// masked and read-only paths, root as user, `/` as working directory. The caller fills in arguments, environment,
/// limits and whatever differs. Use [`set_capabilities`] to change the capabilities, because the seccomp profile
/// follows from them.
pub fn default_spec() -> Spec {
    let user =
        UserBuilder::default().uid(0u32).gid(0u32).umask(0o022u32).build().expect("no field is mandatory");
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(vec!["sh".to_owned()])
        .env(vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()])
        .cwd("/")
        .no_new_privileges(false)
        .build()
        .expect("no field is mandatory");
    let namespaces: Vec<_> = [
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Cgroup,
    ]
    .into_iter()
    .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build().expect("no field is mandatory"))
    .collect();
    let resources =
        LinuxResourcesBuilder::default().devices(device_rules()).build().expect("no field is mandatory");
    let masked: Vec<String> = MASKED_PATHS.iter().map(|path| (*path).to_owned()).collect();
    let readonly: Vec<String> = READONLY_PATHS.iter().map(|path| (*path).to_owned()).collect();
    let linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .resources(resources)
        .masked_paths(masked)
        .readonly_paths(readonly)
        .build()
        .expect("no field is mandatory");
    let root = RootBuilder::default().path("rootfs").readonly(false).build().expect("no field is mandatory");
    let mut spec = SpecBuilder::default()
        .version("1.2.0")
        .root(root)
        .process(process)
        .mounts(mounts())
        .linux(linux)
        .build()
        .expect("no field is mandatory");
    // The builders bring a limit of 1024 open files and a host name, neither of which Docker has.
    spec.set_hostname(None);
    spec.process_mut().as_mut().expect("set above").set_rlimits(None);
    set_capabilities(&mut spec, &DEFAULT_CAPABILITIES);
    spec
}

/// Gives the container exactly these capabilities (bounding, effective and permitted, as Docker does) and the default
/// seccomp profile that goes with them.
///
/// # Panics
/// When the spec has no `process` or no `linux` part, which [`default_spec`] always has.
pub fn set_capabilities(spec: &mut Spec, capabilities: &[Capability]) {
    let set: HashSet<Capability> = capabilities.iter().copied().collect();
    let sets = LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()
        .expect("no field is mandatory");
    spec.process_mut().as_mut().expect("the spec has a process").set_capabilities(Some(sets));
    let linux = spec.linux_mut().as_mut().expect("the spec has a linux part");
    linux.set_seccomp(Some(seccomp::docker_default(capabilities)));
}

fn mounts() -> Vec<Mount> {
    let table: [(&str, &str, &str, &str); 7] = [
        ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        ("/sys/fs/cgroup", "cgroup", "cgroup", "ro,nosuid,noexec,nodev"),
        ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=67108864"),
    ];
    let mount = |(destination, kind, source, options): (&str, &str, &str, &str)| {
        MountBuilder::default()
            .destination(destination)
            .typ(kind)
            .source(source)
            .options(options.split(',').map(str::to_owned).collect::<Vec<_>>())
            .build()
            .expect("no field is mandatory")
    };
    table.into_iter().map(mount).collect()
}

/// Nothing but making nodes, and using those that harm nobody.
fn device_rules() -> Vec<LinuxDeviceCgroup> {
    let rule = |allow: bool, kind, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut builder = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind).access(access);
        if let Some(major) = major {
            builder = builder.major(major);
        }
        if let Some(minor) = minor {
            builder = builder.minor(minor);
        }
        builder.build().expect("no field is mandatory")
    };
    let mut rules = vec![
        rule(false, LinuxDeviceType::A, None, None, "rwm"),
        rule(true, LinuxDeviceType::C, None, None, "m"),
        rule(true, LinuxDeviceType::B, None, None, "m"),
    ];
    // null, zero, full, random, urandom, tty, console, ptmx; then all pseudo terminals.
    let nodes = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];
    rules.extend(nodes.map(|(major, minor)| rule(true, LinuxDeviceType::C, Some(major), Some(minor), "rwm")));
    rules.push(rule(true, LinuxDeviceType::C, Some(136), None, "rwm"));
    rules
}

/// Every capability, by its number.
pub const ALL_CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// The kernel's number of a capability. Source: linux/capability.h.
pub(crate) fn capability_number(capability: Capability) -> u32 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_container_inherits_limits_and_has_no_name() {
        let spec = default_spec();
        assert_eq!(spec.hostname(), &None);
        assert_eq!(spec.process().as_ref().unwrap().rlimits(), &None);
    }
}
