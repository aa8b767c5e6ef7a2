//! One step of one rank: gradients of its slots, the exact sum over all slots, the update.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use polo_recipe::{
    config::Batch,
    ids::{Generation, Rank, Step},
    layout::Layout,
    plan::Plan,
    slots::{SlotSteps, SumPlan, assign},
};
use tch::Tensor;
use tokio::runtime::Handle;

use crate::{
    boundary::Boundary,
    corpus::{Corpus, CorpusError, Window},
    desk::{Desk, Doing},
    flat::Flat,
    loader::Loader,
    model::{Model, ModelError},
    optimizer::{AdamW, FlatState, OptimizerError, clip_coefficient},
    plane::{DataPlane, PlaneError, gather::all_gather},
    reduce::ExactReduce,
    state::TrainState,
};

/// Batches that are read ahead.
const NUM_AHEAD: usize = 4;

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The data plane broke or was aborted; the step is undecided here.
    #[error(transparent)]
    Plane(#[from] PlaneError),
    /// The corpus.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The loader's thread.
    #[error("the loader cannot start: {0}")]
    Loader(std::io::Error),
    /// The loader ended before the step had its samples.
    #[error("the loader ended before step {0} had its samples")]
    NoBatch(Step),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The optimizer.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// The numbers blew up, on every rank alike.
    #[error(
        "step {step}: loss {loss}, gradient norm {grad_norm}: not finite, so the update was not made; lower the learning rate or look at the step's samples"
    )]
    NotFinite {
        /// The step that was not taken.
        step: Step,
        /// Mean loss per token.
        loss: f64,
        /// Norm of the summed gradient.
        grad_norm: f64,
    },
}

/// What does not change from one membership to the next.
pub struct Setting {
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
    /// Largest gradient norm.
    pub max_grad_norm: f64,
    /// The corpus.
    pub corpus: Arc<Corpus>,
    /// For each source of the plan its number in the corpus.
    pub source_numbers: Vec<usize>,
    /// Where the loader's IO runs.
    pub runtime: Handle,
    /// Where phases are shown and boundary records come from.
    pub desk: Arc<Desk>,
}

/// Loss and tokens of one source.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    /// Summed over tokens.
    pub loss: f64,
    /// Tokens.
    pub num_tokens: u64,
}

/// What every rank knows after a step.
#[derive(Debug, Clone)]
pub struct StepDone {
    /// By source of the plan; equal on all ranks, and for every world.
    pub tallies: Vec<Tally>,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// What all ranks were told, in rank order.
    pub boundaries: Vec<Boundary>,
    /// Moved by this rank's reduction.
    pub sent_bytes: u64,
    /// Moved by this rank's reduction.
    pub received_bytes: u64,
    /// Spent waiting for the loader.
    pub data_wait: Duration,
}

impl StepDone {
    /// Mean loss per token over all sources.
    pub fn loss(&self) -> f64 {
        let num_tokens: u64 = self.tallies.iter().map(|t| t.num_tokens).sum();
        self.tallies.iter().map(|t| t.loss).sum::<f64>() / num_tokens as f64
    }
}

/// One rank's part in the steps of one generation.
pub struct Stepper<'a> {
    setting: &'a Setting,
    generation: Generation,
    world: usize,
    sums: SumPlan,
    reduce: ExactReduce,
    loader: Loader,
    /// Slots of the rank that has most: records are padded to it.
    most_slots: usize,
}

impl<'a> Stepper<'a> {
    /// Prepares rank `rank` of `world` to take the steps from `first` on; its loader begins to read.
    pub fn new(
        setting: &'a Setting,
        generation: Generation,
        rank: Rank,
        world: usize,
        first: Step,
    ) -> Result<Self, StepError> {
        let slots = setting.batch.slots;
        let shares = assign(slots, world).unwrap_or_default();
        let chunks = setting.layout.chunks.iter().map(|c| c.range.clone()).collect();
        Ok(Self {
            setting,
            generation,
            world,
            sums: SumPlan::new(slots, &shares[rank.index()]),
            reduce: ExactReduce::new(slots, chunks, rank, world),
            loader: load(setting, shares[rank.index()].clone(), first)?,
            most_slots: shares.iter().map(ExactSizeIterator::len).max().unwrap_or(0),
        })
    }

    /// Full-size buffers that a step needs.
    pub fn num_buffers(&self) -> usize {
        self.sums.num_buffers
    }

    /// Takes the step that starts from `state`. After an error the state is what it was.
    pub fn take(
        &mut self,
        plane: &mut dyn DataPlane,
        state: &mut TrainState,
        step: Step,
        buffers: &mut [Flat],
    ) -> Result<StepDone, StepError> {
        let abort = plane.abort_handle();
        let mut data_wait = Duration::ZERO;
        let mut tallies = Vec::new();
        for slot in self.sums.steps.clone() {
            self.show(step, "compute");
            tallies.push(self.compute_slot(state, &slot, step, buffers, &mut data_wait, &|| abort.is_aborted())?);
        }
        self.show(step, "exchange");
        let (boundaries, tallies) = self.share_tallies(plane, &tallies)?;
        let num_pieces = self.sums.pieces.len();
        let mut pieces: Vec<_> = buffers[..num_pieces].iter_mut().map(Flat::as_mut_slice).collect();
        let reduced = self.reduce.run(plane, &mut pieces)?;
        let grad_norm = reduced.chunk_square_norms.iter().sum::<f64>().sqrt();
        let (sent_bytes, received_bytes) = (reduced.bytes_sent, reduced.bytes_received);
        let done = StepDone { tallies, grad_norm, boundaries, sent_bytes, received_bytes, data_wait };
        self.update(state, step, &buffers[0], &done)?;
        Ok(done)
    }

    fn show(&self, step: Step, phase: &'static str) {
        self.setting.desk.set_doing(Doing { generation: self.generation, step, phase });
    }

    /// Leaves the slot's gradient in its buffer, and adds the buffers that belong together after it.
    fn compute_slot(
        &mut self,
        state: &TrainState,
        slot: &SlotSteps,
        step: Step,
        buffers: &mut [Flat],
        data_wait: &mut Duration,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<Tally>, StepError> {
        let setting = self.setting;
        let batch = &setting.batch;
        let scale = 1.0 / batch.tokens_per_step() as f64;
        let grads = &mut buffers[slot.buffer];
        grads.as_mut_slice().fill(0.0);
        let mut tallies = vec![Tally::default(); setting.plan.sources().len()];
        for _ in 0..batch.samples_per_slot() / batch.micro_batch {
            let started = Instant::now();
            let micro_batch = self.loader.next_batch().ok_or(StepError::NoBatch(step))??;
            *data_wait += started.elapsed();
            let shape = [batch.micro_batch as i64, batch.seq_len as i64 + 1];
            let tokens = Tensor::from_slice(&micro_batch.tokens).view(shape);
            let losses =
                setting.model.loss_and_grad(state.params.tensor(), grads.tensor(), &tokens, scale, cancelled)?;
            for (window, loss) in micro_batch.windows.iter().zip(losses) {
                let source = setting.source_numbers.iter().position(|n| *n == window.source);
                let tally = &mut tallies[source.ok_or(StepError::NoBatch(step))?];
                tally.loss += loss;
                tally.num_tokens += batch.seq_len as u64;
            }
        }
        for merge in &slot.merges {
            add(buffers, merge.into, merge.from);
        }
        Ok(tallies)
    }

    /// Shows all ranks this rank's slots and what it was told; returns what everybody was told, and the tallies summed
    /// in the order of slots.
    fn share_tallies(
        &self,
        plane: &mut dyn DataPlane,
        slots: &[Vec<Tally>],
    ) -> Result<(Vec<Boundary>, Vec<Tally>), PlaneError> {
        let num_sources = self.setting.plan.sources().len();
        let len = Boundary::NUM_BYTES + self.most_slots * num_sources * 16;
        let mut record = self.setting.desk.boundary().encode().to_vec();
        for tally in slots.iter().flatten() {
            record.extend(tally.loss.to_le_bytes());
            record.extend(tally.num_tokens.to_le_bytes());
        }
        record.resize(len, 0);
        let gathered = all_gather(plane, &record)?;
        let mut sums = vec![Tally::default(); num_sources];
        let mut boundaries = Vec::with_capacity(self.world);
        for record in gathered.chunks_exact(len) {
            boundaries.push(Boundary::decode(&std::array::from_fn(|i| record[i])));
            for slot in record[Boundary::NUM_BYTES..].chunks_exact(num_sources * 16) {
                for (sum, bytes) in sums.iter_mut().zip(slot.as_chunks::<16>().0) {
                    let word = |at: usize| std::array::from_fn(|i| bytes[at + i]);
                    sum.loss += f64::from_le_bytes(word(0));
                    sum.num_tokens += u64::from_le_bytes(word(8));
                }
            }
        }
        Ok((boundaries, sums))
    }

    /// Makes the update. From its first change to its last nothing can interrupt it.
    fn update(&self, state: &mut TrainState, step: Step, grads: &Flat, done: &StepDone) -> Result<(), StepError> {
        let (loss, grad_norm) = (done.loss(), done.grad_norm);
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(StepError::NotFinite { step, loss, grad_norm });
        }
        self.show(step, "update");
        let setting = self.setting;
        let adamw = AdamW { learning_rate: setting.plan.learning_rate(step), ..setting.adamw };
        let flat = FlatState {
            params: state.params.tensor(),
            exp_avg: state.exp_avg.tensor(),
            exp_avg_sq: state.exp_avg_sq.tensor(),
            grads: grads.tensor(),
        };
        let chunks = setting.layout.chunks.iter().map(|c| c.id);
        let clip = clip_coefficient(grad_norm, setting.max_grad_norm);
        state.step = None;
        adamw.apply(flat, &setting.layout, chunks, step.next().0, clip)?;
        let stage = setting.plan.stage_at(step).index;
        for (source, tally) in done.tallies.iter().enumerate() {
            state.ledger.add(stage, source, tally.num_tokens);
        }
        state.step = Some(step.next());
        Ok(())
    }
}

/// Adds one buffer to another.
fn add(buffers: &mut [Flat], into: usize, from: usize) {
    let (low, high) = buffers.split_at_mut(into.max(from));
    let (sum, term) = if into < from { (&mut low[into], &high[0]) } else { (&mut high[0], &low[from]) };
    for (sum, term) in sum.as_mut_slice().iter_mut().zip(term.as_slice()) {
        *sum += term;
    }
}

/// Reads ahead the micro-batches of some slots, from a step on to the end of the run.
fn load(setting: &Setting, slots: std::ops::Range<usize>, first: Step) -> Result<Loader, StepError> {
    let (plan, numbers) = (setting.plan.clone(), setting.source_numbers.clone());
    let (micro_batch, num_steps) = (setting.batch.micro_batch, plan.num_steps());
    let samples = plan.slot_samples(slots.start).start..plan.slot_samples(slots.end - 1).end;
    let micro_batches = (first.0..num_steps).flat_map(move |step| {
        let refs = plan.samples(Step(step), samples.clone());
        let windows: Vec<_> =
            refs.iter().map(|r| Window { source: numbers[r.source.0 as usize], window: r.window }).collect();
        windows.chunks(micro_batch).map(<[Window]>::to_vec).collect::<Vec<_>>()
    });
    let (corpus, seq_len) = (setting.corpus.clone(), setting.batch.seq_len);
    Loader::start(corpus, seq_len, NUM_AHEAD, setting.runtime.clone(), micro_batches).map_err(StepError::Loader)
}
