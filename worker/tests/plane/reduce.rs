//! The exact reduction: one result for all worlds, to the bit.

use std::ops::Range;

use futures::executor::block_on;
use polo_recipe::ids::Rank;
use polo_recipe::ownership::assign_owners;
use polo_recipe::slots::{SumPlan, assign, split};
use polo_worker::{
    flat::{
        Flat,
        ops::{add_assign, chunk_square_norm},
    },
    reduce::{Cuts, ExactReduce, Sums, Traffic, hand_out},
};
use proptest::prelude::*;

use crate::worlds::{PATIENCE, on_all, tcp};

/// A step's work: the gradient of each slot, and the chunks of the flat vector.
#[derive(Debug, Clone)]
struct Work {
    gradients: Vec<Vec<f32>>,
    chunks: Vec<Range<usize>>,
    scratch_params: usize,
}

/// Everything but NaN: zeros, denormals, ordinary numbers, the largest ones and infinities.
fn value() -> impl Strategy<Value = f32> {
    use prop::num::f32::{INFINITE, NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    prop_oneof![
        8 => -1.0f32..1.0,
        2 => SUBNORMAL | POSITIVE | NEGATIVE,
        2 => NORMAL | POSITIVE | NEGATIVE,
        1 => ZERO | POSITIVE | NEGATIVE,
        1 => Just(f32::MAX),
        1 => INFINITE | POSITIVE,
    ]
}

impl Work {
    /// Each of some chunks.
    fn blocks(&self) -> Vec<Range<usize>> {
        const MOST_CHUNKS: usize = 3;
        self.chunks.chunks(MOST_CHUNKS).map(|chunks| chunks[0].start..chunks[chunks.len() - 1].end).collect()
    }
}

fn work() -> impl Strategy<Value = Work> {
    let slots = prop::sample::select(vec![1usize, 2, 3, 5, 6, 7, 8, 12]);
    (slots, prop::collection::vec(1usize..90, 1..9), 1usize..400).prop_flat_map(|(slots, lens, scratch_params)| {
        let chunks: Vec<_> = lens
            .iter()
            .scan(0, |end, len| {
                Some(
                    *end..{
                        *end += len;
                        *end
                    },
                )
            })
            .collect();
        let num_params = lens.iter().sum::<usize>();
        let gradient = prop::collection::vec(value(), num_params);
        prop::collection::vec(gradient, slots).prop_map(move |gradients| Work {
            gradients,
            chunks: chunks.clone(),
            scratch_params,
        })
    })
}

/// The definition, written without any of the code under test but the tree.
fn tree_sum(gradients: &[Vec<f32>], node: Range<usize>) -> Vec<f32> {
    let Some(mid) = split(&node) else { return gradients[node.start].clone() };
    let (left, right) = (tree_sum(gradients, node.start..mid), tree_sum(gradients, mid..node.end));
    left.iter().zip(&right).map(|(left, right)| left + right).collect()
}

/// Who takes part in a reduction, and how.
struct World {
    /// By rank.
    shares: Vec<Range<usize>>,
    owners: Vec<Vec<Rank>>,
}

impl World {
    /// All of `world` ranks compute and own.
    fn usual(work: &Work, world: usize, copies: usize) -> Self {
        Self {
            shares: assign(work.gradients.len(), world).expect("a rank for each"),
            owners: owners(work, world, copies),
        }
    }
}

fn owners(work: &Work, world: usize, copies: usize) -> Vec<Vec<Rank>> {
    let lens: Vec<_> = work.chunks.iter().map(Range::len).collect();
    assign_owners(&lens, &vec![Vec::new(); lens.len()], world, copies)
}

/// Sums by chunk.
type Totals = Vec<(usize, Vec<f32>)>;

/// What the trainer does on a rank: sums its slots by the plan, then reduces. Returns the totals of the chunks that each
/// rank owns, by chunk.
fn train_step(work: &Work, world: &World) -> Vec<(Totals, Traffic)> {
    let slots = work.gradients.len();
    let num_params = work.chunks.last().map_or(0, |chunk| chunk.end);
    on_all(tcp(world.shares.len(), PATIENCE), |mut plane| {
        let plan = SumPlan::new(slots, &world.shares[plane.rank().index()]);
        let mut buffers = vec![vec![0.0; num_params]; plan.num_buffers.max(1)];
        for step in &plan.steps {
            buffers[step.buffer] = work.gradients[step.slot].clone();
            for merge in &step.merges {
                let [into, from] = buffers.get_disjoint_mut([merge.into, merge.from]).expect("two buffers");
                add_assign(into, from);
            }
        }
        let cuts = Cuts { blocks: work.blocks(), chunks: work.chunks.clone() };
        let mut reduce = ExactReduce::new(slots, &world.shares, cuts, world.owners.clone(), plane.rank());
        reduce.set_scratch_params(work.scratch_params);
        let (mut sums, mut traffic) = (Sums::new(), Traffic::default());
        for (number, block) in work.blocks().iter().enumerate().rev() {
            let piece = |buffer: &Vec<f32>| Flat::from(buffer[block.clone()].to_vec());
            let pieces: Vec<_> = buffers[..plan.pieces.len()].iter().map(piece).collect();
            traffic += block_on(reduce.run(&mut *plane, number, &pieces, &mut sums)).expect("a reduction");
        }
        let totals = sums.into_iter().map(|(chunk, total)| (chunk.0 as usize, total.as_slice().to_vec()));
        (totals.collect(), traffic)
    })
}

fn assert_defined(work: &Work, world: &World) {
    let expected = tree_sum(&work.gradients, 0..work.gradients.len());
    let mut num_totals = vec![0; work.chunks.len()];
    for (chunk, total) in train_step(work, world).into_iter().flat_map(|(totals, _)| totals) {
        assert_eq!(bits(&total), bits(&expected[work.chunks[chunk].clone()]), "chunk {chunk}");
        num_totals[chunk] += 1;
    }
    assert_eq!(num_totals, world.owners.iter().map(Vec::len).collect::<Vec<_>>(), "every owner has its total");
}

/// The bits, with one NaN for all: an operation's NaN is a NaN, but its bits are not part of any promise.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn every_world_has_the_bits_of_the_definition(work in work(), copies in 1usize..4) {
        for world in 1..=work.gradients.len() {
            assert_defined(&work, &World::usual(&work, world, copies));
        }
    }

    #[test]
    fn who_computes_need_not_own_and_slots_may_be_passed_on(work in work(), rotation in 0usize..4, copies in 1usize..4) {
        // Rank 1 is new and has no slots yet.
        let computing: Vec<usize> = [0, 2, 3].into_iter().take(work.gradients.len()).collect();
        let assigned = assign(work.gradients.len(), computing.len()).expect("a rank for each");
        let mut shares = vec![0..0; 4];
        for (place, rank) in computing.iter().enumerate() {
            shares[*rank] = assigned[(place + rotation) % computing.len()].clone();
        }
        assert_defined(&work, &World { shares, owners: owners(&work, 4, copies) });
    }
}

#[test]
fn the_order_of_summation_shows_in_the_bits() {
    let gradients: Vec<_> = [1.0, 1e8, -1e8, 1.0].map(|x: f32| vec![x]).to_vec();
    assert_eq!(gradients.iter().flatten().sum::<f32>(), 1.0);
    assert_eq!(tree_sum(&gradients, 0..4), [0.0]);
    let work = Work { gradients, chunks: vec![0..1; 1], scratch_params: 1 };
    for world in 1..=4 {
        assert_defined(&work, &World::usual(&work, world, 1));
    }
}

#[test]
fn chunks_longer_than_the_blocks_of_the_sum_have_the_bits_of_the_definition() {
    let value = |slot: usize, at: usize| ((slot * 7919 + at * 104_729) as f32).sin();
    let gradients: Vec<Vec<_>> = (0..5).map(|slot| (0..13_001).map(|at| value(slot, at)).collect()).collect();
    for scratch_params in [20_000, 1 << 20] {
        let work = Work { gradients: gradients.clone(), chunks: vec![0..9000, 9000..13_001], scratch_params };
        for world in 1..=5 {
            assert_defined(&work, &World::usual(&work, world, 2));
        }
    }
}

/// ARCHITECTURE.md's formulas for a step with P parameters, W workers, c copies, and p subtree sums on each rank.
#[test]
fn traffic_is_that_of_the_formulas() {
    const NUM_CHUNKS: usize = 48;
    const CHUNK_PARAMS: usize = 100;
    let num_params = (NUM_CHUNKS * CHUNK_PARAMS) as f64;
    let gradients = vec![vec![1.0; NUM_CHUNKS * CHUNK_PARAMS]; 8];
    let chunks: Vec<_> = (0..NUM_CHUNKS).map(|i| i * CHUNK_PARAMS..(i + 1) * CHUNK_PARAMS).collect();
    let work = Work { gradients, chunks: chunks.clone(), scratch_params: 1 << 20 };
    for (num_ranks, copies) in [(2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (8, 1), (8, 3)] {
        let world = World::usual(&work, num_ranks, copies);
        let (w, c) = (num_ranks as f64, copies as f64);
        let (pieces, params) = (4.0 * num_params * c * (w - 1.0) / w, 4.0 * num_params * (w - c) / w);
        let reduced = train_step(&work, &world);
        let receivers: Vec<_> = (0..num_ranks as u32).map(Rank).collect();
        let handed_out = on_all(tcp(num_ranks, PATIENCE), |mut plane| {
            let mut params = vec![0.0; NUM_CHUNKS * CHUNK_PARAMS];
            block_on(hand_out(&mut *plane, &chunks, &world.owners, &receivers, &mut params)).expect("handed out")
        });
        for (reduced, handed_out) in reduced.iter().map(|(_, traffic)| traffic).zip(handed_out) {
            for (moved, expected) in [
                (reduced.sent_bytes, pieces),
                (reduced.received_bytes, pieces),
                (handed_out.sent_bytes, params),
                (handed_out.received_bytes, params),
            ] {
                let difference = (moved as f64 - expected).abs();
                assert!(difference <= 0.05 * expected, "{num_ranks} ranks, {copies} copies: {moved}, not {expected}");
            }
            if copies == 1 {
                let ring_all_reduce = 2.0 * 4.0 * num_params * (w - 1.0) / w;
                assert!((reduced.sent_bytes + handed_out.sent_bytes) as f64 <= ring_all_reduce);
            }
        }
    }
}

#[test]
fn owners_hand_out_what_they_own_and_nothing_else_changes() {
    let chunks = [0..3, 3..4, 4..9];
    let owners = [vec![Rank(0), Rank(1)], vec![Rank(1)], vec![Rank(0), Rank(2)]];
    // Rank 3 is a spare, rank 4 leaves.
    let receivers = [0, 1, 2, 3].map(Rank);
    let results = on_all(tcp(5, PATIENCE), |mut plane| {
        let rank = plane.rank();
        let mut params = vec![-1.0; 9];
        for (chunk, owners) in chunks.iter().zip(&owners).filter(|(_, owners)| owners.contains(&rank)) {
            params[chunk.clone()].fill(owners[0].0 as f32 + chunk.start as f32);
        }
        block_on(hand_out(&mut *plane, &chunks, &owners, &receivers, &mut params)).expect("handed out");
        params
    });
    let all = [0.0, 0.0, 0.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0];
    assert!(results[..4].iter().all(|params| *params == all), "{results:?}");
    assert_eq!(results[4], [-1.0; 9]);
}

#[test]
fn a_square_norm_is_that_of_its_definition() {
    for len in [0, 1, 15, 16, 17, 1000] {
        let chunk: Vec<f32> = (0..len).map(|i| (i as f32).sin()).collect();
        let mut lanes = [0.0; 16];
        chunk.iter().enumerate().for_each(|(i, x)| lanes[i % 16] += f64::from(*x) * f64::from(*x));
        let pair = |lanes: Vec<f64>| -> Vec<f64> {
            (0..lanes.len() / 2).map(|i| lanes[i] + lanes[i + lanes.len() / 2]).collect()
        };
        assert_eq!(chunk_square_norm(&chunk).to_bits(), pair(pair(pair(pair(lanes.to_vec()))))[0].to_bits());
    }
}
