//! What neither containers nor other users of the host can overwrite.

use std::path::{Path, PathBuf};

use crate::bring;
use crate::common::Lab;
use crate::common::cli::{Bundle, Runtime};

#[test]
fn the_hosts_program_cannot_be_written_to_from_a_container() {
    let Some(lab) = Lab::new() else { return };
    let runtime = Runtime::ours(&lab);
    bring(&runtime, &lab, "created");
    let pid = runtime.state("x")["pid"].clone();
    // Now it is busy; later it would still be on a mount that nobody can make writable.
    let mount = rustix::fs::statvfs(format!("/proc/{pid}/exe")).unwrap();
    assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    runtime.done(&["start", "x"]);
    // The container has itself executed: it finds a program that cannot be written to either, and no way out.
    let script = "/proc/self/exe --help | head -1";
    std::os::unix::fs::symlink("/proc/self/exe", lab.layer().join("bin/itself")).unwrap();
    let answer = runtime.call(&["exec", "x", "/bin/itself", "--version"]);
    assert!(answer.output.contains("rswarm-runc version") || answer.code == 255, "{script}: {answer:?}");
}

#[test]
fn the_program_moves_to_a_sealed_mount_without_starting_again() {
    use std::os::unix::fs::FileExt;
    let Some(lab) = Lab::new() else { return };
    if !Path::new("/proc/sys/kernel/ns_last_pid").exists() {
        return eprintln!("skipped: needs a kernel that can restore processes (CONFIG_CHECKPOINT_RESTORE)");
    }
    let runtime = Runtime::ours(&lab);
    bring(&runtime, &lab, "created");
    let process = format!("/proc/{}", runtime.state("x")["pid"]);
    // By which name it was started: one in /proc if that was a second time.
    let vector = std::fs::read(format!("{process}/auxv")).unwrap();
    let words: Vec<u64> =
        vector.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect();
    let at = words.chunks_exact(2).find(|pair| pair[0] == libc::AT_EXECFN).unwrap()[1];
    let expected = format!("{}\0", env!("CARGO_BIN_EXE_rswarm-runc"));
    let mut name = vec![0; expected.len()];
    let read = std::fs::File::open(format!("{process}/mem")).unwrap().read_at(&mut name, at).unwrap();
    name.truncate(read);
    assert_eq!(String::from_utf8_lossy(&name), expected);
    // Neither as its executable nor piece by piece is the host's file at hand.
    let mapped = std::fs::read_dir(format!("{process}/map_files")).unwrap();
    let mut files: Vec<PathBuf> = mapped.map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 2, "{files:?}");
    files.push(format!("{process}/exe").into());
    for file in files {
        let mount = rustix::fs::statvfs(&file).unwrap();
        assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{}", file.display());
    }
}

/// The directory may be one that others write to.
#[test]
fn the_pid_file_is_not_written_through_a_prepared_link() {
    let Some(lab) = Lab::new() else { return };
    let ours = Runtime::ours(&lab);
    let bundle = Bundle::new(&lab, "pid", "sleep 1000");
    bundle.write();
    let place = lab.directory.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let victim = place.join("victim");
    std::fs::write(&victim, "kept").unwrap();
    std::os::unix::fs::symlink(&victim, place.join(".pid")).unwrap();
    std::os::unix::fs::symlink(&victim, place.join("pid")).unwrap();
    let path = place.join("pid");
    ours.done(&["create", "--bundle", bundle.path(), "--pid-file", path.to_str().unwrap(), "x"]);
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "kept");
    let pid: i64 = std::fs::read_to_string(&path).unwrap().parse().unwrap();
    assert_eq!(ours.state("x")["pid"], pid);
    ours.done(&["delete", "--force", "x"]);
}
