//! Stages that begin with moments of their own.

use polo_recipe::{
    config::{Copies, OnNonFinite},
    ids::Step,
};

use crate::{
    arithmetic::{Bad, Kind},
    scene::{Scene, Seen, assert_equal_ends, undisturbed},
};

const RESET_AT: u64 = 2;

fn alone() -> Scene {
    Scene { reset_at: Some(RESET_AT), ..Scene::new(1, 1) }
}

/// The bits of all moments.
fn moments(seen: &Seen) -> Vec<u32> {
    let vectors = seen.state.moments.values().flat_map(|m| [m.exp_avg.as_slice(), m.exp_avg_sq.as_slice()]);
    vectors.flatten().map(|x| x.to_bits()).collect()
}

#[test]
fn moments_begin_as_zeros_in_every_world() {
    let alone = alone().play().remove(0);
    assert_ne!(alone.chunks(), undisturbed().chunks(), "moments are not carried over");
    for (world, copies) in [(2, 1), (3, 2), (5, 3)] {
        let scene = Scene { world, copies: Copies::Number(copies), ..self::alone() };
        assert_equal_ends(&scene.play(), &alone, copies);
    }
}

#[test]
fn the_state_before_is_what_it_would_be_without() {
    let end_after = |reset_at| Scene { num_steps: RESET_AT, reset_at, ..Scene::new(1, 1) }.play().remove(0);
    assert_eq!(end_after(Some(RESET_AT)).chunks(), end_after(None).chunks());
}

#[test]
fn they_begin_as_zeros_where_the_stages_first_update_is_skipped() {
    let bad = Some(Bad { step: Step(RESET_AT), slot: 3, only_on: None, kind: Kind::NanGradient });
    let scene = |num_steps| Scene { num_steps, bad, on_non_finite: OnNonFinite::Skip, ..alone() };
    let before = scene(RESET_AT).play().remove(0);
    let skipped = scene(RESET_AT + 1).play().remove(0);
    assert!(moments(&before).iter().any(|bits| *bits != 0));
    assert!(moments(&skipped).iter().all(|bits| *bits == 0));
    assert_eq!(before.all_params(), skipped.all_params());
}
