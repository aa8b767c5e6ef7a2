//! `polo recipe`: what a recipe says once everything is laid over it.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use polo_store::recipe_file::{self, RecipeFileError};

/// Arguments of `polo recipe`.
#[derive(Debug, Args)]
pub struct RecipeArgs {
    #[command(subcommand)]
    command: RecipeCommand,
}

#[derive(Debug, Subcommand)]
enum RecipeCommand {
    /// Prints the resolved recipe: defaults, the file, the environment and --set, with the model inline.
    Show(ShowArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The recipe's TOML file.
    recipe: PathBuf,
    /// Sets a field, such as `batch.slots=4` or `stages.0.steps=60`; may be given several times.
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    sets: Vec<String>,
    /// Prints JSON instead of TOML.
    #[arg(long)]
    json: bool,
}

/// Why `polo recipe` fails.
#[derive(Debug, thiserror::Error)]
pub enum RecipeCommandError {
    /// The recipe is refused.
    #[error(transparent)]
    Recipe(#[from] RecipeFileError),
    /// The recipe cannot be written as JSON.
    #[error("cannot write the recipe as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(#[from] std::io::Error),
}

/// Runs `polo recipe`: the recipe goes to stdout, its identity to stderr.
pub fn run(args: RecipeArgs) -> Result<(), RecipeCommandError> {
    let RecipeCommand::Show(args) = args.command;
    let recipe = recipe_file::load(&args.recipe, &args.sets)?;
    let text = if args.json { serde_json::to_string_pretty(&recipe)? + "\n" } else { recipe.to_toml() };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    eprintln!("identity {}", recipe.identity());
    Ok(())
}
