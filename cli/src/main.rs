//! `polo`: prepares a corpus, runs a recipe, and shows, checks and exports what a run has made.
//!
//! Data goes to standard output, everything said to people to standard error.

mod chaos;
mod control;
mod coordinate;
mod error;
mod examples;
mod export;
mod kubernetes;
mod metrics;
mod plan;
mod progress;
mod recipe;
mod run;
mod samples;
mod status;
mod stored_run;
#[cfg(test)]
mod test_run;
mod units;
mod verify;
mod watch;
mod worker_processes;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use error::CliError;
use polo_recipe::config::Recipe;
use polo_store::recipe_file;

/// Continual pre-training of Qwen2 models that goes on when workers die, with the same result to the bit.
#[derive(Debug, Parser)]
#[command(name = "polo", version, after_help = examples::POLO)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Turns raw text into token shards
    Prepare(polo_prepare::PrepareArgs),
    /// Runs a recipe on this machine: a coordinator and its workers
    #[command(after_help = examples::RUN)]
    Run(run::RunArgs),
    /// Runs only the coordinator of a recipe
    #[command(after_help = examples::COORDINATOR)]
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
    #[command(after_help = examples::STATUS)]
    Status(status::StatusArgs),
    /// Asks a run for a checkpoint at the next step boundary
    #[command(after_help = examples::CHECKPOINT)]
    Checkpoint(control::AddressArgs),
    /// Stops a run at the next step boundary, with a checkpoint
    #[command(after_help = examples::STOP)]
    Stop(control::AddressArgs),
    /// Has a worker hand back what it holds and leave
    #[command(after_help = examples::DRAIN)]
    Drain(control::DrainArgs),
    /// Runs a recipe while hurting it in every way that it promises to survive, and compares the results
    Chaos(chaos::ChaosArgs),
    /// Checks a run's checkpoints and prints planned and trained tokens
    #[command(after_help = examples::VERIFY)]
    Verify(verify::Args),
    /// Prints the documents that a step is trained on
    Samples(samples::Args),
    /// Writes a checkpoint as a Hugging Face folder
    #[command(after_help = examples::EXPORT)]
    Export(export::Args),
    /// Prints what each worker would hold, and whether that fits
    Plan(plan::Args),
    /// Shows what a recipe says
    Recipe(recipe::RecipeArgs),
    /// Lists the metrics that a coordinator serves to Prometheus at /metrics
    #[command(after_help = examples::METRICS)]
    Metrics(metrics::Args),
    /// Prints a script that completes commands in a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    polo_log::begin("polo");
    match dispatch(cli.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            polo_log::fail(&error);
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
        Command::Metrics(args) => metrics::run(args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "polo", &mut std::io::stdout());
            Ok(())
        }
    }
}

fn load_optional(path: &Option<PathBuf>) -> Result<Option<Recipe>, CliError> {
    Ok(path.as_ref().map(|path| recipe_file::load(path, &[])).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All commands that do something, with the words that lead to them.
    fn commands(command: &clap::Command) -> Vec<(String, &clap::Command)> {
        if !command.has_subcommands() {
            return vec![(command.get_name().into(), command)];
        }
        let below = command.get_subcommands().flat_map(commands);
        below.map(|(words, found)| (format!("{} {words}", command.get_name()), found)).collect()
    }

    fn help(command: &clap::Command) -> String {
        command.clone().render_long_help().to_string()
    }

    /// The command lines in a help text, each as its words.
    fn examples(help: &str) -> Vec<Vec<String>> {
        let whole = help.replace("\\\n", " ");
        let lines = whole.lines().map(str::trim).filter(|line| line.starts_with("polo "));
        let words = |line: &str| {
            let until_shell = line.split_whitespace().take_while(|word| !["|", ">", "#", "&&"].contains(word));
            until_shell.map(|word| word.trim_matches('\'').into()).collect()
        };
        lines.map(words).collect()
    }

    #[test]
    fn every_command_says_what_it_does_and_gives_examples_that_can_be_typed() {
        let polo = Cli::command();
        for (words, command) in commands(&polo).into_iter().chain([("polo".into(), &polo)]) {
            assert!(command.get_about().is_some(), "{words} does not say what it does");
            let examples = examples(&help(command));
            assert!(examples.iter().any(|example| example.join(" ").starts_with(&words)), "{words}: no example of it");
            for example in examples {
                if let Err(error) = Cli::try_parse_from(&example) {
                    panic!("{example:?}: {error}");
                }
            }
        }
    }

    #[test]
    fn options_are_told_of_in_one_manner() {
        for (words, command) in commands(&Cli::command()) {
            for argument in command.get_arguments() {
                let told = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!told.is_empty() && !told.ends_with('.'), "{words} {}: {told:?}", argument.get_id());
            }
        }
    }

    #[test]
    fn every_shell_is_helped() {
        for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "polo", &mut script);
            assert!(String::from_utf8(script).expect("UTF-8").contains("checkpoint"), "{shell}");
        }
    }
}
