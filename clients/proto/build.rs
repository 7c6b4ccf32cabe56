//! Turns the `.proto`s into Rust and into a descriptor set, without `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const ROOT: &str = "proto";
const FILE: &str = "proto/aerie/v1/aerie.proto";
const OPEN: &str = "proto/inference/open_inference.proto";
const ADMIN: &str = "proto/aerie/v1/admin.proto";

fn main() -> Result<(), Box<dyn Error>> {
    for file in [FILE, OPEN, ADMIN] {
        println!("cargo:rerun-if-changed={file}");
    }
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    // Apart, so that reflection tells clients nothing of what is not for them.
    for (name, files) in [("aerie.bin", &[FILE, OPEN][..]), ("aerie.v1.admin.bin", &[ADMIN])] {
        fs::write(out_dir.join(name), protox::compile(files, [ROOT])?.encode_to_vec())?;
    }
    let descriptors = protox::compile([FILE, OPEN, ADMIN], [ROOT])?;
    tonic_prost_build::configure().bytes(".inference").compile_fds(descriptors)?;
    Ok(())
}
