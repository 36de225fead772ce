//! A lab of virtual machines for a test.

use rswarm_image::Reference;
use rswarm_image::builder::ImageBuilder;
use rswarm_lab::LabError;
use rswarm_lab::vm::{self, Payload, VmLab, VmLabConfig};

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::alone::Alone;
use crate::built::{executable, rswarm_executable};

/// Below it each lab has a directory of its own.
const RUN_DIR: &str = "/run/rswarm-tests-vm";
/// `name:tag` of the image whose containers show a page each.
pub const HELLO: &str = "rswarm-hello:1";

/// How many machines, and how large each.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub machines: usize,
    pub cpus: u32,
    pub memory_mib: u32,
}

/// Machines that are up, and no other test that would disturb them. They end with it.
#[derive(Debug)]
pub struct VmTest {
    pub lab: VmLab,
    _alone: Alone,
}

impl VmTest {
    /// Starts machines that hold `payload`, where [`can_run`] says that there can be some.
    ///
    /// # Panics
    /// When they do not come up.
    pub fn new(name: &str, size: Size, payload: Payload) -> Self {
        let made = Alone::wait().and_then(|alone| {
            let lab = VmLab::create(config(Path::new(RUN_DIR), name, size, payload)?)?;
            Ok(Self { lab, _alone: alone })
        });
        made.unwrap_or_else(|error| panic!("cannot make lab `{name}`: {error:#}"))
    }
}

/// Why there can be no virtual machines here, if so: `needs …`.
///
/// # Errors
/// That reason.
pub fn can_run() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    vm::check().and_then(|()| Payload::new().busybox().map(drop)).map_err(|error| match error {
        LabError::Missing { .. } => error.to_string(),
        other => format!("needs what cannot be looked for: {other}"),
    })
}

/// The configuration of a lab whose machines run the guest program built with this one.
///
/// # Errors
/// When that was not built.
pub fn config(run_dir: &Path, name: &str, size: Size, payload: Payload) -> anyhow::Result<VmLabConfig> {
    let init = executable("vm-init")?;
    anyhow::ensure!(
        init.is_file(),
        "there is no `{}`: build it first by `cargo build -p rswarm-cluster-tests --bins`",
        init.display()
    );
    Ok(VmLabConfig {
        name: name.to_owned(),
        machines: size.machines,
        subnet: [10, 78, 0, 0].into(),
        run_dir: run_dir.join(name),
        init,
        payload,
        memory_mib: size.memory_mib,
        cpus: size.cpus,
    })
}

/// What a node of a cluster holds beside `payload`: `rswarm`, and a shell for people.
///
/// # Errors
/// When one of them is missing.
pub fn node_payload(payload: Payload) -> anyhow::Result<Payload> {
    Ok(payload.busybox()?.program(rswarm_executable()?, vm::RSWARM))
}

/// An archive of the playground's image, which is the `rswarm` executable; written anew when that is newer. The path.
///
/// # Errors
/// When the executable is missing or the archive cannot be written.
pub fn hello_archive() -> anyhow::Result<PathBuf> {
    let built = rswarm_executable()?;
    let path = executable("rswarm-hello.tar")?;
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    if matches!((time(&path), time(&built)), (Ok(written), Ok(built)) if written > built) {
        return Ok(path);
    }
    // Others may be at it, too: the last one wins, and nobody sees half of it.
    let own = |suffix: &str| {
        let thread = std::thread::current().id();
        path.with_extension(format!("{}-{thread:?}.{suffix}", std::process::id()))
    };
    let (lean, unfinished) = (own("lean"), own("tar"));
    // Every machine holds it in memory: without what only a debugger needs it is less than half as large.
    let program = if vm::strip(&built, &lean) { &lean } else { &built };
    let file =
        File::create(&unfinished).with_context(|| format!("cannot write `{}`", unfinished.display()))?;
    let reference: Reference = HELLO.parse()?;
    let written = ImageBuilder::new()
        .file("/rswarm", program.as_path(), 0o755)
        .entrypoint(["/rswarm", "playground", "serve"])
        .env("HELLO_REVISION", "1")
        .expose("80/tcp")
        .reference(reference)
        .write_oci_archive(BufWriter::new(file));
    // It may not have been made.
    let _ = fs::remove_file(&lean);
    match written {
        Ok(_) => fs::rename(&unfinished, &path).with_context(|| path.display().to_string())?,
        Err(error) => {
            let _ = fs::remove_file(&unfinished);
            return Err(error.into());
        }
    }
    Ok(path)
}
