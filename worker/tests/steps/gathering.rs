//! Steps with parameters that are gathered block by block.

use polo_recipe::{
    config::{Gather, OnNonFinite},
    ids::{Rank, Step},
};
use polo_worker::{decision::Remedy, step::Trouble};

use crate::{
    arithmetic::{Bad, Kind},
    scene::{Scene, assert_equal_ends, undisturbed},
};

fn gathering(world: usize, copies: usize) -> Scene {
    Scene { gather: Gather::Block, ..Scene::new(world, copies) }
}

#[test]
fn every_world_ends_as_one_rank_does_that_holds_all_parameters() {
    for (world, copies) in [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (5, 2), (8, 1), (8, 8)] {
        let ranks = gathering(world, copies).play();
        for seen in &ranks {
            assert!(seen.error.is_none(), "{world} ranks, {copies} copies: {:?}", seen.error);
        }
        assert_equal_ends(&ranks, &undisturbed(), copies);
    }
}

#[test]
fn a_try_that_is_taken_again_gathers_again() {
    let bad = Some(Bad { step: Step(2), slot: 3, only_on: Some(Rank(1)), kind: Kind::NanGradient });
    let ranks = Scene { on_non_finite: OnNonFinite::Recheck, bad, ..gathering(3, 2) }.play();
    assert_equal_ends(&ranks, &undisturbed(), 2);
    for seen in &ranks {
        let [(_, Trouble::NotFinite { remedy, suspects, .. }), ..] = &seen.troubles[..] else {
            panic!("{:?}", seen.troubles)
        };
        assert_eq!((*remedy, suspects.as_slice()), (Some(Remedy::Recheck), &[Rank(1)][..]));
    }
}
