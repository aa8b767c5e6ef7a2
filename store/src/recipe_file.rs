//! A recipe from its file: the only place where Polo reads one.

use std::path::{Path, PathBuf};

use polo_recipe::config::Recipe;
use polo_recipe::error::RecipeError;

/// Why a recipe's file gives no recipe.
#[derive(Debug, thiserror::Error)]
pub enum RecipeFileError {
    /// The file cannot be read.
    #[error("cannot read recipe {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file is read, but what it says is refused.
    #[error("{}: {error}", path.display())]
    Recipe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: RecipeError,
    },
}

/// Reads the recipe at `path`, with this process's environment and then `sets` laid over it.
///
/// Relative paths are taken from the recipe's folder, wherever they were set, and made absolute, so that a recipe means
/// the same whichever folder it is run from.
pub fn load(path: &Path, sets: &[String]) -> Result<Recipe, RecipeFileError> {
    let unread = |error| RecipeFileError::Read { path: path.to_owned(), error };
    let text = std::fs::read_to_string(path).map_err(unread)?;
    let folder = path.canonicalize().map_err(unread)?.parent().map(Path::to_owned).unwrap_or_default();
    let read_file = |file: &str| std::fs::read_to_string(folder.join(file)).map_err(|error| error.to_string());
    let mut recipe = Recipe::resolve(&text, environment(), sets, read_file)
        .map_err(|error| RecipeFileError::Recipe { path: path.to_owned(), error })?;
    recipe.visit_locations(|location| {
        if !location.contains("://") {
            *location = folder.join(&*location).to_string_lossy().into_owned();
        }
    });
    Ok(recipe)
}

/// The environment's readable part; a name or value that is not UTF-8 is nothing that a recipe could hold.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

#[cfg(test)]
mod tests {
    use polo_recipe::config::InitialWeights;

    use super::*;

    const RECIPE: &str = r#"
        run = { name = "small", store = "s3://bucket/small" }
        model = { config = "models/config.json", init = "models/hf" }
        corpus = { url = "corpus", tokenizer = "/abs/tokenizer.json" }
        batch = { seq_len = 16, samples_per_step = 12, slots = 6 }
        [[stages]]
        name = "one"
        steps = 5
        schedule = { kind = "constant", peak_learning_rate = 1e-3 }
        sources = [{ name = "en", weight_tokens = 1 }]
    "#;

    const CONFIG_JSON: &str = r#"{"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 300}"#;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("models")).expect("a folder");
        std::fs::write(folder.path().join("models/config.json"), CONFIG_JSON).expect("a file");
        std::fs::write(folder.path().join("recipe.toml"), RECIPE).expect("a file");
        folder
    }

    #[test]
    fn relative_paths_start_at_the_recipes_folder() {
        let folder = folder();
        let recipe = load(&folder.path().join("recipe.toml"), &["batch.slots=3".into()]).expect("a right recipe");
        let inside = |path: &str| folder.path().canonicalize().expect("a folder").join(path).display().to_string();
        assert_eq!((recipe.corpus.url, recipe.run.store), (inside("corpus"), "s3://bucket/small".into()));
        assert_eq!(recipe.corpus.tokenizer.as_deref(), Some("/abs/tokenizer.json"));
        assert_eq!(recipe.model.init, InitialWeights::Folder(inside("models/hf")));
        assert_eq!((recipe.model.qwen2.hidden_size, recipe.batch.slots), (64, 3));
    }

    #[test]
    fn an_absent_file_is_named() {
        let folder = folder();
        let absent = load(&folder.path().join("none.toml"), &[]).expect_err("absent").to_string();
        assert!(absent.contains("cannot read recipe") && absent.contains("none.toml"), "{absent}");
        std::fs::remove_file(folder.path().join("models/config.json")).expect("removed");
        let absent = load(&folder.path().join("recipe.toml"), &[]).expect_err("absent").to_string();
        assert!(absent.contains("recipe.toml: ") && absent.contains("cannot read models/config.json"), "{absent}");
    }
}
