//! Single fields set from outside the recipe's file.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::RecipeError;

/// What the names of environment variables that override a field begin with.
const ENV_PREFIX: &str = "POLO__";

/// One field and its new value.
pub(super) struct Override {
    /// How the user gave it.
    pub origin: String,
    /// The field's path.
    pub path: Vec<String>,
    value: String,
}

impl Override {
    /// Overrides in the order in which they apply: the environment's, sorted by name, then `sets`.
    pub fn collect(env: impl Iterator<Item = (String, String)>, sets: &[String]) -> Result<Vec<Self>, RecipeError> {
        let mut variables: Vec<_> = env.filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
        variables.sort();
        let from_env = variables.into_iter().map(|(name, value)| Self::from_env(&name, value));
        from_env.chain(sets.iter().map(|set| Self::from_set(set))).collect()
    }

    fn from_env(name: &str, value: String) -> Result<Self, RecipeError> {
        let path = name[ENV_PREFIX.len()..].to_lowercase();
        Self::new(format!("environment variable {name}"), path.split("__"), value)
    }

    fn from_set(set: &str) -> Result<Self, RecipeError> {
        let origin = format!("--set {set}");
        match set.split_once('=') {
            Some((path, value)) => Self::new(origin, path.trim().split('.'), value.trim().to_owned()),
            None => {
                Err(RecipeError::Override { origin, message: "has no value; write `--set section.field=value`".into() })
            }
        }
    }

    fn new<'a>(origin: String, path: impl Iterator<Item = &'a str>, value: String) -> Result<Self, RecipeError> {
        let path: Vec<String> = path.map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            let message = "does not name a field; a path has the form `section.field`".into();
            return Err(RecipeError::Override { origin, message });
        }
        Ok(Self { origin, path, value })
    }

    /// Sets the field in `tree`; all that it adds there has the place `span`.
    pub fn apply<'i>(&'i self, tree: &mut DeValue<'i>, span: &Range<usize>) -> Result<(), RecipeError> {
        let (last, tables) = self.path.split_last().unwrap_or_else(|| unreachable!("a split has at least one part"));
        let refused = |message| RecipeError::Override { origin: self.origin.clone(), message };
        let parent = tables.iter().try_fold(tree, |value, key| child(value, key, span).map_err(refused))?;
        *child_slot(parent, last, span).map_err(refused)? = at(self.parse(), span);
        Ok(())
    }

    fn parse(&self) -> DeValue<'_> {
        match DeValue::parse(&self.value) {
            Ok(value) => value.into_inner(),
            Err(_) => DeValue::String(self.value.as_str().into()),
        }
    }
}

fn child<'a, 'i>(value: &'a mut DeValue<'i>, key: &'i str, span: &Range<usize>) -> Result<&'a mut DeValue<'i>, String> {
    child_slot(value, key, span).map(Spanned::get_mut)
}

/// The value at `key`, which is made an empty table if a table has none.
fn child_slot<'a, 'i>(
    value: &'a mut DeValue<'i>,
    key: &'i str,
    span: &Range<usize>,
) -> Result<&'a mut Spanned<DeValue<'i>>, String> {
    match value {
        DeValue::Table(table) => Ok(table
            .entry(Spanned::new(span.clone(), key.into()))
            .or_insert_with(|| Spanned::new(span.clone(), DeValue::Table(DeTable::new())))),
        DeValue::Array(array) => {
            let len = array.len();
            let index = key.parse::<usize>().ok().filter(|&index| index < len);
            index
                .and_then(|index| array.get_mut(index))
                .ok_or_else(|| format!("`{key}` is no entry of a list of {len}; entries are numbered from 0"))
        }
        other => Err(format!("`{key}` is looked for in a {}, which has no fields", other.type_str())),
    }
}

/// The value with all its parts placed at `span`.
fn at<'i>(value: DeValue<'i>, span: &Range<usize>) -> Spanned<DeValue<'i>> {
    let value = match value {
        DeValue::Array(array) => DeValue::Array(array.into_iter().map(|v| at(v.into_inner(), span)).collect()),
        DeValue::Table(table) => {
            let entry = |(k, v): (Spanned<_>, Spanned<_>)| {
                (Spanned::new(span.clone(), k.into_inner()), at(v.into_inner(), span))
            };
            DeValue::Table(table.into_iter().map(entry).collect())
        }
        scalar => scalar,
    };
    Spanned::new(span.clone(), value)
}
