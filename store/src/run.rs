//! What a run keeps beside its checkpoints: the resolved recipe it follows.

use bytes::Bytes;
use polo_recipe::config::Recipe;

use crate::{Store, StoreError};

const RECIPE_KEY: &str = "recipe.toml";

/// Stores the resolved recipe of the run in `store`, create-only.
///
/// A recipe that is there already stays when it has the same identity (fields outside the identity may differ);
/// another one is [`StoreError::OtherRecipe`].
pub async fn put_recipe(store: &Store, recipe: &Recipe) -> Result<(), StoreError> {
    if store.put_if_absent(RECIPE_KEY, Bytes::from(recipe.to_toml())).await? {
        return Ok(());
    }
    let (stored, ours) = (read_recipe(store).await?.identity(), recipe.identity());
    if stored == ours { Ok(()) } else { Err(StoreError::OtherRecipe { url: store.url_of(RECIPE_KEY), stored, ours }) }
}

/// The resolved recipe of the run in `store`.
pub async fn read_recipe(store: &Store) -> Result<Recipe, StoreError> {
    let bytes = store.get(RECIPE_KEY).await?;
    let damaged = |reason: String| StoreError::damaged(store.url_of(RECIPE_KEY), reason);
    let text = std::str::from_utf8(&bytes).map_err(|e| damaged(e.to_string()))?;
    Recipe::from_resolved(text).map_err(|e| damaged(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"
        run = { name = "small", store = "memory://run-recipe" }
        corpus = { url = "memory://corpus" }
        batch = { seq_len = 8, samples_per_step = 2, slots = 1 }
        [model.qwen2]
        hidden_size = 8
        num_hidden_layers = 1
        num_attention_heads = 2
        num_key_value_heads = 1
        intermediate_size = 12
        vocab_size = 20
        [[stages]]
        name = "one"
        steps = 5
        schedule = { kind = "constant", peak_learning_rate = 1e-3 }
        sources = [{ name = "en", weight_tokens = 1 }]
    "#;

    #[tokio::test]
    async fn a_run_keeps_the_recipe_it_began_with() {
        let store = Store::open("memory://run-recipe").expect("open");
        let first = Recipe::from_resolved(RECIPE).expect("a recipe");
        put_recipe(&store, &first).await.expect("create");
        let mut renamed = first.clone();
        renamed.run.name = "other".into();
        put_recipe(&store, &renamed).await.expect("same identity");
        assert_eq!(read_recipe(&store).await.expect("read"), first);

        let mut other = first.clone();
        other.run.seed += 1;
        let error = put_recipe(&store, &other).await.expect_err("another identity").to_string();
        assert!(
            [first.identity(), other.identity(), "recipe.toml".into()].iter().all(|m| error.contains(m)),
            "{error}"
        );

        store.put(RECIPE_KEY, Bytes::from_static(b"[run")).await.expect("spoil");
        let error = put_recipe(&store, &first).await.expect_err("no recipe").to_string();
        assert!(error.contains("memory://run-recipe/recipe.toml"), "{error}");
    }
}
