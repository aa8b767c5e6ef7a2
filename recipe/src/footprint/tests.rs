//! The formulas of ARCHITECTURE.md, "What a worker holds", written out for published models.

use super::*;
use crate::testing::{published, qwen2_7b, qwen2_72b};

const GIB: u64 = 1 << 30;

fn problem(model: Qwen2Config, [samples_per_step, slots, micro_batch]: [usize; 3]) -> Problem {
    let batch = Batch { seq_len: 4096, samples_per_step, slots, micro_batch, document_mask: false };
    Problem {
        model,
        batch,
        copies: Copies::Number(2),
        recompute: false,
        compute_dtype: ComputeDtype::Float32,
        gather: Gather::Step,
        offload_moments: false,
    }
}

fn of(problem: &Problem, num_workers: usize) -> Footprint {
    footprint(problem, num_workers).expect("so many take part")
}

/// Rows of the embedding, of both.
const V: u64 = 152_064;

const H7: u64 = 3584;
const K7: u64 = 512;
const M7: u64 = 18_944;
const LAYER7: u64 = layer(H7, K7, M7);
const P7: u64 = untied(H7, 28, LAYER7);

const H72: u64 = 8192;
const K72: u64 = 1024;
const M72: u64 = 29_568;
const LAYER72: u64 = layer(H72, K72, M72);
const P72: u64 = untied(H72, 80, LAYER72);

/// Parameters of a layer: two norms, q, k and v with biases, o, gate, up and down.
const fn layer(h: u64, k: u64, m: u64) -> u64 {
    2 * h + (h + 2 * k) * (h + 1) + h * h + 3 * h * m
}

/// Parameters of a model: the embedding, its layers, the last norm and the output projection.
const fn untied(h: u64, num_layers: u64, layer: u64) -> u64 {
    V * h + num_layers * layer + h + V * h
}

#[test]
fn the_7b_with_a_slot_and_a_micro_batch_each() {
    let found = of(&problem(qwen2_7b(), [8, 8, 1]), 8);
    let owned = found.owned_params;
    assert!(owned.abs_diff(P7 * 2 / 8) <= CHUNK_PARAMS as u64, "{owned}");
    assert_eq!(found.params_bytes, 4 * P7);
    assert_eq!((found.moments_bytes, found.sums_bytes), (8 * owned, 4 * owned));
    // Four layers between backward and reduction.
    assert_eq!(found.gradients_bytes, 4 * (V * H7 + (V * H7 + H7) + 4 * LAYER7));
    assert_eq!(found.gradients_after_move_bytes, 4 * P7);
    // Seven other workers' sums of 2^23 / 8 elements.
    assert_eq!(found.scratch_bytes, 4 * 7 * (1 << 20));
    // Owners take turns chunk by chunk, which is even to within a few chunks.
    assert!(found.checkpoint_bytes.abs_diff(12 * P7 / 8) <= 12 * P7 / 8 / 50);
    let saved = 5 * H7 + 2 * K7 + 2 * M7 + 28 + 2;
    assert_eq!(found.activations_bytes, 4 * 4096 * (29 * H7 + 28 * saved));
    // 2^26 logits are 441 rows, rounded down to a multiple of 16.
    assert_eq!(found.logits_bytes, 4 * 432 * V);
    assert_eq!(found.head_bytes, 4 * (432 * V + 4096 * (3 * H7 + 1)));
    assert_eq!(found.layer_bytes, 4 * 4096 * M7);
    assert_eq!(found.working_bytes(), found.head_bytes);
    assert_eq!(found.traffic.sums_sent_bytes, 4 * (2 * P7 - owned));
    assert_eq!(found.traffic.sums_received_bytes, 4 * 7 * owned);
    assert_eq!(found.traffic.params_bytes, 4 * P7 * 6 / 8);
    let parts = 4 * P7 + 12 * owned + found.gradients_bytes + found.scratch_bytes + found.checkpoint_bytes;
    assert_eq!(found.total_bytes(), parts + found.activations_bytes + found.head_bytes);
    assert_eq!(found.total_after_move_bytes() - found.total_bytes(), 4 * 24 * LAYER7);
}

#[test]
fn the_7b_gathered_block_by_block_and_recomputed() {
    let problem = Problem {
        recompute: true,
        gather: Gather::Block,
        copies: Copies::Number(1),
        ..problem(qwen2_7b(), [16, 8, 1])
    };
    let found = of(&problem, 4);
    let owned = found.owned_params;
    assert!(owned.abs_diff(P7 / 4) <= CHUNK_PARAMS as u64);
    // The last layer and the head are the largest two neighbours.
    assert_eq!(found.params_bytes, 4 * (owned + LAYER7 + V * H7 + H7));
    // Two slots need two buffers for one sum; three layers are in flight.
    assert_eq!(found.gradients_bytes, 4 * (2 * V * H7 + 2 * (V * H7 + H7) + (2 + 3) * LAYER7));
    // Two slots of two micro-batches.
    assert_eq!(found.activations_bytes, 4 * (4 * 4096) * 29 * H7);
    let saved = 5 * H7 + 2 * K7 + 2 * M7 + 28 + 2;
    assert_eq!(found.layer_bytes, 4 * 4096 * (M7 + saved + H7));
    assert_eq!(found.working_bytes(), found.layer_bytes);
    assert_eq!(found.traffic.params_bytes, 4 * (P7 + 28 * LAYER7) * 3 / 4);
}

#[test]
fn the_72b_with_several_slots_and_micro_batches_holds_whole_gradients() {
    let problem = problem(qwen2_72b(), [64, 32, 1]);
    let found = of(&problem, 16);
    assert_eq!((found.num_slots, found.params_bytes), (2, 4 * P72));
    assert!(found.owned_params.abs_diff(P72 * 2 / 16) <= CHUNK_PARAMS as u64);
    // The first slot's sum waits while the second is computed; micro-batches hold their slot's gradient meanwhile.
    assert_eq!(found.gradients_bytes, 4 * 2 * P72);
    let saved = 5 * H72 + 2 * K72 + 2 * M72 + 64 + 2;
    assert_eq!(found.activations_bytes, 4 * 4096 * (81 * H72 + 80 * saved + H72));
    // With one micro-batch to a slot, the second slot's gradients of layers come and go one by one.
    let of_one = of(&Problem { batch: Batch { micro_batch: 2, ..problem.batch.clone() }, ..problem.clone() }, 16);
    assert_eq!(of_one.gradients_bytes, 4 * (2 * V * H72 + 2 * (V * H72 + H72) + 81 * LAYER72));
    // Of five slots, the second of two workers has three, which end in two sums: no addition follows the last.
    let batch = Batch { samples_per_step: 5, slots: 5, ..problem.batch.clone() };
    let uneven = of(&Problem { batch, ..problem }, 2);
    assert_eq!((uneven.num_slots, uneven.traffic.sums_received_bytes), (3, 4 * uneven.owned_params));
    assert_eq!(uneven.gradients_bytes, 4 * (2 * V * H72 + 2 * (V * H72 + H72) + (80 + 4) * LAYER72));
}

#[test]
fn the_72b_gathered_block_by_block() {
    let found = of(&Problem { gather: Gather::Block, ..problem(qwen2_72b(), [64, 64, 1]) }, 64);
    let owned = found.owned_params;
    assert_eq!(found.params_bytes, 4 * (owned + LAYER72 + V * H72 + H72));
    assert_eq!(found.gradients_bytes, 4 * (V * H72 + (V * H72 + H72) + (1 + 3) * LAYER72));
    assert_eq!(found.traffic.params_bytes, 4 * (P72 + 80 * LAYER72) * 62 / 64);
    assert_eq!(found.traffic.sums_received_bytes, 4 * 63 * owned);
}

#[test]
fn moments_that_are_offloaded_leave_room_for_those_of_one_chunk() {
    let plain = problem(qwen2_72b(), [64, 64, 1]);
    let [kept, offloaded] = [false, true].map(|offload_moments| of(&Problem { offload_moments, ..plain.clone() }, 64));
    let owned = offloaded.owned_params;
    assert_eq!((offloaded.moments_bytes, offloaded.host_bytes), (8 << 20, 8 * owned));
    assert_eq!((kept.moments_bytes, kept.host_bytes), (8 * owned, 0));
    assert_eq!(kept.total_bytes() - offloaded.total_bytes(), 8 * owned - (8 << 20));
}

#[test]
fn a_tied_embedding_stays_until_the_head_is_through() {
    let tied = published(896, 24, (14, 2), 4864, 151_936, true);
    let layout = Layout::qwen2(&tied);
    let [embedding, layer] = [0, 1].map(|block| layout.blocks[block].range.len() as u64);
    let found = of(&Problem { gather: Gather::Block, ..problem(tied, [8, 4, 1]) }, 2);
    assert_eq!(found.params_bytes, 4 * (found.owned_params + embedding + 2 * layer));
    // Of both slots, the head's gradient of it waits for that of the rows.
    assert_eq!(found.gradients_bytes, 4 * (2 * embedding + 2 * 896 + (2 + 3) * layer));
}

#[test]
fn the_7b_in_bf16_has_half_the_activations_and_copies_of_a_block() {
    let fp32 = problem(qwen2_7b(), [8, 8, 1]);
    let found = of(&Problem { compute_dtype: ComputeDtype::Bfloat16, ..fp32.clone() }, 8);
    let saved = 2 * (5 * H7 + 2 * K7 + 2 * M7) + 4 * (28 + 2);
    assert_eq!(found.activations_bytes, 4096 * (29 * 2 * H7 + 28 * saved));
    assert_eq!(found.logits_bytes, 4 * 432 * V);
    assert_eq!(found.head_bytes, 4096 * (6 * H7 + 4) + 6 * 432 * V + 2 * V * H7);
    assert_eq!(found.layer_bytes, 6 * 4096 * M7 + 2 * LAYER7);
    // What is fp32 in any case: weights, moments, gradients, and what travels.
    let other = of(&fp32, 8);
    let without = |of: Footprint| Footprint { activations_bytes: 0, head_bytes: 0, layer_bytes: 0, ..of };
    assert_eq!(without(found), without(other));
}

#[test]
fn the_72b_in_bf16_gathered_and_recomputed() {
    let problem = Problem {
        recompute: true,
        gather: Gather::Block,
        compute_dtype: ComputeDtype::Bfloat16,
        ..problem(qwen2_72b(), [64, 64, 1])
    };
    let found = of(&problem, 64);
    assert_eq!(found.activations_bytes, 4096 * 81 * 2 * H72);
    let saved = 2 * (5 * H72 + 2 * K72 + 2 * M72) + 4 * (64 + 2);
    assert_eq!(found.layer_bytes, 4096 * (6 * M72 + saved + 2 * H72) + 2 * LAYER72);
    // With many rows, those of the norm's backward outweigh the logits.
    let batch = Batch { samples_per_step: 512, micro_batch: 8, ..problem.batch.clone() };
    let many = of(&Problem { batch, ..problem }, 64);
    assert_eq!(many.head_bytes, 8 * 4096 * (6 * H72 + 4) + 8 * 8 * 4096 * H72 + 2 * V * H72);
}

#[test]
fn a_world_that_cannot_be_has_no_footprint() {
    let problem = problem(qwen2_7b(), [8, 8, 1]);
    assert_eq!((footprint(&problem, 0), footprint(&problem, 9)), (None, None));
}

#[test]
fn the_smallest_world_is_the_first_that_fits() {
    let problem = Problem { recompute: true, ..problem(qwen2_7b(), [8, 8, 1]) };
    let totals: Vec<_> = (1..=8).map(|n| of(&problem, n).total_bytes()).collect();
    for memory_bytes in [totals[7] - 1, totals[7], totals[5], totals[3], 1000 * GIB] {
        let first = totals.iter().position(|total| *total <= memory_bytes).map(|index| index + 1);
        assert_eq!(smallest_world(&problem, memory_bytes), first);
    }
    assert_eq!(smallest_world(&problem, 1000 * GIB), Some(1));
}

#[test]
fn what_leaves_the_numbers_as_they_are_is_tried_first_and_nothing_needless_is_said() {
    let plain = problem(qwen2_7b(), [8, 8, 1]);
    let most = of(&plain, 8).total_bytes();
    let remedy = what_would_fit(&plain, most - GIB).expect("a remedy");
    assert_eq!((remedy.sets, remedy.num_workers), (vec!["model.recompute=true".into()], 8));
    // Of short samples activations are few, so copies alone have to do.
    let few = Problem { batch: Batch { seq_len: 256, ..plain.batch.clone() }, ..plain.clone() };
    let remedy = what_would_fit(&few, of(&few, 8).total_bytes() - 5 * GIB).expect("a remedy");
    assert_eq!((remedy.sets, remedy.num_workers), (vec!["workers.copies=1".into()], 8));
    // Where nothing that leaves the numbers alone is left to change, samples become shorter.
    let short = Problem {
        copies: Copies::Number(1),
        recompute: true,
        gather: Gather::Block,
        offload_moments: true,
        ..plain.clone()
    };
    let remedy = what_would_fit(&short, of(&short, 8).total_bytes() - 1).expect("a remedy");
    assert_eq!(remedy.sets, ["batch.seq_len=2048"]);
    assert_eq!(what_would_fit(&plain, GIB), None);
}
