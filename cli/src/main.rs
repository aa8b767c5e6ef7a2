//! Polo's command line.

mod prepare;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "polo", version, about)]
enum Command {
    Prepare(prepare::PrepareArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Prepare(args) => prepare::run(args).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("polo: {error}");
            ExitCode::FAILURE
        }
    }
}
