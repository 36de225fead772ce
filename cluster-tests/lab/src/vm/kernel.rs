//! Debian's cloud kernel as it lies unpacked on this machine: its image, and its modules in an order in which they can
//! be loaded.
//!
//! `cluster-tests/vm-kernel` fetches it. There is no `modules.dep` in a package that was only unpacked, so what a module
//! needs is read from the module itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::LabError;

/// Names a directory that holds `boot/` and `lib/modules/` of another kernel.
const OVERRIDE: &str = "RSWARM_VM_KERNEL";
/// Where `cluster-tests/vm-kernel` puts it, and where a machine has it that installed the package.
const ROOTS: [&str; 2] = ["/var/cache/rswarm-lab/kernel", "/"];
const IMAGE_PREFIX: &str = "vmlinuz-";
const FLAVOUR: &str = "cloud-amd64";

/// What the guests use: their devices, file systems of containers, and all that rswarm's networks are made of. Those
/// that a kernel does not have as a module are left out: they may be built in.
const MODULES: [&str; 30] = [
    "virtio_pci",
    "virtio_net",
    "virtio_console",
    "overlay",
    "veth",
    "bridge",
    "vxlan",
    "tun",
    "wireguard",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_ct",
    "nft_numgen",
    "nft_hash",
    "nft_limit",
    "nft_log",
    "nf_log_syslog",
    "nft_objref",
    "nft_quota",
    "nft_connlimit",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_reject_inet",
    "nft_reject_bridge",
    "nft_meta_bridge",
    "nf_conntrack_bridge",
    "nf_conntrack_netlink",
];

/// A kernel that can be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// `6.1.0-…-cloud-amd64`
    pub release: String,
    pub image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The newest one there is.
    ///
    /// # Errors
    /// `Missing`, which says how to get one.
    pub fn find() -> Result<Self, LabError> {
        let roots: Vec<PathBuf> = match std::env::var_os(OVERRIDE) {
            Some(root) => vec![root.into()],
            None => ROOTS.iter().map(PathBuf::from).collect(),
        };
        roots.iter().find_map(|root| Self::below(root)).ok_or_else(|| LabError::Missing {
            what: format!("Debian's cloud kernel (looked for in {})", shown(&roots)),
            remedy: "`cluster-tests/vm-kernel` fetches it",
        })
    }

    /// The newest kernel of a directory tree, if it has one with modules.
    pub fn below(root: &Path) -> Option<Self> {
        let images = fs::read_dir(root.join("boot")).ok()?.flatten().map(|entry| entry.path());
        let mut kernels: Vec<Self> = images
            .filter_map(|image| {
                let release = image.file_name()?.to_str()?.strip_prefix(IMAGE_PREFIX)?.to_owned();
                let modules = root.join("lib/modules").join(&release).join("kernel");
                (release.ends_with(FLAVOUR) && modules.is_dir()).then_some(Self { release, image, modules })
            })
            .collect();
        kernels.sort_by_key(|kernel| numbers(&kernel.release));
        kernels.pop()
    }

    /// The modules of the guests with all that they need, each after those that it needs.
    ///
    /// # Errors
    /// `Directory` when a module cannot be read, `Module` when one is not what it should be.
    pub fn modules(&self) -> Result<Vec<PathBuf>, LabError> {
        let mut known = BTreeMap::new();
        collect(&self.modules, &mut known)?;
        let mut needs = BTreeMap::new();
        let mut open: Vec<String> =
            MODULES.iter().filter(|name| known.contains_key(**name)).map(|name| (*name).to_owned()).collect();
        while let Some(name) = open.pop() {
            if needs.contains_key(&name) {
                continue;
            }
            // What is needed and not there is built in.
            let Some(path) = known.get(&name) else { continue };
            let bytes = fs::read(path).map_err(LabError::directory(path))?;
            let needed = needed_by(&bytes).ok_or_else(|| LabError::Module { path: path.clone() })?;
            open.extend(needed.iter().cloned());
            needs.insert(name, needed);
        }
        let order = in_order(&needs);
        Ok(order.into_iter().filter_map(|name| known.get(&name).cloned()).collect())
    }
}

fn shown(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>().join(", ")
}

/// The numbers in a release, to compare by: 6.1.0-9 comes before 6.1.0-10.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// All modules below a directory by the names that the kernel has for them.
fn collect(directory: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<(), LabError> {
    for entry in fs::read_dir(directory).map_err(LabError::directory(directory))?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".ko")) {
            found.insert(canonical(name), path);
        }
    }
    Ok(())
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// What a module says it needs; `None` if this is no module. A module's section `.modinfo` holds `key=value` strings,
/// each ended by a zero byte, among them one `depends=a,b`.
fn needed_by(module: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let start = module.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let length = module[start..].iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(&module[start..start + length]).ok()?;
    Some(text.split(',').filter(|name| !name.is_empty()).map(canonical).collect())
}

/// The names with what each needs before it. A circle, which modules never form, is cut.
fn in_order(needs: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    fn visit(
        name: &str,
        needs: &BTreeMap<String, Vec<String>>,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<String>,
    ) {
        if !seen.insert(name.to_owned()) {
            return;
        }
        for needed in needs.get(name).into_iter().flatten() {
            visit(needed, needs, seen, order);
        }
        order.push(name.to_owned());
    }
    let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
    for name in needs.keys() {
        visit(name, needs, &mut seen, &mut order);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(directory: &Path, name: &str, depends: &str) {
        let text = format!("ELF\0license=GPL\0depends={depends}\0retpoline=Y\0");
        fs::write(directory.join(format!("{name}.ko")), text).unwrap();
    }

    #[test]
    fn newest_kernel_and_its_modules_in_order() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("boot")).unwrap();
        assert_eq!(Kernel::below(root.path()), None);
        for release in
            ["6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64", "6.1.0-11-amd64", "6.1.0-12-cloud-amd64"]
        {
            fs::write(root.path().join("boot").join(format!("vmlinuz-{release}")), "").unwrap();
            if !release.contains("-12-") {
                let modules = root.path().join("lib/modules").join(release).join("kernel/net");
                fs::create_dir_all(&modules).unwrap();
                module(&modules, "bridge", "llc,stp");
                module(&modules, "stp", "llc");
                module(&modules, "nft_chain_nat", "nf-tables,crc32c_generic");
                module(&modules, "nf_tables", "");
                module(&modules, "unrelated", "");
                fs::write(modules.join("llc.ko"), "\0depends=\0").unwrap();
            }
        }
        let kernel = Kernel::below(root.path()).unwrap();
        assert_eq!(
            kernel.release, "6.1.0-10-cloud-amd64",
            "newer ones have no modules or are of another flavour"
        );
        let modules = kernel.modules().unwrap();
        let names: Vec<_> =
            modules.iter().map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["llc", "stp", "bridge", "nf_tables", "nft_chain_nat"]);

        fs::write(root.path().join("lib/modules/6.1.0-10-cloud-amd64/kernel/net/veth.ko"), "xz").unwrap();
        assert!(kernel.modules().unwrap_err().to_string().contains("veth.ko"));
    }
}
