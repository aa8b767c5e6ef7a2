//! A rank that joins while the others take a step.

use std::sync::{Arc, Mutex};

use futures::{executor::block_on, future::BoxFuture};
use polo_recipe::{
    config::Gather,
    ids::{Generation, Rank, Step},
    layout::ChunkId,
};
use polo_worker::{
    arrival::{Arrival, Held, Terms, arrive},
    plane::{AbortHandle, DataPlane, PlaneError, Transfer},
    pool::Pool,
    rig::Arithmetic,
    state::TrainState,
    step::{Background, Bench, Outcome, Setting, Stepper},
};

use crate::{
    arithmetic::Fake,
    scene::{NUM_STEPS, Scene, Seen, SideBySide, assert_equal_ends, evaluate_if_due, first_state, layout, undisturbed},
    worlds::{PATIENCE, on_all, tcp},
};

const COPIES: usize = 2;
const JOINER: Rank = Rank(2);

/// Which of a rank's planes was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Used {
    State,
    Steps,
}

/// A plane that notes when it is used.
struct Noting {
    inner: Box<dyn DataPlane>,
    what: Used,
    log: Arc<Mutex<Vec<Used>>>,
}

impl DataPlane for Noting {
    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn world(&self) -> usize {
        self.inner.world()
    }

    fn generation(&self) -> Generation {
        self.inner.generation()
    }

    fn exchange<'a>(&'a mut self, group: &'a mut [Transfer<'_>]) -> BoxFuture<'a, Result<(), PlaneError>> {
        self.log.lock().expect("no panic").push(self.what);
        self.inner.exchange(group)
    }

    fn abort_handle(&self) -> AbortHandle {
        self.inner.abort_handle()
    }
}

/// Ranks 0 and 1 hold everything, the joiner nothing.
fn arrival(setting: &Setting) -> Arrival {
    let lens: Vec<_> = setting.layout.chunks.iter().map(|c| c.range.len()).collect();
    let holds = |chunks, step| Held {
        step,
        params_complete: step.is_some(),
        chunks: vec![chunks; lens.len()],
        summed: vec![false; lens.len()],
        ..Held::default()
    };
    let held = [holds(true, Some(Step(0))), holds(true, Some(Step(0))), holds(false, None)];
    arrive(
        &held,
        Terms { num_members: 3, checkpoint: None, chunk_lens: &lens, copies: setting.copies, gather: Gather::Step },
    )
}

async fn member(scene: &Scene, mut plane: Noting, mut state_plane: Noting) -> Seen {
    let (setting, rank) = (scene.setting(layout()), plane.rank());
    let arrival = arrival(&setting);
    let (mut arithmetic, mut pool) = (Fake::new(rank, None), Pool::default());
    let all = (0..setting.layout.chunks.len() as u32).map(ChunkId).collect();
    let mut state = match rank {
        JOINER => TrainState::empty(&setting.layout, &setting.plan, Gather::Step),
        _ => first_state(&setting, Gather::Step, all, &mut arithmetic).await,
    };
    let order = scene.order(rank);
    let mut stepper = Stepper::new(&setting, &order, &arrival);
    arithmetic.begin(stepper.work(Step(0))).expect("no loader");
    let (mut done, mut losses) = (Vec::new(), Vec::new());
    for step in (0..NUM_STEPS).map(Step) {
        let (plane, state, pool, arithmetic) = (&mut plane, &mut state, &mut pool, &mut arithmetic);
        let log = plane.log.clone();
        let mut bench = Bench { plane, state, pool, arithmetic, network: &SideBySide };
        losses.extend(evaluate_if_due(&stepper, &mut bench, step).await.expect("losses"));
        if step == Step(0) {
            log.lock().expect("no panic").clear();
        }
        let background = (step == Step(0)).then(|| Background { moves: &arrival.moves, plane: &mut state_plane });
        let outcome = stepper.take(&mut bench, step, background, &|trouble| panic!("{trouble:?}")).await;
        let Ok(Outcome::Done(taken)) = outcome else { panic!("rank {rank} did not take step {step}") };
        done.push(taken);
    }
    let (plane, pool, network) = (&mut plane, &mut pool, &SideBySide);
    let mut bench = Bench { plane, state: &mut state, pool, arithmetic: &mut arithmetic, network };
    losses.extend(evaluate_if_due(&stepper, &mut bench, Step(NUM_STEPS)).await.expect("losses"));
    Seen { state, done, troubles: Vec::new(), losses, num_tries: NUM_STEPS as usize, error: None }
}

#[test]
fn a_joiner_ends_like_all_others() {
    let scene = Scene::new(3, COPIES);
    let planes: Vec<_> = tcp(3, PATIENCE).into_iter().zip(tcp(3, PATIENCE)).collect();
    let (seen, logs): (Vec<_>, Vec<_>) = on_all(planes, |(plane, state_plane)| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let noting = |inner, what| Noting { inner, what, log: log.clone() };
        let seen = block_on(member(&scene, noting(plane, Used::Steps), noting(state_plane, Used::State)));
        let log = log.lock().expect("no panic").clone();
        (seen, log)
    })
    .into_iter()
    .unzip();
    assert_equal_ends(&seen, &undisturbed(), COPIES);
    assert_eq!(seen.iter().map(|seen| seen.done[0].num_slots).collect::<Vec<_>>(), [4, 4, 0]);
    // Ranks that used one plane while others waited on the other would wait for each other.
    for log in logs {
        let num_moves = log.iter().filter(|used| **used == Used::State).count();
        assert!(num_moves > 0 && log[..num_moves].iter().all(|used| *used == Used::State), "{log:?}");
    }
}
