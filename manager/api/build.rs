//! Compiles the protocol with a pure Rust compiler, so that building rswarm needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["control", "local", "ca", "dispatcher", "raft"].map(|name| format!("rswarm/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    // What is printed for debugging ends in logs: that of credentials is written by hand.
    tonic_prost_build::configure().skip_debug([".rswarm.v1.RegistryAuth"]).compile_fds(descriptors)?;
    Ok(())
}
