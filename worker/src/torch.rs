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
    flat::{Flat, view, view_mut},
    init,
    loader::{self, Loader},
    model::{Model, ModelError, pass::Pass},
    optimizer::{AdamW, ChunkState},
    rig::{Arithmetic, Gradients, SlotDone, Update, Work},
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
        grads: &'a mut dyn Gradients,
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
        grads: &mut dyn Gradients,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<SlotDone, StepError> {
        let mut done =
            SlotDone { tallies: vec![Tally::default(); self.plan.sources().len()], data_wait: Duration::ZERO };
        let num_micro_batches = self.batch.samples_per_slot() / self.batch.micro_batch;
        let mut held: Vec<_> = (0..self.layout.blocks.len()).map(|_| None).collect();
        let mut embedding_grads = Vec::new();
        for number in 1..=num_micro_batches {
            let micro_batch = self.next_micro_batch(step, &mut done).await?;
            let is_last = number == num_micro_batches;
            let (pass, losses) =
                self.there_and_back(params, &micro_batch, &mut held, grads, is_last, is_cancelled).await?;
            embedding_grads.push(pass.into_embedding_grad());
            self.count(step, &micro_batch, losses, &mut done)?;
        }
        // After all gradients of the head, whose projection may be the embedding.
        let mut first = held[0].take().unwrap_or_else(|| grads.take(0));
        for grad in embedding_grads {
            grad.add_to(&view_mut(first.as_mut_slice()), &self.layout)?;
        }
        grads.complete(0, first).await?;
        Ok(done)
    }

    async fn next_micro_batch(&mut self, step: Step, done: &mut SlotDone) -> Result<loader::Batch, StepError> {
        let started = Instant::now();
        let loader = self.loader.as_mut().ok_or(StepError::NoBatch(step))?;
        let micro_batch = loader.next_batch().await.ok_or(StepError::NoBatch(step))??;
        done.data_wait += started.elapsed();
        Ok(micro_batch)
    }

    /// One micro-batch from the embedding to the head and back to the first layer. `held` has the gradients of earlier
    /// ones; those that are done with the last one are handed over.
    async fn there_and_back(
        &self,
        params: &[f32],
        micro_batch: &loader::Batch,
        held: &mut [Option<Flat>],
        grads: &mut dyn Gradients,
        is_last: bool,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<(Pass<'_>, Vec<f64>), StepError> {
        let go_on = || if is_cancelled() { Err(ModelError::Cancelled) } else { Ok(()) };
        let shape = [self.batch.micro_batch as i64, self.batch.seq_len as i64 + 1];
        let tokens = Tensor::from_slice(&micro_batch.tokens).view(shape);
        let params_of = |block: usize| view(&params[self.layout.blocks[block].range.clone()]);
        let mut pass = self.model.forward(&view(params), &tokens, &go_on)?;
        go_on()?;
        let last = held.len() - 1;
        let [mut of_last, mut of_first] =
            [last, 0].map(|block| held[block].take().unwrap_or_else(|| grads.take(block)));
        let scale = 1.0 / self.batch.tokens_per_step() as f64;
        let grad_views = [view_mut(of_last.as_mut_slice()), view_mut(of_first.as_mut_slice())];
        let losses = pass.head([&params_of(last), &params_of(0)], [&grad_views[0], &grad_views[1]], scale)?;
        drop(grad_views);
        held[0] = Some(of_first);
        hand_over(held, grads, last, of_last, is_last).await?;
        for block in (1..last).rev() {
            go_on()?;
            let mut of_block = held[block].take().unwrap_or_else(|| grads.take(block));
            pass.layer_backward(block, &params_of(block), &view_mut(of_block.as_mut_slice()))?;
            hand_over(held, grads, block, of_block, is_last).await?;
        }
        Ok((pass, losses))
    }

    fn count(
        &self,
        step: Step,
        micro_batch: &loader::Batch,
        losses: Vec<f64>,
        done: &mut SlotDone,
    ) -> Result<(), StepError> {
        for (window, loss) in micro_batch.windows.iter().zip(losses) {
            let source = self.source_numbers.iter().position(|n| *n == window.source);
            let tally = &mut done.tallies[source.ok_or(StepError::NoBatch(step))?];
            tally.loss += loss;
            tally.num_tokens += self.batch.seq_len as u64;
        }
        Ok(())
    }
}

/// Keeps a block's gradient for the next micro-batch, or hands it over after the last.
async fn hand_over(
    held: &mut [Option<Flat>],
    grads: &mut dyn Gradients,
    block: usize,
    of_block: Flat,
    is_last: bool,
) -> Result<(), StepError> {
    if is_last {
        return grads.complete(block, of_block).await;
    }
    held[block] = Some(of_block);
    Ok(())
}
