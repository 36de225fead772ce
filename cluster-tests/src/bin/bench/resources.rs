//! What processes cost, read from `/proc`.

use std::fs;

/// A value of `/proc/<pid>/<file>` in MB, by its line's name; the file has it in kB.
fn megabytes(pid: i32, file: &str, names: &[&str]) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
    let value = |name: &&str| {
        let line = text.lines().find(|line| line.starts_with(*name))?;
        line.split_whitespace().nth(1)?.parse::<f64>().ok()
    };
    Some(names.iter().filter_map(value).sum::<f64>() / 1024.0)
}

/// Resident memory.
pub fn rss_mb(pid: i32) -> Option<f64> {
    megabytes(pid, "status", &["VmRSS:"])
}

/// Proportional share of memory: what is shared counts in parts.
pub fn pss_mb(pid: i32) -> Option<f64> {
    megabytes(pid, "smaps_rollup", &["Pss:"])
}

/// Memory of nobody else.
pub fn private_mb(pid: i32) -> Option<f64> {
    megabytes(pid, "smaps_rollup", &["Private_Clean:", "Private_Dirty:"])
}

/// Time on processors so far, in nanoseconds, that of ended threads included.
pub fn cpu_nanos(pid: i32) -> Option<i64> {
    let clock = nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(pid)).ok()?;
    let time = clock.now().ok()?;
    Some(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}
