//! Compiles the interface without a system protoc, and keeps its descriptors for gRPC reflection.

use std::{env, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=polo/v1");
    let descriptors = protox::compile(["polo/v1/polo.proto", "polo/v1/prepare.proto"], ["."])?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("polo.bin"), descriptors.encode_to_vec())?;
    let shared = [".polo.v1.GenerationStart.roster", ".polo.v1.DescribeResponse.tokenizer"];
    shared.iter().fold(tonic_prost_build::configure(), |build, field| build.bytes(field)).compile_fds(descriptors)?;
    Ok(())
}
