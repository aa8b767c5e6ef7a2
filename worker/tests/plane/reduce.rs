//! The exact reduction: one result for all worlds, to the bit.

use std::ops::Range;

use polo_recipe::slots::{SumPlan, assign, split};
use polo_worker::reduce::{ExactReduce, Reduced, add_assign, chunk_square_norm};
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

/// What the trainer does on a rank: sums its slots by the plan, then reduces.
fn train_step(work: &Work, world: usize) -> Vec<(Vec<f32>, Reduced)> {
    let slots = work.gradients.len();
    let shares = assign(slots, world).expect("a rank for each");
    on_all(tcp(world, PATIENCE), |mut plane| {
        let plan = SumPlan::new(slots, &shares[plane.rank().index()]);
        let mut buffers = vec![Vec::new(); plan.num_buffers];
        for step in &plan.steps {
            buffers[step.buffer] = work.gradients[step.slot].clone();
            for merge in &step.merges {
                let [into, from] = buffers.get_disjoint_mut([merge.into, merge.from]).expect("two buffers");
                add_assign(into, from);
            }
        }
        let mut reduce = ExactReduce::new(slots, work.chunks.clone(), plane.rank(), world);
        reduce.set_scratch_params(work.scratch_params);
        let mut pieces: Vec<_> = buffers.iter_mut().take(plan.pieces.len()).map(Vec::as_mut_slice).collect();
        let reduced = reduce.run(&mut *plane, &mut pieces).expect("a reduction");
        (buffers.swap_remove(0), reduced)
    })
}

/// The bits, with one NaN for all: an operation's NaN is a NaN, but its bits are not part of any promise.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn every_world_has_the_bits_of_the_definition(work in work()) {
        let expected = tree_sum(&work.gradients, 0..work.gradients.len());
        let norms: Vec<_> = work.chunks.iter().map(|chunk| chunk_square_norm(&expected[chunk.clone()]).to_bits()).collect();
        for world in 1..=work.gradients.len() {
            let results = train_step(&work, world);
            for (total, reduced) in &results {
                prop_assert_eq!(bits(total), bits(&expected), "world {}", world);
                let theirs: Vec<_> = reduced.chunk_square_norms.iter().map(|norm| norm.to_bits()).collect();
                prop_assert_eq!(&theirs, &norms, "world {}", world);
            }
            let sent: u64 = results.iter().map(|(_, reduced)| reduced.bytes_sent).sum();
            let received: u64 = results.iter().map(|(_, reduced)| reduced.bytes_received).sum();
            prop_assert_eq!(sent, received);
            prop_assert_eq!(sent == 0, world == 1);
        }
    }
}

#[test]
fn the_order_of_summation_shows_in_the_bits() {
    let gradients: Vec<_> = [1.0, 1e8, -1e8, 1.0].map(|x: f32| vec![x]).to_vec();
    assert_eq!(gradients.iter().flatten().sum::<f32>(), 1.0);
    assert_eq!(tree_sum(&gradients, 0..4), [0.0]);
    let work = Work { gradients, chunks: vec![0..1; 1], scratch_params: 1 };
    for world in 1..=4 {
        assert!(train_step(&work, world).iter().all(|(total, _)| *total == [0.0]));
    }
}

#[test]
fn chunks_longer_than_the_blocks_of_the_sum_have_the_bits_of_the_definition() {
    let value = |slot: usize, at: usize| ((slot * 7919 + at * 104_729) as f32).sin();
    let gradients: Vec<Vec<_>> = (0..5).map(|slot| (0..13_001).map(|at| value(slot, at)).collect()).collect();
    let expected = tree_sum(&gradients, 0..5);
    for scratch_params in [20_000, 1 << 20] {
        let work = Work { gradients: gradients.clone(), chunks: vec![0..9000, 9000..13_001], scratch_params };
        for world in 1..=5 {
            assert!(train_step(&work, world).iter().all(|(total, _)| bits(total) == bits(&expected)), "world {world}");
        }
    }
}

#[test]
fn chunks_are_shared_out_evenly_and_in_order() {
    let chunks: Vec<_> = (0..10).map(|i| i * 100..(i + 1) * 100).chain((0..20).map(|i| 1000 + i..1001 + i)).collect();
    let reduce = ExactReduce::new(8, chunks.clone(), polo_recipe::ids::Rank(0), 4);
    let reducers: Vec<_> = (0..chunks.len()).map(|chunk| reduce.reducer(chunk).expect("a reducer").index()).collect();
    assert!(reducers.is_sorted());
    for rank in 0..4 {
        let share: usize = chunks.iter().zip(&reducers).filter(|(_, r)| **r == rank).map(|(c, _)| c.len()).sum();
        assert!((155..=355).contains(&share), "rank {rank} has {share} of 1020 elements");
    }
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
