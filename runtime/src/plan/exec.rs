//! One more process in a running container, as steps of that process. Pure.

use std::path::PathBuf;

use oci_spec::runtime::Process;

use super::{HostFacts, Inside, Listener, PlanError, lifecycle, process, program, validate};
use crate::seccomp::Program;

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
}

/// The steps of a process that joins the container's cgroup, enters its namespaces and runs `process` there at once.
///
/// # Errors
/// Invalid parts of `process`, by name.
pub fn enter(process: &Process, container: Entry, host: &HostFacts) -> Result<Vec<Inside>, PlanError> {
    validate::check_process(process)?;
    let Entry { namespaces, cgroup_files, filter, listener, personality } = container;
    let [initial, last] = process::exec_affinity(process)?;
    // What follows the loss of the host's view comes after the namespaces; all else before.
    let mut steps: Vec<Inside> = initial.into_iter().collect();
    steps.push(Inside::JoinCgroup(cgroup_files));
    steps.extend(last);
    steps.extend(process::scheduling(process, None)?);
    if let Some(adjustment) = process.oom_score_adj() {
        steps.push(Inside::OomScoreAdj(adjustment));
    }
    steps.extend(listener.map(Inside::ConnectListener));
    steps.extend(process::labels(process, host)?);
    steps.push(Inside::EnterNamespaces { kinds: namespaces, user: false });
    if process.terminal() == Some(true) {
        steps.push(lifecycle::terminal_of(process, false));
    }
    steps.extend(personality.map(Inside::Personality));
    program::steps(process, filter, &mut steps)?;
    // There is nobody to start it a second time.
    steps.retain(|step| *step != Inside::AwaitStart);
    Ok(steps)
}
