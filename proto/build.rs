//! Generates the API's types and stubs, without protoc, and the descriptor that tests compare.

use prost::Message;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/weft/v1/mesh.proto";
    println!("cargo::rerun-if-changed={file}");
    let described = protox::compile([file], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("mesh.desc"), described.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(described)?;
    Ok(())
}
