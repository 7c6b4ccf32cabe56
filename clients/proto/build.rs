//! Turns the `.proto`s into Rust and into a descriptor set, without `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const ROOT: &str = "proto";
const FILES: [&str; 2] = ["proto/aerie/v1/aerie.proto", "proto/inference/open_inference.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, [ROOT])?;
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out_dir.join("aerie.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".inference").compile_fds(descriptors)?;
    Ok(())
}
