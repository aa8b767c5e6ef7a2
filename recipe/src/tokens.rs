//! The table of what a recipe trains: tokens of every source, by stage and group, and how much of the corpus that is.
//!
//! It needs no corpus. Where the sizes of one are known, it says how much of each source is used.

use std::collections::HashMap;

use serde::Serialize;

use crate::config::{Batch, Group, Recipe, Stage};
use crate::plan::SourceTokens;

/// Tokens of a whole run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenTable {
    /// One after another.
    pub stages: Vec<StageTable>,
    /// All stages together.
    pub total: Amount,
    /// Each source over all stages, in the order of first use.
    pub sources: Vec<SourceTotal>,
}

/// A number of samples, and their tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Tokens that are trained.
    pub num_tokens: u64,
    /// Samples of `seq_len` tokens.
    pub num_samples: u64,
}

/// Tokens of a stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageTable {
    /// The stage's name.
    pub stage: String,
    /// Its steps.
    pub num_steps: u64,
    /// The highest learning rate of its schedule.
    pub peak_learning_rate: f64,
    /// All groups together.
    #[serde(flatten)]
    pub total: Amount,
    /// Its groups in the recipe's order.
    pub groups: Vec<GroupTable>,
}

/// Tokens of a group within a stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupTable {
    /// The group's name; none where the stage has plain sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its share of the stage as the recipe has it, from 0 to 1.
    pub share: f64,
    /// All its sources together.
    #[serde(flatten)]
    pub total: Amount,
    /// Its sources in the recipe's order.
    pub sources: Vec<SourceTable>,
}

/// Tokens of a source within a stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceTable {
    /// The source's name.
    pub source: String,
    /// Its share of the stage as the recipe has it, from 0 to 1.
    pub share: f64,
    /// What the stage trains of it.
    #[serde(flatten)]
    pub amount: Amount,
}

/// Tokens of a source over all stages.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceTotal {
    /// The source's name.
    pub source: String,
    /// What all stages train of it.
    #[serde(flatten)]
    pub amount: Amount,
    /// Tokens that the corpus has of it, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_available_tokens: Option<u64>,
    /// The part of them that is trained; above 1, the source is repeated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fraction_used: Option<f64>,
}

impl TokenTable {
    /// The table of `recipe` on a corpus with these sources, if they are known.
    pub fn new(recipe: &Recipe, corpus: Option<&[SourceTokens]>) -> Self {
        let stages: Vec<_> = recipe.stages.iter().map(|stage| stage_table(stage, &recipe.batch)).collect();
        let total = sum(stages.iter().map(|stage| stage.total));
        let sources = source_totals(&stages, corpus.unwrap_or_default());
        Self { stages, total, sources }
    }
}

fn stage_table(stage: &Stage, batch: &Batch) -> StageTable {
    let seq_len = batch.seq_len as u64;
    let (weighted, mixture) = (stage.weighted_sources(), stage.mixture(batch));
    let whole: f64 = weighted.iter().map(|source| source.weight_tokens as f64).sum();
    let mut rows = weighted.into_iter().zip(mixture.counts()).map(|(source, &num_samples)| SourceTable {
        share: source.weight_tokens as f64 / whole,
        source: source.name,
        amount: Amount { num_tokens: num_samples * seq_len, num_samples },
    });
    let groups: Vec<_> = match stage.groups.as_slice() {
        [] => vec![group_table(None, rows.collect())],
        groups => {
            let take = |group: &Group| {
                group_table(Some(group.name.clone()), rows.by_ref().take(group.sources.len()).collect())
            };
            groups.iter().map(take).collect()
        }
    };
    StageTable {
        stage: stage.name.clone(),
        num_steps: stage.num_steps(batch),
        peak_learning_rate: stage.schedule.peak_learning_rate,
        total: sum(groups.iter().map(|group| group.total)),
        groups,
    }
}

fn group_table(group: Option<String>, sources: Vec<SourceTable>) -> GroupTable {
    let share = sources.iter().map(|source| source.share).sum();
    GroupTable { group, share, total: sum(sources.iter().map(|source| source.amount)), sources }
}

fn source_totals(stages: &[StageTable], corpus: &[SourceTokens]) -> Vec<SourceTotal> {
    let mut amounts: Vec<(&str, Amount)> = Vec::new();
    let mut places = HashMap::new();
    for row in stages.iter().flat_map(|stage| &stage.groups).flat_map(|group| &group.sources) {
        let place = *places.entry(row.source.as_str()).or_insert(amounts.len());
        match amounts.get_mut(place) {
            Some((_, amount)) => *amount = sum([*amount, row.amount].into_iter()),
            None => amounts.push((&row.source, row.amount)),
        }
    }
    let total = |(source, amount): (&str, Amount)| {
        let num_available_tokens = corpus.iter().find(|known| known.name == source).map(|known| known.num_tokens);
        let fraction_used = num_available_tokens.map(|available| amount.num_tokens as f64 / available as f64);
        SourceTotal { source: source.to_owned(), amount, num_available_tokens, fraction_used }
    };
    amounts.into_iter().map(total).collect()
}

fn sum(amounts: impl Iterator<Item = Amount>) -> Amount {
    amounts.fold(Amount::default(), |sum, amount| Amount {
        num_tokens: sum.num_tokens + amount.num_tokens,
        num_samples: sum.num_samples + amount.num_samples,
    })
}
