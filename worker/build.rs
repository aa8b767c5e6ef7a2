//! Compiles the C++ shim against libtorch and lets this crate's binaries find libtorch where it was found here.

use std::env;
use std::path::{Path, PathBuf};

const SOURCES: [&str; 5] =
    ["csrc/attention.cpp", "csrc/device.cpp", "csrc/kernels.cpp", "csrc/optimizer.cpp", "csrc/streams.cpp"];

fn main() {
    println!("cargo:rerun-if-changed=csrc");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = libtorch();
    compile(&libtorch.join("include"));
    let lib = if env::var_os("CARGO_FEATURE_CUDA").is_some() { cuda(&libtorch) } else { libtorch.join("lib") };
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=dylib:+verbatim=libgomp.so.1"); // the one that libtorch brings
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/lib"); // where they lie beside a program that was taken elsewhere
}

/// The libraries of the CUDA flavour, whose common part is the same as in the CPU flavour: only the last link differs.
fn cuda(libtorch: &Path) -> PathBuf {
    // As it is now: clones that share a target folder also share this program, which another one may have built.
    let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let made = Path::new(&here).join("../third_party/libtorch-cuda");
    println!("cargo:rerun-if-changed={}", made.join("build-version").display());
    let has_cuda = |folder: &PathBuf| folder.join("lib/libtorch_cuda.so").is_file();
    let Some(found) = [libtorch.into(), made].into_iter().find(has_cuda) else {
        eprintln!("there is no CUDA flavour of libtorch here; run `scripts/setup libtorch-cuda`");
        std::process::exit(1);
    };
    // Nothing calls it by name: it registers itself when it is loaded.
    println!("cargo:rustc-link-arg=-Wl,--no-as-needed,-ltorch_cuda,--as-needed");
    found.canonicalize().unwrap_or(found).join("lib")
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
