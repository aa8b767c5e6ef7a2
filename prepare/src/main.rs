//! `polo-prepare`: `polo prepare` as a program of its own, for machines that only prepare data.

use std::process::ExitCode;

use clap::Parser;
use polo_prepare::PrepareArgs;

#[derive(Parser)]
#[command(name = "polo-prepare", version)]
struct Cli {
    #[command(flatten)]
    args: PrepareArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    match polo_prepare::run(Cli::parse().args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
