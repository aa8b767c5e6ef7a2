//! What a rank holds.

use polo_recipe::config::{Copies, Gather};

use crate::scene::{Scene, layout};

/// Bytes of an fp32 number.
const NUM_BYTES: u64 = 4;

#[test]
fn moments_take_copies_of_world_of_what_they_take_on_one_rank() {
    let layout = layout();
    let num_params = layout.num_params as u64;
    let longest = layout.chunks.iter().map(|c| c.range.len()).max().expect("a chunk") as u64;
    let worlds = |copies, num_copies: fn(usize) -> usize| [1, 2, 4, 8].map(|world| (copies, world, num_copies(world)));
    let scenes =
        [worlds(Copies::Number(1), |_| 1), worlds(Copies::Number(2), |world| world.min(2)), worlds(Copies::All, |w| w)];
    for (copies, world, num_copies) in scenes.into_iter().flatten() {
        let ranks = Scene { copies, ..Scene::new(world, 1) }.play();
        let moments: Vec<_> = ranks.iter().map(|seen| seen.state.num_bytes() - NUM_BYTES * num_params).collect();
        let num_copies = num_copies as u64;
        assert_eq!(moments.iter().sum::<u64>(), 2 * NUM_BYTES * num_params * num_copies, "{copies:?}, {world} ranks");
        let share = 2 * NUM_BYTES * num_params * num_copies / world as u64;
        let most = moments.iter().copied().max().unwrap_or(0);
        println!("copies {copies:?}, {world} ranks: at most {most} bytes of moments, {share} would be even");
        assert!(most <= share + 2 * NUM_BYTES * longest, "{copies:?}, {world} ranks: {moments:?}, not {share}");
    }
}

#[test]
fn where_blocks_are_gathered_parameters_too_take_copies_of_world_between_steps() {
    let num_params = layout().num_params as u64;
    for (world, copies) in [(1, 1), (2, 1), (4, 1), (4, 2)] {
        let mut ranks = Scene { gather: Gather::Block, ..Scene::new(world, copies) }.play();
        let held: u64 = ranks.iter().map(|seen| seen.state.num_bytes()).sum();
        assert_eq!(held, 3 * NUM_BYTES * num_params * copies as u64, "{world} ranks, {copies} copies");
        ranks.iter_mut().for_each(|seen| seen.state.clear());
        assert!(ranks.iter().all(|seen| seen.state.num_bytes() == 0), "what is let go of takes no memory");
    }
}
