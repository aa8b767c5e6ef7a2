//! `[validation]`: what is held out of training, when it is evaluated, and which sources must not get worse.

use std::cmp::Ordering;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::Step;

/// `[validation]`: the loss on samples that are never trained, of each source by itself. State 0 is evaluated as well: the
/// baseline.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// Steps from one evaluation to the next; the last state is always evaluated.
    pub every_steps: u64,
    /// Samples of each source, its last ones, which are then left out of training. Default 16.
    #[serde(default = "sixteen")]
    pub samples_per_source: u64,
    /// What is evaluated. Default: every source that a stage trains. One that no stage trains is a held-out set that was
    /// given, of which the last samples are taken in the same way.
    #[serde(default)]
    pub sources: Vec<String>,
    /// Sources that must not get worse than the baseline; each has to be evaluated. Default none.
    #[serde(default)]
    pub watch: Vec<String>,
    /// By what part of the baseline a watched source's loss may grow before an alarm is raised. Default 0.05.
    #[serde(default = "one_twentieth")]
    pub max_worsening: f64,
    /// What an alarm leads to. Default `warn`.
    #[serde(default)]
    pub on_worse: OnWorse,
}

/// What an alarm about a watched source leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnWorse {
    /// It is told, and shown in the status.
    #[default]
    Warn,
    /// The run stops at the next step, with a checkpoint.
    Stop,
}

impl Validation {
    /// Whether the state after `step` of `num_steps` steps is evaluated.
    pub fn is_due(&self, step: Step, num_steps: u64) -> bool {
        step.0 == num_steps || step.0.is_multiple_of(self.every_steps)
    }

    /// Whether a watched source with this loss has become worse than its baseline allows.
    pub fn is_worse(&self, source: &str, baseline: f64, loss: f64) -> bool {
        let is_watched = self.watch.iter().any(|watched| watched == source);
        // Nothing is as good as what is not a number, nor is that as good as anything.
        is_watched && loss.partial_cmp(&(baseline * (1.0 + self.max_worsening))).is_none_or(Ordering::is_gt)
    }
}

fn sixteen() -> u64 {
    16
}

fn one_twentieth() -> f64 {
    0.05
}
