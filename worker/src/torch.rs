//! The arithmetic of a worker: Qwen2 and AdamW on libtorch, on samples that a loader reads ahead.

mod slot_grads;

use std::{collections::BTreeSet, ops::Range, sync::Arc, time::Duration};

use futures::future::{FutureExt, LocalBoxFuture};
use polo_recipe::{
    config::{Batch, InitialWeights},
    footprint::Problem,
    ids::Step,
    layout::{Layout, TensorSpec},
    plan::Plan,
};
use polo_store::{Store, StoreError, hf};
use tch::{Kind, Tensor};
use tokio::{runtime::Handle, time::Instant};

use crate::{
    corpus::{Corpus, Window},
    decision::Tally,
    flat::{home, ops::copy, view},
    init,
    loader::{self, Loader, NUM_AHEAD},
    model::{Model, ModelError, pass::Pass, views::is_tied},
    optimizer::{AdamW, ChunkState},
    params::Params,
    plane::PlaneError,
    rig::{Arithmetic, Gradients, HeldOut, SlotDone, Update, Work, waves},
    room::check_room,
    state::Moments,
    step::{BlockParams, Parameters, StepError},
    trace::Trace,
};

use self::slot_grads::SlotGrads;

/// Everything that the arithmetic needs.
pub struct TorchArithmetic {
    /// The model.
    pub model: Model,
    /// Where its parameters lie.
    pub layout: Arc<Layout>,
    /// What is trained when.
    pub plan: Arc<Plan>,
    /// What memory follows from.
    pub problem: Problem,
    /// Shape of a step.
    pub batch: Batch,
    /// Constants of the optimizer; the learning rate is filled in step by step.
    pub adamw: AdamW,
    /// The corpus.
    pub corpus: Arc<Corpus>,
    /// For each source of the plan its number in the corpus.
    pub source_numbers: Vec<usize>,
    /// The same for each of its validation sets.
    pub validation_numbers: Vec<usize>,
    /// Where the loader's IO runs.
    pub runtime: Handle,
    /// Where the first weights come from.
    pub initial_weights: InitialWeights,
    /// Where a chunk's moments come to for an update, if they are kept elsewhere.
    pub stage: Option<Moments>,
    /// Decides random ones.
    pub seed: u64,
    /// Where it is written how long things take.
    pub trace: Trace,
    /// Reads the samples of the work begun last.
    pub loader: Option<Loader>,
}

impl Arithmetic for TorchArithmetic {
    fn initialize<'a>(
        &'a mut self,
        layout: &'a Layout,
        params: &'a mut Params,
    ) -> LocalBoxFuture<'a, Result<(), StoreError>> {
        async move {
            let wanted: BTreeSet<_> = layout
                .tensors
                .iter()
                .map(TensorSpec::range)
                .filter(|r| params.meets(layout, r))
                .map(|r| r.start)
                .collect();
            let is_wanted = |tensor: &TensorSpec| wanted.contains(&tensor.offset);
            let take = |tensor: &TensorSpec, values: &[f32]| params.set(layout, &tensor.range(), values);
            match &self.initial_weights {
                InitialWeights::Random => {
                    init::initialize_tensors(layout, self.model.config().initializer_range, self.seed, is_wanted, take);
                    Ok(())
                }
                InitialWeights::Folder(url) => hf::read_tensors(&Store::open(url)?, layout, is_wanted, take).await,
            }
        }
        .boxed_local()
    }

    fn check_room(&self, num_members: usize) -> Result<(), StepError> {
        let checked =
            home::free_bytes().map_or(Ok(()), |free_bytes| check_room(&self.problem, num_members, free_bytes));
        Ok(checked?)
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

    fn gradients<'a>(
        &'a mut self,
        step: Step,
        num_slots: usize,
        params: &'a mut Parameters<'_>,
        grads: &'a mut dyn Gradients,
        is_cancelled: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, Result<Vec<SlotDone>, StepError>> {
        self.compute(step, num_slots, params, grads, is_cancelled).boxed_local()
    }

    fn losses<'a>(
        &'a mut self,
        _step: Step,
        groups: &'a [HeldOut],
        params: &'a mut Parameters<'_>,
        is_cancelled: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, Result<Vec<f64>, StepError>> {
        self.evaluate(groups, params, is_cancelled).boxed_local()
    }

    fn update(&mut self, update: Update<'_>) -> Result<(), StepError> {
        let Update { chunk, step, clip_coefficient, params, moments, grads } = update;
        let adamw = AdamW { learning_rate: self.plan.learning_rate(step), ..self.adamw };
        let update_number = self.plan.update_number(step);
        let kept = moments.vectors_mut();
        let mut apply = |[exp_avg, exp_avg_sq]: [&mut [f32]; 2]| {
            let state = ChunkState { params, exp_avg, exp_avg_sq, grads };
            adamw.apply(state, &self.layout, chunk, update_number, clip_coefficient)
        };
        match &mut self.stage {
            Some(stage) => staged(stage, kept, apply),
            None => apply(kept),
        }?;
        Ok(())
    }
}

/// Has vectors changed in the memory of `stage`.
fn staged<E>(
    stage: &mut Moments,
    kept: [&mut [f32]; 2],
    change: impl FnOnce([&mut [f32]; 2]) -> Result<(), E>,
) -> Result<(), E> {
    let len = kept[0].len();
    let [first, second] = stage.vectors_mut().map(|vector| &mut vector[..len]);
    copy(first, kept[0]);
    copy(second, kept[1]);
    change([&mut *first, &mut *second])?;
    copy(kept[0], first);
    copy(kept[1], second);
    Ok(())
}

fn samples_of(plan: &Plan, slots: &Range<usize>) -> Range<usize> {
    if slots.is_empty() { 0..0 } else { plan.slot_samples(slots.start).start..plan.slot_samples(slots.end - 1).end }
}

impl TorchArithmetic {
    async fn compute(
        &mut self,
        step: Step,
        num_slots: usize,
        params: &mut Parameters<'_>,
        grads: &mut dyn Gradients,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<SlotDone>, StepError> {
        let nothing =
            SlotDone { tallies: vec![Tally::default(); self.plan.sources().len()], data_wait: Duration::ZERO };
        let mut done = vec![nothing; num_slots];
        let (layout, per_slot) = (self.layout.clone(), self.batch.samples_per_slot() / self.batch.micro_batch);
        let mut grads = SlotGrads::new(grads, &layout, per_slot);
        for wave in waves(params.gather(), num_slots * per_slot) {
            let mut micro_batches = Vec::with_capacity(wave.len());
            for number in wave {
                micro_batches.push((number, self.next_micro_batch(step, &mut done[number / per_slot]).await?));
            }
            let losses = self.there_and_back(params, &micro_batches, &mut grads, is_cancelled).await?;
            for ((number, micro_batch), losses) in micro_batches.iter().zip(losses) {
                self.count(step, micro_batch, losses, &mut done[number / per_slot])?;
            }
        }
        Ok(done)
    }

    async fn evaluate(
        &self,
        groups: &[HeldOut],
        params: &mut Parameters<'_>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<f64>, StepError> {
        let window = |set: usize, window| Window { source: self.validation_numbers[set], window };
        let batch = |group: &HeldOut| group.windows.clone().map(|w| window(group.set, w)).collect();
        let batches: Vec<Vec<_>> = groups.iter().map(batch).collect();
        let (corpus, seq_len) = (self.corpus.clone(), self.batch.seq_len);
        let loader = Loader::start(corpus, seq_len, NUM_AHEAD, self.runtime.clone(), batches.into_iter());
        let mut loader = loader.map_err(StepError::Loader)?;
        let mut losses = Vec::with_capacity(groups.len());
        for wave in waves(params.gather(), groups.len()) {
            let mut batches = Vec::with_capacity(wave.len());
            for number in wave {
                batches.push((number, loader.next_batch().await.ok_or(PlaneError::Aborted)??));
            }
            losses.extend(self.one_way(params, &batches, is_cancelled).await?);
        }
        Ok(losses)
    }

    /// Takes numbered batches together from the embedding to the head. Returns their losses.
    async fn one_way(
        &self,
        params: &mut Parameters<'_>,
        batches: &[(usize, loader::Batch)],
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<f64>, StepError> {
        let last = self.layout.blocks.len() - 1;
        let (passes, embedding) = self.enter(params, batches).await?;
        let mut passes: Vec<_> = passes.into_iter().map(|(_, pass)| pass.one_way()).collect();
        for block in 1..last {
            let of_block = params.block(block).await?;
            let of_block = view(&of_block);
            for pass in &mut passes {
                if is_cancelled() {
                    return Err(ModelError::Cancelled.into());
                }
                pass.layer(block, &of_block)?;
            }
        }
        let of_last = params.block(last).await?;
        let of_first = embedding.as_deref().unwrap_or_default();
        let (of_last, of_first) = (view(&of_last), view(of_first));
        let losses = passes.into_iter().map(|pass| Ok(pass.into_losses(&of_last, &of_first)?.iter().sum()));
        losses.collect()
    }

    async fn next_micro_batch(&mut self, step: Step, done: &mut SlotDone) -> Result<loader::Batch, StepError> {
        let (started, _waiting) = (Instant::now(), self.trace.wait("waiting for samples"));
        let loader = self.loader.as_mut().ok_or(StepError::NoBatch(step))?;
        let micro_batch = loader.next_batch().await.ok_or(StepError::NoBatch(step))??;
        done.data_wait += started.elapsed();
        Ok(micro_batch)
    }

    /// Takes numbered micro-batches together from the embedding to the head and back. Returns the losses of their samples.
    async fn there_and_back(
        &self,
        params: &mut Parameters<'_>,
        micro_batches: &[(usize, loader::Batch)],
        grads: &mut SlotGrads<'_>,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<Vec<f64>>, StepError> {
        let go_on = || if is_cancelled() { Err(ModelError::Cancelled) } else { Ok(()) };
        let last = self.layout.blocks.len() - 1;
        let (mut passes, embedding) = self.enter(params, micro_batches).await?;
        for block in 1..last {
            let of_block = params.block(block).await?;
            let of_block = view(&of_block);
            for (_, pass) in &mut passes {
                go_on()?;
                pass.layer(block, &of_block)?;
            }
        }
        let losses = self.turn_round(params, &mut passes, embedding, grads, &go_on).await?;
        for block in (1..last).rev() {
            let of_block = params.block(block).await?;
            for (number, pass) in &mut passes {
                go_on()?;
                grads.add(*number, block, |grads| pass.layer_backward(block, &view(&of_block), grads)).await?;
            }
        }
        for (number, pass) in passes {
            grads.leave(number, pass.into_embedding_grad()).await?;
        }
        Ok(losses)
    }

    /// Enters by the embedding, which comes back if it is the output projection as well.
    async fn enter<'p>(
        &self,
        params: &mut Parameters<'p>,
        micro_batches: &[(usize, loader::Batch)],
    ) -> Result<(Vec<(usize, Pass<'_>)>, Option<BlockParams<'p>>), StepError> {
        let embedding = params.block(0).await?;
        let pass = |(number, micro_batch): &(usize, loader::Batch)| {
            let shape = [micro_batch.windows.len() as i64, self.batch.seq_len as i64 + 1];
            let tokens = Tensor::from_slice(&micro_batch.tokens).to_kind(Kind::Int64).view(shape);
            Ok((*number, Pass::new(&self.model, &tokens, &view(&embedding))?))
        };
        let passes = micro_batches.iter().map(pass).collect::<Result<_, ModelError>>()?;
        Ok((passes, is_tied(&self.layout).then_some(embedding)))
    }

    /// Turns round at the head.
    async fn turn_round(
        &self,
        params: &mut Parameters<'_>,
        passes: &mut [(usize, Pass<'_>)],
        embedding: Option<BlockParams<'_>>,
        grads: &mut SlotGrads<'_>,
        go_on: &dyn Fn() -> Result<(), ModelError>,
    ) -> Result<Vec<Vec<f64>>, StepError> {
        let of_last = params.block(self.layout.blocks.len() - 1).await?;
        let of_first = embedding.as_deref().unwrap_or_default();
        let scale = 1.0 / self.batch.tokens_per_step() as f64;
        let mut losses = Vec::with_capacity(passes.len());
        for (number, pass) in passes {
            go_on()?;
            let head = |grads: [&Tensor; 2]| pass.head([&view(&of_last), &view(of_first)], grads, scale);
            losses.push(grads.add_head(*number, head).await?);
        }
        Ok(losses)
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
