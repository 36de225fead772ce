//! The resolver alone, as `rswarm resolver` runs it: for tests and measurements.

fn main() {
    std::process::exit(rswarm_resolver::main(std::env::args_os().skip(1)));
}
