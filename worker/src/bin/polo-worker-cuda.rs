//! `polo-worker` for NVIDIA GPUs: the same program, with libtorch's CUDA part linked to it (`build.rs`).

use std::process::ExitCode;

#[path = "../main.rs"]
mod program;

fn main() -> ExitCode {
    program::main()
}
