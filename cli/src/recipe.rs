//! `polo recipe`: what a recipe says once everything is laid over it, and what it trains of each source.

mod tokens;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use polo_log::say;
use polo_recipe::{config::Recipe, plan::SourceTokens, tokens::TokenTable};
use polo_store::{
    Store,
    corpus::CorpusManifest,
    recipe_file::{self, RecipeFileError},
};

use crate::examples;

/// Arguments of `polo recipe`.
#[derive(Debug, Args)]
pub struct RecipeArgs {
    #[command(subcommand)]
    command: RecipeCommand,
}

#[derive(Debug, Subcommand)]
enum RecipeCommand {
    /// Prints the resolved recipe: defaults, the file, the environment and --set, with the model inline
    #[command(after_help = examples::SHOW)]
    Show(ShowArgs),
    /// Prints what a recipe's file may say, as a JSON Schema: for editors, and for whoever writes recipes by program
    #[command(after_help = examples::SCHEMA)]
    Schema,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// The recipe's TOML file
    recipe: PathBuf,
    /// Sets a field, such as `batch.slots=4` or `stages.0.steps=60`; may be given several times
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    sets: Vec<String>,
    /// Prints, instead of the recipe, what it trains of each source in each stage; and, where its corpus can be read, which
    /// part of the source that is
    #[arg(long)]
    tokens: bool,
    /// Prints JSON instead of TOML or text
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

/// Runs `polo recipe`: the recipe or its table goes to stdout, its identity to stderr.
pub async fn run(args: RecipeArgs) -> Result<(), RecipeCommandError> {
    let args = match args.command {
        RecipeCommand::Show(args) => args,
        RecipeCommand::Schema => return print(&(serde_json::to_string_pretty(&Recipe::schema())? + "\n")),
    };
    let recipe = recipe_file::load(&args.recipe, &args.sets)?;
    let text = match (args.tokens, args.json) {
        (false, false) => recipe.to_toml(),
        (false, true) => serde_json::to_string_pretty(&recipe)? + "\n",
        (true, false) => tokens::to_text(&token_table(&recipe).await),
        (true, true) => serde_json::to_string_pretty(&token_table(&recipe).await)? + "\n",
    };
    print(&text)?;
    say(format_args!("identity {}", recipe.identity()));
    Ok(())
}

fn print(text: &str) -> Result<(), RecipeCommandError> {
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

async fn token_table(recipe: &Recipe) -> TokenTable {
    match available_tokens(&recipe.corpus.url).await {
        Ok(corpus) => TokenTable::new(recipe, Some(&corpus)),
        Err(reason) => {
            say(format_args!("available tokens are unknown: {reason}"));
            TokenTable::new(recipe, None)
        }
    }
}

async fn available_tokens(corpus_url: &str) -> Result<Vec<SourceTokens>, String> {
    let store = Store::open(corpus_url).map_err(|error| error.to_string())?;
    let manifest = CorpusManifest::load(&store).await.map_err(|error| error.to_string())?;
    let tokens = manifest.sources.into_iter().map(|s| SourceTokens { name: s.name, num_tokens: s.num_tokens });
    Ok(tokens.collect())
}
