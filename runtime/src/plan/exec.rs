//! One more process in a running container, as steps of that process. Pure.

use std::path::PathBuf;

use oci_spec::runtime::{BoxBuilder, Process, Spec};

use super::{HostFacts, Inside, Listener, PlanError, lifecycle, namespaces, process, program, validate};
use crate::request::ExecRequest;
use crate::seccomp::{self, Program};
use crate::sys::MemoryPolicy;

/// The container that a process enters.
#[derive(Debug, Default)]
pub struct Entry {
    /// `CLONE_NEW*` of the namespaces to enter.
    pub namespaces: u64,
    /// The v1 cgroups to join.
    pub cgroup_files: Vec<PathBuf>,
    /// The container's seccomp filter, and who is asked by it.
    pub filter: Option<Program>,
    pub listener: Option<Listener>,
    /// `PER_*`.
    pub personality: Option<u32>,
    pub memory_policy: Option<MemoryPolicy>,
    /// The name of its session keyring, unless it keeps the caller's.
    pub keyring: Option<String>,
}

impl Entry {
    /// The way into a container that was made from `spec`; `init` is its first process.
    ///
    /// # Errors
    /// Invalid parts of `spec`, which its creation would have refused.
    pub fn of(spec: &Spec, init: i32) -> Result<Self, PlanError> {
        let linux = spec.linux().as_ref().ok_or(PlanError::Missing { field: "linux" })?;
        let kinds = linux.namespaces().iter().flatten().map(|namespace| namespaces::kind(namespace.typ()));
        let filter = linux.seccomp().as_ref().map(seccomp::compile).transpose()?;
        let listener = super::listener_path(linux, filter.as_ref())
            .map(|path| Listener { entered: Some(init), ..super::listener(spec, linux, path.clone(), None) });
        let personality = process::personality(linux)?.and_then(|step| match step {
            Inside::Personality(domain) => Some(domain),
            _ => None,
        });
        let memory_policy = process::memory_policy(linux)?;
        let namespaces = kinds.fold(0, |bits, kind| bits | kind as u64);
        Ok(Self { namespaces, filter, listener, personality, memory_policy, ..Self::default() })
    }
}

/// The container's own process with what `request` changes: everything else, its rights above all, is the container's.
///
/// # Errors
/// When the container's configuration has no process.
pub fn process_of(spec: &Spec, request: &ExecRequest) -> Result<Process, PlanError> {
    let mut process = spec.process().clone().ok_or(PlanError::Missing { field: "process" })?;
    process.set_args(Some(request.args.clone()));
    let mut env = process.env().clone().unwrap_or_default();
    env.extend_from_slice(&request.env);
    if request.terminal.is_some() && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        // As with Docker.
        env.push("TERM=xterm".to_owned());
    }
    process.set_env(Some(env));
    if let Some(cwd) = &request.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(user) = &request.user {
        let groups = Some(user.additional_gids.clone()).filter(|groups| !groups.is_empty());
        process.user_mut().set_uid(user.uid).set_gid(user.gid).set_additional_gids(groups);
    }
    process.set_terminal(Some(request.terminal.is_some()));
    let size =
        request.terminal.map(|size| BoxBuilder::default().width(size.columns).height(size.rows).build());
    process.set_console_size(size.and_then(Result::ok));
    Ok(process)
}

/// The steps of a process that joins the container's cgroup, enters its namespaces and runs `process` there at once.
///
/// # Errors
/// Invalid parts of `process`, by name.
pub fn enter(process: &Process, container: Entry, host: &HostFacts) -> Result<Vec<Inside>, PlanError> {
    validate::check_process(process)?;
    let Entry { namespaces, cgroup_files, filter, listener, personality, memory_policy, keyring } = container;
    let [initial, last] = process::exec_affinity(process)?;
    // What follows the loss of the host's view comes after the namespaces; all else before.
    let mut steps: Vec<Inside> = initial.into_iter().collect();
    steps.push(Inside::JoinCgroup(cgroup_files));
    steps.extend(last);
    steps.extend(process::scheduling(process)?);
    steps.extend(memory_policy.map(Inside::MemoryPolicy));
    if let Some(adjustment) = process.oom_score_adj() {
        steps.push(Inside::OomScoreAdj(adjustment));
    }
    steps.extend(listener.map(Inside::ConnectListener));
    let (key_label, labels) = process::labels(process, host)?;
    steps.extend(key_label.into_iter().chain(labels).map(Inside::Label));
    steps.push(Inside::EnterNamespaces { kinds: namespaces, user: false });
    steps.extend(keyring.map(Inside::SessionKeyring));
    if process.terminal() == Some(true) {
        steps.push(lifecycle::terminal_of(process, false));
    }
    steps.extend(personality.map(Inside::Personality));
    program::steps(process, filter, &mut steps)?;
    // There is nobody to start it a second time.
    steps.retain(|step| *step != Inside::AwaitStart);
    Ok(steps)
}
