//! Owners of a chunk whose sums differ.

use std::time::Duration;

use polo_recipe::{
    ids::{Rank, Step},
    layout::ChunkId,
};
use polo_worker::{
    plane::PlaneError,
    step::{StepError, Trouble, owned_by},
};

use crate::{
    flips::Flip,
    scene::{NUM_STEPS, Scene, Seen, assert_equal_ends, layout, undisturbed},
};

const STEP: Step = Step(2);
const ODD: Rank = Rank(1);

fn flipping(world: usize, copies: usize, num_tries: usize) -> Scene {
    Scene { flip: Some(Flip { on: ODD, step: STEP, num_tries, wanders: false }), ..Scene::new(world, copies) }
}

/// Whom a rank suspected, and whether for certain.
fn said(seen: &Seen) -> Vec<(Step, Vec<Rank>, bool)> {
    let one = |(step, trouble): &(Step, Trouble)| match trouble {
        Trouble::CopiesDiffer { suspects, is_certain, .. } => (*step, suspects.clone(), *is_certain),
        other => panic!("{other:?}"),
    };
    seen.troubles.iter().map(one).collect()
}

/// Nobody has applied anything of the step in which bits flipped.
fn assert_nothing_of_the_step_is_applied(ranks: &[Seen], before: &Seen, copies: usize) {
    assert_eq!(before.state.step, Some(STEP));
    assert_equal_ends(ranks, before, copies);
}

/// The undisturbed result of the steps before the one in which bits flip.
fn before() -> Seen {
    Scene { num_steps: STEP.0, ..Scene::new(1, 1) }.play().remove(0)
}

#[test]
fn a_bit_that_flips_once_costs_one_more_try_and_nobody_is_blamed_for_certain() {
    let ranks = flipping(3, 2, 1).play();
    assert_equal_ends(&ranks, &undisturbed(), 2);
    for seen in &ranks {
        let [(step, suspects, is_certain)] = &said(seen)[..] else { panic!("{:?}", seen.troubles) };
        assert_eq!((*step, suspects.len(), *is_certain), (STEP, 2, false));
        assert!(suspects.contains(&ODD));
        assert_eq!(seen.num_tries, NUM_STEPS as usize + 1);
    }
}

#[test]
fn every_owner_of_a_chunk_is_suspected_until_a_witness_has_summed_it_too() {
    let ranks = flipping(3, 2, usize::MAX).play();
    for seen in &ranks {
        let [first, second] = &said(seen)[..] else { panic!("{:?}", seen.troubles) };
        assert_eq!((first.1.len(), first.2), (2, false));
        assert_eq!(*second, (STEP, vec![ODD], true));
        assert!(matches!(seen.error, Some(StepError::Plane(PlaneError::Aborted))), "{:?}", seen.error);
    }
    assert_nothing_of_the_step_is_applied(&ranks, &before(), 2);
}

#[test]
fn the_odd_one_is_found_also_where_another_chunk_comes_out_wrong_each_time() {
    let mut scene = flipping(3, 2, usize::MAX);
    scene.flip = scene.flip.map(|flip| Flip { wanders: true, ..flip });
    let ranks = scene.play();
    for seen in &ranks {
        let [(_, first), (_, second)] = &seen.troubles[..] else { panic!("{:?}", seen.troubles) };
        let Trouble::CopiesDiffer { chunk: first, .. } = first else { panic!("{first:?}") };
        let Trouble::CopiesDiffer { chunk: second, suspects, is_certain } = second else { panic!("{second:?}") };
        assert_ne!(first, second);
        assert_eq!((suspects.as_slice(), *is_certain), (&[ODD][..], true));
    }
    assert_nothing_of_the_step_is_applied(&ranks, &before(), 2);
}

#[test]
fn of_three_copies_the_odd_one_is_named_at_once() {
    let ranks = flipping(4, 3, usize::MAX).play();
    for seen in &ranks {
        assert_eq!(said(seen), [(STEP, vec![ODD], true)]);
        assert!(matches!(seen.error, Some(StepError::Plane(PlaneError::Aborted))), "{:?}", seen.error);
    }
    assert_nothing_of_the_step_is_applied(&ranks, &before(), 3);
}

#[test]
fn without_a_coordinator_the_wait_for_the_eviction_is_bounded_and_all_blame_the_odd_one() {
    let exchange_timeout = Duration::from_millis(300);
    let ranks = Scene { has_coordinator: false, exchange_timeout, ..flipping(3, 3, usize::MAX) }.play();
    for seen in &ranks {
        let Some(StepError::Plane(PlaneError::Timeout { ranks, .. })) = &seen.error else { panic!("{:?}", seen.error) };
        assert_eq!(*ranks, [ODD]);
    }
    assert_nothing_of_the_step_is_applied(&ranks, &before(), 3);
}

#[test]
fn of_two_ranks_it_cannot_be_told_who_is_wrong_and_the_third_time_is_an_error_that_names_both() {
    let ranks = flipping(2, 2, usize::MAX).play();
    let both = vec![Rank(0), Rank(1)];
    for seen in &ranks {
        assert_eq!(said(seen), vec![(STEP, both.clone(), false); 3]);
        let Some(StepError::CopiesDiffer { step, suspects, num_times, .. }) = &seen.error else {
            panic!("{:?}", seen.error)
        };
        assert_eq!((*step, suspects, *num_times), (STEP, &both, 3));
    }
    assert_nothing_of_the_step_is_applied(&ranks, &before(), 2);
}

#[test]
fn the_chunk_that_is_named_is_the_one_in_which_the_bit_flipped() {
    let scene = flipping(4, 2, 1);
    // Blocks are reduced from the last to the first.
    let (owned, chunks) = (owned_by(&scene.owners(), ODD), layout().chunks);
    let block = |chunk: &ChunkId| chunks[chunk.0 as usize].block;
    let last = owned.iter().map(block).max();
    let damaged = owned.iter().copied().find(|chunk| Some(block(chunk)) == last).expect("a chunk of its own");
    let ranks = scene.play();
    assert_equal_ends(&ranks, &undisturbed(), 2);
    for (_, trouble) in ranks.iter().flat_map(|seen| &seen.troubles) {
        assert!(matches!(trouble, Trouble::CopiesDiffer { chunk, .. } if *chunk == damaged), "{trouble:?}");
    }
}
