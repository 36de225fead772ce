//! What a process is beside its program: scheduling, limits, personality, memory policy.

use std::ffi::{c_int, c_long};
use std::io;

use serde::{Deserialize, Serialize};

use super::check;

/// Arguments of `set_mempolicy(2)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_*` with its flags.
    pub mode: u32,
    /// A bit per NUMA node.
    pub nodes: Vec<u64>,
}

/// Arguments of `sched_setattr(2)`; what a policy does not use is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    /// In nanoseconds, as the next two.
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// Sets how this process is scheduled.
pub fn set_scheduling(wanted: Scheduling) -> io::Result<()> {
    /// The first version of `struct sched_attr`, which every kernel that has the call takes.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let Scheduling { policy, flags, nice, priority, runtime, deadline, period } = wanted;
    let size = size_of::<Attributes>() as u32;
    let attributes = Attributes { size, policy, flags, nice, priority, runtime, deadline, period };
    // SAFETY: layout as in linux/sched/types.h; it outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0u32) }).map(drop)
}

/// Sets this process's I/O priority: class (1 real-time, 2 best effort, 3 idle) in the bits from 13 on, level below.
pub fn set_io_priority(value: u32) -> io::Result<()> {
    const WHO_PROCESS: c_int = 1;
    // SAFETY: no pointers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) }).map(drop)
}

/// Sets this process's execution domain, `PER_*`.
pub fn set_personality(domain: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(c_long::from(unsafe { libc::personality(domain.into()) })).map(drop)
}

/// Sets where this process gets its memory.
pub fn set_memory_policy(MemoryPolicy { mode, nodes }: &MemoryPolicy) -> io::Result<()> {
    // The kernel reads one bit less than it is told, also of none.
    let bits = nodes.len() * 64 + 1;
    // SAFETY: the kernel reads `bits - 1` bits from `nodes`, which is as long and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, *mode, nodes.as_ptr(), bits) }).map(drop)
}

/// Lets this process run on these CPUs only, a bit each.
pub fn set_affinity(cpus: &[u64]) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as it is told, and they outlive the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(cpus), cpus.as_ptr()) })
        .map(drop)
}

/// Sets a soft and hard limit of another process; `resource` is a `RLIMIT_*` number.
pub fn set_rlimit_of(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let old = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: `limit` outlives the call; nothing is asked for in return.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const limit, old) }).map(drop)
}

/// This thread's permitted capabilities.
pub fn permitted_capabilities() -> io::Result<u64> {
    // _LINUX_CAPABILITY_VERSION_3, process 0 (this one).
    let header: [u32; 2] = [0x2008_0522, 0];
    // Effective, permitted, inheritable: low words, then high words.
    let mut data = [0u32; 6];
    // SAFETY: layouts as in linux/capability.h; both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok(u64::from(data[1]) | u64::from(data[4]) << 32)
}
