//! Finding the `rswarm` executable under test: the one built beside this program, and nothing older than its sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};

/// Names an executable to test instead.
const OVERRIDE: &str = "RSWARM_EXECUTABLE";

/// The executable that was built with this program.
///
/// # Errors
/// When there is none or it is older than one of its sources; says what to do.
pub fn rswarm_executable() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe().context("cannot find this executable")?;
    // `<target>/<profile>/deps/<test>` or `<target>/<profile>/<program>`.
    let beside = own.parent().context("this executable has no directory")?;
    let profile = if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside };
    let path = profile.join("rswarm");
    let release = if profile.ends_with("release") { " --release" } else { "" };
    let build = format!("build it first by `cargo build{release} -p rswarm`");
    let Ok(built) = modified(&path) else {
        bail!("there is no `{}`: {build}", path.display());
    };
    if let Some(newer) = newer_source(&profile.join("rswarm.d"), built) {
        bail!("`{}` is older than its source `{}`: {build}", path.display(), newer.display());
    }
    Ok(path)
}

fn modified(path: &Path) -> std::io::Result<SystemTime> {
    fs::metadata(path)?.modified()
}

/// The first source that was changed after `built`, of those that cargo noted: `target: source source …`.
fn newer_source(notes: &Path, built: SystemTime) -> Option<PathBuf> {
    let notes = fs::read_to_string(notes).ok()?;
    let (_, sources) = notes.split_once(": ")?;
    let sources = sources.replace("\\ ", "\0");
    let mut sources = sources.split_whitespace().map(|source| PathBuf::from(source.replace('\0', " ")));
    sources.find(|source| {
        source.extension().is_some_and(|e| e == "rs") && modified(source).is_ok_and(|at| at > built)
    })
}
