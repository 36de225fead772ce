//! `exec`: one more process in a running container.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, LinuxCapabilities, Process};

use super::Context;
use super::console::{self, Console};
use super::container::{Container, Phase};
use super::create::{absolute, check_preserved, write_pid_file};
use super::error::{CommandError, During, OnFile};
use super::options::Parsed;
use crate::cgroup::{self, Cgroup};
use crate::plan;
use crate::run::{self, Given, Stdio};
use crate::sys;

/// `exec`: gives the exit code of the process, or 0 if it is left alone.
pub(super) fn exec(context: &Context, parsed: &Parsed) -> Result<i32, CommandError> {
    let container = context.load(parsed)?;
    let id = || container.record.id.clone();
    let (phase, target) = container.look();
    match phase {
        Phase::Paused if !parsed.is_on("ignore-paused") => return Err(CommandError::ExecPaused { id: id() }),
        // Its root may still be the host's.
        phase @ Phase::Creating => return Err(CommandError::NotRunning { id: id(), found: phase.name() }),
        _ => {}
    }
    let Some(target) = target else { return Err(CommandError::ExecStopped { id: id() }) };
    let preserved = check_preserved(parsed, 0)?;
    let pid_file = parsed.value("pid-file").map(absolute).transpose()?;
    let foreground = !parsed.is_on("detach");
    let process = process(context, &container, parsed)?;
    let console =
        Console::open(process.terminal() == Some(true), parsed.value("console-socket"), foreground)?;
    let cgroup = below(&container.record.cgroup, parsed.values("cgroup"))?;
    let namespaces = run::joinable(container.record.namespaces, container.record.init_process_pid);
    let own_pids = namespaces & libc::CLONE_NEWPID as u64 != 0;
    let others = namespaces & !(libc::CLONE_NEWPID as u64);
    let entry = plan::Entry {
        namespaces: others,
        cgroup_files: cgroup.v1_task_files(),
        filter: container.filter()?,
        listener: container
            .record
            .seccomp_listener
            .clone()
            .map(|listener| plan::Listener { entered: Some(container.record.init_process_pid), ..listener }),
        personality: container.record.personality,
        memory_policy: container.record.memory_policy.clone(),
        keyring: (!container.record.keeps_keyring).then(|| plan::keyring_name(&container.record.id)),
    };
    let mut steps = plan::enter(&process, entry, &plan::HostFacts::labels(&process))?;
    plan::fail_by_itself(&mut steps);

    let signals = foreground.then(console::watch_signals).transpose()?;
    if foreground && !parsed.is_on("no-subreaper") {
        sys::set_child_subreaper().during("become the parent of orphans")?;
    }
    let given = Given {
        stdio: Stdio { stdin: sys::standard(0), stdout: sys::standard(1), stderr: sys::standard(2) },
        preserved,
        start: None,
        console: console.end(),
        keeps_lines: console.keeps_lines(),
    };
    let unified = run::unified_place(&cgroup, container.record.init_process_pid)?;
    let unified = unified.as_ref().map(AsFd::as_fd);
    let pid = run::enter(&steps, target.as_fd(), own_pids, unified, given)?;
    let terminal = console.master()?;
    if let Some(path) = pid_file {
        write_pid_file(&path, pid)?;
    }
    match &signals {
        Some(signals) => console::attend(pid, signals, terminal, None),
        None => Ok(0),
    }
}

/// The process as JSON, or the container's own with what the command line changes.
fn process(context: &Context, container: &Container, parsed: &Parsed) -> Result<Process, CommandError> {
    if let Some(path) = parsed.value("process") {
        let path = PathBuf::from(path);
        let bytes = fs::read(&path).on("read", &path)?;
        let process = plan::parse_process(&bytes).map_err(|source| CommandError::Spec { path, source })?;
        return Ok(completed(process, &container.record.process));
    }
    let mut process = container.record.process.clone();
    let invalid =
        |field, value: &str, expected| CommandError::Config { field, value: value.to_owned(), expected };
    if parsed.arguments.len() < 2 {
        return Err(CommandError::NoCommand);
    }
    process.set_args(Some(parsed.arguments[1..].to_vec()));
    process.set_terminal(Some(parsed.is_on("tty")));
    if let Some(cwd) = parsed.value("cwd") {
        process.set_cwd(cwd.into());
    }
    if let Some(profile) = parsed.value("apparmor") {
        process.set_apparmor_profile(Some(profile.to_owned()));
    }
    if let Some(label) = parsed.value("process-label") {
        process.set_selinux_label(Some(label.to_owned()));
    }
    if parsed.value("no-new-privs").is_some() {
        process.set_no_new_privileges(Some(parsed.is_on("no-new-privs")));
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(parsed.values("env").map(str::to_owned));
    process.set_env(Some(env));

    let number = |field, text: &str| -> Result<u32, CommandError> {
        let id = text.parse().ok().filter(|id| *id != u32::MAX);
        id.ok_or_else(|| invalid(field, text, "a number from 0 to 4294967294"))
    };
    if let Some(user) = parsed.value("user") {
        let (uid, gid) = user.split_once(':').map_or((user, None), |(uid, gid)| (uid, Some(gid)));
        process.user_mut().set_uid(number("--user", uid)?);
        if let Some(gid) = gid {
            process.user_mut().set_gid(number("--user", gid)?);
        }
    }
    let more = parsed.values("additional-gids").map(|gid| number("--additional-gids", gid));
    let more = more.collect::<Result<Vec<_>, _>>()?;
    if !more.is_empty() {
        let mut groups = process.user().additional_gids().clone().unwrap_or_default();
        groups.extend(more);
        process.user_mut().set_additional_gids(Some(groups));
    }
    let mut added = Vec::new();
    for name in parsed.values("cap") {
        let full = if name.starts_with("CAP_") { name.to_owned() } else { format!("CAP_{name}") };
        let plain = plan::is_plain_capability(&full);
        match serde_json::from_value::<Capability>(full.into()) {
            Ok(capability) if plain => added.push(capability),
            // As in a configuration.
            _ => context.log.warn(&plan::unknown_capability(name)),
        }
    }
    if !added.is_empty() {
        let sets = process.capabilities().clone().unwrap_or_else(no_capabilities);
        process.set_capabilities(Some(with(sets, &added)));
    }
    Ok(process)
}

/// With what it leaves to the container's own process, as runc does.
fn completed(mut process: Process, own: &Process) -> Process {
    if process.capabilities().is_none() {
        process.set_capabilities(own.capabilities().clone());
    }
    if process.apparmor_profile().as_ref().is_none_or(String::is_empty) {
        process.set_apparmor_profile(own.apparmor_profile().clone());
    }
    if process.selinux_label().as_ref().is_none_or(String::is_empty) {
        process.set_selinux_label(own.selinux_label().clone());
    }
    process
}

/// The library's default has some.
fn no_capabilities() -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(None).set_effective(None).set_permitted(None).set_inheritable(None).set_ambient(None);
    sets
}

/// Not the inheritable ones, which would outlive a change of the user (CVE-2022-29162).
fn with(mut sets: LinuxCapabilities, added: &[Capability]) -> LinuxCapabilities {
    let join = |set: &Option<oci_spec::runtime::Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(added);
        Some(set)
    };
    sets.set_bounding(join(sets.bounding()));
    sets.set_effective(join(sets.effective()));
    sets.set_permitted(join(sets.permitted()));
    sets
}

/// The container's cgroup, or others below it: for all controllers or for those named before a colon.
fn below<'a>(cgroup: &Cgroup, options: impl Iterator<Item = &'a str>) -> Result<Cgroup, CommandError> {
    let mut found = cgroup.clone();
    for option in options {
        let (controllers, path) = option
            .split_once(':')
            .map_or((Vec::new(), option), |(list, path)| (list.split(',').collect(), path));
        if Path::new(path).components().any(|part| part == std::path::Component::ParentDir) {
            return Err(CommandError::AboveCgroup { path: path.to_owned() });
        }
        let has = |member: &cgroup::Member, name: &str| member.controllers.iter().any(|own| own == name);
        if let Some(name) =
            controllers.iter().find(|name| !cgroup.members.iter().any(|member| has(member, name)))
        {
            return Err(CommandError::UnknownController { name: (*name).to_owned() });
        }
        let relative = path.trim_start_matches('/');
        if relative.is_empty() {
            continue;
        }
        let mut missing = None;
        let mut matched = false;
        for (member, own) in found.members.iter_mut().zip(&cgroup.members) {
            if !controllers.is_empty() && !controllers.iter().any(|name| has(own, name)) {
                continue;
            }
            let directory = own.directory.join(relative);
            if directory.is_dir() {
                member.directory = directory;
                matched = true;
            } else {
                missing = Some(directory.join("cgroup.procs"));
            }
        }
        // One without controllers may be there in some hierarchies only.
        if let Some(path) = missing.filter(|_| !matched || !controllers.is_empty()) {
            return Err(CommandError::NoSubCgroup { path });
        }
    }
    Ok(found)
}
