//! The first process of a virtual machine, and the agent in it; see `rswarm_lab::vm::guest`.

use std::process::ExitCode;

fn main() -> ExitCode {
    rswarm_lab::vm::guest::main()
}
