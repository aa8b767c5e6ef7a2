//! Compiles the interface without a system protoc, and keeps its descriptors for gRPC reflection.

use std::{env, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=polo/v1/polo.proto");
    let descriptors = protox::compile(["polo/v1/polo.proto"], ["."])?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("polo.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".polo.v1.GenerationStart.roster").compile_fds(descriptors)?;
    Ok(())
}
