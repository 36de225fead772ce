//! What a configuration asks of whoever creates the container without a shim: hooks, a terminal, a keyring. Pure.
//!
//! Source: OCI runtime-spec, "Lifecycle" and "POSIX-platform Hooks"; runc's `--no-pivot` and `--no-new-keyring`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{Hook, Spec};

use super::validate::{VARIABLE, is_variable};
use super::{Inside, Label, Outside, Plan, PlanError};

/// Hooks of one kind, to be run one after the other until one fails.
#[derive(Clone, Debug, PartialEq)]
pub struct HookStep {
    /// The kind, as in the configuration.
    pub kind: &'static str,
    pub hooks: Vec<Hook>,
    pub state: Shape,
    /// The environment of those that have none of their own; without it, the caller's.
    pub env: Option<Vec<String>>,
}

/// What a hook learns of the container, but for its pid, which whoever runs the hook knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub oci_version: String,
    pub id: String,
    /// `creating`, `created`, `running` or `stopped`.
    pub status: &'static str,
    pub bundle: PathBuf,
    pub annotations: BTreeMap<String, String>,
}

/// What the caller decides beside the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callers {
    pub id: String,
    pub bundle: PathBuf,
    /// Use [`Inside::MoveRoot`] for [`Inside::PivotRoot`].
    pub no_pivot: bool,
    /// Leave the container in the caller's session keyring.
    pub keep_keyring: bool,
}

/// Adds hooks, terminal and keyring to a plan of [`super::create`].
///
/// # Errors
/// Hooks that cannot be run, by name and before anything is touched.
pub fn complete(plan: &mut Plan, spec: &Spec, callers: &Callers) -> Result<(), PlanError> {
    let state = |status| Shape {
        oci_version: spec.version().clone(),
        id: callers.id.clone(),
        status,
        bundle: callers.bundle.clone(),
        annotations: annotations(spec),
    };
    let step = |kind, status| -> Result<Option<HookStep>, PlanError> {
        let hooks = hooks_of(spec, kind)?;
        Ok((!hooks.is_empty()).then(|| HookStep { kind, hooks, state: state(status), env: None }))
    };
    let outside = [step("prestart", "creating")?, step("createRuntime", "creating")?];
    let create_container = step("createContainer", "creating")?;
    let mut start_container = step("startContainer", "created")?;
    if let (Some(step), Some(process)) = (&mut start_container, spec.process()) {
        // As the program that they precede, as with runc.
        step.env = Some(process.env().clone().unwrap_or_default());
    }
    // Run by others and later, but refused now.
    hooks_of(spec, "poststart")?;
    hooks_of(spec, "poststop")?;

    if !plan.inside.contains(&Inside::PivotRoot) {
        // The file systems are others', and so are the devices and programs in them.
        let hooks = outside.iter().any(Option::is_some) || create_container.is_some();
        let process = spec.process().as_ref();
        let terminal = process.and_then(oci_spec::runtime::Process::terminal) == Some(true);
        let parts = [("hooks", hooks), ("process.terminal", terminal)];
        if let Some((field, _)) = parts.iter().find(|(_, set)| *set) {
            let field = format!("{field}, for a container that joins a mount namespace,");
            return Err(super::not_supported(&field));
        }
    }
    super::identify(plan, &callers.id, &callers.bundle);
    let pivots = plan.inside.contains(&Inside::PivotRoot);
    if !callers.keep_keyring {
        super::part_keyring(plan, &callers.id);
    }
    let (mut sysctls, mut labels) = (Vec::new(), Vec::new());
    let mut steps = Vec::with_capacity(plan.inside.len() + 4);
    for step in plan.inside.drain(..) {
        match step {
            // Hooks of the host are not the container's program.
            Inside::Label(Label::AppArmor(_) | Label::Selinux(_)) if pivots => labels.push(step),
            // Interfaces that some sysctls are about come by way of hooks.
            Inside::Sysctl { .. } if pivots => sysctls.push(step),
            Inside::PivotRoot => {
                steps.extend(terminal(spec));
                if outside.iter().any(Option::is_some) {
                    steps.push(Inside::AwaitHooks);
                }
                steps.append(&mut sysctls);
                steps.extend(create_container.clone().map(Inside::RunHooks));
                steps.append(&mut labels);
                steps.push(if callers.no_pivot { Inside::MoveRoot } else { Inside::PivotRoot });
            }
            // With the program's rights, no more.
            Inside::Exec { .. } => {
                steps.extend(start_container.clone().map(Inside::RunHooks));
                steps.push(step);
            }
            other => steps.push(other),
        }
    }
    fail_by_itself(&mut steps);
    plan.inside = steps;
    let ready = plan.outside.iter().position(|step| matches!(step, Outside::AwaitReady));
    let ready = ready.unwrap_or(plan.outside.len());
    // One pause for both kinds.
    let mut all: Vec<HookStep> = outside.into_iter().flatten().collect();
    if !all.is_empty() {
        let steps = all.drain(..).map(Outside::RunHooks);
        plan.outside.splice(ready..ready, steps);
    }
    Ok(())
}

/// Has what goes wrong with the program itself be its own failure.
pub fn fail_by_itself(steps: &mut Vec<Inside>) {
    let at = steps.iter().position(|step| matches!(step, Inside::Exec { .. })).unwrap_or(steps.len());
    steps.insert(at, Inside::FailByItself);
}

/// Refuses by name what [`complete`] would add and a shim does not do.
pub fn refuse_hooks(spec: &Spec) -> Result<(), PlanError> {
    match spec.hooks() {
        Some(hooks) if *hooks != oci_spec::runtime::Hooks::default() => Err(super::not_supported("hooks")),
        _ => Ok(()),
    }
}

/// Adds the terminal alone, if the configuration asks for one: `true`.
///
/// # Errors
/// Where the container has no mount namespace of its own.
pub fn add_terminal(plan: &mut Plan, spec: &Spec) -> Result<bool, PlanError> {
    let Some(step) = terminal(spec) else { return Ok(false) };
    let Some(at) = plan.inside.iter().position(|step| *step == Inside::PivotRoot) else {
        return Err(super::not_supported("process.terminal, for a container that joins a mount namespace,"));
    };
    plan.inside.insert(at, step);
    Ok(true)
}

pub(crate) fn annotations(spec: &Spec) -> BTreeMap<String, String> {
    spec.annotations().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The hooks of one kind, checked.
pub(crate) fn hooks_of(spec: &Spec, kind: &'static str) -> Result<Vec<Hook>, PlanError> {
    let Some(all) = spec.hooks() else { return Ok(Vec::new()) };
    #[allow(deprecated)]
    let (field, hooks) = match kind {
        "prestart" => ("hooks.prestart", all.prestart()),
        "createRuntime" => ("hooks.createRuntime", all.create_runtime()),
        "createContainer" => ("hooks.createContainer", all.create_container()),
        "startContainer" => ("hooks.startContainer", all.start_container()),
        "poststart" => ("hooks.poststart", all.poststart()),
        _ => ("hooks.poststop", all.poststop()),
    };
    let hooks = hooks.clone().unwrap_or_default();
    for (at, hook) in hooks.iter().enumerate() {
        let invalid = |part: &str, value: &str, reason: &str| {
            let field = format!("{field}[{at}].{part}").into();
            Err(PlanError::Invalid {
                field,
                value: value.escape_debug().to_string(),
                reason: reason.to_owned(),
            })
        };
        let path = hook.path().to_string_lossy();
        if !hook.path().is_absolute() || path.contains('\0') {
            return invalid("path", &path, "expected an absolute path without a zero byte");
        }
        if let Some(timeout) = hook.timeout().filter(|timeout| *timeout <= 0) {
            return invalid("timeout", &timeout.to_string(), "expected more than 0 seconds");
        }
        if let Some(bad) = hook.args().iter().flatten().find(|text| text.contains('\0')) {
            return invalid("args", bad, "it contains a zero byte");
        }
        if let Some(bad) = hook.env().iter().flatten().find(|text| !is_variable(text)) {
            return invalid("env", bad, VARIABLE);
        }
    }
    Ok(hooks)
}

fn terminal(spec: &Spec) -> Option<Inside> {
    let process = spec.process().as_ref().filter(|process| process.terminal() == Some(true))?;
    Some(terminal_of(process, true))
}

pub(super) fn terminal_of(process: &oci_spec::runtime::Process, console: bool) -> Inside {
    let size = process.console_size().map(|size| {
        let cells = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
        (cells(size.width()), cells(size.height()))
    });
    Inside::Terminal { size, console, uid: process.user().uid() }
}
