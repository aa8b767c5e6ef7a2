//! From texts to a recipe: defaults, then the file, then the environment, then `--set`.
//!
//! All layers are merged into one tree of TOML values that know their place in the text. An override's values get a
//! place behind the end of the text, so that every error is traced to the line or the override that it comes from.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::Recipe;
use super::overrides::Override;
use crate::error::RecipeError;
use crate::model::Qwen2Config;

impl Recipe {
    /// Reads a recipe: defaults, over them `toml_text`, over it variables such as `POLO__BATCH__SLOTS=4` in `env`, over
    /// them `sets` such as `stages.0.steps=60`.
    ///
    /// Values of overrides are TOML values; what is no TOML value is taken as a string. `read_file` reads the file that
    /// `model.config` names.
    pub fn resolve(
        toml_text: &str,
        env: impl Iterator<Item = (String, String)>,
        sets: &[String],
        read_file: impl Fn(&str) -> Result<String, String>,
    ) -> Result<Self, RecipeError> {
        let overrides = Override::collect(env, sets)?;
        let origins = Origins { text: toml_text, overrides: &overrides };
        let architecture;
        let parsed = DeTable::parse(toml_text).map_err(|error| origins.syntax_error(&error))?;
        let mut tree = DeValue::Table(parsed.into_inner());
        for (number, item) in overrides.iter().enumerate() {
            item.apply(&mut tree, &origins.span_of_override(number))?;
        }
        if let Some(config) = read_model_config(&tree, read_file).map_err(|e| origins.placed(&tree, e))? {
            architecture = config;
            insert_architecture(&mut tree, &architecture).map_err(|e| origins.syntax_error(&e))?;
        }
        let recipe: Self = origins.deserialize(&tree)?;
        recipe.validate().map_err(|e| origins.placed(&tree, e))?;
        Ok(recipe)
    }

    /// Reads what [`Recipe::to_toml`] wrote, which needs no environment and no other file.
    pub fn from_resolved(toml_text: &str) -> Result<Self, RecipeError> {
        let no_file = |path: &str| Err(format!("{path} is not part of a resolved recipe"));
        Self::resolve(toml_text, std::iter::empty(), &[], no_file)
    }

    /// What a recipe's file may say, as a JSON Schema; the environment and `--set` lay values over it.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Self).into()
    }

    /// The recipe as TOML, for [`Recipe::from_resolved`].
    pub fn to_toml(&self) -> String {
        // Every field is a table, number or string under a string key, which TOML can always say.
        toml::to_string(self).unwrap_or_else(|error| unreachable!("{error}"))
    }
}

/// The file that `model.config` names, as the TOML of a [`Qwen2Config`].
fn read_model_config(
    tree: &DeValue<'_>,
    read_file: impl Fn(&str) -> Result<String, String>,
) -> Result<Option<String>, RecipeError> {
    let field = |name| tree.get("model").and_then(|model| model.get_ref().get(name)).map(Spanned::get_ref);
    let config = match (field("config"), field("qwen2")) {
        (Some(_), Some(_)) => return Err(RecipeError::field("model", "has both `config` and `qwen2`; keep one")),
        (None, None) => {
            let message = "has no architecture; give `config = \"path/to/config.json\"` or a [model.qwen2] table";
            return Err(RecipeError::field("model", message));
        }
        (None, Some(_)) => return Ok(None),
        (Some(config), None) => config,
    };
    let refused = |message: String| RecipeError::field("model.config", message);
    let path = config.as_str().ok_or_else(|| refused("is not a string; give the path of a config.json".into()))?;
    let text = read_file(path).map_err(|message| refused(format!("cannot read {path}: {message}")))?;
    let config = Qwen2Config::from_json(&text).map_err(|error| refused(format!("{path}: {error}")))?;
    toml::to_string(&config).map(Some).map_err(|error| refused(format!("{path}: {error}")))
}

/// Puts the architecture where `model.config` was.
fn insert_architecture<'i>(tree: &mut DeValue<'i>, architecture: &'i str) -> Result<(), toml::de::Error> {
    let DeValue::Table(root) = tree else { return Ok(()) };
    let Some(DeValue::Table(model)) = root.get_mut("model").map(Spanned::get_mut) else { return Ok(()) };
    let Some(config) = model.remove("config") else { return Ok(()) };
    let table = DeTable::parse(architecture)?.into_inner();
    let value = Spanned::new(config.span(), DeValue::Table(table));
    model.insert(Spanned::new(config.span(), "qwen2".into()), value);
    Ok(())
}

/// Knows where every value of the merged tree was set.
struct Origins<'a> {
    text: &'a str,
    overrides: &'a [Override],
}

impl Origins<'_> {
    fn span_of_override(&self, number: usize) -> Range<usize> {
        let start = self.text.len() + 1 + number;
        start..start + 1
    }

    fn override_at(&self, span: &Range<usize>) -> Option<&Override> {
        self.overrides.get(span.start.checked_sub(self.text.len() + 1)?)
    }

    fn line(&self, offset: usize) -> usize {
        1 + self.text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count()
    }

    fn place(&self, span: &Range<usize>) -> String {
        match self.override_at(span) {
            Some(item) => item.origin.clone(),
            None => format!("line {}", self.line(span.start)),
        }
    }

    fn syntax_error(&self, error: &toml::de::Error) -> RecipeError {
        let line = self.line(error.span().map_or(0, |span| span.start));
        RecipeError::Syntax { line, message: error.message().replace('\n', "; ") }
    }

    fn deserialize(&self, tree: &DeValue<'_>) -> Result<Recipe, RecipeError> {
        let DeValue::Table(root) = tree.clone() else { unreachable!("a TOML text is a table") };
        let whole = 0..self.text.len();
        Recipe::deserialize(Deserializer::from(Spanned::new(whole.clone(), root))).map_err(|error| {
            let span = error.span().unwrap_or(whole.clone());
            let field = match self.override_at(&span) {
                Some(item) => Some(item.path.join(".")),
                None => path_of(tree, &span),
            };
            RecipeError::Field {
                place: field.is_some().then(|| self.place(&span)),
                field: field.unwrap_or_else(|| "(top level)".into()),
                message: in_plain_words(error.message()),
            }
        })
    }

    /// Adds to an error about a field where that field was set.
    fn placed(&self, tree: &DeValue<'_>, error: RecipeError) -> RecipeError {
        match error {
            RecipeError::Field { field, place: None, message } => {
                let place = span_of(tree, &field).map(|span| self.place(&span));
                RecipeError::Field { field, place, message }
            }
            other => other,
        }
    }
}

/// Says what serde expects without the names of Rust's types.
fn in_plain_words(message: &str) -> String {
    let words = [
        ("expected u64", "expected a whole number that is not negative"),
        ("expected usize", "expected a whole number that is not negative"),
        ("expected f64", "expected a number"),
    ];
    let plain = words.iter().fold(message.to_owned(), |message, (type_name, words)| message.replace(type_name, words));
    match plain.split_once("expected struct ") {
        Some((start, _)) => format!("{start}expected a table"),
        None => plain,
    }
}

/// The children of a table or array, each with its key.
fn children<'a, 'i>(value: &'a DeValue<'i>) -> Vec<(String, Range<usize>, &'a Spanned<DeValue<'i>>)> {
    match value {
        DeValue::Table(table) => table.iter().map(|(k, v)| (k.get_ref().to_string(), k.span(), v)).collect(),
        DeValue::Array(array) => array.iter().enumerate().map(|(i, v)| (i.to_string(), v.span(), v)).collect(),
        _ => Vec::new(),
    }
}

/// Path of the value whose key or own text is exactly at `span`.
fn path_of(value: &DeValue<'_>, span: &Range<usize>) -> Option<String> {
    children(value).into_iter().find_map(|(key, key_span, child)| {
        let below = path_of(child.get_ref(), span).map(|rest| format!("{key}.{rest}"));
        below.or_else(|| (key_span == *span || child.span() == *span).then_some(key))
    })
}

/// Where the value at `path` was set, or the innermost table around it if it was not.
fn span_of(value: &DeValue<'_>, path: &str) -> Option<Range<usize>> {
    let (key, rest) = path.split_once('.').unwrap_or((path, ""));
    let (_, _, child) = children(value).into_iter().find(|(name, _, _)| name == key)?;
    span_of(child.get_ref(), rest).or_else(|| Some(child.span()))
}
