//! The life of one membership on one worker: meet, arrive at one state, take steps, leave.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    time::Instant,
};

use polo_proto::v1::{self, session_request::Message};
use polo_recipe::ids::{Generation, Rank, Step};
use polo_store::StoreError;

use crate::{
    boundary::{Verdict, verdict},
    checkpointer::Share,
    desk::Doing,
    plane::{
        AbortHandle, PlaneError, Secret,
        rendezvous::{Membership, form},
        tcp::TcpPlane,
    },
    session::Order,
    state::stored_by,
    step::{StepDone, StepError, Stepper},
    sync::{self, Start, SyncError},
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
    /// An address of a peer means nothing here.
    #[error("the data-plane address {address} of rank {rank} cannot be resolved: {source}")]
    Address {
        /// The peer.
        rank: usize,
        /// What it announced.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The data plane.
    #[error(transparent)]
    Plane(#[from] PlaneError),
    /// A transfer of state.
    #[error(transparent)]
    Sync(#[from] SyncError),
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
            Self::Plane(error) | Self::Sync(SyncError::Plane(error)) | Self::Step(StepError::Plane(error)) => {
                Some(error)
            }
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
            Self::Step(error) => !matches!(error, StepError::Plane(_) | StepError::Loader(_)),
            Self::InitialWeights(error) => !error.is_local(),
            Self::Store(error) => matches!(error, StoreError::Mismatch { .. }),
            _ => false,
        }
    }
}

/// One worker in one generation.
pub struct Membering<'a> {
    trainer: &'a mut Trainer,
    generation: Generation,
    rank: Rank,
    world: usize,
    plane: TcpPlane,
    /// The most checkpoints that any rank had been asked for when the last one was begun.
    checkpoints_wanted: u64,
    /// The newest checkpoint that is stored or on its way.
    newest_checkpoint: Option<Step>,
}

/// Takes part in the generation that `order` describes, until it ends.
pub fn take_part(trainer: &mut Trainer, order: &Order, abort: &AbortHandle) -> Result<Left, GenerationError> {
    let show = |phase| trainer.desk().set_doing(Doing { generation: order.generation, step: trainer.step(), phase });
    show("meeting the other ranks");
    let peers = resolve(&order.peers)?;
    let membership =
        Membership { generation: order.generation, rank: Rank(order.rank), peers, secret: Secret(order.secret) };
    let plane = form(&trainer.listener, &membership, &trainer.timeouts, abort)?;
    let mut membering = Membering {
        generation: order.generation,
        rank: Rank(order.rank),
        world: order.peers.len(),
        plane,
        checkpoints_wanted: 0,
        newest_checkpoint: order.checkpoint.map(Step),
        trainer,
    };
    match membering.arrive(order.checkpoint.map(Step))? {
        Some(step) => membering.train(step),
        None => Ok(Left::ForAnother),
    }
}

fn resolve(peers: &[String]) -> Result<Vec<SocketAddr>, GenerationError> {
    let one = |(rank, address): (usize, &String)| {
        let none = || io::Error::new(io::ErrorKind::NotFound, "it has no address");
        let found = address.to_socket_addrs().and_then(|mut all| all.next().ok_or_else(none));
        found.map_err(|source| GenerationError::Address { rank, address: address.clone(), source })
    };
    peers.iter().enumerate().map(one).collect()
}

impl Membering<'_> {
    fn show(&self, phase: &'static str) {
        let doing = Doing { generation: self.generation, step: self.trainer.step(), phase };
        self.trainer.desk().set_doing(doing);
    }

    /// Brings all ranks to one state and returns its step; none if the checkpoint is damaged, which the coordinator is
    /// told.
    fn arrive(&mut self, checkpoint: Option<Step>) -> Result<Option<Step>, GenerationError> {
        self.show("comparing states");
        let boundary = self.trainer.desk().boundary();
        let (held, told) = sync::meet(&mut self.plane, self.trainer.state.step, boundary)?;
        self.checkpoints_wanted = told.iter().map(|b| b.checkpoints_wanted).max().unwrap_or(0);
        match sync::start(&held, checkpoint) {
            Start::Fresh => self.trainer.initialize().map(Some),
            Start::Checkpoint(step) => self.load(step),
            Start::Peers { step, holders, receivers } => {
                if !receivers.is_empty() {
                    self.show("moving state to joiners");
                    self.transfer(step, &holders, &receivers)?;
                }
                Ok(Some(step))
            }
        }
    }

    fn load(&mut self, step: Step) -> Result<Option<Step>, GenerationError> {
        self.show("loading a checkpoint");
        match self.trainer.load_checkpoint(step) {
            Ok(()) => Ok(Some(step)),
            Err(error) if error.is_damage() => {
                let (generation, problem) = (self.generation.0, error.to_string());
                let damaged = v1::CheckpointDamaged { generation, step: step.0, problem };
                self.trainer.desk().send(Message::CheckpointDamaged(damaged));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn transfer(&mut self, step: Step, holders: &[Rank], receivers: &[Rank]) -> Result<(), GenerationError> {
        let Trainer { state, setting, .. } = &mut *self.trainer;
        if receivers.contains(&self.rank) {
            state.step = None;
        }
        let started = Instant::now();
        let num_bytes = sync::transfer(&mut self.plane, state, &setting.layout, holders, receivers)?;
        state.step = Some(step);
        let ms = started.elapsed().as_millis() as u64;
        tracing::info!(generation = self.generation.0, step = step.0, num_bytes, ms, "state moved");
        Ok(())
    }

    fn train(mut self, first: Step) -> Result<Left, GenerationError> {
        let last = Step(self.trainer.setting.plan.num_steps());
        self.store_if_due(first);
        if first < last {
            let (setting, mut buffers) = (self.trainer.setting.clone(), std::mem::take(&mut self.trainer.buffers));
            let mut stepper = Stepper::new(&setting, self.generation, self.rank, self.world, first)?;
            buffers.resize_with(buffers.len().max(stepper.num_buffers()), || self.trainer.new_buffer());
            let left = self.take_steps(&mut stepper, &mut buffers, first, last);
            self.trainer.buffers = buffers;
            if left? == Verdict::ChangeOver {
                return Ok(Left::ForAnother);
            }
        }
        self.finish()
    }

    fn take_steps(
        &mut self,
        stepper: &mut Stepper<'_>,
        buffers: &mut [crate::flat::Flat],
        first: Step,
        last: Step,
    ) -> Result<Verdict, GenerationError> {
        for step in (first.0..last.0).map(Step) {
            let started = Instant::now();
            let done = stepper.take(&mut self.plane, &mut self.trainer.state, step, buffers)?;
            self.report(step.next(), &done, started);
            if self.is_checkpoint_wanted(&done) {
                self.store(step.next());
            } else {
                self.store_if_due(step.next());
            }
            match verdict(self.generation, &done.boundaries) {
                Verdict::GoOn => {}
                other => return Ok(other),
            }
        }
        Ok(Verdict::GoOn)
    }

    fn is_checkpoint_wanted(&mut self, done: &StepDone) -> bool {
        let wanted = done.boundaries.iter().map(|b| b.checkpoints_wanted).max().unwrap_or(0);
        let is_new = wanted > self.checkpoints_wanted;
        self.checkpoints_wanted = self.checkpoints_wanted.max(wanted);
        is_new
    }

    fn report(&self, step: Step, done: &StepDone, started: Instant) {
        let names = self.trainer.setting.plan.sources();
        let tallies = names.iter().zip(&done.tallies).filter(|(_, tally)| tally.num_tokens > 0);
        let sources = tallies.map(|(name, tally)| v1::SourceLoss {
            source: name.clone(),
            loss: tally.loss / tally.num_tokens as f64,
            num_tokens: tally.num_tokens,
        });
        let report = v1::StepReport {
            generation: self.generation.0,
            step: step.0,
            loss: done.loss(),
            sources: sources.collect(),
            grad_norm: done.grad_norm,
            step_ms: started.elapsed().as_millis() as u64,
            sent_bytes: done.sent_bytes,
            received_bytes: done.received_bytes,
            data_wait_ms: done.data_wait.as_millis() as u64,
            num_workers: self.world as u32,
        };
        self.trainer.desk().send(Message::Step(report));
    }

    fn store_if_due(&mut self, step: Step) {
        let every = self.trainer.checkpoint_every_steps;
        if every > 0 && step.0 > 0 && step.0.is_multiple_of(every) {
            self.store(step);
        }
    }

    /// Begins to store the state, unless it is stored already.
    fn store(&mut self, step: Step) {
        if self.newest_checkpoint.is_some_and(|newest| newest >= step) {
            return;
        }
        self.show("snapshot");
        self.newest_checkpoint = Some(step);
        let Trainer { state, setting, checkpointer, .. } = &mut *self.trainer;
        let chunks = stored_by(&setting.layout, self.rank.index(), self.world).collect();
        let share = Share { generation: self.generation, step, chunks, plan: &setting.plan };
        checkpointer.begin(state, share);
    }

    /// Stores the last state and tells its digest.
    fn finish(mut self) -> Result<Left, GenerationError> {
        let step = self.trainer.step();
        self.store(step);
        self.show("storing the last state");
        self.trainer.checkpointer.finish()?;
        let layout = &self.trainer.setting.layout;
        let state_digest = self.trainer.state.digest(step, layout).to_string();
        let finished = v1::Finished { generation: self.generation.0, step: step.0, state_digest };
        self.trainer.desk().send(Message::Finished(finished));
        self.show("waiting for the end of the run");
        Ok(Left::Finished)
    }
}
