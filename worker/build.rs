//! Compiles the C++ shim against libtorch and lets this crate's binaries find libtorch where it was found here.

use std::env;
use std::path::{Path, PathBuf};

const SOURCES: [&str; 4] = ["csrc/attention.cpp", "csrc/device.cpp", "csrc/kernels.cpp", "csrc/optimizer.cpp"];

fn main() {
    println!("cargo:rerun-if-changed=csrc");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = libtorch();
    compile(&libtorch.join("include"));
    let lib = libtorch.join("lib");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=dylib:+verbatim=libgomp.so.1"); // the one that libtorch brings
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}

/// The folder that `LIBTORCH` names; cargo's configuration points it at what `scripts/setup libtorch` makes.
fn libtorch() -> PathBuf {
    let named = env::var_os("LIBTORCH").map(PathBuf::from).unwrap_or_default();
    let found = Path::new(&named).canonicalize().unwrap_or_else(|_| named.clone());
    if !found.join("include/ATen/ATen.h").is_file() {
        eprintln!("LIBTORCH={}: there is no libtorch here; run `scripts/setup libtorch`", named.display());
        std::process::exit(1);
    }
    found
}

fn compile(include: &Path) {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(3).warnings(false).files(SOURCES);
    build.flag("-isystem").flag(include).flag("-Wno-psabi").flag("-fopenmp");
    // The kernels choose their instruction set when they run (lanes.h); where that is AVX-512, all of its width is used.
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        build.flag("-mprefer-vector-width=512");
    }
    build.compile("polo_shim");
}
