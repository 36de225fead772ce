//! Finding what cargo built beside this program: executables under test, and nothing older than their sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};

/// Names an executable to test instead of `rswarm`.
const OVERRIDE: &str = "RSWARM_EXECUTABLE";

/// A test executable of another crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestProgram {
    /// `lifecycle`, or the crate's name for its unit tests.
    pub name: String,
    pub path: PathBuf,
}

/// The `rswarm` executable that was built with this program.
///
/// # Errors
/// When there is none or it is older than one of its sources; says what to do.
pub fn rswarm_executable() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        return Ok(PathBuf::from(path));
    }
    let path = executable("rswarm")?;
    let release = if path.components().any(|part| part.as_os_str() == "release") { " --release" } else { "" };
    let build = format!("build it first by `cargo build{release} -p rswarm`");
    let Ok(built) = modified(&path) else {
        bail!("there is no `{}`: {build}", path.display());
    };
    let notes = path.with_extension("d");
    if let Some(newer) = newer(noted_sources(&notes), built) {
        bail!("`{}` is older than its source `{}`: {build}", path.display(), newer.display());
    }
    Ok(path)
}

/// Where an executable of this name is, if cargo built one with this program.
///
/// # Errors
/// When this program does not know where it is.
pub fn executable(name: &str) -> anyhow::Result<PathBuf> {
    Ok(profile_directory()?.join(name))
}

/// The test executables of the crate in a directory of the workspace: its unit tests and one for each file in `tests/`,
/// the newest build of each.
///
/// # Errors
/// When one was not built or is older than its sources; says what to do.
pub fn test_programs(member: &str, library: &str) -> anyhow::Result<Vec<TestProgram>> {
    let member = workspace().join(member);
    let mut wanted = vec![(library.to_owned(), member.join("src/lib.rs"))];
    for path in listed(&member.join("tests")) {
        let source = if path.is_dir() { path.join("main.rs") } else { path.clone() };
        if source.is_file() && source.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            wanted.push((name, source));
        }
    }
    let deps = profile_directory()?.join("deps");
    // The unit tests' and the library's own sources; programs beside the library are no part of the tests.
    let mut library_sources = Vec::new();
    walk(&member.join("src"), &mut library_sources);
    library_sources.retain(|path| !path.starts_with(member.join("src/bin")));
    let build = "build it first by `cargo test --workspace --no-run`";
    let mut found = Vec::new();
    for (name, source) in wanted {
        let Some((path, notes)) = newest_build(&deps, &name, &source) else {
            bail!("no test executable `{name}` of `{}` was built: {build}", member.display());
        };
        let built = modified(&path).with_context(|| path.display().to_string())?;
        let sources = noted_sources(&notes).into_iter().chain(library_sources.iter().cloned());
        if let Some(newer) = newer(sources, built) {
            bail!("`{}` is older than its source `{}`: {build}", path.display(), newer.display());
        }
        found.push(TestProgram { name, path });
    }
    Ok(found)
}

/// The executables of a crate in a directory of the workspace that its tests may start, by the paths compiled into them.
///
/// # Errors
/// As [`executable`].
pub fn programs(member: &str) -> anyhow::Result<Vec<PathBuf>> {
    let sources = listed(&workspace().join(member).join("src/bin"));
    let names = sources.iter().filter_map(|path| path.file_stem()?.to_str());
    let paths: Vec<PathBuf> = names.map(executable).collect::<anyhow::Result<_>>()?;
    Ok(paths.into_iter().filter(|path| path.is_file()).collect())
}

fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// `<target>/<profile>`: this program is `<target>/<profile>/deps/<test>` or `<target>/<profile>/<program>`.
fn profile_directory() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this executable")?;
    let beside = own.parent().context("this executable has no directory")?;
    let profile = if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside };
    Ok(profile.to_owned())
}

/// The newest executable `<name>-<hash>` with `source` among its sources, and cargo's notes on it. Tests of other
/// crates may have the same name.
fn newest_build(deps: &Path, name: &str, source: &Path) -> Option<(PathBuf, PathBuf)> {
    let is_build = |notes: &PathBuf| {
        let hash = notes.file_stem().and_then(|stem| stem.to_str()?.strip_prefix(name)?.strip_prefix('-'));
        notes.extension().is_some_and(|extension| extension == "d")
            && hash.is_some_and(|hash| hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
            && noted_sources(notes).iter().any(|noted| noted == source)
    };
    let builds = listed(deps).into_iter().filter(is_build);
    let executables =
        builds.map(|notes| (notes.with_extension(""), notes)).filter(|(path, _)| path.is_file());
    executables.max_by_key(|(path, _)| modified(path).ok())
}

/// The sources that cargo noted, one rule a line: `target: source source …`. Relative ones are the workspace's.
fn noted_sources(notes: &Path) -> Vec<PathBuf> {
    let notes = fs::read_to_string(notes).unwrap_or_default();
    let Some((_, sources)) = notes.lines().next().and_then(|line| line.split_once(": ")) else {
        return Vec::new();
    };
    let sources = sources.replace("\\ ", "\0");
    let paths = sources.split_whitespace().map(|source| workspace().join(source.replace('\0', " ")));
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// The first source that was changed after `built`.
fn newer(sources: impl IntoIterator<Item = PathBuf>, built: SystemTime) -> Option<PathBuf> {
    sources.into_iter().find(|source| modified(source).is_ok_and(|at| at > built))
}

fn modified(path: &Path) -> std::io::Result<SystemTime> {
    fs::metadata(path)?.modified()
}

fn listed(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for path in listed(directory) {
        if path.is_dir() {
            walk(&path, files);
        } else {
            files.push(path);
        }
    }
}
