//! One more process in a running container, as steps of that process. Pure.

use std::path::PathBuf;

use oci_spec::runtime::Process;

use super::{Inside, PlanError, lifecycle, process_steps};
use crate::seccomp::Program;

/// The steps of a process that joins `cgroup_files`, enters `namespaces` (`CLONE_NEW*`) of the container and runs
/// `process` there at once, under the container's `filter`.
///
/// # Errors
/// Invalid parts of `process`, by name.
pub fn enter(
    process: &Process,
    namespaces: u64,
    cgroup_files: Vec<PathBuf>,
    filter: Option<Program>,
) -> Result<Vec<Inside>, PlanError> {
    // What follows the loss of the host's view comes after the namespaces; all else before.
    let mut steps = vec![Inside::JoinCgroup(cgroup_files)];
    if let Some(adjustment) = process.oom_score_adj() {
        steps.push(Inside::OomScoreAdj(adjustment));
    }
    steps.push(Inside::EnterNamespaces(namespaces));
    if process.terminal() == Some(true) {
        steps.push(lifecycle::terminal_of(process, false));
    }
    process_steps(process, filter, &mut steps)?;
    // There is nobody to start it a second time.
    steps.retain(|step| *step != Inside::AwaitStart);
    Ok(steps)
}
