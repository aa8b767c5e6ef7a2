//! What a run keeps beside its checkpoints: the resolved recipe it follows.

use bytes::Bytes;

use crate::{Store, StoreError};

const RECIPE_KEY: &str = "recipe.toml";

/// Stores the resolved recipe of the run in `store`, create-only.
///
/// A recipe that is there already stays when it has the same `identity` (fields outside the identity may differ);
/// another one is [`StoreError::OtherRecipe`]. `identity` reads a recipe's text and gives its identity, or says why it
/// cannot.
pub async fn put_recipe(
    store: &Store,
    toml: &str,
    identity: impl Fn(&str) -> Result<String, String>,
) -> Result<(), StoreError> {
    let created = store.put_if_absent(RECIPE_KEY, Bytes::copy_from_slice(toml.as_bytes())).await?;
    let stored = if created { toml.to_owned() } else { read_recipe(store).await? };
    if stored == toml {
        return Ok(());
    }
    let url = store.url_of(RECIPE_KEY);
    let read = |text: &str| identity(text).map_err(|reason| StoreError::damaged(&url, reason));
    let (stored, ours) = (read(&stored)?, read(toml)?);
    if stored == ours { Ok(()) } else { Err(StoreError::OtherRecipe { url, stored, ours }) }
}

/// The resolved recipe of the run in `store`.
pub async fn read_recipe(store: &Store) -> Result<String, StoreError> {
    let bytes = store.get(RECIPE_KEY).await?;
    String::from_utf8(bytes.into()).map_err(|e| StoreError::damaged(store.url_of(RECIPE_KEY), e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_keeps_the_recipe_it_began_with() {
        let store = Store::open("memory://run-recipe").expect("open");
        let first_line = |text: &str| text.lines().next().map(str::to_owned).ok_or("it is empty".to_owned());
        put_recipe(&store, "one\nthreads = 1", first_line).await.expect("create");
        put_recipe(&store, "one\nthreads = 2", first_line).await.expect("same identity");
        assert_eq!(read_recipe(&store).await.expect("read"), "one\nthreads = 1");
        let error = put_recipe(&store, "two", first_line).await.expect_err("another identity").to_string();
        assert!(error.contains("one") && error.contains("two") && error.contains("recipe.toml"), "{error}");
    }
}
