//! Builds the native operators of training against the libtorch that torch-sys found, and tells the
//! linker where that library lies, so that programs and tests start without environment variables.

#[cfg(feature = "torch")]
use std::{env, path::Path};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "torch")]
    native();
}

/// Compiles `cpp/` and links it with libtorch.
#[cfg(feature = "torch")]
fn native() {
    const SOURCES: [&str; 7] = [
        "cpp/adamw.cpp",
        "cpp/conv1d.cpp",
        "cpp/cross_entropy.cpp",
        "cpp/gelu.cpp",
        "cpp/rg_lru.cpp",
        "cpp/rms_norm.cpp",
        "cpp/settings.cpp",
    ];
    // torch-sys exports the directory to its direct dependents (`links = "tch"`).
    let lib = env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys exports where libtorch lies");
    let include = Path::new(&lib).parent().expect("libtorch/lib has a parent").join("include");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .opt_level(3)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .define("AT_PARALLEL_OPENMP", "1")
        .flag("-fopenmp")
        // Neither is observed, and both keep loops with square roots and rounding from vectorizing.
        .flag("-fno-math-errno")
        .flag("-fno-trapping-math")
        .files(SOURCES);
    for source in SOURCES.into_iter().chain(["cpp/math.h", "cpp/shim.h"]) {
        println!("cargo:rerun-if-changed={source}");
    }
    build.compile("aerie_torch");
    println!("cargo:rustc-link-search=native={lib}");
    for library in ["torch_cpu", "c10", "gomp"] {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
    println!("cargo:libdir={lib}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    // Where the half of libtorch for GPUs is put beside it.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}-cuda");
}
