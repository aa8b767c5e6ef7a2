//! What a recipe's values have to satisfy beyond their types.

use std::collections::BTreeSet;

use super::{Batch, Device, Group, Recipe, Reduction, Stage, Validation};
use crate::error::RecipeError;
use crate::mixture::MAX_SAMPLES;
use crate::schedule::{Schedule, ScheduleKind};

/// The largest share of a group; with it all weights fit in 64 bits.
const MAX_SHARE: u64 = 1_000_000;

type Checked = Result<(), RecipeError>;

fn check(holds: bool, field: &str, message: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(RecipeError::field(field, message())) }
}

fn above_zero(field: &str, number: u64) -> Checked {
    check(number > 0, field, || "is 0; it has to be at least 1".into())
}

fn unique<'a>(field: impl Fn(usize) -> String, names: impl Iterator<Item = &'a String>) -> Checked {
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        check(!name.is_empty(), &field(index), || "is empty; give it a name".into())?;
        check(seen.insert(name), &field(index), || format!("`{name}` is there twice; names have to differ"))?;
    }
    Ok(())
}

impl Recipe {
    pub(super) fn validate(&self) -> Checked {
        self.validate_run()?;
        self.model.qwen2.validate().map_err(|error| match error {
            RecipeError::ModelConfig { message } => RecipeError::field("model.qwen2", message),
            other => other,
        })?;
        self.validate_batch()?;
        self.validate_optimizer()?;
        self.validate_operation()?;
        self.validation.as_ref().map_or(Ok(()), validate_validation)?;
        check(!self.stages.is_empty(), "stages", || "is empty; give at least one [[stages]]".into())?;
        unique(|i| format!("stages.{i}.name"), self.stages.iter().map(|stage| &stage.name))?;
        for (index, stage) in self.stages.iter().enumerate() {
            validate_stage(stage, &self.batch, &format!("stages.{index}"))?;
        }
        self.validate_epochs()
    }

    fn validate_epochs(&self) -> Checked {
        let corpus = &self.corpus;
        corpus.max_epochs.map_or(Ok(()), |limit| positive("corpus.max_epochs", limit))?;
        let used: BTreeSet<_> = self.stages.iter().flat_map(Stage::weighted_sources).map(|s| s.name).collect();
        for (source, limit) in &corpus.source_max_epochs {
            let field = format!("corpus.source_max_epochs.{source}");
            positive(&field, *limit)?;
            check(used.contains(source), &field, || {
                let used: Vec<_> = used.iter().map(String::as_str).collect();
                format!("no stage draws from `{source}`; the stages draw from: {}", used.join(", "))
            })?;
        }
        Ok(())
    }

    fn validate_run(&self) -> Checked {
        let name = &self.run.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        check(!name.is_empty() && name.chars().all(plain), "run.name", || {
            format!("is {name:?}; it has to be made of letters, digits, `-`, `_` and `.`")
        })?;
        above_zero("run.threads", self.run.threads as u64)?;
        self.run.device_peak_tflops.map_or(Ok(()), |peak| positive("run.device_peak_tflops", peak))?;
        let is_summed_by_nccl = self.run.reduction == Reduction::Nccl;
        check(!is_summed_by_nccl || self.run.device == Device::Cuda, "run.reduction", || {
            "is `nccl`, which sums on GPUs only; set `run.device` to `cuda`, or this to `exact`".into()
        })?;
        for (field, location) in [("run.store", &self.run.store), ("corpus.url", &self.corpus.url)] {
            check(!location.is_empty(), field, || {
                "is empty; give a URL such as `s3://bucket/path`, or a folder".into()
            })?;
        }
        Ok(())
    }

    fn validate_batch(&self) -> Checked {
        let Batch { seq_len, samples_per_step, slots, micro_batch, document_mask: _ } = self.batch;
        above_zero("batch.seq_len", seq_len as u64)?;
        above_zero("batch.samples_per_step", samples_per_step as u64)?;
        above_zero("batch.slots", slots as u64)?;
        above_zero("batch.micro_batch", micro_batch as u64)?;
        let at_most = |field: &str, size: usize| {
            check(size as u64 <= MAX_SAMPLES, field, || format!("is {size}; it can be at most {MAX_SAMPLES}"))
        };
        at_most("batch.seq_len", seq_len)?;
        at_most("batch.samples_per_step", samples_per_step)?;
        let longest = self.model.qwen2.max_position_embeddings;
        check(seq_len <= longest, "batch.seq_len", || {
            format!("is {seq_len}; the model's `max_position_embeddings` allows at most {longest}")
        })?;
        check(samples_per_step.is_multiple_of(slots), "batch.slots", || {
            let (below, above) = neighbours(slots, samples_per_step);
            format!(
                "is {slots}; it has to divide `batch.samples_per_step` = {samples_per_step}, as {below} and {above} do"
            )
        })?;
        let per_slot = self.batch.samples_per_slot();
        check(per_slot.is_multiple_of(micro_batch), "batch.micro_batch", || {
            let (below, above) = neighbours(micro_batch, per_slot);
            format!("is {micro_batch}; it has to divide the {per_slot} samples of a slot, as {below} and {above} do")
        })
    }

    fn validate_optimizer(&self) -> Checked {
        let optimizer = &self.optimizer;
        for (index, beta) in optimizer.betas.iter().enumerate() {
            check((0.0..1.0).contains(beta), &format!("optimizer.betas.{index}"), || {
                format!("is {beta}; it has to be at least 0 and below 1")
            })?;
        }
        positive("optimizer.eps", optimizer.eps)?;
        positive("optimizer.max_grad_norm", optimizer.max_grad_norm)?;
        check(optimizer.weight_decay.is_finite() && optimizer.weight_decay >= 0.0, "optimizer.weight_decay", || {
            format!("is {}; it has to be at least 0", optimizer.weight_decay)
        })
    }

    fn validate_operation(&self) -> Checked {
        let (checkpoint, workers) = (&self.checkpoint, &self.workers);
        for (field, number) in [
            ("checkpoint.every_steps", checkpoint.every_steps),
            ("checkpoint.keep", checkpoint.keep as u64),
            ("workers.min_workers", workers.min_workers as u64),
            ("workers.wait_timeout_s", workers.wait_timeout_s),
            ("workers.heartbeat_timeout_ms", workers.heartbeat_timeout_ms),
            ("workers.connect_timeout_s", workers.connect_timeout_s),
            ("workers.drain_timeout_s", workers.drain_timeout_s),
            ("workers.exchange_timeout_s", workers.exchange_timeout_s),
            ("workers.coordinator_timeout_s", workers.coordinator_timeout_s),
        ] {
            above_zero(field, number)?;
        }
        let slots = self.batch.slots;
        check(workers.min_workers <= slots, "workers.min_workers", || {
            format!("is {}; at most `batch.slots` = {slots} workers can take part", workers.min_workers)
        })?;
        let (least, most) = (workers.min_workers, workers.max_workers.unwrap_or(slots));
        check(least <= most, "workers.max_workers", || {
            format!("is {most}; it has to be at least `workers.min_workers` = {least}")
        })
    }
}

fn validate_validation(validation: &Validation) -> Checked {
    let Validation { every_steps, samples_per_source, sources, watch, max_worsening, on_worse: _ } = validation;
    above_zero("validation.every_steps", *every_steps)?;
    above_zero("validation.samples_per_source", *samples_per_source)?;
    check(max_worsening.is_finite() && *max_worsening >= 0.0, "validation.max_worsening", || {
        format!("is {max_worsening}; it has to be at least 0")
    })?;
    for (field, names) in [("sources", sources), ("watch", watch)] {
        unique(|i| format!("validation.{field}.{i}"), names.iter())?;
    }
    Ok(())
}

fn validate_stage(stage: &Stage, batch: &Batch, path: &str) -> Checked {
    let field = |name: &str| format!("{path}.{name}");
    check(stage.steps.is_some() != stage.tokens.is_some(), path, || match stage.steps {
        Some(_) => "has both `steps` and `tokens`; keep one".into(),
        None => "has no length; give `steps` or `tokens`".into(),
    })?;
    let num_steps = stage.num_steps(batch);
    let per_step = batch.tokens_per_step();
    let length = if stage.steps.is_some() { "steps" } else { "tokens" };
    check(num_steps > 0, &field(length), || format!("makes no step; a step has {per_step} tokens"))?;
    let most_steps = MAX_SAMPLES / batch.samples_per_step as u64;
    check(num_steps <= most_steps, &field(length), || {
        format!("makes {num_steps} steps; one stage can have {most_steps} of this size, so split it")
    })?;
    validate_schedule(&stage.schedule, num_steps, &field("schedule"))?;
    check(stage.sources.is_empty() != stage.groups.is_empty(), path, || match stage.sources.is_empty() {
        true => "has nothing to mix; give [[stages.sources]] or [[stages.groups]]".into(),
        false => "has both `sources` and `groups`; keep one".into(),
    })?;
    unique(|i| format!("{path}.sources.{i}.name"), stage.sources.iter().map(|source| &source.name))?;
    for (index, source) in stage.sources.iter().enumerate() {
        above_zero(&format!("{path}.sources.{index}.weight_tokens"), source.weight_tokens)?;
    }
    validate_groups(&stage.groups, &field("groups"))
}

fn validate_groups(groups: &[Group], path: &str) -> Checked {
    unique(|i| format!("{path}.{i}.name"), groups.iter().map(|group| &group.name))?;
    let names =
        groups.iter().enumerate().flat_map(|(index, group)| group.sources.iter().map(move |name| (index, name)));
    unique(|i| format!("{path}.{}.sources", names.clone().nth(i).map_or(0, |n| n.0)), names.clone().map(|n| n.1))?;
    for (index, group) in groups.iter().enumerate() {
        let field = |name: &str| format!("{path}.{index}.{name}");
        let (num_sources, num_weights) = (group.sources.len(), group.weights.len());
        check((1..=MAX_SHARE).contains(&group.share), &field("share"), || {
            format!("is {}; it has to be from 1 to {MAX_SHARE}", group.share)
        })?;
        check(num_sources > 0, &field("sources"), || "is empty; name at least one source".into())?;
        check(num_weights == 0 || num_weights == num_sources, &field("weights"), || {
            format!("has {num_weights} weights for {num_sources} sources; give one for each, or none to split evenly")
        })?;
        group.weights.iter().try_for_each(|weight| above_zero(&field("weights"), *weight))?;
    }
    Ok(())
}

fn validate_schedule(schedule: &Schedule, num_steps: u64, path: &str) -> Checked {
    let field = |name: &str| format!("{path}.{name}");
    positive(&field("peak_learning_rate"), schedule.peak_learning_rate)?;
    check((0.0..=1.0).contains(&schedule.floor), &field("floor"), || {
        format!("is {}; it is a fraction of the peak, from 0 to 1", schedule.floor)
    })?;
    let decays = schedule.kind == ScheduleKind::Wsd;
    check(schedule.decay_steps.is_some() == decays, &field("decay_steps"), || match decays {
        true => "is missing; `kind = \"wsd\"` needs the steps of its final decay".into(),
        false => "is only for `kind = \"wsd\"`; remove it".into(),
    })?;
    check(schedule.warmup_steps <= num_steps, &field("warmup_steps"), || {
        format!("is {}, but the stage has only {num_steps} steps", schedule.warmup_steps)
    })?;
    let left = num_steps - schedule.warmup_steps;
    let decay_steps = schedule.decay_steps.unwrap_or(0);
    check(decay_steps <= left, &field("decay_steps"), || {
        format!("is {decay_steps}, but the stage has only {left} steps after its warm-up")
    })
}

fn positive(field: &str, number: f64) -> Checked {
    check(number.is_finite() && number > 0.0, field, || format!("is {number}; it has to be above 0"))
}

/// The divisors of `total` nearest to `wanted`, below and above it.
fn neighbours(wanted: usize, total: usize) -> (usize, usize) {
    let divides = |candidate: &usize| total.is_multiple_of(*candidate);
    let below = (1..=wanted.min(total)).rev().find(divides).unwrap_or(1);
    (below, (wanted.min(total)..=total).find(divides).unwrap_or(total))
}
