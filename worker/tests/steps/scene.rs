//! A world of ranks that take steps, and what became of each.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{
    executor::block_on,
    future::{BoxFuture, FutureExt, LocalBoxFuture, join},
};
use polo_recipe::{
    config::{Copies, Gather, OnNonFinite, Recipe, Reduction},
    ids::{Generation, Rank, Step},
    layout::{ChunkId, Layout},
    plan::{Plan, SourceTokens},
};
use polo_worker::{
    arrival::{Arrival, Held, Terms, arrive},
    desk::Desk,
    params::Params,
    plane::{AbortHandle, DataPlane, Lane, PlaneError},
    pool::Pool,
    rig::{Arithmetic, Network},
    session::{Order, Role, Session},
    state::TrainState,
    step::{Bench, Outcome, Setting, StepDone, StepError, Stepper, Trouble, owned_by},
    trace::Trace,
};
use tokio::sync::mpsc::unbounded_channel;

use crate::{
    arithmetic::{Bad, Fake},
    flips::{Flip, Flipping},
    worlds::{PATIENCE, on_all, tcp},
};

/// Steps that a scene takes unless something stops it.
pub const NUM_STEPS: u64 = 4;
/// Steps from one evaluation to the next; not every world divides the seven samples that are evaluated.
pub const VALIDATED_EVERY: u64 = 2;

/// Slots of a step: with three ranks their shares differ in length and in the number of their subtrees.
pub const NUM_SLOTS: usize = 8;

/// Who takes steps, and what goes wrong.
#[derive(Clone)]
pub struct Scene {
    pub world: usize,
    pub copies: Copies,
    pub gather: Gather,
    pub num_steps: u64,
    /// Step at which a second stage begins with moments of its own, if there is one.
    pub reset_at: Option<u64>,
    pub on_non_finite: OnNonFinite,
    pub reduction: Reduction,
    pub bad: Option<Bad>,
    pub flip: Option<Flip>,
    /// Whether a coordinator drops the generation once all ranks have named somebody with certainty.
    pub has_coordinator: bool,
    /// How long an exchange may take.
    pub exchange_timeout: Duration,
}

impl Scene {
    pub fn new(world: usize, copies: usize) -> Self {
        Self {
            world,
            copies: Copies::Number(copies),
            gather: Gather::Step,
            num_steps: NUM_STEPS,
            reset_at: None,
            on_non_finite: OnNonFinite::Stop,
            reduction: Reduction::Exact,
            bad: None,
            flip: None,
            has_coordinator: true,
            exchange_timeout: PATIENCE,
        }
    }

    /// What became of each rank.
    pub fn play(&self) -> Vec<Seen> {
        let planes = tcp(self.world, self.exchange_timeout);
        let coordinator = Coordinator {
            planes: planes.iter().map(|plane| plane.abort_handle()).collect(),
            num_certain: Mutex::new(0),
            is_there: self.has_coordinator,
        };
        let seen = on_all(planes, |plane| {
            let mut plane = Flipping::new(plane, self.flip);
            let seen = block_on(self.member(&mut plane, &coordinator));
            // A plane that is dropped breaks the others' connections.
            (seen, plane)
        });
        seen.into_iter().map(|(seen, _)| seen).collect()
    }

    pub fn setting(&self, layout: Layout) -> Setting {
        let recipe = recipe(self.reset_at);
        let tokens = [SourceTokens { name: "a".into(), num_tokens: 4001 }];
        let (effects, messages) = (unbounded_channel().0, unbounded_channel().0);
        let session = Session::new("nobody:1".into(), PATIENCE, 0);
        Setting {
            trace: Trace::default(),
            layout: Arc::new(layout),
            plan: Arc::new(Plan::new(&recipe, &tokens).expect("a plan")),
            batch: recipe.batch,
            max_grad_norm: recipe.optimizer.max_grad_norm,
            on_non_finite: self.on_non_finite,
            reduction: self.reduction,
            copies: self.copies,
            bytes_per_token: Vec::new(),
            desk: Arc::new(Desk::new(session, effects, messages)),
        }
    }

    async fn member(&self, plane: &mut Flipping, coordinator: &Coordinator) -> Seen {
        let setting = self.setting(layout());
        let order = self.order(plane.rank());
        let arrival = self.arrival(&setting);
        let mut arithmetic = Fake::new(plane.rank(), self.bad);
        let mut seen = Seen {
            state: first_state(&setting, self.gather, owned_by(&arrival.owners, plane.rank()), &mut arithmetic).await,
            done: Vec::new(),
            troubles: Vec::new(),
            losses: Vec::new(),
            num_tries: 0,
            error: None,
        };
        let stepper = Stepper::new(&setting, &order, &arrival);
        seen.error = seen.take_steps(self.num_steps, stepper, plane, &mut arithmetic, coordinator).await.err();
        seen
    }

    /// Who owns each chunk.
    pub fn owners(&self) -> Vec<Vec<Rank>> {
        self.arrival(&self.setting(layout())).owners
    }

    pub fn order(&self, rank: Rank) -> Order {
        Order {
            generation: Generation(1),
            rank: rank.0,
            peers: Vec::new(),
            roles: vec![Role::Member; self.world],
            secret: [0; 32],
            checkpoint: None,
        }
    }

    fn arrival(&self, setting: &Setting) -> Arrival {
        let lens: Vec<_> = setting.layout.chunks.iter().map(|c| c.range.len()).collect();
        let nothing = Held { chunks: vec![false; lens.len()], summed: vec![false; lens.len()], ..Held::default() };
        let terms = Terms {
            num_members: self.world,
            checkpoint: None,
            chunk_lens: &lens,
            copies: self.copies,
            gather: self.gather,
        };
        arrive(&vec![nothing; self.world], terms)
    }
}

/// Drops the generation when every rank has named the same one.
struct Coordinator {
    planes: Vec<AbortHandle>,
    num_certain: Mutex<usize>,
    is_there: bool,
}

impl Coordinator {
    fn hear(&self, trouble: &Trouble) {
        if matches!(trouble, Trouble::CopiesDiffer { is_certain: true, .. }) {
            let mut num_certain = self.num_certain.lock().expect("no panic");
            *num_certain += 1;
            if self.is_there && *num_certain == self.planes.len() {
                self.planes.iter().for_each(AbortHandle::abort);
            }
        }
    }
}

/// A chunk's number, and its stored form.
type ChunkBits = (u32, Vec<u8>);

/// Runs two things on one thread.
pub struct SideBySide;

impl Network for SideBySide {
    fn form<'a>(
        &'a self,
        _: &'a Order,
        _: Lane,
        _: &'a AbortHandle,
    ) -> BoxFuture<'a, Result<Box<dyn DataPlane>, PlaneError>> {
        async { unreachable!("the planes are there") }.boxed()
    }

    fn together<'a>(&'a self, main: LocalBoxFuture<'a, ()>, side: BoxFuture<'a, ()>) -> LocalBoxFuture<'a, ()> {
        join(main, side).map(drop).boxed_local()
    }
}

/// Of an evaluated state, by validation set, as bits.
pub type Losses = (Step, Vec<u64>);

/// What ranks find of held-out samples, if this state is evaluated.
pub async fn evaluate_if_due(
    stepper: &Stepper<'_>,
    bench: &mut Bench<'_>,
    step: Step,
) -> Result<Option<Losses>, StepError> {
    if !step.0.is_multiple_of(VALIDATED_EVERY) {
        return Ok(None);
    }
    let losses = stepper.evaluate(bench, step).await?;
    Ok(Some((step, losses.into_iter().map(f64::to_bits).collect())))
}

/// What became of a rank.
pub struct Seen {
    pub state: TrainState,
    pub done: Vec<StepDone>,
    pub troubles: Vec<(Step, Trouble)>,
    /// Of held-out samples.
    pub losses: Vec<Losses>,
    /// Of all its steps.
    pub num_tries: usize,
    /// Why it took no more steps.
    pub error: Option<StepError>,
}

impl Seen {
    /// What a worker does with its steps.
    async fn take_steps(
        &mut self,
        num_steps: u64,
        mut stepper: Stepper<'_>,
        plane: &mut Flipping,
        arithmetic: &mut Fake,
        coordinator: &Coordinator,
    ) -> Result<(), StepError> {
        let mut pool = Pool::default();
        arithmetic.begin(stepper.work(Step(0)))?;
        let state = &mut self.state;
        let mut bench = Bench { plane, state, pool: &mut pool, arithmetic, network: &SideBySide };
        self.losses.extend(evaluate_if_due(&stepper, &mut bench, Step(0)).await?);
        for step in (0..num_steps).map(Step) {
            loop {
                plane.begin_try(step);
                self.num_tries += 1;
                let troubles = Mutex::new(&mut self.troubles);
                let note = |trouble: Trouble| {
                    troubles.lock().expect("no panic").push((step, trouble.clone()));
                    coordinator.hear(&trouble);
                };
                let state = &mut self.state;
                let mut bench = Bench { plane, state, pool: &mut pool, arithmetic, network: &SideBySide };
                match stepper.take(&mut bench, step, None, &note).await? {
                    Outcome::Done(done) => break self.done.push(done),
                    Outcome::Again(attempt) => stepper.try_again(attempt),
                }
                arithmetic.begin(stepper.work(step))?;
            }
            let state = &mut self.state;
            let mut bench = Bench { plane, state, pool: &mut pool, arithmetic, network: &SideBySide };
            self.losses.extend(evaluate_if_due(&stepper, &mut bench, step.next()).await?);
        }
        Ok(())
    }

    /// Tokens that went in.
    pub fn num_tokens(&self) -> u64 {
        self.state.ledger.encode().as_chunks::<8>().0.iter().map(|count| u64::from_le_bytes(*count)).sum()
    }

    /// The bits of parameters and moments of the chunks that are held.
    pub fn chunks(&self) -> Vec<ChunkBits> {
        let layout = layout();
        let held = layout.chunks.iter().filter_map(|chunk| Some((chunk.id.0, self.state.chunk_bytes(chunk)?)));
        held.collect()
    }

    /// The bits of the parameters, where all are held.
    pub fn all_params(&self) -> Option<Vec<u32>> {
        let Params::Whole(all) = &self.state.params else { return None };
        assert!(self.state.params_complete);
        Some(all.as_slice().iter().map(|x| x.to_bits()).collect())
    }
}

/// All ranks are at the end of `undisturbed`, a world of one, and hold together every chunk `copies` times.
pub fn assert_equal_ends(ranks: &[Seen], undisturbed: &Seen, copies: usize) {
    let chunks = undisturbed.chunks();
    let mut num_held = vec![0; chunks.len()];
    for (rank, seen) in ranks.iter().enumerate() {
        assert_eq!(seen.state.step, undisturbed.state.step, "rank {rank}");
        let params = seen.all_params();
        assert!(params.is_none() || params == undisturbed.all_params(), "rank {rank} has other parameters");
        assert_eq!(seen.state.ledger, undisturbed.state.ledger, "rank {rank}");
        assert_eq!(seen.losses, undisturbed.losses, "rank {rank} evaluates held-out samples otherwise");
        for chunk in seen.chunks() {
            num_held[chunk.0 as usize] += 1;
            assert!(chunks[chunk.0 as usize] == chunk, "rank {rank} has another chunk {}", chunk.0);
        }
    }
    assert_eq!(num_held, vec![copies; chunks.len()]);
}

/// The result that does not depend on the world.
pub fn undisturbed() -> Seen {
    let mut seen = Scene::new(1, 1).play();
    assert_eq!(seen[0].state.step, Some(Step(NUM_STEPS)), "{:?}", seen[0].error);
    seen.remove(0)
}

pub fn layout() -> Layout {
    Layout::with_chunk_params(&recipe(None).model.qwen2, 32)
}

/// The state of step 0 of a rank that owns those chunks.
pub async fn first_state(setting: &Setting, gather: Gather, owned: Vec<ChunkId>, arithmetic: &mut Fake) -> TrainState {
    let mut state = TrainState::empty(&setting.layout, &setting.plan, gather);
    state.make_first(&owned, &setting.layout, &setting.plan, arithmetic).await.expect("parameters");
    state
}

fn recipe(reset_at: Option<u64>) -> Recipe {
    let stage = |name: &str, num_steps: u64| {
        format!(
            r#"
        [[stages]]
        name = "{name}"
        steps = {num_steps}
        optimizer_state = "reset"
        schedule = {{ kind = "constant", peak_learning_rate = 1e-2 }}
        sources = [{{ name = "a", weight_tokens = 1 }}]
        "#
        )
    };
    let stages = match reset_at {
        None => stage("only", NUM_STEPS),
        Some(at) => stage("first", at) + &stage("second", NUM_STEPS - at),
    };
    let text = format!(
        r#"
        [run]
        name = "steps"
        store = "memory://steps/run"
        seed = 1
        [model.qwen2]
        hidden_size = 4
        num_hidden_layers = 4
        num_attention_heads = 2
        num_key_value_heads = 1
        intermediate_size = 4
        vocab_size = 8
        tie_word_embeddings = true
        [corpus]
        url = "memory://steps/corpus"
        allow_repeats = true
        [batch]
        seq_len = 4
        samples_per_step = {samples_per_step}
        slots = {NUM_SLOTS}
        [validation]
        every_steps = {VALIDATED_EVERY}
        samples_per_source = 7
        {stages}
        "#,
        samples_per_step = 2 * NUM_SLOTS,
    );
    Recipe::resolve(&text, std::iter::empty(), &[], |_| Err("no files here".into())).expect("a recipe")
}
