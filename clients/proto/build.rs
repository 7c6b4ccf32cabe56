//! Turns the `.proto` into Rust and into a descriptor set, without `protoc`.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const ROOT: &str = "proto";
const FILE: &str = "proto/aerie/v1/aerie.proto";
const ADMIN: &str = "proto/aerie/v1/admin.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={FILE}");
    println!("cargo:rerun-if-changed={ADMIN}");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    // Apart, so that reflection tells clients nothing of what is not for them.
    for (name, file) in [("aerie.v1.bin", FILE), ("aerie.v1.admin.bin", ADMIN)] {
        fs::write(out_dir.join(name), protox::compile([file], [ROOT])?.encode_to_vec())?;
    }
    tonic_prost_build::configure().compile_fds(protox::compile([FILE, ADMIN], [ROOT])?)?;
    Ok(())
}
