//! The torch thread: owns every tensor, and takes part in one generation after another.

use std::{sync::Arc, time::Duration};

use polo_proto::v1::{self, session_request::Message};
use polo_recipe::{
    config::{InitialWeights, Recipe},
    ids::{Rank, Step},
};
use polo_store::{Store, StoreError, hf};
use tokio::runtime::Handle;

use crate::{
    checkpointer::Checkpointer,
    desk::Desk,
    flat::Flat,
    generation::{GenerationError, Left, take_part},
    init,
    plane::{AbortHandle, Listener, PlaneError, rendezvous::Timeouts},
    session::{Ending, Event},
    state::TrainState,
    step::Setting,
};

/// Everything that outlives a generation.
pub struct Trainer {
    /// What does not change.
    pub(crate) setting: Arc<Setting>,
    /// The state that is trained.
    pub(crate) state: TrainState,
    /// Full-size gradient buffers, kept from step to step.
    pub(crate) buffers: Vec<Flat>,
    /// The run's store.
    pub(crate) checkpointer: Checkpointer,
    /// Where other ranks call.
    pub(crate) listener: Listener,
    /// How long other ranks are waited for.
    pub(crate) timeouts: Timeouts,
    /// Steps between checkpoints; 0 for none but the last.
    pub(crate) checkpoint_every_steps: u64,
    num_threads: usize,
    seed: u64,
    initial_weights: InitialWeights,
}

impl Trainer {
    /// A trainer that holds no state yet.
    pub fn new(recipe: &Recipe, setting: Setting, store: Store, listener: Listener, runtime: Handle) -> Self {
        let desk = setting.desk.clone();
        Self {
            state: TrainState::empty(&setting.layout, &setting.plan),
            setting: Arc::new(setting),
            buffers: Vec::new(),
            checkpointer: Checkpointer { store, runtime, desk, in_flight: None },
            listener,
            timeouts: Timeouts {
                connect: Duration::from_secs(recipe.workers.connect_timeout_s),
                form: Duration::from_secs(recipe.workers.wait_timeout_s),
                exchange: Duration::from_secs(recipe.workers.exchange_timeout_s),
            },
            checkpoint_every_steps: recipe.checkpoint.every_steps,
            num_threads: recipe.run.threads,
            seed: recipe.run.seed,
            initial_weights: recipe.model.init.clone(),
        }
    }

    /// Takes part in generations until the session ends, and returns how.
    pub fn run(mut self) -> Ending {
        // Holds for the thread that calls it.
        tch::set_num_threads(self.num_threads as i32);
        loop {
            let abort = match AbortHandle::new() {
                Ok(abort) => abort,
                Err(error) => return self.fail(format!("the system gives no event file: {error}"), false),
            };
            let order = match self.desk().next_order(&abort) {
                Ok(order) => order,
                Err(ending) => return ending,
            };
            let outcome = take_part(&mut self, &order, &abort);
            match outcome {
                Ok(Left::ForAnother) => self.desk().handle(Event::Left(order.generation)),
                Ok(Left::Finished) => {}
                Err(error) if error.is_dropped() => self.desk().handle(Event::Left(order.generation)),
                Err(error) => match error.plane() {
                    Some(trouble) => self.report_trouble(&order, trouble),
                    None => return self.fail(error.to_string(), error.ends_run()),
                },
            }
        }
    }

    fn report_trouble(&self, order: &crate::session::Order, trouble: &PlaneError) {
        let suspects = match trouble {
            PlaneError::PeerLost { rank, .. } | PlaneError::Desynchronised { rank, .. } => vec![*rank],
            PlaneError::Timeout { ranks, .. } => ranks.clone(),
            _ => Vec::new(),
        };
        let suspects = suspects.into_iter().map(|Rank(rank)| rank).collect();
        let timed_out = matches!(trouble, PlaneError::Timeout { .. });
        let (generation, reason) = (order.generation.0, trouble.to_string());
        tracing::info!(generation, reason, "the data plane broke");
        self.desk().send(Message::PlaneLost(v1::PlaneLost { generation, suspects, reason, timed_out }));
        self.desk().handle(Event::Left(order.generation));
    }

    fn fail(&self, reason: String, ends_run: bool) -> Ending {
        self.desk().send(Message::Failed(v1::WorkerFailed { reason: reason.clone(), ends_run }));
        self.desk().handle(Event::Failed(reason.clone()));
        Ending::Failed(reason)
    }

    pub(crate) fn desk(&self) -> &Desk {
        &self.setting.desk
    }

    /// Step of the state it holds, 0 if it holds none.
    pub(crate) fn step(&self) -> Step {
        self.state.step.unwrap_or_default()
    }

    pub(crate) fn new_buffer(&self) -> Flat {
        Flat::zeros(self.setting.layout.num_params)
    }

    /// Makes the state of step 0.
    pub(crate) fn initialize(&mut self) -> Result<Step, GenerationError> {
        let (layout, plan) = (self.setting.layout.clone(), self.setting.plan.clone());
        self.state = TrainState::empty(&layout, &plan);
        let params = self.state.params.as_mut_slice();
        match &self.initial_weights {
            InitialWeights::Random => {
                let range = self.setting.model.config().initializer_range;
                init::initialize(params, &layout, range, self.seed);
            }
            InitialWeights::Folder(url) => {
                let folder = Store::open(url).map_err(GenerationError::InitialWeights)?;
                let reading = hf::read_params(&folder, &layout, params);
                self.checkpointer.runtime.block_on(reading).map_err(GenerationError::InitialWeights)?;
            }
        }
        self.state.step = Some(Step(0));
        Ok(Step(0))
    }

    pub(crate) fn load_checkpoint(&mut self, step: Step) -> Result<(), StoreError> {
        let Self { state, setting, checkpointer, .. } = self;
        checkpointer.load(state, step, &setting.layout, &setting.plan)
    }
}
