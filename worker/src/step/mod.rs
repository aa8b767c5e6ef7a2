//! One step of one rank: gradients of its slots, the exact sum over all slots, the decision, the update.

mod all_reduce;
mod evaluate;
mod gather;
mod gradients;
mod records;
mod shape;
mod spare;
mod types;

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures::{
    channel::mpsc,
    future::{FutureExt, OptionFuture},
};
use polo_recipe::{
    buffers::MOST_WAITING,
    config::{self, OnNonFinite},
    ids::{Generation, Rank, Step},
    layout::{ChunkId, Layout},
    mistakes::{Mistake, is_back},
};
use tokio::time::Instant;

use crate::{
    arrival::{Arrival, Move},
    boundary::{self, Boundary},
    decision::{Decision, Remedy, Verdict, compare, remedy},
    desk::Doing,
    flat::ops::chunk_square_norm,
    moves::{Arrived, Givable, MoveError, batches, carry},
    optimizer::clip_coefficient,
    params::Params,
    plane::{DataPlane, PlaneError, Transfer, gather::all_gather},
    pool::Pool,
    reduce::{Sums, Traffic, exchange, hand_out},
    rig::{Arithmetic, Network, Update, Work},
    session::Order,
    state::TrainState,
    trace::Track,
};

use self::{
    all_reduce::AllReduce,
    gather::Gatherer,
    gradients::{Reduction, SlotSums, gather_and_reduce},
    records::{Records, Slot},
    shape::{Shape, members, shape, shares},
    spare::SpareNote,
};
pub use self::{
    gather::{BlockParams, Parameters},
    spare::follow,
    types::*,
};

/// So often a step is taken again because its owners' sums differ, before that is an error.
const MOST_DISAGREEMENTS: u32 = 3;

/// What all ranks do about a step once its norms are known.
enum Next {
    /// Make the update.
    Apply(Decision),
    /// Compute it once more.
    TryAgain(Attempt),
    /// Wait until these are sent away, because their sums are wrong.
    Evict(Vec<Rank>),
}

/// Everything of the worker's own that a step changes.
pub struct Bench<'a> {
    /// The plane of the generation.
    pub plane: &'a mut dyn DataPlane,
    /// What this rank holds.
    pub state: &'a mut TrainState,
    /// Gradient buffers.
    pub pool: &'a mut Pool,
    /// What computes.
    pub arithmetic: &'a mut dyn Arithmetic,
    /// What lets two things happen at once.
    pub network: &'a dyn Network,
}

/// Chunks that move to new owners while the first step is computed.
pub struct Background<'a> {
    /// The moves, the same on all ranks.
    pub moves: &'a [Move],
    /// The generation's plane for state.
    pub plane: &'a mut dyn DataPlane,
}

/// What a rank's part of the gradient came to.
struct Computed {
    slots: Vec<Slot>,
    compute: Duration,
    traffic: Traffic,
    moved: Moved,
}

/// One member's part in the steps of one generation.
pub struct Stepper<'a> {
    setting: &'a Setting,
    generation: Generation,
    rank: Rank,
    num_members: usize,
    /// Ranks above the members that are handed the parameters.
    spares: Range<u32>,
    owners: Vec<Vec<Rank>>,
    chunks: Vec<Range<usize>>,
    /// Who has slots in the next step.
    computing: Vec<Rank>,
    shape: Shape,
    attempt: Attempt,
}

impl<'a> Stepper<'a> {
    /// Prepares a member's steps after `arrival`.
    pub fn new(setting: &'a Setting, order: &Order, arrival: &Arrival) -> Self {
        let num_members = order.num_members();
        let chunks: Vec<_> = setting.layout.chunks.iter().map(|c| c.range.clone()).collect();
        let (rank, attempt) = (Rank(order.rank), Attempt::default());
        let shape = shape(setting, num_members, &arrival.computing, &arrival.owners, rank, &attempt);
        Self {
            setting,
            generation: order.generation,
            rank,
            num_members,
            spares: num_members as u32..(num_members + order.num_spares()) as u32,
            owners: arrival.owners.clone(),
            chunks,
            computing: arrival.computing.clone(),
            shape,
            attempt,
        }
    }

    /// The slots of this rank from `first` on: those of the next try, and those of all later steps.
    pub fn work(&self, first: Step) -> Work {
        let usual = shares(self.setting, self.num_members, &members(self.num_members).collect::<Vec<_>>(), 0);
        let own = self.rank.index();
        Work { first, first_slots: self.shape.shares[own].clone(), slots: usual[own].clone() }
    }

    /// Makes the next try another one than the last.
    pub fn try_again(&mut self, attempt: Attempt) {
        self.shape = shape(self.setting, self.num_members, &self.computing, &self.owners, self.rank, &attempt);
        self.attempt = attempt;
    }

    /// From the next step on, every member has slots.
    fn spread_slots(&mut self) {
        let is_usual = self.computing.len() == self.num_members && self.attempt == Attempt::default();
        if !is_usual {
            self.computing = members(self.num_members).collect();
            self.try_again(Attempt::default());
        }
    }

    /// Takes the step that starts from `bench.state`. An error, or another try, leaves the state as it was, or as the
    /// decided step has made it, as far as this rank got with that.
    pub async fn take(
        &mut self,
        bench: &mut Bench<'_>,
        step: Step,
        background: Option<Background<'_>>,
        on_trouble: &dyn Fn(Trouble),
    ) -> Result<Outcome, StepError> {
        let trace = &self.setting.trace;
        let _step = trace.step(step);
        bench.state.summed.clear();
        let Computed { slots, compute, mut traffic, moved } = self.compute(bench, step, background).await?;
        self.show(step, "exchange");
        let showing = trace.span(Track::Exchange, "records and norms");
        let records = self.share(bench.plane, &slots).await?;
        self.note_sums(bench.state);
        let verdict = self.exchange_norms(bench, &mut traffic).await?;
        drop(showing);
        let decision = match self.decide(step, verdict, &records, on_trouble)? {
            Next::Apply(decision) => decision,
            Next::TryAgain(attempt) => return Ok(Outcome::Again(attempt)),
            Next::Evict(outvoted) => return Err(self.wait_for_eviction(bench.plane, step, outvoted).await.into()),
        };
        self.show(step, "update");
        let updating = trace.span(Track::Compute, "update");
        apply(self.setting, bench, &self.owned(), step, decision.clone())?;
        drop(updating);
        self.show(step.next(), "exchange");
        let verdict = boundary::verdict(self.generation, &records.boundaries);
        let handing_out = trace.span(Track::Exchange, "hand out");
        let handed_out = self.hand_out(bench, verdict).await;
        drop(handing_out);
        if handed_out.is_err() && is_back(Mistake::DecidedStepDropped) {
            (bench.state.step, bench.state.params_complete) = (Some(step), true);
        }
        traffic += handed_out?;
        self.spread_slots();
        let checkpoints_wanted = records.boundaries.iter().map(|b| b.checkpoints_wanted).max().unwrap_or(0);
        let data_wait = slots.iter().map(|slot| slot.data_wait).sum();
        let num_slots = slots.len();
        let done = StepDone { decision, verdict, checkpoints_wanted, traffic, data_wait, compute, num_slots, moved };
        Ok(Outcome::Done(done))
    }

    fn show(&self, step: Step, phase: &'static str) {
        self.setting.desk.set_doing(Doing::new(self.generation, step, phase));
    }

    fn owned(&self) -> Vec<ChunkId> {
        owned_by(&self.owners, self.rank)
    }

    /// Computes this rank's slots. Meanwhile the blocks that are done are reduced, and chunks move to their new owners.
    async fn compute(
        &mut self,
        bench: &mut Bench<'_>,
        step: Step,
        background: Option<Background<'_>>,
    ) -> Result<Computed, StepError> {
        if background.is_some() {
            self.show(step, "moving state");
        }
        let Bench { plane, state, pool, arithmetic, network } = bench;
        let (setting, generation) = (self.setting, self.generation);
        let mut sums = self.reuse_sums(state);
        let (abort, has_failed) = (plane.abort_handle(), AtomicBool::new(false));
        let is_cancelled = || abort.is_aborted() || has_failed.load(Ordering::Relaxed);
        // Whoever computes does not wait for chunks that move.
        let most_waiting = if background.is_some() { setting.layout.blocks.len() } else { MOST_WAITING };
        let (ready, waiting) = mpsc::channel(most_waiting);
        let (mut computed, mut reduced, mut moved) = (Ok((Vec::new(), Duration::ZERO)), Ok(Traffic::default()), None);
        // The side only reads what the main one reads too: parameters, and moments that nobody changes before the update.
        let (givable, returns) = (Givable::of(state), pool.returns());
        let has_slots = |rank: &Rank| !self.shape.shares[rank.index()].is_empty();
        let receivers = members(self.num_members).filter(has_slots).collect();
        let (gatherer, mut params) = parameters(setting, &self.owners, receivers, &state.params);
        let Shape { sums: plan, reduce, .. } = &mut self.shape;
        let owners = reduce.owners().to_vec();
        let all_reduce = (setting.reduction == config::Reduction::Nccl).then_some(AllReduce {
            layout: &setting.layout,
            owners: &owners,
            num_members: self.num_members,
        });
        let main = async {
            // Only a second look needs to know whose numbers are bad, so only that policy pays for finding out.
            let looks = setting.on_non_finite == OnNonFinite::Recheck;
            let slot_sums = SlotSums::new(setting, plan, pool, ready, looks);
            let _computing = setting.trace.span(Track::Compute, "compute");
            setting.desk.set_doing(Doing::new(generation, step, "compute"));
            computed = compute_slots(&mut **arithmetic, slot_sums, &mut params, step, &is_cancelled).await;
            // Tells the side that nobody waits for blocks any more.
            drop(params);
        };
        // One after the other, on every rank alike: a plane may block its thread while it waits for other ranks.
        let side = async {
            let moves =
                background.map(|Background { moves, plane }| move_chunks(plane, moves, &setting.layout, &givable));
            let moving = moves.is_some().then(|| setting.trace.span(Track::Exchange, "chunks to new owners"));
            moved = OptionFuture::from(moves.map(timed)).await;
            drop(moving);
            if !matches!(moved, Some((Err(_), _))) {
                let reduction = Reduction { reduce, ready: waiting, all_reduce, sums: &mut sums, returns };
                reduced = gather_and_reduce(&mut **plane, gatherer, reduction, setting).await;
            }
            has_failed.store(reduced.is_err() || matches!(moved, Some((Err(_), _))), Ordering::Relaxed);
        };
        network.together(main.boxed_local(), side.boxed()).await;
        drop(givable);
        // What went wrong on the side goes first: the main one then ends because of that.
        let (traffic, moved) =
            (reduced?, moved.map(|(arrived, time)| Ok::<_, MoveError>((arrived?, time))).transpose()?);
        let (slots, compute) = computed?;
        state.sums = sums;
        let moved = moved.map_or(Moved::default(), |(arrived, time)| self.settle(state, step, arrived, time));
        Ok(Computed { slots, compute, traffic, moved })
    }

    /// The memory of the last step's sums, of those chunks that are summed now.
    fn reuse_sums(&self, state: &mut TrainState) -> Sums {
        let owners = self.shape.reduce.owners();
        let mut sums = std::mem::take(&mut state.sums);
        sums.retain(|chunk, _| owners[chunk.0 as usize].contains(&self.rank));
        sums
    }

    /// Takes over the chunks that have arrived.
    fn settle(&self, state: &mut TrainState, step: Step, arrived: Vec<Arrived>, time: Duration) -> Moved {
        let num_bytes = arrived.iter().map(Arrived::num_bytes).sum();
        arrived.into_iter().for_each(|chunk| state.install(chunk, &self.setting.layout));
        // A joiner holds its chunks from here on: others may count on it when they drop theirs after this step.
        state.step = Some(step);
        Moved { time, num_bytes }
    }

    /// Shows all members this rank's slots and what it was told.
    async fn share(&self, plane: &mut dyn DataPlane, slots: &[Slot]) -> Result<Records, PlaneError> {
        let num_sources = self.setting.plan.sources().len();
        let slot_bytes = Slot::num_bytes(num_sources);
        let lens: Vec<_> = self.shape.shares.iter().map(|s| Boundary::NUM_BYTES + s.len() * slot_bytes).collect();
        let mut record = self.setting.desk.boundary().encode().to_vec();
        slots.iter().for_each(|slot| slot.encode(&mut record));
        let gathered = all_gather(plane, &lens, &record).await?;
        Ok(Records::read(&gathered, &self.shape.shares, num_sources))
    }

    /// From now on this step can be rolled forward here, should another rank have decided it.
    fn note_sums(&self, state: &mut TrainState) {
        state.summed = self.owned().into_iter().filter(|chunk| state.moments.contains_key(chunk)).collect();
    }

    /// Takes the norms of this rank's sums, and compares them with those of the other owners.
    async fn exchange_norms(&self, bench: &mut Bench<'_>, traffic: &mut Traffic) -> Result<Verdict, PlaneError> {
        let sums = &bench.state.sums;
        let norm = |chunk: usize| sums.get(&ChunkId(chunk as u32)).map_or(0.0, |sum| chunk_square_norm(sum.as_slice()));
        let record: Vec<u8> = self.shape.reduce.owned(self.rank).flat_map(|c| norm(c).to_le_bytes()).collect();
        let lens: Vec<_> = members(self.num_members).map(|rank| 8 * self.shape.reduce.owned(rank).count()).collect();
        let num_peers = lens.len() as u64 - 1;
        traffic.sent_bytes += record.len() as u64 * num_peers;
        traffic.received_bytes += (lens.iter().sum::<usize>() - record.len()) as u64;
        let gathered = all_gather(bench.plane, &lens, &record).await?;
        let read = |bytes: &Vec<u8>| bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
        Ok(compare(self.shape.reduce.owners(), &gathered.iter().map(read).collect::<Vec<_>>()))
    }

    /// What becomes of the step.
    fn decide(
        &self,
        step: Step,
        verdict: Verdict,
        records: &Records,
        on_trouble: &dyn Fn(Trouble),
    ) -> Result<Next, StepError> {
        let norms = match verdict {
            Verdict::Agreed(norms) => norms,
            Verdict::Differ { chunk, suspects, is_certain } => {
                on_trouble(Trouble::CopiesDiffer { chunk, suspects: suspects.clone(), is_certain });
                if is_certain {
                    return Ok(Next::Evict(suspects));
                }
                return self.disagree(step, chunk, suspects).map(Next::TryAgain);
            }
        };
        let grad_norm = norms.iter().sum::<f64>().sqrt();
        let mut decision = Decision { tallies: records.tallies.clone(), grad_norm, skip: false };
        let loss = decision.loss();
        let was_rechecked = self.attempt.rotation > 0;
        if decision.is_finite() {
            if was_rechecked {
                let suspects = self.attempt.suspects.clone();
                on_trouble(Trouble::NotFinite { loss, grad_norm, remedy: None, suspects });
            }
            return Ok(Next::Apply(decision));
        }
        let remedy = remedy(self.setting.on_non_finite, was_rechecked, self.computing.len());
        let suspects = records.suspects.clone();
        on_trouble(Trouble::NotFinite { loss, grad_norm, remedy: Some(remedy), suspects: suspects.clone() });
        match remedy {
            Remedy::Stop => Err(StepError::NotFinite { step, loss, grad_norm }),
            Remedy::Recheck => Ok(Next::TryAgain(Attempt { rotation: 1, suspects, ..self.attempt.clone() })),
            Remedy::Skip => {
                decision.skip = true;
                Ok(Next::Apply(decision))
            }
        }
    }

    /// Whoever is outvoted has to leave, so no other try is worth anything. The coordinator drops the generation; should it
    /// not be there, the plane's own limit ends the wait, and those that were outvoted are to blame for that as well.
    async fn wait_for_eviction(&self, plane: &mut dyn DataPlane, step: Step, outvoted: Vec<Rank>) -> PlaneError {
        self.show(step, "waiting for a worker to be sent away");
        let mut others = outvoted.iter().copied().chain(members(self.num_members));
        let from = others.find(|rank| *rank != self.rank).unwrap_or(self.rank);
        match plane.exchange(&mut [Transfer::Recv { from, bytes: &mut [0] }]).await {
            Err(PlaneError::Timeout { waited_ms, .. }) => {
                let what = "waiting for the coordinator to drop a generation with corrupt copies".into();
                PlaneError::Timeout { waited_ms, ranks: outvoted, what }
            }
            Err(error) => error,
            Ok(()) => {
                let (expected, got) = ("nothing, as a generation with corrupt copies ends".into(), "a message".into());
                PlaneError::Desynchronised { rank: from, expected, got }
            }
        }
    }

    /// A disagreement may have been a passing one, and a further rank can tell who is right.
    fn disagree(&self, step: Step, chunk: ChunkId, suspects: Vec<Rank>) -> Result<Attempt, StepError> {
        let num_times = self.attempt.num_disagreements + 1;
        if num_times == MOST_DISAGREEMENTS {
            return Err(StepError::CopiesDiffer { step, chunk: chunk.0, suspects, num_times });
        }
        Ok(Attempt { has_witnesses: true, num_disagreements: num_times, ..self.attempt.clone() })
    }

    /// Tells spares of the step, and gives them and all members the parameters that they do not own, unless these are
    /// gathered.
    async fn hand_out(&self, bench: &mut Bench<'_>, verdict: boundary::Verdict) -> Result<Traffic, PlaneError> {
        let spares = self.spares.clone().map(Rank);
        let mut traffic = Traffic::default();
        if self.rank == Rank(0) && !self.spares.is_empty() {
            let note =
                SpareNote { step: bench.state.step.unwrap_or_default(), verdict }.encode(&bench.state.ledger.encode());
            let group = spares.clone().map(|to| Transfer::Send { to, bytes: &note }).collect();
            traffic += exchange(bench.plane, group).await?;
        }
        if let Params::Whole(params) = &mut bench.state.params {
            let receivers: Vec<_> = members(self.num_members).chain(spares).collect();
            traffic += hand_out(bench.plane, &self.chunks, &self.owners, &receivers, params.as_mut_slice()).await?;
            bench.state.params_complete = true;
        }
        Ok(traffic)
    }
}

/// Applies a decided step to the chunks in `owned`, and lets go of all others. Nothing can interrupt it.
pub fn apply(
    setting: &Setting,
    bench: &mut Bench<'_>,
    owned: &[ChunkId],
    step: Step,
    decision: Decision,
) -> Result<(), StepError> {
    let Bench { state, arithmetic, .. } = bench;
    state.retain(|chunk| owned.contains(&chunk));
    if setting.plan.update_number(step) == 1 {
        // Also where the update itself is skipped: what is carried on from here must not be older than the stage.
        state.zero_moments();
    }
    let clip_coefficient = clip_coefficient(decision.grad_norm, setting.max_grad_norm);
    if !decision.skip {
        for (chunk, moments) in &mut state.moments {
            let params = state.params.chunk_mut(&setting.layout.chunks[chunk.0 as usize]);
            let grads = state.sums.get_mut(chunk).ok_or(StepError::NoSum { step, chunk: chunk.0 })?.as_mut_slice();
            arithmetic.update(Update { chunk: *chunk, step, clip_coefficient, params, moments, grads })?;
        }
    }
    let stage = setting.plan.stage_at(step).index;
    for (source, tally) in decision.tallies.iter().enumerate() {
        state.ledger.add(stage, source, tally.num_tokens);
    }
    state.summed.clear();
    state.step = Some(step.next());
    state.params_complete = state.moments.len() == setting.layout.chunks.len();
    state.last_decision = Some(decision);
    Ok(())
}

/// Carries out this rank's part of `moves`.
pub async fn move_chunks(
    plane: &mut dyn DataPlane,
    moves: &[Move],
    layout: &Layout,
    givable: &Givable<'_>,
) -> Result<Vec<Arrived>, MoveError> {
    let mut arrived = Vec::new();
    for batch in batches(moves) {
        arrived.extend(carry(plane, batch, layout, givable).await?);
    }
    Ok(arrived)
}

/// Numbers of the chunks that `rank` owns, ascending.
pub fn owned_by(owners: &[Vec<Rank>], rank: Rank) -> Vec<ChunkId> {
    (0..).map(ChunkId).zip(owners).filter(|(_, owners)| owners.contains(&rank)).map(|(chunk, _)| chunk).collect()
}

/// What a future comes to, and how long that took.
async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let started = Instant::now();
    let done = work.await;
    (done, started.elapsed())
}

/// Where a step's parameters come from; and what gathers them for `receivers`, if they are not here.
fn parameters<'a>(
    setting: &'a Setting,
    owners: &'a [Vec<Rank>],
    receivers: Vec<Rank>,
    params: &'a Params,
) -> (Option<Gatherer<'a>>, Parameters<'a>) {
    if let Params::Whole(all) = params {
        return (None, Parameters::Whole(all.as_slice(), &setting.layout));
    }
    let (gatherer, params) = Gatherer::new(setting, owners, receivers, params);
    (Some(gatherer), params)
}

/// Computes a rank's slots. Returns how long that took, without waiting for other ranks.
async fn compute_slots(
    arithmetic: &mut dyn Arithmetic,
    mut sums: SlotSums<'_>,
    params: &mut Parameters<'_>,
    step: Step,
    is_cancelled: &dyn Fn() -> bool,
) -> Result<(Vec<Slot>, Duration), StepError> {
    let (started, num_slots) = (Instant::now(), sums.num_slots());
    if num_slots == 0 {
        sums.bring_nothing().await?;
        return Ok((Vec::new(), Duration::ZERO));
    }
    let done = arithmetic.gradients(step, num_slots, params, &mut sums, is_cancelled).await?;
    let mut slots: Vec<_> = done.into_iter().map(|done| Slot::new(done.tallies, done.data_wait)).collect();
    for (slot, is_finite) in slots.iter_mut().zip(sums.are_finite().unwrap_or_default()) {
        slot.is_finite = *is_finite && slot.tallies.iter().all(|t| t.loss.is_finite());
    }
    Ok((slots, started.elapsed() - sums.blocked - params.waited()))
}
