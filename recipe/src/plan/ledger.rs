//! What is planned of each source in each stage, what of it went into a state, and which samples those are.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Plan, PlannedStage};
use crate::ids::{SourceId, Step};

/// A source in a stage.
///
/// A source's samples are numbered from 0 over the whole run, in the order in which they are trained. With e samples in an
/// epoch, number n is one of epoch n / e: the window that [`crate::order::Permutation`] has at n mod e.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerEntry {
    /// The stage's name.
    pub stage: String,
    /// The source's name.
    pub source: String,
    /// Tokens that the whole stage trains of it.
    pub num_planned_tokens: u64,
    /// Tokens that went into the state.
    pub num_trained_tokens: u64,
    /// Numbers of the samples that they are, all of one stage.
    pub samples: Range<u64>,
    /// Tokens of the source's whole samples: what one epoch trains.
    pub num_epoch_tokens: u64,
}

impl LedgerEntry {
    /// How often the stage has gone through the source.
    pub fn trained_epochs(&self) -> f64 {
        self.num_trained_tokens as f64 / self.num_epoch_tokens as f64
    }

    /// How often the whole stage goes through the source.
    pub fn planned_epochs(&self) -> f64 {
        self.num_planned_tokens as f64 / self.num_epoch_tokens as f64
    }
}

/// Samples of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSamples {
    /// The source's name.
    pub source: String,
    /// Their numbers, as in [`LedgerEntry`].
    pub samples: Range<u64>,
}

impl Plan {
    /// The ledger of the state after `through` steps: the stages in order, and the sources of each in the recipe's order.
    pub fn ledger(&self, through: Step) -> Vec<LedgerEntry> {
        self.stages.iter().flat_map(|stage| self.stage_ledger(stage, through)).collect()
    }

    fn stage_ledger(&self, stage: &PlannedStage, through: Step) -> Vec<LedgerEntry> {
        let seq_len = self.batch.seq_len as u64;
        let trained = self.counts_before(stage, through).into_iter();
        let entry = |((&(source, earlier), &planned), trained): ((&(SourceId, u64), &u64), u64)| LedgerEntry {
            stage: stage.name.clone(),
            source: self.sources[source.0 as usize].clone(),
            num_planned_tokens: planned * seq_len,
            num_trained_tokens: trained * seq_len,
            samples: earlier..earlier + trained,
            num_epoch_tokens: self.num_windows[source.0 as usize] * seq_len,
        };
        stage.sources.iter().zip(stage.mixture.counts()).zip(trained).map(entry).collect()
    }

    /// Where the samples of a step come from: the sources that it has any of, in the recipe's order.
    pub fn step_sources(&self, step: Step) -> Vec<SourceSamples> {
        let (_, stage) = self.find_stage(step);
        let [before, after] = [step, step.next()].map(|step| self.counts_before(stage, step));
        let taken = |((&(source, earlier), before), after): ((&(SourceId, u64), u64), u64)| SourceSamples {
            source: self.sources[source.0 as usize].clone(),
            samples: earlier + before..earlier + after,
        };
        let sources = stage.sources.iter().zip(before).zip(after).map(taken);
        sources.filter(|source| !source.samples.is_empty()).collect()
    }

    /// Samples of each of a stage's sources that are trained before `step`.
    fn counts_before(&self, stage: &PlannedStage, step: Step) -> Vec<u64> {
        let num_steps = step.0.saturating_sub(stage.first_step).min(stage.num_steps);
        stage.mixture.counts_before(num_steps * self.batch.samples_per_step as u64)
    }
}
