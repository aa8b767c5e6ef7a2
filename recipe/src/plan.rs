//! A recipe meets a corpus: what every step trains.
//!
//! A plan is small whatever the run's length; every question is answered by calculation.

mod ledger;

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::config::{Batch, Corpus, OptimizerState, Recipe, Stage, Validation};
use crate::error::{RecipeError, Shortage};
use crate::ids::{SourceId, Step};
use crate::mixture::{Assignment, Mixture};
use crate::order::Permutation;
use crate::schedule::{self, Schedule};

pub use ledger::{LedgerEntry, SourceSamples};

/// A source and how many tokens it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTokens {
    /// The source's name.
    pub name: String,
    /// Tokens, the document ends included.
    pub num_tokens: u64,
}

/// Where in its stage a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageStep<'a> {
    /// Number of the stage, from 0.
    pub index: usize,
    /// The stage's name.
    pub name: &'a str,
    /// Steps of the stage before this one.
    pub step_in_stage: u64,
    /// Steps of the whole stage.
    pub num_steps: u64,
}

/// Which tokens a sample is: `seq_len + 1` of the source's stream, from token `window * seq_len` on.
///
/// The first `seq_len` of them are inputs, the last `seq_len` targets; windows overlap by one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleRef {
    /// The source.
    pub source: SourceId,
    /// How many times the source has been gone through before; 0 unless the recipe allows repeats.
    pub epoch: u64,
    /// Number of the window within the source.
    pub window: u64,
}

/// Something about a plan that its user should know.
#[derive(Debug, Clone, PartialEq)]
pub enum PlanNote {
    /// A source is trained more than once.
    Repeats {
        /// The source's name.
        source: String,
        /// How often each of its windows is trained on average.
        epochs: f64,
    },
    /// A source is so light that its stage takes no sample of it.
    NoSamples {
        /// The stage's name.
        stage: String,
        /// The source's name.
        source: String,
    },
}

impl fmt::Display for PlanNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repeats { source, epochs } => write!(f, "source `{source}` is repeated: {epochs:.2} epochs"),
            Self::NoSamples { stage, source } => {
                write!(f, "source `{source}` is too light to give stage `{stage}` a single sample")
            }
        }
    }
}

/// Everything that follows from a recipe and the sizes of a corpus.
///
/// A `step` in its questions is the state that the step starts from: `Step(0)` is asked about to compute the first
/// update, and the last is asked about as `Step(num_steps - 1)`. Asking beyond that panics, as an index would.
#[derive(Debug, Clone)]
pub struct Plan {
    seed: u64,
    batch: Batch,
    sources: Vec<String>,
    num_windows: Vec<u64>,
    stages: Vec<PlannedStage>,
    notes: Vec<PlanNote>,
    validation: Option<Validation>,
    validation_sets: Vec<ValidationSet>,
}

/// Samples that are evaluated and never trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidationSet {
    /// The source.
    pub source: String,
    /// Its windows.
    pub windows: Range<u64>,
}

#[derive(Debug, Clone)]
struct PlannedStage {
    name: String,
    first_step: u64,
    num_steps: u64,
    /// Step from which AdamW's moments, zeros then, have been carried.
    moments_from: u64,
    schedule: Schedule,
    mixture: Mixture,
    /// For each source of the mixture, which it is and how many of its samples earlier stages take.
    sources: Vec<(SourceId, u64)>,
}

impl Plan {
    /// Plans `recipe` on a corpus with these sources.
    pub fn new(recipe: &Recipe, corpus: &[SourceTokens]) -> Result<Self, RecipeError> {
        let mut plan = Self {
            seed: recipe.run.seed,
            batch: recipe.batch.clone(),
            sources: Vec::new(),
            num_windows: Vec::new(),
            stages: Vec::new(),
            notes: Vec::new(),
            validation: recipe.validation.clone(),
            validation_sets: Vec::new(),
        };
        let mut taken = Vec::new();
        for stage in &recipe.stages {
            plan.add_stage(stage, corpus, &mut taken)?;
        }
        plan.check_supply(&taken, &recipe.corpus)?;
        if let Some(validation) = &recipe.validation {
            plan.validation_sets = plan.hold_out(validation, corpus)?;
        }
        Ok(plan)
    }

    /// What is evaluated of each source, in the order of `validation.sources`; nothing if the recipe has no validation.
    pub fn validation_sets(&self) -> &[ValidationSet] {
        &self.validation_sets
    }

    /// Whether the state after `step` is evaluated.
    pub fn is_validated(&self, step: Step) -> bool {
        self.validation.as_ref().is_some_and(|validation| validation.is_due(step, self.num_steps()))
    }

    /// Names of the sources that the stages use, in the order of their first use; a [`SourceId`] is an index into it.
    pub fn sources(&self) -> &[String] {
        &self.sources
    }

    /// What the user should know about the plan.
    pub fn notes(&self) -> &[PlanNote] {
        &self.notes
    }

    /// Names of the stages, in order.
    pub fn stages(&self) -> impl ExactSizeIterator<Item = &str> {
        self.stages.iter().map(|stage| stage.name.as_str())
    }

    /// Steps of all stages together.
    pub fn num_steps(&self) -> u64 {
        self.stages.last().map_or(0, |stage| stage.first_step + stage.num_steps)
    }

    /// The stage of a step, and the step's place in it.
    pub fn stage_at(&self, step: Step) -> StageStep<'_> {
        let (index, stage) = self.find_stage(step);
        let step_in_stage = step.0 - stage.first_step;
        StageStep { index, name: &stage.name, step_in_stage, num_steps: stage.num_steps }
    }

    /// The learning rate of a step.
    pub fn learning_rate(&self, step: Step) -> f64 {
        let (_, stage) = self.find_stage(step);
        schedule::learning_rate(&stage.schedule, step.0 - stage.first_step, stage.num_steps)
    }

    /// The number of a step's update, from 1, which AdamW's bias correction needs.
    ///
    /// It counts from where the optimizer's state last began: at the start of the run, or of a stage that resets it. Number 1
    /// is made from moments that are zeros, whatever they were after the step before.
    pub fn update_number(&self, step: Step) -> u64 {
        step.0 - self.find_stage(step).1.moments_from + 1
    }

    /// The samples of a step at these indices, of `0..samples_per_step`.
    pub fn samples(&self, step: Step, indices: Range<usize>) -> Vec<SampleRef> {
        let len = self.batch.samples_per_step;
        assert!(indices.end <= len, "samples {indices:?} are asked of a step of {len}");
        let (_, stage) = self.find_stage(step);
        let first = (step.0 - stage.first_step) * len as u64;
        let positions = first + indices.start as u64..first + indices.end as u64;
        stage.mixture.assignments(positions).into_iter().map(|assignment| self.sample_ref(stage, assignment)).collect()
    }

    /// One sample of a step; [`Plan::samples`] is quicker for several.
    pub fn sample(&self, step: Step, index_in_step: usize) -> SampleRef {
        self.samples(step, index_in_step..index_in_step + 1)[0]
    }

    /// The indices of a slot's samples within a step; the same in every step.
    pub fn slot_samples(&self, slot: usize) -> Range<usize> {
        assert!(slot < self.batch.slots, "slot {slot} is asked of {} slots", self.batch.slots);
        let len = self.batch.samples_per_slot();
        slot * len..(slot + 1) * len
    }

    fn find_stage(&self, step: Step) -> (usize, &PlannedStage) {
        assert!(step.0 < self.num_steps(), "step {step} is asked of a plan of {} steps", self.num_steps());
        let index = self.stages.partition_point(|stage| stage.first_step + stage.num_steps <= step.0);
        (index, &self.stages[index])
    }

    fn sample_ref(&self, stage: &PlannedStage, assignment: Assignment) -> SampleRef {
        let (source, earlier) = stage.sources[assignment.source];
        let num_windows = self.num_windows[source.0 as usize];
        let number = earlier + assignment.index;
        let epoch = number / num_windows;
        let order = Permutation::new(self.seed, &self.sources[source.0 as usize], epoch, num_windows);
        SampleRef { source, epoch, window: order.at(number % num_windows) }
    }

    /// Appends a stage; `taken` counts the samples taken of each source so far.
    fn add_stage(&mut self, stage: &Stage, corpus: &[SourceTokens], taken: &mut Vec<u64>) -> Result<(), RecipeError> {
        let num_steps = stage.num_steps(&self.batch);
        let mixture = stage.mixture(&self.batch);
        let mut sources = Vec::new();
        for (source, &count) in stage.weighted_sources().iter().zip(mixture.counts()) {
            let id = self.source_id(&stage.name, &source.name, corpus)?;
            taken.resize(self.sources.len(), 0);
            if count == 0 {
                self.notes.push(PlanNote::NoSamples { stage: stage.name.clone(), source: source.name.clone() });
            }
            sources.push((id, taken[id.0 as usize]));
            taken[id.0 as usize] += count;
        }
        let (name, schedule) = (stage.name.clone(), stage.schedule.clone());
        let first_step = self.num_steps();
        let moments_from = match (self.stages.last(), stage.optimizer_state) {
            (Some(before), OptimizerState::Carry) => before.moments_from,
            _ => first_step,
        };
        self.stages.push(PlannedStage { name, first_step, num_steps, moments_from, schedule, mixture, sources });
        Ok(())
    }

    /// The id of a source, which is given one and measured when it is first used.
    fn source_id(&mut self, stage: &str, name: &str, corpus: &[SourceTokens]) -> Result<SourceId, RecipeError> {
        if let Some(index) = self.sources.iter().position(|known| known == name) {
            return Ok(SourceId(index as u32));
        }
        let source = corpus.iter().find(|source| source.name == name).ok_or_else(|| RecipeError::UnknownSource {
            stage: stage.to_owned(),
            source_name: name.to_owned(),
            known: corpus.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        let num_held_out = self.num_held_out(name);
        let num_windows = self.windows_of(source).saturating_sub(num_held_out);
        if num_windows == 0 {
            let (source_name, needed) = (name.to_owned(), (num_held_out + 1) * self.batch.seq_len as u64 + 1);
            return Err(RecipeError::EmptySource { source_name, num_tokens: source.num_tokens, needed, num_held_out });
        }
        self.sources.push(name.to_owned());
        self.num_windows.push(num_windows);
        Ok(SourceId(self.sources.len() as u32 - 1))
    }

    fn windows_of(&self, source: &SourceTokens) -> u64 {
        source.num_tokens.saturating_sub(1) / self.batch.seq_len as u64
    }

    /// Windows of a source, its last ones, that are evaluated and not trained.
    fn num_held_out(&self, source: &str) -> u64 {
        let is_evaluated = |v: &&Validation| v.sources.is_empty() || v.sources.iter().any(|name| name == source);
        self.validation.as_ref().filter(is_evaluated).map_or(0, |v| v.samples_per_source)
    }

    fn hold_out(&self, validation: &Validation, corpus: &[SourceTokens]) -> Result<Vec<ValidationSet>, RecipeError> {
        let names = if validation.sources.is_empty() { &self.sources } else { &validation.sources };
        if let Some(stranger) = validation.watch.iter().find(|watched| !names.contains(watched)) {
            let message = format!("`{stranger}` is not evaluated; what is: {}", names.join(", "));
            return Err(RecipeError::field("validation.watch", message));
        }
        let set = |name: &String| {
            let known = || corpus.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(", ");
            let source = corpus.iter().find(|source| source.name == *name).ok_or_else(|| {
                let message = format!("the corpus has no source `{name}`; it has: {}", known());
                RecipeError::field("validation.sources", message)
            })?;
            let num_windows = self.windows_of(source);
            if num_windows < validation.samples_per_source {
                let wanted = validation.samples_per_source;
                let message =
                    format!("is {wanted}, but source `{name}` has {num_windows} samples; lower it, or add text");
                return Err(RecipeError::field("validation.samples_per_source", message));
            }
            Ok(ValidationSet {
                source: name.clone(),
                windows: num_windows - validation.samples_per_source..num_windows,
            })
        };
        names.iter().map(set).collect()
    }

    fn check_supply(&mut self, taken: &[u64], corpus: &Corpus) -> Result<(), RecipeError> {
        let mut shortages = Vec::new();
        for ((name, &available), &planned) in self.sources.iter().zip(&self.num_windows).zip(taken) {
            let (max_epochs, seq_len) = (corpus.max_epochs_of(name), self.batch.seq_len as u64);
            let supply = Shortage { source_name: name.clone(), available, max_epochs, planned, seq_len };
            if planned > supply.allowed() {
                shortages.push(supply);
            } else if planned > available {
                let epochs = planned as f64 / available as f64;
                self.notes.push(PlanNote::Repeats { source: name.clone(), epochs });
            }
        }
        if shortages.is_empty() { Ok(()) } else { Err(RecipeError::NotEnoughTokens { shortages }) }
    }
}
