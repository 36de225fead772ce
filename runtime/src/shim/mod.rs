//! The process beside each container: its parent, the owner of its output, and the keeper of its exit status.
//!
//! One single-threaded process, started by [`crate::Containers::create`] and independent of the daemon from then on:
//! own session, own cgroup, no shared descriptors. It creates the container, frees nearly all memory that took, and
//! then sleeps in `poll` until output, a request or the container's end comes.
//!
//! The executable is run from a read-only mount of its own (see `containers`), so the container's process, which is
//! a copy of the shim until it runs its program, gives nobody a way to write to the host's file (CVE-2019-5736).

mod attached;
pub(crate) mod protocol;
mod server;
mod sessions;
mod streams;

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

use crate::cgroup::Cgroup;
use crate::error::{Failure, Step};
use crate::log::Output;
use crate::plan::{self, HostFacts};
use crate::request::ShimRequest;
use crate::run::{self, Given, Stdio};
use crate::state::{
    self, CONFIG_FILE, INIT_FILE, InitRecord, ProcessIdentity, REQUEST_FILE, ROOTFS_DIRECTORY,
};
use crate::sys::{self, Fork};
use protocol::Reply;
use server::Server;
use streams::Streams;

/// Entry of the helper process: `args` is what follows the word that chose it, the container's directory. To be
/// called before the process has a second thread or has touched its standard descriptors. Returns the exit code.
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> i32 {
    let Some(directory) = args.into_iter().next().map(PathBuf::from) else {
        eprintln!("the shim is started by the daemon and expects the directory of a container");
        return 64;
    };
    // Standard input is the line to whoever wants the container.
    let channel = match sys::adopt_standard(0).and_then(|channel| detach().map(|()| channel)) {
        Ok(channel) => channel,
        Err(error) => {
            eprintln!("cannot start the shim for `{}`: {error}", directory.display());
            return 71;
        }
    };
    // A child of the daemon would be the daemon's to wait for; a child of nobody is init's.
    match sys::fork_single_threaded() {
        Ok(Fork::Parent(_)) => return 0,
        Ok(Fork::Child) => {}
        Err(error) => {
            let _ =
                protocol::send(&channel, &Reply::Failed(Failure::new("start the shim", error.to_string())));
            return 71;
        }
    }
    match set_up(&directory) {
        Ok(mut server) => {
            sys::trim_heap();
            sys::forget_program();
            let pid = server.pid();
            // If nobody is there to hear it, the next daemon will find the container.
            let _ = protocol::send(&channel, &Reply::Created { pid });
            server.add_client(channel);
            server.run();
            0
        }
        Err(failure) => {
            let _ = protocol::send(&channel, &Reply::Failed(failure));
            1
        }
    }
}

/// Lets go of what came from the daemon: descriptors and working directory.
fn detach() -> std::io::Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    rustix::process::chdir("/")?;
    Ok(())
}

fn set_up(directory: &Path) -> Result<Server, Failure> {
    let _ = rustix::thread::set_name(c"rswarm-shim");
    rustix::process::setsid().step(|| "start a session".to_owned())?;
    sys::set_child_subreaper().step(|| "become the parent of orphans".to_owned())?;
    let signals = sys::block_signals_into_fd(&[libc::SIGCHLD]).step(|| "watch for signals".to_owned())?;
    let listener = protocol::listen(directory).step(|| format!("listen in `{}`", directory.display()))?;

    let spec: Spec = read(directory, CONFIG_FILE)?;
    let request: ShimRequest = read(directory, REQUEST_FILE)?;
    let invalid =
        |error: plan::PlanError| Failure::new("read the container's configuration", error.to_string());
    let host = HostFacts::detect(&spec, &request.cgroup)?;
    let mount_point = directory.join(ROOTFS_DIRECTORY);
    let mut plan = plan::refuse_hooks(&spec)
        .and_then(|()| plan::create(&spec, &request.rootfs, mount_point, &request.cgroup, &host))
        .map_err(invalid)?;
    let terminal = plan::add_terminal(&mut plan, &spec).map_err(invalid)?;
    drop(spec);
    let id = directory.file_name().unwrap_or_default().to_string_lossy();
    plan::identify(&mut plan, &id, directory);
    plan::part_keyring(&mut plan, &id);
    let (mut streams, ends) = Streams::make(terminal, request.stdin)?;
    let end = |number: usize| ends.stdio[number].as_ref().map_or(sys::standard(number as i32), AsFd::as_fd);
    let stdio = Stdio { stdin: end(0), stdout: end(1), stderr: end(2) };
    let given = Given { console: ends.console.as_ref().map(AsFd::as_fd), ..Given::stdio(stdio) };
    let created_at = sys::unix_nanos();
    let created = run::create(&plan, given, |pid, cgroup| {
        cgroup.move_self_beside()?;
        record(directory, pid, cgroup, created_at)
    })?;
    streams.receive_terminal()?;
    // Its process, if it has one, is to be in our cgroup.
    let log =
        Output::open(directory, request.log).step(|| format!("open the log in `{}`", directory.display()))?;
    // With a reference to the mount namespace here, the container's end does not wait until all of its mounts have
    // been taken apart: that happens when the shim leaves.
    let mounts = rustix::fs::open(
        format!("/proc/{}/ns/mnt", created.pid),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok();
    Ok(Server::new(server::Parts {
        directory: directory.to_owned(),
        created,
        created_at,
        mounts,
        signals,
        listener,
        streams,
        log,
    }))
}

fn record(directory: &Path, pid: i32, cgroup: &Cgroup, created_at: i64) -> Result<(), Failure> {
    let path = directory.join(INIT_FILE);
    let write = || {
        let record = InitRecord {
            boot_id: state::boot_id()?,
            init: ProcessIdentity::of(pid)?,
            shim: ProcessIdentity::of(std::process::id() as i32)?,
            created_at_unix_nanos: created_at,
            cgroup: cgroup.clone(),
        };
        state::write_record(&path, &record, false)
    };
    write().step(|| format!("write `{}`", path.display()))
}

fn read<T: serde::de::DeserializeOwned>(directory: &Path, name: &str) -> Result<T, Failure> {
    let path = directory.join(name);
    let step = || format!("read `{}`", path.display());
    let bytes = std::fs::read(&path).step(step)?;
    serde_json::from_slice(&bytes).map_err(|error| Failure::new(step(), error.to_string()))
}

/// Whether something can be read, the end included, without waiting.
fn is_readable(fd: impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).is_ok_and(|ready| ready > 0)
}
