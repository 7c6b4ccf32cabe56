//! Tells the linker where libtorch lies: built together with the whole workspace, the export tool that
//! the tests read checkpoints with comes with training and so with libtorch.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(lib) = env::var("DEP_AERIE_TORCH_LIBDIR") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
