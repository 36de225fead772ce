//! One qemu process. It emulates (TCG): slower than a hypervisor, but the same everywhere, also inside other machines.
//!
//! Source: qemu 7.2, "Invocation" (`qemu-system-x86_64(1)`).

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use rswarm_net::Mac;

use super::PORT_NAME;
use super::kernel::Kernel;
use crate::error::LabError;

pub const PROGRAM: &str = "qemu-system-x86_64";

/// What one machine is made of.
#[derive(Debug, Clone)]
pub(super) struct Hardware<'a> {
    pub kernel: &'a Kernel,
    pub initramfs: &'a Path,
    /// For the kernel's command line, besides what every guest gets.
    pub words: String,
    pub memory_mib: u32,
    pub cpus: u32,
    /// The link that qemu makes in the namespace it runs in.
    pub tap: String,
    pub address: Ipv4Addr,
    /// A socket that somebody listens on.
    pub control: PathBuf,
    /// What the kernel says is written here.
    pub console: PathBuf,
}

/// The program's path.
///
/// # Errors
/// `Missing`, which names the package.
pub fn find() -> Result<PathBuf, LabError> {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&directories)
        .map(|directory| directory.join(PROGRAM))
        .find(|path| path.is_file())
        .ok_or_else(|| LabError::Missing {
            what: format!("`{PROGRAM}`"),
            remedy: "it is in the Debian package qemu-system-x86",
        })
}

/// Whether there is what network devices of guests are made by.
///
/// # Errors
/// `Missing`.
pub fn find_tap() -> Result<(), LabError> {
    if Path::new("/dev/net/tun").exists() {
        return Ok(());
    }
    Err(LabError::Missing { what: "`/dev/net/tun`".to_owned(), remedy: "it needs the kernel module tun" })
}

impl Hardware<'_> {
    /// The words after the program's name.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        let path = |path: &Path| escaped(&path.to_string_lossy());
        let mut all: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| all.extend(words.iter().map(OsString::from));
        add(&["-accel", "tcg,thread=multi", "-machine", "pc", "-cpu", "max"]);
        add(&["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        add(&["-m", &self.memory_mib.to_string(), "-smp", &self.cpus.to_string()]);
        add(&["-kernel", &self.kernel.image.to_string_lossy()]);
        add(&["-initrd", &self.initramfs.to_string_lossy()]);
        // A panic ends the machine, as a restart is the end (`-no-reboot`). The clock is as steady as the host's.
        let words = format!("console=ttyS0 loglevel=4 panic=-1 tsc=reliable mitigations=off {}", self.words);
        add(&["-append", &words]);
        add(&["-serial", &format!("file:{}", path(&self.console))]);
        // Without its ROM, by which it would try to start from the network.
        add(&["-netdev", &format!("tap,id=wire,ifname={},script=no,downscript=no", self.tap)]);
        let mac = Mac::from_address(self.address);
        add(&["-device", &format!("virtio-net-pci,netdev=wire,mac={mac},romfile=")]);
        add(&["-chardev", &format!("socket,id=control,path={}", path(&self.control))]);
        add(&["-device", "virtio-serial-pci"]);
        add(&["-device", &format!("virtserialport,chardev=control,name={PORT_NAME}")]);
        all
    }
}

/// Within an option a comma is written twice.
fn escaped(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_is_described_in_full() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("boot")).unwrap();
        std::fs::create_dir_all(root.path().join("lib/modules/1-cloud-amd64/kernel")).unwrap();
        std::fs::write(root.path().join("boot/vmlinuz-1-cloud-amd64"), "").unwrap();
        let kernel = Kernel::below(root.path()).unwrap();
        let hardware = Hardware {
            kernel: &kernel,
            initramfs: Path::new("/run/x/initramfs"),
            words: "rswarm.name=host-1".to_owned(),
            memory_mib: 512,
            cpus: 2,
            tap: "h1".to_owned(),
            address: [10, 79, 0, 1].into(),
            control: "/run/a,b/1.control".into(),
            console: "/run/x/1.console".into(),
        };
        let words: Vec<String> =
            hardware.arguments().iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let all = words.join(" ");
        assert!(!all.contains("kvm"), "{all}");
        for expected in [
            "-accel tcg",
            "-m 512 -smp 2",
            "-initrd /run/x/initramfs",
            " rswarm.name=host-1 -serial file:/run/x/1.console",
            "-netdev tap,id=wire,ifname=h1,script=no,downscript=no",
            "mac=02:42:0a:4f:00:01",
            "path=/run/a,,b/1.control",
        ] {
            assert!(all.contains(expected), "expected `{expected}` in `{all}`");
        }
    }
}
