//! `polo`: prepares a corpus, runs a recipe, and shows, checks and exports what a run has made.
//!
//! Data goes to standard output, everything said to people to standard error.

mod chaos;
mod control;
mod coordinate;
mod error;
mod export;
mod kubernetes;
mod plan;
mod progress;
mod recipe;
mod run;
mod samples;
mod status;
mod stored_run;
mod talk;
#[cfg(test)]
mod test_run;
mod units;
mod verify;
mod watch;
mod worker_processes;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use error::CliError;
use polo_recipe::config::Recipe;
use polo_store::recipe_file;
use tracing_subscriber::EnvFilter;

/// Continual pre-training of Qwen2 models that goes on when workers die, with the same result to the bit.
#[derive(Debug, Parser)]
#[command(name = "polo", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  polo prepare --input raw/ --output corpus/ --tokenizer tokenizer.json
  polo run recipe.toml --workers 4
  polo status --watch
  polo verify recipe.toml
  polo export recipe.toml --to model/
  polo submit recipe.toml --workers 8 --image registry.example/polo:0.1.0 --insecure";

const EXIT_CODES: &str = "Exit codes:
  0  the run was completed, or stopped on request
  1  it failed
  2  the command line makes no sense
  3  with --fail-on-worse: it ended well, but a watched source is worse than allowed
  75 with --on-sigterm leave: the coordinator was terminated, and the run goes on";

#[derive(Debug, Subcommand)]
enum Command {
    /// Turns raw text into token shards
    Prepare(polo_prepare::PrepareArgs),
    /// Runs a recipe on this machine: a coordinator and its workers
    #[command(after_help = EXIT_CODES)]
    Run(run::RunArgs),
    /// Runs only the coordinator of a recipe
    #[command(after_help = EXIT_CODES)]
    Coordinator(coordinate::CoordinatorArgs),
    /// Puts a run on a Kubernetes cluster
    Submit(Box<kubernetes::SubmitArgs>),
    /// Changes how many workers a run on Kubernetes has
    Scale(kubernetes::ScaleArgs),
    /// Prints what the programs of a run on Kubernetes have said
    Logs(kubernetes::LogsArgs),
    /// Removes a run from a Kubernetes cluster; its store stays as it is
    Delete(kubernetes::DeleteArgs),
    /// Shows how a run stands
    Status(status::StatusArgs),
    /// Asks a run for a checkpoint at the next step boundary
    Checkpoint(control::AddressArgs),
    /// Stops a run at the next step boundary, with a checkpoint
    Stop(control::AddressArgs),
    /// Has a worker hand back what it holds and leave
    Drain(control::DrainArgs),
    /// Runs a recipe while hurting it in every way that it promises to survive, and compares the results
    Chaos(chaos::ChaosArgs),
    /// Checks a run's checkpoints and prints planned and trained tokens
    Verify(verify::Args),
    /// Prints the documents that a step is trained on
    Samples(samples::Args),
    /// Writes a checkpoint as a Hugging Face folder
    Export(export::Args),
    /// Prints what each worker would hold, and whether that fits
    Plan(plan::Args),
    /// Shows what a recipe says
    Recipe(recipe::RecipeArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("POLO_LOG").unwrap_or_else(|_| EnvFilter::new("warn")))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match dispatch(cli.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

async fn dispatch(command: Command) -> Result<(), CliError> {
    match command {
        Command::Prepare(args) => Ok(polo_prepare::run(args).await?),
        Command::Run(args) => run::run(args).await,
        Command::Coordinator(args) => coordinate::run(args).await,
        Command::Submit(args) => kubernetes::submit(*args).await,
        Command::Scale(args) => kubernetes::scale(args).await,
        Command::Logs(args) => kubernetes::logs(args).await,
        Command::Delete(args) => kubernetes::delete(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Checkpoint(args) => control::checkpoint(args).await,
        Command::Stop(args) => control::stop(args).await,
        Command::Drain(args) => control::drain(args).await,
        Command::Chaos(args) => chaos::run(args).await,
        Command::Verify(args) => {
            let recipe = load_optional(&args.run.recipe)?;
            Ok(verify::run(args, recipe).await?)
        }
        Command::Export(args) => {
            let recipe = load_optional(&args.run.recipe)?;
            Ok(export::run(args, recipe).await?)
        }
        Command::Samples(args) => {
            let recipe = load_optional(&args.run.recipe)?;
            Ok(samples::run(args, recipe).await?)
        }
        Command::Plan(args) => Ok(plan::run(&args)?),
        Command::Recipe(args) => Ok(recipe::run(args).await?),
    }
}

fn load_optional(path: &Option<PathBuf>) -> Result<Option<Recipe>, CliError> {
    Ok(path.as_ref().map(|path| recipe_file::load(path, &[])).transpose()?)
}
