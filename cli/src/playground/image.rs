//! The playground's image: this very executable and nothing else, in two revisions, so that there is one to update to.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rswarm_image::Reference;
use rswarm_image::builder::ImageBuilder;

/// Variable of the image that names its revision.
pub const REVISION: &str = "HELLO_REVISION";
pub const NAME: &str = "rswarm-hello";
pub const REVISIONS: [&str; 2] = ["1", "2"];

/// Writes one OCI archive a revision into `directory`; they share their layer.
pub fn write(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    // Read once; by this path also when the file was replaced or removed meanwhile.
    let program = std::fs::read("/proc/self/exe").context("cannot read this executable")?;
    let mut paths = Vec::new();
    for revision in REVISIONS {
        let reference: Reference = format!("{NAME}:{revision}").parse().context("image name")?;
        let path = directory.join(format!("{NAME}-{revision}.tar"));
        let file = File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
        ImageBuilder::new()
            .file("/rswarm", program.clone(), 0o755)
            .entrypoint(["/rswarm", "playground", "serve"])
            .env(REVISION, revision)
            .expose("80/tcp")
            .reference(reference)
            .write_oci_archive(BufWriter::new(file))?;
        paths.push(path);
    }
    Ok(paths)
}
