//! The arithmetic of a worker: Qwen2 and AdamW on libtorch, on samples that a loader reads ahead.

use std::{ops::Range, sync::Arc, time::Duration};

use futures::future::{FutureExt, LocalBoxFuture};
use polo_recipe::{
    config::{Batch, InitialWeights},
    ids::Step,
    layout::Layout,
    plan::Plan,
};
use polo_store::{Store, StoreError, hf};
use tch::Tensor;
use tokio::{runtime::Handle, time::Instant};

use crate::{
    corpus::{Corpus, Window},
    decision::Tally,
    flat::{view, view_mut},
    init,
    loader::Loader,
    model::Model,
    optimizer::{AdamW, ChunkState},
    rig::{Arithmetic, SlotDone, Update, Work},
    step::StepError,
};

/// Batches that are read ahead.
const NUM_AHEAD: usize = 4;

/// Everything that the arithmetic needs.
pub struct TorchArithmetic {
    /// The model.
    pub model: Model,
    /// Where its parameters lie.
    pub layout: Arc<Layout>,
    /// What is trained when.
    pub plan: Arc<Plan>,
    /// Shape of a step.
    pub batch: Batch,
    /// Constants of the optimizer; the learning rate is filled in step by step.
    pub adamw: AdamW,
    /// The corpus.
    pub corpus: Arc<Corpus>,
    /// For each source of the plan its number in the corpus.
    pub source_numbers: Vec<usize>,
    /// Where the loader's IO runs.
    pub runtime: Handle,
    /// Where the first weights come from.
    pub initial_weights: InitialWeights,
    /// Decides random ones.
    pub seed: u64,
    /// Reads the samples of the work begun last.
    pub loader: Option<Loader>,
}

impl Arithmetic for TorchArithmetic {
    fn initialize<'a>(
        &'a mut self,
        layout: &'a Layout,
        params: &'a mut [f32],
    ) -> LocalBoxFuture<'a, Result<(), StoreError>> {
        async move {
            match &self.initial_weights {
                InitialWeights::Random => {
                    init::initialize(params, layout, self.model.config().initializer_range, self.seed);
                    Ok(())
                }
                InitialWeights::Folder(url) => hf::read_params(&Store::open(url)?, layout, params).await,
            }
        }
        .boxed_local()
    }

    fn begin(&mut self, work: Work) -> Result<(), StepError> {
        let (plan, numbers) = (self.plan.clone(), self.source_numbers.clone());
        let (micro_batch, num_steps) = (self.batch.micro_batch, plan.num_steps());
        let micro_batches = (work.first.0..num_steps).flat_map(move |step| {
            let slots = if step == work.first.0 { &work.first_slots } else { &work.slots };
            let refs = plan.samples(Step(step), samples_of(&plan, slots));
            let windows: Vec<_> =
                refs.iter().map(|r| Window { source: numbers[r.source.0 as usize], window: r.window }).collect();
            windows.chunks(micro_batch).map(<[Window]>::to_vec).collect::<Vec<_>>()
        });
        // The old one stops reading before the new one begins.
        self.loader = None;
        let (corpus, seq_len) = (self.corpus.clone(), self.batch.seq_len);
        let loader = Loader::start(corpus, seq_len, NUM_AHEAD, self.runtime.clone(), micro_batches);
        self.loader = Some(loader.map_err(StepError::Loader)?);
        Ok(())
    }

    fn slot_gradient<'a>(
        &'a mut self,
        step: Step,
        params: &'a [f32],
        grads: &'a mut [f32],
        is_cancelled: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, Result<SlotDone, StepError>> {
        self.compute(step, params, grads, is_cancelled).boxed_local()
    }

    fn update(&mut self, update: Update<'_>) -> Result<(), StepError> {
        let Update { chunk, step, clip_coefficient, params, moments, grads } = update;
        let adamw = AdamW { learning_rate: self.plan.learning_rate(step), ..self.adamw };
        let (exp_avg, exp_avg_sq) = (moments.exp_avg.as_mut_slice(), moments.exp_avg_sq.as_mut_slice());
        let state = ChunkState { params, exp_avg, exp_avg_sq, grads };
        Ok(adamw.apply(state, &self.layout, chunk, step.next().0, clip_coefficient)?)
    }
}

fn samples_of(plan: &Plan, slots: &Range<usize>) -> Range<usize> {
    if slots.is_empty() { 0..0 } else { plan.slot_samples(slots.start).start..plan.slot_samples(slots.end - 1).end }
}

impl TorchArithmetic {
    async fn compute(
        &mut self,
        step: Step,
        params: &[f32],
        grads: &mut [f32],
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<SlotDone, StepError> {
        let batch = &self.batch;
        let scale = 1.0 / batch.tokens_per_step() as f64;
        grads.fill(0.0);
        let mut done =
            SlotDone { tallies: vec![Tally::default(); self.plan.sources().len()], data_wait: Duration::ZERO };
        for _ in 0..batch.samples_per_slot() / batch.micro_batch {
            let started = Instant::now();
            let loader = self.loader.as_mut().ok_or(StepError::NoBatch(step))?;
            let micro_batch = loader.next_batch().await.ok_or(StepError::NoBatch(step))??;
            done.data_wait += started.elapsed();
            let shape = [batch.micro_batch as i64, batch.seq_len as i64 + 1];
            let tokens = Tensor::from_slice(&micro_batch.tokens).view(shape);
            let losses = self.model.loss_and_grad(&view(params), &view_mut(grads), &tokens, scale, is_cancelled)?;
            for (window, loss) in micro_batch.windows.iter().zip(losses) {
                let source = self.source_numbers.iter().position(|n| *n == window.source);
                let tally = &mut done.tallies[source.ok_or(StepError::NoBatch(step))?];
                tally.loss += loss;
                tally.num_tokens += batch.seq_len as u64;
            }
        }
        Ok(done)
    }
}
