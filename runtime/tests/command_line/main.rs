//! runc's command line on the real kernel: each case beside Debian's runc, where that is installed.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests too.

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod hooks;
mod process;
mod protection;
mod refusals;
mod unprivileged;

use common::Lab;
use common::cli::{Bundle, Runtime};

/// Ours, and the peer if there is one.
fn runtimes(lab: &Lab) -> Vec<Runtime> {
    std::iter::once(Runtime::ours(lab)).chain(Runtime::peer(lab)).collect()
}

const SLEEP: &str = "trap 'exit 3' TERM; while :; do sleep 0.05; done";

/// Brings a container `x` into a state of its life.
fn bring(runtime: &Runtime, lab: &Lab, state: &str) {
    if state == "unknown" {
        return;
    }
    let bundle = Bundle::new(lab, &format!("{}-{state}", runtime.name), SLEEP);
    if state == "half-created" {
        std::fs::create_dir_all(runtime.root.join("x")).unwrap();
        return;
    }
    runtime.done(&["create", "--bundle", bundle.path(), "x"]);
    if state == "created" {
        return;
    }
    runtime.done(&["start", "x"]);
    match state {
        "running" => {}
        "paused" => drop(runtime.done(&["pause", "x"])),
        "stopped" => {
            runtime.done(&["kill", "x", "KILL"]);
            runtime.await_status("x", "stopped");
        }
        other => panic!("unknown state {other}"),
    }
}
