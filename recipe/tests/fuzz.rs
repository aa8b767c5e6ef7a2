//! What the recipe parser makes of damaged recipes: an error, or a recipe that comes back whole.
#![allow(missing_docs)]

use std::path::Path;

use polo_fuzz::fuzz;
use polo_recipe::config::Recipe;

#[test]
fn fuzz_recipes() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let files = std::fs::read_dir(configs).expect("the configs").map(|entry| entry.expect("an entry").path());
    let recipes = files.filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    let seeds: Vec<_> = recipes.map(|path| std::fs::read(path).expect("a recipe")).collect();
    let no_file = |path: &str| Err(format!("no {path}"));
    fuzz(env!("CARGO_MANIFEST_DIR"), "recipes", &seeds, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let Ok(recipe) = Recipe::resolve(&text, std::iter::empty(), &[], no_file) else { return };
        let again = Recipe::from_resolved(&recipe.to_toml()).expect("what it writes can be read");
        assert_eq!((again.identity(), &again), (recipe.identity(), &recipe));
        recipe.num_steps();
    });
}
