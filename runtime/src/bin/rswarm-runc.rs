//! The command line on its own, for this crate's tests and benchmarks. The product has it inside its one binary.

fn main() {
    std::process::exit(rswarm_runtime::runc_main(std::env::args_os().skip(1)));
}
