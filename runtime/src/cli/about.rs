//! What needs no container: `features`, the version.

use serde_json::json;

use super::error::CommandError;
use super::show::print;

/// The runtime specification that is implemented.
pub(super) const SPECIFICATION: &str = "1.2.0";

/// What `--version` says. Engines read the words after `version`, `commit:` and `spec:`.
pub(super) fn version(program: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!("{program} version {version}\ncommit: v{version}\nspec: {SPECIFICATION}\n")
}

/// `features`.
pub(super) fn features() -> Result<(), CommandError> {
    let mut all = crate::features();
    all["annotations"] = json!({ "io.github.rswarm.version": env!("CARGO_PKG_VERSION") });
    print(&(serde_json::to_string_pretty(&all).unwrap_or_default() + "\n"))
}
