//! The tunnel alone, as `rswarm tunnel` runs it: for tests and measurements.

fn main() {
    std::process::exit(rswarm_tunnel::main(std::env::args_os().skip(1)));
}
