//! From a task and its image to an OCI configuration. Pure: everything read from the node comes in as [`Inputs`].
//!
//! Source: swarm-parity 4.8 to 4.10; OCI runtime-spec, `config.md`; moby's rules for entrypoint, command, environment
//! and capabilities, named where they apply.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};

use oci_spec::image::{Config, ImageConfiguration};
use oci_spec::runtime::{
    Capability, LinuxCpuBuilder, LinuxMemoryBuilder, LinuxNamespaceType, LinuxPidsBuilder, Mount,
    MountBuilder, PosixRlimitBuilder, PosixRlimitType, Spec, UserBuilder,
};
use rswarm_runtime::{ALL_CAPABILITIES, DEFAULT_CAPABILITIES, default_spec, set_capabilities};
use rswarm_types::task::{MountKind, Ulimit};
use rswarm_types::{NetworkDriver, Task, kernel};

use super::users::User;

/// Of a period of 100 ms. Source: moby, `NanoCPUs` to quota.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// The kernel takes no smaller quota.
const CPU_QUOTA_MIN_MICROS: i64 = 1_000;
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What is wrong with a task's spec, found on the node.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    #[error("no command: neither the service nor image `{image}` names one")]
    NoCommand { image: String },
    #[error("expected an absolute working directory, found `{dir}`")]
    RelativeDir { dir: String },
    #[error("unknown capability `{name}`")]
    UnknownCapability { name: String },
    #[error("unknown ulimit `{name}`")]
    UnknownUlimit { name: String },
    #[error("ulimit `{name}`: expected the soft limit to be at most the hard one, found {soft} and {hard}")]
    SoftAboveHard { name: String, soft: i64, hard: i64 },
    #[error("sysctl `{name}` is not of the container's own: expected one of {expected}")]
    ForeignSysctl { name: String, expected: &'static str },
    #[error("unknown stop signal `{signal}`")]
    UnknownSignal { signal: String },
    #[error("invalid mount target `{target}`: expected an absolute path below `/` without `..`")]
    MountTarget { target: String },
    #[error("two mounts have the target `{target}`")]
    DuplicateMount { target: String },
    #[error("invalid source `{source_path}` of the mount at `{target}`: {reason}")]
    MountSource { source_path: String, target: String, reason: String },
    #[error("option `{option}` is not supported by this version of rswarm")]
    NotSupported { option: &'static str },
    #[error("tasks cannot join the host's network and others at once")]
    HostAndOthers,
    #[error("limit of {what} is too large: {value}")]
    LimitTooLarge { what: &'static str, value: u64 },
}

/// Which network namespace a container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// Its own; bridges are attached to it, or nothing is.
    Own,
    /// The node's.
    Host,
}

/// Everything a configuration is made from.
#[derive(Debug)]
pub struct Inputs<'a> {
    pub task: &'a Task,
    pub image: &'a ImageConfiguration,
    pub user: &'a User,
    /// See [`hostname`].
    pub hostname: &'a str,
    /// Files of the node that appear in the container: (path on the node, path in the container).
    pub files: &'a [(String, &'static str)],
    /// Whether the kernel can limit swap; if so a container may use as much swap as memory, as with Docker.
    pub limits_swap: bool,
    /// The node's name in the cluster.
    pub node_hostname: &'a str,
}

/// The network mode that follows from a task's networks.
///
/// # Errors
/// `HostAndOthers`.
pub fn network_mode(task: &Task) -> Result<NetworkMode, SpecError> {
    let host = task.networks.iter().filter(|network| network.driver == NetworkDriver::Host).count();
    match host {
        0 => Ok(NetworkMode::Own),
        _ if host == task.networks.len() => Ok(NetworkMode::Host),
        _ => Err(SpecError::HostAndOthers),
    }
}

/// The container's host name: the one asked for, else with the host's network the host's, else the short task id.
pub fn hostname(task: &Task, mode: NetworkMode, node_hostname: &str) -> String {
    match (task.spec.container.hostname.as_str(), mode) {
        ("", NetworkMode::Host) => node_hostname.to_owned(),
        ("", NetworkMode::Own) => task.id.short(),
        (name, _) => name.to_owned(),
    }
}

/// The user as the service or the image names it; empty means root.
pub fn user_words<'a>(task: &'a Task, image: &'a ImageConfiguration) -> &'a str {
    match task.spec.container.user.as_str() {
        "" => image.config().as_ref().and_then(|config| config.user().as_deref()).unwrap_or_default(),
        user => user,
    }
}

/// The number of the signal that asks the container to stop.
///
/// # Errors
/// `UnknownSignal`.
pub fn stop_signal(task: &Task, image: Option<&ImageConfiguration>) -> Result<i32, SpecError> {
    let of_image =
        image.and_then(|image| image.config().as_ref()).and_then(|config| config.stop_signal().as_deref());
    match (task.spec.container.stop_signal.as_str(), of_image) {
        ("", None | Some("")) => Ok(15),
        ("", Some(signal)) | (signal, _) => {
            kernel::signal(signal).ok_or_else(|| SpecError::UnknownSignal { signal: signal.to_owned() })
        }
    }
}

/// The OCI configuration of a task's container.
///
/// # Errors
/// As in [`SpecError`]; each names what in the service's spec to change.
pub fn build(inputs: &Inputs<'_>) -> Result<Spec, SpecError> {
    let Inputs { task, image, user, hostname, files, limits_swap, node_hostname } = *inputs;
    let container = &task.spec.container;
    if container.init {
        return Err(SpecError::NotSupported { option: "--init" });
    }
    let mode = network_mode(task)?;
    let mut spec = default_spec();
    set_capabilities(&mut spec, &capabilities(&container.cap_add, &container.cap_drop)?);
    spec.set_hostname(Some(hostname.to_owned()));
    if !container.labels.is_empty() {
        spec.set_annotations(Some(container.labels.clone().into_iter().collect::<HashMap<_, _>>()));
    }
    if let Some(root) = spec.root_mut() {
        root.set_readonly(Some(container.read_only));
    }
    let mounts = mounts(task, files, spec.mounts().clone().unwrap_or_default())?;
    spec.set_mounts(Some(mounts));
    if let Some(process) = spec.process_mut() {
        process.set_args(Some(arguments(task, image)?));
        let mut variables = environment(task, image, hostname);
        add_place(&mut variables, task, node_hostname);
        process.set_env(Some(variables));
        process.set_cwd(working_directory(task, image)?.into());
        process.set_terminal(Some(container.tty));
        let mut builder = UserBuilder::default().uid(user.uid).gid(user.gid).umask(0o022u32);
        if !user.additional_gids.is_empty() {
            builder = builder.additional_gids(user.additional_gids.clone());
        }
        process.set_user(builder.build().expect("no field is mandatory"));
        if container.oom_score_adj != 0 {
            process.set_oom_score_adj(Some(container.oom_score_adj));
        }
        if !container.ulimits.is_empty() {
            let rlimits = container.ulimits.iter().map(rlimit).collect::<Result<Vec<_>, _>>()?;
            process.set_rlimits(Some(rlimits));
        }
    }
    if let Some(linux) = spec.linux_mut() {
        if mode == NetworkMode::Host {
            let own = linux.namespaces().clone().unwrap_or_default();
            let shared = own.into_iter().filter(|ns| ns.typ() != LinuxNamespaceType::Network).collect();
            linux.set_namespaces(Some(shared));
        }
        if !container.sysctls.is_empty() {
            for name in container.sysctls.keys() {
                check_sysctl(name, mode)?;
            }
            linux.set_sysctl(Some(container.sysctls.clone().into_iter().collect::<HashMap<_, _>>()));
        }
        let mut resources = linux.resources().clone().unwrap_or_default();
        let limits = task.spec.limits;
        if limits.memory_bytes > 0 {
            let limit = signed("memory", limits.memory_bytes)?;
            let mut memory = LinuxMemoryBuilder::default().limit(limit);
            if limits_swap {
                memory = memory.swap(limit.saturating_mul(2));
            }
            resources.set_memory(Some(memory.build().expect("no field is mandatory")));
        }
        if limits.nano_cpus > 0 {
            let quota = u128::from(limits.nano_cpus) * u128::from(CPU_PERIOD_MICROS) / 1_000_000_000;
            let quota = i64::try_from(quota)
                .map_err(|_| SpecError::LimitTooLarge { what: "cpu", value: limits.nano_cpus })?;
            let cpu = LinuxCpuBuilder::default()
                .period(CPU_PERIOD_MICROS)
                .quota(quota.max(CPU_QUOTA_MIN_MICROS))
                .build()
                .expect("no field is mandatory");
            resources.set_cpu(Some(cpu));
        }
        if limits.pids > 0 {
            let pids = LinuxPidsBuilder::default().limit(signed("pids", limits.pids)?);
            resources.set_pids(Some(pids.build().expect("the limit is given")));
        }
        linux.set_resources(Some(resources));
    }
    Ok(spec)
}

fn signed(what: &'static str, value: u64) -> Result<i64, SpecError> {
    i64::try_from(value).map_err(|_| SpecError::LimitTooLarge { what, value })
}

/// Entrypoint and command. Source: moby, `runconfig.Merge`: an entrypoint of the service drops the image's command,
/// which was written for the image's entrypoint.
fn arguments(task: &Task, image: &ImageConfiguration) -> Result<Vec<String>, SpecError> {
    let container = &task.spec.container;
    let config = image.config().as_ref();
    let of_image = |words: Option<&Option<Vec<String>>>| words.cloned().flatten().unwrap_or_default();
    let entrypoint = match container.command.as_slice() {
        [] => of_image(config.map(Config::entrypoint)),
        command => command.to_vec(),
    };
    let command = match container.args.as_slice() {
        [] if !container.command.is_empty() => Vec::new(),
        [] => of_image(config.map(Config::cmd)),
        args => args.to_vec(),
    };
    let words: Vec<String> = entrypoint.into_iter().chain(command).collect();
    match words.first() {
        Some(program) if !program.is_empty() => Ok(words),
        _ => Err(SpecError::NoCommand { image: container.image.clone() }),
    }
}

/// Defaults, then the image's variables, then the task's; a later one replaces an earlier one in its place. A word
/// without `=` takes the variable away. `HOME` is among them only if somebody has set it: else each program, also of an
/// `exec`, has that of its user, which the runtime looks up. Source: moby, `ReplaceOrAppendEnvValues`.
fn environment(task: &Task, image: &ImageConfiguration, hostname: &str) -> Vec<String> {
    let of_image = image.config().as_ref().and_then(|config| config.env().clone()).unwrap_or_default();
    let mut variables = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if task.spec.container.tty {
        // Source: moby, `CreateDaemonEnvironment`.
        variables.push("TERM=xterm".to_owned());
    }
    for word in of_image.iter().chain(&task.spec.container.env) {
        let name = word.split('=').next().unwrap_or_default();
        let same = |known: &String| known.split('=').next() == Some(name);
        match (variables.iter().position(same), word.contains('=')) {
            (Some(place), true) => variables[place].clone_from(word),
            (Some(place), false) => drop(variables.remove(place)),
            (None, true) => variables.push(word.clone()),
            (None, false) => {}
        }
    }
    variables
}

/// Tells a program which task it is and where it runs, in variables that neither image nor task has set. (Swarm does so
/// only where templates ask for it.)
fn add_place(variables: &mut Vec<String>, task: &Task, node_hostname: &str) {
    let place = [
        ("RSWARM_SERVICE_NAME", task.service_name.clone()),
        ("RSWARM_TASK_ID", task.id.to_string()),
        ("RSWARM_TASK_NAME", task.name()),
        ("RSWARM_TASK_SLOT", task.slot.to_string()),
        ("RSWARM_NODE_ID", task.node_id.map(|node| node.to_string()).unwrap_or_default()),
        ("RSWARM_NODE_HOSTNAME", node_hostname.to_owned()),
    ];
    for (name, value) in place {
        if !variables.iter().any(|known| known.split('=').next() == Some(name)) {
            variables.push(format!("{name}={value}"));
        }
    }
}

fn working_directory(task: &Task, image: &ImageConfiguration) -> Result<String, SpecError> {
    let of_image =
        image.config().as_ref().and_then(|config| config.working_dir().clone()).unwrap_or_default();
    let dir = match task.spec.container.dir.as_str() {
        "" => of_image,
        dir => dir.to_owned(),
    };
    match dir.as_str() {
        "" => Ok("/".to_owned()),
        path if path.starts_with('/') => Ok(dir),
        _ => Err(SpecError::RelativeDir { dir }),
    }
}

/// Source: moby, `oci/caps/utils.go`, `TweakCapabilities`: drops beat the defaults, `ALL` in either list comes first.
fn capabilities(add: &[String], drop: &[String]) -> Result<Vec<Capability>, SpecError> {
    let parse = |names: &[String]| -> Result<(bool, Vec<Capability>), SpecError> {
        let mut all = false;
        let mut set = Vec::new();
        for name in names {
            let upper = name.trim().to_ascii_uppercase();
            let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if short == "ALL" {
                all = true;
            } else {
                let unknown = |_| SpecError::UnknownCapability { name: name.clone() };
                set.push(short.parse::<Capability>().map_err(unknown)?);
            }
        }
        Ok((all, set))
    };
    let (add_all, added) = parse(add)?;
    let (drop_all, dropped) = parse(drop)?;
    let base: Vec<Capability> = match (add_all, drop_all) {
        (true, _) => ALL_CAPABILITIES.to_vec(),
        (false, true) => Vec::new(),
        (false, false) => DEFAULT_CAPABILITIES.to_vec(),
    };
    let mut set: Vec<Capability> = base.into_iter().filter(|known| !dropped.contains(known)).collect();
    for capability in added {
        if !set.contains(&capability) {
            set.push(capability);
        }
    }
    Ok(set)
}

fn rlimit(ulimit: &Ulimit) -> Result<oci_spec::runtime::PosixRlimit, SpecError> {
    let Ulimit { name, soft, hard } = ulimit;
    let unknown = |_| SpecError::UnknownUlimit { name: name.clone() };
    let kind: PosixRlimitType = format!("RLIMIT_{}", name.to_ascii_uppercase()).parse().map_err(unknown)?;
    // -1, or any negative number, means unlimited.
    let value = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
    if value(*soft) > value(*hard) {
        return Err(SpecError::SoftAboveHard { name: name.clone(), soft: *soft, hard: *hard });
    }
    Ok(PosixRlimitBuilder::default()
        .typ(kind)
        .soft(value(*soft))
        .hard(value(*hard))
        .build()
        .expect("all fields are given"))
}

fn check_sysctl(name: &str, mode: NetworkMode) -> Result<(), SpecError> {
    if kernel::is_own_sysctl(name, mode == NetworkMode::Own) {
        return Ok(());
    }
    Err(SpecError::ForeignSysctl { name: name.to_owned(), expected: kernel::OWN_SYSCTLS })
}

/// The default mounts, the node's files and the task's mounts, the latter in the order of their depth so that one can
/// lie within another. A mount of the task takes the place of a default one at the same path.
fn mounts(
    task: &Task,
    files: &[(String, &'static str)],
    defaults: Vec<Mount>,
) -> Result<Vec<Mount>, SpecError> {
    let mut own: BTreeMap<(usize, String), Mount> = BTreeMap::new();
    for mount in &task.spec.container.mounts {
        let target = clean_target(&mount.target)?;
        let source_error = |reason: &str| SpecError::MountSource {
            source_path: mount.source.clone(),
            target: target.clone(),
            reason: reason.to_owned(),
        };
        let access = if mount.read_only { "ro" } else { "rw" };
        let builder = MountBuilder::default().destination(target.clone());
        let built = match mount.kind {
            MountKind::Bind => {
                if !mount.source.starts_with('/') {
                    return Err(source_error("expected an absolute path"));
                }
                builder
                    .typ("bind")
                    .source(mount.source.clone())
                    .options(["rbind", "rprivate", access].map(str::to_owned).to_vec())
            }
            MountKind::Tmpfs { size_bytes, mode } => {
                if !mount.source.is_empty() {
                    return Err(source_error("a tmpfs has none"));
                }
                let mode = if mode == 0 { 0o1777 } else { mode };
                let mut options = ["nosuid", "nodev", "noexec", access].map(str::to_owned).to_vec();
                options.push(format!("mode={mode:o}"));
                if size_bytes > 0 {
                    options.push(format!("size={size_bytes}"));
                }
                builder.typ("tmpfs").source("tmpfs").options(options)
            }
        };
        let built = built.build().expect("the destination is given");
        let depth = Path::new(&target).components().count();
        if own.insert((depth, target.clone()), built).is_some() {
            return Err(SpecError::DuplicateMount { target });
        }
    }
    let replaced = |path: &Path| own.keys().any(|(_, target)| Path::new(target) == path);
    let mut mounts: Vec<Mount> =
        defaults.into_iter().filter(|mount| !replaced(mount.destination())).collect();
    for (source, target) in files.iter().filter(|(_, target)| !replaced(Path::new(target))) {
        let mount = MountBuilder::default()
            .destination(*target)
            .typ("bind")
            .source(source.clone())
            .options(["rbind", "rprivate"].map(str::to_owned).to_vec());
        mounts.push(mount.build().expect("the destination is given"));
    }
    mounts.extend(own.into_values());
    Ok(mounts)
}

/// The path without `.` and doubled or trailing slashes.
fn clean_target(target: &str) -> Result<String, SpecError> {
    let invalid = || SpecError::MountTarget { target: target.to_owned() };
    let path = Path::new(target);
    let clean: Vec<&str> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let fine = path.is_absolute()
        && !clean.is_empty()
        && !path.components().any(|part| part == Component::ParentDir);
    if fine { Ok(format!("/{}", clean.join("/"))) } else { Err(invalid()) }
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
