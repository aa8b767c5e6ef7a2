//! Steps whose gradients are summed by the plane's all-reduce: what the exact reduction gives, up to rounding.

use polo_recipe::{
    config::{Gather, Reduction},
    ids::Step,
};

use crate::scene::{NUM_STEPS, Scene, layout, undisturbed};

#[test]
fn every_world_ends_near_the_exact_state_and_owners_agree() {
    let exact = undisturbed();
    for (world, copies, gather) in
        [(1, 1, Gather::Step), (2, 2, Gather::Step), (3, 1, Gather::Block), (3, 2, Gather::Step), (5, 2, Gather::Block)]
    {
        let ranks = Scene { reduction: Reduction::Nccl, gather, ..Scene::new(world, copies) }.play();
        for seen in &ranks {
            assert!(
                seen.error.is_none() && seen.troubles.is_empty(),
                "{world} ranks: {:?} {:?}",
                seen.error,
                seen.troubles
            );
            assert_eq!(seen.state.step, Some(Step(NUM_STEPS)));
        }
        let mut num_compared = 0;
        for chunk in &layout().chunks {
            let expected = exact.state.params.chunk(chunk).expect("all are there");
            for found in ranks.iter().filter_map(|seen| seen.state.params.chunk(chunk)) {
                let near = |(found, expected): (&f32, &f32)| (found - expected).abs() <= 1e-5 * expected.abs().max(1.0);
                assert!(found.iter().zip(expected).all(near), "{world} ranks, chunk {}", chunk.id.0);
                num_compared += 1;
            }
        }
        assert!(num_compared >= layout().chunks.len());
    }
}
