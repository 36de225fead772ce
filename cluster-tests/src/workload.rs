//! The image whose containers the tests run: one static program (see `bin/workload.rs`), in two revisions.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rswarm_image::Reference;
use rswarm_image::builder::ImageBuilder;

use crate::built::executable;

/// `name:tag` of the image most tests use.
pub const IMAGE: &str = "workload:1";
/// The same, one revision later.
pub const IMAGE_2: &str = "workload:2";
/// Path of the program in the image, by which its processes are recognised on the host.
pub const PROGRAM: &str = "/workload";

/// Writes `image` as an OCI archive into `directory`.
pub fn write_archive(image: &str, directory: &Path) -> anyhow::Result<PathBuf> {
    let program = executable("workload")?;
    let reference: Reference = image.parse()?;
    let path = directory.join(format!("{}.tar", image.replace(':', "-")));
    let file = File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
    ImageBuilder::new()
        .file(PROGRAM, program.as_path(), 0o755)
        .file("/not-executable", b"text", 0o644)
        .entrypoint([PROGRAM])
        .cmd(["wait"])
        .env("REVISION", image)
        .reference(reference)
        .write_oci_archive(BufWriter::new(file))?;
    Ok(path)
}
