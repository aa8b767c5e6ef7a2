//! The life of one membership on one worker: meet, arrive at one state, take steps, leave.

mod arriving;

use polo_proto::v1::{self, session_request::Message};
use polo_recipe::{
    config::Gather,
    ids::{Generation, Rank, Step},
    plan::ValidationSet,
};
use polo_store::StoreError;
use tokio::time::Instant;

use crate::{
    arrival::{Arrival, Held, Origin, Terms, arrive},
    boundary::{Boundary, Verdict},
    checkpointer::Share,
    decision::Remedy,
    desk::Doing,
    moves::{Givable, MoveError},
    plane::{AbortHandle, DataPlane, Lane, PlaneError, gather::all_gather},
    session::{Event, Order, Role},
    step::{Background, Bench, Moved, Outcome, Setting, StepDone, StepError, Stepper, Trouble, follow, move_chunks},
    trainer::Trainer,
};

/// How a generation was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// For another one.
    ForAnother,
    /// With the run's last step taken and stored.
    Finished,
}

/// Why a generation broke off.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// The data plane.
    #[error(transparent)]
    Plane(#[from] PlaneError),
    /// A transfer of state.
    #[error(transparent)]
    Move(#[from] MoveError),
    /// A step.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The run's store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder of initial weights.
    #[error("the initial weights (`model.init`) cannot be used: {0}")]
    InitialWeights(StoreError),
}

impl GenerationError {
    /// The trouble with the data plane, if that is what it is: others can try again without this worker's process.
    pub fn plane(&self) -> Option<&PlaneError> {
        match self {
            Self::Plane(error)
            | Self::Move(MoveError::Plane(error))
            | Self::Step(StepError::Plane(error) | StepError::Move(MoveError::Plane(error))) => Some(error),
            _ => None,
        }
    }

    /// Whether the generation was merely dropped by the coordinator.
    pub fn is_dropped(&self) -> bool {
        let cancelled = matches!(self, Self::Step(StepError::Model(crate::model::ModelError::Cancelled)));
        cancelled || matches!(self.plane(), Some(PlaneError::Aborted))
    }

    /// Whether every other worker would meet the same.
    pub fn ends_run(&self) -> bool {
        match self {
            Self::Step(StepError::Corpus(error)) => error.is_everybodys(),
            Self::Step(error) => !matches!(error, StepError::Plane(_) | StepError::Move(_) | StepError::Loader(_)),
            Self::InitialWeights(error) => !error.is_local(),
            Self::Store(error) => matches!(error, StoreError::Mismatch { .. }),
            _ => false,
        }
    }
}

/// One worker in one generation.
struct Membering<'a> {
    trainer: &'a mut Trainer,
    order: &'a Order,
    plane: Box<dyn DataPlane>,
    /// For chunks that move while steps are taken.
    state_plane: Box<dyn DataPlane>,
    arrival: Arrival,
    /// The most checkpoints that any rank had been asked for when the last one was begun.
    checkpoints_wanted: u64,
    /// The newest checkpoint that is stored or on its way.
    newest_checkpoint: Option<Step>,
}

/// Takes part in the generation that `order` describes, until it ends.
pub async fn take_part(trainer: &mut Trainer, order: &Order, abort: &AbortHandle) -> Result<Left, GenerationError> {
    let show = |phase| trainer.desk().set_doing(Doing::new(order.generation, trainer.step(), phase));
    let started = Instant::now();
    trainer.arithmetic.check_room(order.num_members())?;
    show("meeting the other ranks");
    // Both before anybody gets to know anything: whoever leaves later, for a newer generation say, drops both, so that
    // nobody waits on one of them for a rank that will never come.
    let mut plane = trainer.network.form(order, Lane::Steps, abort).await?;
    let state_plane = trainer.network.form(order, Lane::State, abort).await?;
    show("comparing states");
    let (held, told, checkpoint) = meet(trainer, &mut *plane, order.checkpoint.map(Step)).await?;
    trainer.desk().handle(Event::Met(order.generation));
    let lens: Vec<_> = trainer.setting.layout.chunks.iter().map(|c| c.range.len()).collect();
    let num_members = order.num_members();
    let (copies, gather) = (trainer.setting.copies, trainer.state.params.gather());
    let terms = Terms { num_members, checkpoint, chunk_lens: &lens, copies, gather };
    let mut membering = Membering {
        arrival: arrive(&held, terms),
        trainer,
        order,
        plane,
        state_plane,
        checkpoints_wanted: told.iter().map(|b| b.checkpoints_wanted).max().unwrap_or(0),
        newest_checkpoint: checkpoint,
    };
    let met = Instant::now();
    let Some(moved) = membering.arrive().await? else { return Ok(Left::ForAnother) };
    membering.report_arrival((met - started).as_millis() as u64, moved);
    match order.role() {
        Role::Member => membering.train().await,
        Role::Spare => membering.follow().await,
        Role::Leaving => membering.hand_back().await,
    }
}

/// Shows every rank what every rank holds and was told, and which checkpoint it was told of.
async fn meet(
    trainer: &Trainer,
    plane: &mut dyn DataPlane,
    checkpoint: Option<Step>,
) -> Result<(Vec<Held>, Vec<Boundary>, Option<Step>), PlaneError> {
    let layout = &trainer.setting.layout;
    let num_chunks = layout.chunks.len();
    let told = checkpoint.map_or(0, |step| step.0 + 1).to_le_bytes();
    let boundary = trainer.desk().boundary().encode();
    let record = [&told[..], &boundary, &trainer.state.held(layout).encode()].concat();
    let lens = vec![told.len() + Boundary::NUM_BYTES + Held::num_bytes(num_chunks); plane.world()];
    let gathered = all_gather(plane, &lens, &record).await?;
    // Whoever was told late may know of a newer one than the others; all have to load the same.
    let told_of = |record: &Vec<u8>| u64::from_le_bytes(std::array::from_fn(|i| record[i])).checked_sub(1).map(Step);
    let checkpoint = gathered.iter().filter_map(told_of).max();
    let read = |record: &Vec<u8>| {
        let (boundary, held) = record[told.len()..].split_at(Boundary::NUM_BYTES);
        (Held::decode(held, num_chunks), Boundary::decode(&std::array::from_fn(|i| boundary[i])))
    };
    let (held, boundaries) = gathered.iter().map(read).unzip();
    Ok((held, boundaries, checkpoint))
}

fn bench<'a>(trainer: &'a mut Trainer, plane: &'a mut Box<dyn DataPlane>) -> Bench<'a> {
    let Trainer { state, pool, arithmetic, network, .. } = trainer;
    Bench { plane: &mut **plane, state, pool, arithmetic: &mut **arithmetic, network: &**network }
}

impl Membering<'_> {
    fn show(&self, phase: &'static str) {
        self.trainer.desk().set_doing(Doing::new(self.order.generation, self.trainer.step(), phase));
    }

    fn rank(&self) -> Rank {
        Rank(self.order.rank)
    }

    fn generation(&self) -> Generation {
        self.order.generation
    }

    fn report_arrival(&self, form_ms: u64, moved: Moved) {
        let origin = match self.arrival.origin {
            Origin::Fresh => v1::Origin::Fresh,
            Origin::Checkpoint => v1::Origin::Checkpoint,
            Origin::Survivors => v1::Origin::Survivors,
        };
        let (step, generation) = (self.arrival.step.0, self.generation().0);
        let (transfer_ms, num_bytes) = (moved.time.as_millis() as u64, moved.num_bytes);
        tracing::info!(generation, step, ?origin, form_ms, transfer_ms, num_bytes, "arrived");
        self.trainer.desk().send(Message::Arrived(v1::Arrived {
            generation,
            step,
            origin: origin.into(),
            num_lost_chunks: self.arrival.num_lost_chunks as u32,
            abort_ms: self.trainer.desk().last_abort_ms(),
            form_ms,
            transfer_ms,
            transferred_bytes: num_bytes,
        }));
    }

    async fn train(mut self) -> Result<Left, GenerationError> {
        let (first, last) = (self.arrival.step, Step(self.trainer.setting.plan.num_steps()));
        let is_gathered = self.trainer.state.params.gather() == Gather::Block;
        if first >= last || self.is_due(first) || is_gathered {
            self.move_now().await?;
            self.store_if_due(first).await;
        }
        let setting = self.trainer.setting.clone();
        let mut stepper = Stepper::new(&setting, self.order, &self.arrival);
        self.evaluate_if_due(&stepper, first).await?;
        if first < last && self.take_steps(&mut stepper, first, last).await? == Verdict::ChangeOver {
            return Ok(Left::ForAnother);
        }
        self.finish().await
    }

    /// Evaluates the state, whenever it is there: also where an earlier generation may have done so, and not told.
    async fn evaluate_if_due(&mut self, stepper: &Stepper<'_>, step: Step) -> Result<(), GenerationError> {
        if !self.trainer.setting.plan.is_validated(step) {
            return Ok(());
        }
        let Self { trainer, plane, .. } = &mut *self;
        let losses = stepper.evaluate(&mut bench(trainer, plane), step).await?;
        let sources = validation_losses(&self.trainer.setting, &losses);
        let validated = v1::Validated { generation: self.generation().0, step: step.0, sources };
        self.trainer.desk().send(Message::Validated(validated));
        Ok(())
    }

    /// Moves chunks to their new owners while nothing else is done.
    async fn move_now(&mut self) -> Result<(), GenerationError> {
        let moves = std::mem::take(&mut self.arrival.moves);
        if moves.is_empty() {
            return Ok(());
        }
        self.show("moving state");
        let Trainer { state, setting, .. } = &mut *self.trainer;
        let givable = Givable::of(state);
        let arrived = move_chunks(&mut *self.state_plane, &moves, &setting.layout, &givable).await?;
        arrived.into_iter().for_each(|chunk| state.install(chunk, &setting.layout));
        if self.order.role() == Role::Member {
            state.step = Some(self.arrival.step);
        }
        Ok(())
    }

    async fn take_steps(
        &mut self,
        stepper: &mut Stepper<'_>,
        first: Step,
        last: Step,
    ) -> Result<Verdict, GenerationError> {
        self.trainer.arithmetic.begin(stepper.work(first))?;
        let moves = std::mem::take(&mut self.arrival.moves);
        let mut moves = Some(&moves[..]).filter(|moves| !moves.is_empty());
        let (order, desk) = (self.order, self.trainer.setting.desk.clone());
        for step in (first.0..last.0).map(Step) {
            let started = Instant::now();
            let report_trouble = |trouble| desk.send(trouble_message(order, step, trouble));
            let done = loop {
                let Self { trainer, plane, state_plane, .. } = &mut *self;
                let background = moves.take().map(|moves| Background { moves, plane: &mut **state_plane });
                match stepper.take(&mut bench(trainer, plane), step, background, &report_trouble).await? {
                    Outcome::Done(done) => break done,
                    Outcome::Again(attempt) => {
                        stepper.try_again(attempt);
                        self.trainer.arithmetic.begin(stepper.work(step))?;
                    }
                }
            };
            self.report(step.next(), &done, started);
            if self.is_checkpoint_wanted(&done) {
                self.store(step.next()).await;
            } else {
                self.store_if_due(step.next()).await;
            }
            if done.verdict != Verdict::ChangeOver {
                self.evaluate_if_due(stepper, step.next()).await?;
            }
            if done.verdict != Verdict::GoOn {
                return Ok(done.verdict);
            }
        }
        Ok(Verdict::GoOn)
    }

    fn is_checkpoint_wanted(&mut self, done: &StepDone) -> bool {
        let is_new = done.checkpoints_wanted > self.checkpoints_wanted;
        self.checkpoints_wanted = self.checkpoints_wanted.max(done.checkpoints_wanted);
        is_new
    }

    fn report(&self, step: Step, done: &StepDone, started: Instant) {
        let names = self.trainer.setting.plan.sources();
        let tallies = names.iter().zip(&done.decision.tallies).filter(|(_, tally)| tally.num_tokens > 0);
        let sources = tallies.map(|(name, tally)| v1::SourceLoss {
            source: name.clone(),
            loss: tally.loss / tally.num_tokens as f64,
            num_tokens: tally.num_tokens,
        });
        let report = v1::StepReport {
            generation: self.generation().0,
            step: step.0,
            loss: done.decision.loss(),
            sources: sources.collect(),
            grad_norm: done.decision.grad_norm,
            step_ms: started.elapsed().as_millis() as u64,
            sent_bytes: done.traffic.sent_bytes,
            received_bytes: done.traffic.received_bytes,
            data_wait_ms: done.data_wait.as_millis() as u64,
            num_workers: self.order.num_members() as u32,
            compute_ms: done.compute.as_millis() as u64,
            num_slots: done.num_slots as u32,
            skipped: done.decision.skip,
            transfer_ms: done.moved.time.as_millis() as u64,
            transferred_bytes: done.moved.num_bytes,
        };
        self.trainer.desk().send(Message::Step(report));
    }

    fn is_due(&self, step: Step) -> bool {
        let every = self.trainer.checkpoint_every_steps;
        let is_new = self.newest_checkpoint.is_none_or(|newest| newest < step);
        every > 0 && step.0 > 0 && step.0.is_multiple_of(every) && is_new
    }

    async fn store_if_due(&mut self, step: Step) {
        if self.is_due(step) {
            self.store(step).await;
        }
    }

    /// Begins to store the state, unless it is stored already.
    async fn store(&mut self, step: Step) {
        if self.newest_checkpoint.is_some_and(|newest| newest >= step) {
            return;
        }
        self.show("snapshot");
        self.newest_checkpoint = Some(step);
        let (generation, rank) = (self.generation(), self.rank());
        let Trainer { state, setting, checkpointer, .. } = &mut *self.trainer;
        let share = Share { generation, step, rank, owners: &self.arrival.owners };
        checkpointer.begin(state, share, &setting.layout, &setting.plan).await;
    }

    /// Stores the last state.
    async fn finish(mut self) -> Result<Left, GenerationError> {
        let step = self.trainer.step();
        self.store(step).await;
        self.show("storing the last state");
        self.trainer.checkpointer.finish().await?;
        let finished = v1::Finished { generation: self.generation().0, step: step.0, ..Default::default() };
        self.trainer.desk().send(Message::Finished(finished));
        self.show("waiting for the end of the run");
        Ok(Left::Finished)
    }

    /// A spare's life: it is handed the parameters of every step.
    async fn follow(mut self) -> Result<Left, GenerationError> {
        self.stand_by().await?;
        let last = Step(self.trainer.setting.plan.num_steps());
        let mut step = self.arrival.step;
        while step < last {
            self.show("standing by");
            let Trainer { state, setting, .. } = &mut *self.trainer;
            match follow(setting, self.order, &self.arrival.owners, &mut *self.plane, state).await? {
                Verdict::GoOn => {}
                Verdict::ChangeOver => return Ok(Left::ForAnother),
                Verdict::Stop => break,
            }
            step = self.trainer.step();
        }
        self.show("waiting for the end of the run");
        Ok(Left::Finished)
    }

    /// Ranks that are no members give what is theirs to give.
    async fn stand_by(&mut self) -> Result<(), GenerationError> {
        self.move_now().await
    }

    /// The life of a worker that was asked to leave: its chunks go to others.
    async fn hand_back(mut self) -> Result<Left, GenerationError> {
        self.stand_by().await?;
        self.show("waiting to leave");
        Ok(Left::ForAnother)
    }
}

fn validation_losses(setting: &Setting, losses: &[f64]) -> Vec<v1::ValidationLoss> {
    let loss = |(number, (set, sum)): (usize, (&ValidationSet, &f64))| {
        let num_tokens = (set.windows.end - set.windows.start) * setting.batch.seq_len as u64;
        let loss = sum / num_tokens as f64;
        let bytes_per_token = setting.bytes_per_token.get(number).filter(|bytes| **bytes > 0.0);
        let bits_per_byte = bytes_per_token.map(|bytes| loss / std::f64::consts::LN_2 / bytes);
        v1::ValidationLoss { source: set.source.clone(), loss, num_tokens, bits_per_byte }
    };
    setting.plan.validation_sets().iter().zip(losses).enumerate().map(loss).collect()
}

fn trouble_message(order: &Order, step: Step, trouble: Trouble) -> Message {
    let (generation, step) = (order.generation.0, step.0);
    let numbers = |ranks: Vec<Rank>| ranks.into_iter().map(|Rank(rank)| rank).collect();
    match trouble {
        Trouble::CopiesDiffer { chunk, suspects, is_certain } => Message::CopiesDiffer(v1::CopiesDiffer {
            generation,
            step,
            chunk: chunk.0,
            suspects: numbers(suspects),
            is_certain,
        }),
        Trouble::NotFinite { loss, grad_norm, remedy, suspects } => {
            let action = match remedy {
                Some(Remedy::Stop) => v1::TroubleAction::Stop,
                Some(Remedy::Skip) => v1::TroubleAction::Skip,
                Some(Remedy::Recheck) => v1::TroubleAction::Recheck,
                None => v1::TroubleAction::Blame,
            };
            let (suspects, action) = (numbers(suspects), action.into());
            Message::NumericalTrouble(v1::NumericalTrouble { generation, step, loss, grad_norm, action, suspects })
        }
    }
}
