//! What a worker holds at most while it trains, and what it moves in a step: by calculation, before anything is started.
//!
//! ARCHITECTURE.md has the formulas, under "What a worker holds". All numbers are fp32 but for activations, if the recipe
//! wants them in bf16. Each part is counted at its peak. That is no waste: vectors are used again in the next step, so what
//! was needed once stays.

mod search;
#[cfg(test)]
mod tests;

use std::ops::Range;

use serde::Serialize;

use crate::{
    buffers::{MOST_WAITING, SCRATCH_PARAMS, piece_rows},
    config::{Batch, ComputeDtype, Copies, Gather, Recipe},
    layout::{CHUNK_PARAMS, Layout},
    model::Qwen2Config,
    ownership::assign_owners,
    slots::{SlotSteps, SumPlan, assign, subtrees},
};

pub use search::{Remedy, smallest_world, what_would_fit};

/// Bytes of a number.
const FP32_BYTES: u64 = 4;
/// Bytes of a number that is in bf16.
const BF16_BYTES: u64 = 2;
/// Blocks between the backward and the end of their reduction, at most: besides those that wait, one whose sender waits as
/// well, and one that is reduced, less the one that is computed.
const MOST_IN_FLIGHT: u64 = MOST_WAITING as u64 + 1;

/// What memory and traffic follow from.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The architecture.
    pub model: Qwen2Config,
    /// The shape of a step.
    pub batch: Batch,
    /// Owners of each chunk.
    pub copies: Copies,
    /// Whether activations are computed again in the backward.
    pub recompute: bool,
    /// Number format of activations.
    pub compute_dtype: ComputeDtype,
    /// How parameters come.
    pub gather: Gather,
    /// Whether moments are kept in the host's memory.
    pub offload_moments: bool,
}

impl Problem {
    /// That of a recipe.
    pub fn of(recipe: &Recipe) -> Self {
        Self {
            model: recipe.model.qwen2.clone(),
            batch: recipe.batch.clone(),
            copies: recipe.workers.copies,
            recompute: recipe.model.recompute,
            compute_dtype: recipe.model.compute_dtype,
            gather: recipe.workers.gather,
            offload_moments: recipe.workers.offload_moments,
        }
    }
}

/// What the worker that holds most holds at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Parameters in the chunks that it owns.
    pub owned_params: u64,
    /// Slots that it computes.
    pub num_slots: u64,
    /// Parameters: all of them, or its own and those of the blocks at hand.
    pub params_bytes: u64,
    /// AdamW's two moments of owned chunks, or of the chunk that is updated.
    pub moments_bytes: u64,
    /// Moments that are kept in the host's memory, which is not counted in the total.
    pub host_bytes: u64,
    /// Gradient sums of owned chunks.
    pub sums_bytes: u64,
    /// Gradients between the backward and their reduction.
    pub gradients_bytes: u64,
    /// Other ranks' sums in a round of the reduction.
    pub scratch_bytes: u64,
    /// Copy of its share of a checkpoint that is being stored.
    pub checkpoint_bytes: u64,
    /// What the backward needs of the forward.
    pub activations_bytes: u64,
    /// The piece of logits within `head_bytes`.
    pub logits_bytes: u64,
    /// Buffers of the head, with its piece of logits.
    pub head_bytes: u64,
    /// Buffers of a layer that is computed, which are never there together with those of the head.
    pub layer_bytes: u64,
    /// `gradients_bytes` from the first step on in which chunks move to new owners, since no gradient waits for those.
    pub gradients_after_move_bytes: u64,
    /// What it moves in a step.
    pub traffic: StepTraffic,
}

/// Bytes that a worker moves in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StepTraffic {
    /// Subtree sums sent to owners.
    pub sums_sent_bytes: u64,
    /// Subtree sums received as an owner.
    pub sums_received_bytes: u64,
    /// Parameters received; on average, as many are sent.
    pub params_bytes: u64,
}

impl Footprint {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.total_without_gradients_bytes() + self.gradients_bytes
    }

    /// All of it from the first step on in which chunks have moved to new owners.
    pub fn total_after_move_bytes(&self) -> u64 {
        self.total_without_gradients_bytes() + self.gradients_after_move_bytes
    }

    /// Buffers that are there while something is computed.
    pub fn working_bytes(&self) -> u64 {
        self.head_bytes.max(self.layer_bytes)
    }

    fn total_without_gradients_bytes(&self) -> u64 {
        let of_state = self.params_bytes + self.moments_bytes + self.sums_bytes + self.checkpoint_bytes;
        of_state + self.scratch_bytes + self.activations_bytes + self.working_bytes()
    }
}

impl StepTraffic {
    /// All that is sent.
    pub fn sent_bytes(&self) -> u64 {
        self.sums_sent_bytes + self.params_bytes
    }

    /// All that is received.
    pub fn received_bytes(&self) -> u64 {
        self.sums_received_bytes + self.params_bytes
    }
}

/// What the worker of `num_workers` that holds most holds; none if so many cannot take part.
pub fn footprint(problem: &Problem, num_workers: usize) -> Option<Footprint> {
    let shape = Shape::new(problem, num_workers, &Layout::qwen2(&problem.model))?;
    let loads = loads(&shape.chunk_lens, num_workers, shape.copies as usize);
    let footprints = loads.iter().enumerate().map(|(rank, load)| shape.footprint(rank, *load));
    footprints.reduce(|most, next| if next.total_bytes() > most.total_bytes() { next } else { most })
}

/// Floating-point operations of a step of a worker with `num_slots` slots: two for each weight of a matrix and token, and
/// causal attention over whole samples; the backward takes twice the forward, and layers that are recomputed once more.
pub fn step_flops(problem: &Problem, num_slots: u64) -> f64 {
    let (sizes, config) = (BlockSizes::of(&Layout::qwen2(&problem.model)), &problem.model);
    let (hidden, layers) = (config.hidden_size as f64, config.num_hidden_layers as f64);
    let seq_len = problem.batch.seq_len as f64;
    let of_layers = layers * (2.0 * sizes.layer as f64 + 2.0 * seq_len * hidden);
    let of_head = 2.0 * config.vocab_size as f64 * hidden;
    let tokens = num_slots as f64 * problem.batch.samples_per_slot() as f64 * seq_len;
    let passes = if problem.recompute { 4.0 } else { 3.0 };
    tokens * (passes * of_layers + 3.0 * of_head)
}

/// What a worker has of the chunks.
#[derive(Debug, Clone, Copy, Default)]
struct Load {
    owned_params: u64,
    /// Of those, what it stores in a checkpoint; owners take turns.
    stored_params: u64,
}

/// Of each worker, with nobody holding anything before.
fn loads(chunk_lens: &[usize], num_workers: usize, copies: usize) -> Vec<Load> {
    let owners = assign_owners(chunk_lens, &vec![Vec::new(); chunk_lens.len()], num_workers, copies);
    let mut loads = vec![Load::default(); num_workers];
    for (chunk, (len, owners)) in chunk_lens.iter().zip(&owners).enumerate() {
        owners.iter().for_each(|rank| loads[rank.index()].owned_params += *len as u64);
        if let Some(rank) = owners.get(chunk % owners.len().max(1)) {
            loads[rank.index()].stored_params += *len as u64;
        }
    }
    loads
}

/// Parameters of each kind of block.
#[derive(Debug, Clone, Copy)]
struct BlockSizes {
    embedding: u64,
    layer: u64,
    head: u64,
}

impl BlockSizes {
    fn of(layout: &Layout) -> Self {
        let len = |block: usize| layout.blocks[block].range.len() as u64;
        Self { embedding: len(0), layer: len(1), head: len(layout.blocks.len() - 1) }
    }
}

/// A problem with so many workers, before it is known who owns what.
struct Shape<'a> {
    problem: &'a Problem,
    chunk_lens: Vec<usize>,
    sizes: BlockSizes,
    num_params: u64,
    num_workers: u64,
    copies: u64,
    /// Slots of each worker.
    shares: Vec<Range<usize>>,
    /// Subtree sums of all workers.
    num_pieces: u64,
}

impl<'a> Shape<'a> {
    fn new(problem: &'a Problem, num_workers: usize, layout: &Layout) -> Option<Self> {
        let slots = problem.batch.slots;
        let shares = assign(slots, num_workers)?;
        Some(Self {
            problem,
            chunk_lens: layout.chunks.iter().map(|chunk| chunk.range.len()).collect(),
            sizes: BlockSizes::of(layout),
            num_params: layout.num_params as u64,
            num_workers: num_workers as u64,
            copies: problem.copies.among(num_workers) as u64,
            num_pieces: shares.iter().map(|share| subtrees(slots, share).len() as u64).sum(),
            shares,
        })
    }

    fn num_layers(&self) -> u64 {
        self.problem.model.num_hidden_layers as u64
    }

    fn hidden(&self) -> u64 {
        self.problem.model.hidden_size as u64
    }

    /// Tokens of a micro-batch.
    fn rows(&self) -> u64 {
        (self.problem.batch.micro_batch * self.problem.batch.seq_len) as u64
    }

    /// Micro-batches of a slot.
    fn num_micro_batches(&self) -> u64 {
        (self.problem.batch.samples_per_slot() / self.problem.batch.micro_batch) as u64
    }

    fn footprint(&self, rank: usize, load: Load) -> Footprint {
        let plan = SumPlan::new(self.problem.batch.slots, &self.shares[rank]);
        let (owned_params, num_pieces) = (load.owned_params, plan.pieces.len() as u64);
        let (num_slots, is_offloaded) = (plan.steps.len() as u64, self.problem.offload_moments);
        Footprint {
            owned_params,
            num_slots,
            params_bytes: FP32_BYTES * self.params(owned_params),
            moments_bytes: 2 * FP32_BYTES * if is_offloaded { CHUNK_PARAMS as u64 } else { owned_params },
            host_bytes: if is_offloaded { 2 * FP32_BYTES * owned_params } else { 0 },
            sums_bytes: FP32_BYTES * owned_params,
            gradients_bytes: FP32_BYTES * self.gradients(&plan, MOST_IN_FLIGHT),
            scratch_bytes: FP32_BYTES * self.scratch(num_pieces),
            checkpoint_bytes: 3 * FP32_BYTES * load.stored_params,
            activations_bytes: self.activations_bytes(num_slots),
            logits_bytes: FP32_BYTES * self.logits(),
            head_bytes: self.head_bytes(),
            layer_bytes: self.layer_bytes(),
            gradients_after_move_bytes: FP32_BYTES * self.gradients(&plan, self.num_layers()),
            traffic: self.traffic(num_pieces, owned_params),
        }
    }

    fn params(&self, owned_params: u64) -> u64 {
        let BlockSizes { embedding, layer, head } = self.sizes;
        let pair_of_layers = layer + if self.num_layers() > 1 { layer } else { 0 };
        let is_tied = self.problem.model.tie_word_embeddings;
        match self.problem.gather {
            Gather::Step => self.num_params,
            // The block at hand and the next one; a tied embedding stays all the while until the head is through.
            Gather::Block if is_tied => owned_params + embedding + pair_of_layers.max(layer + head),
            Gather::Block => owned_params + pair_of_layers.max(layer + embedding.max(head)),
        }
    }

    /// Elements of gradient vectors that exist at the same time, each kind of block at its peak. `most_in_flight` layers
    /// may be on their way between backward and the end of their reduction.
    fn gradients(&self, plan: &SumPlan, most_in_flight: u64) -> u64 {
        let BlockSizes { embedding, layer, head } = self.sizes;
        let (num_buffers, num_pieces) = (plan.num_buffers as u64, plan.pieces.len() as u64);
        let is_tied = self.problem.model.tie_word_embeddings;
        match self.problem.gather {
            Gather::Step => {
                let num_of_layers = self.layer_vectors(plan, most_in_flight);
                num_buffers * (embedding + head) + num_of_layers * layer
            }
            Gather::Block => {
                // Chunks have moved before the first step, so no more are ever in flight.
                let num_of_layers = num_buffers + num_pieces * MOST_IN_FLIGHT.min(self.num_layers() - 1);
                // Each slot's gradient of a tied embedding waits, from the head on, for that of the rows.
                let num_of_embedding = if is_tied { plan.steps.len() as u64 } else { num_buffers };
                num_of_embedding * embedding + num_buffers * head + num_of_layers * layer
            }
        }
    }

    /// Vectors of layers that exist at the same time where a slot goes through all blocks before the next slot.
    fn layer_vectors(&self, plan: &SumPlan, most_in_flight: u64) -> u64 {
        let (num_layers, last) = (self.num_layers(), plan.steps.len().saturating_sub(1));
        let peak = |(number, step): (usize, &SlotSteps)| {
            // Sums of earlier slots wait in every layer; this slot adds a vector, at first to one layer after another.
            let waiting = step.buffer as u64 * num_layers;
            waiting
                + match (self.num_micro_batches() > 1, step.merges.is_empty()) {
                    (true, _) => num_layers,
                    (false, false) => 1,
                    (false, true) if number == last => num_layers.min(most_in_flight + 1),
                    (false, true) => num_layers,
                }
        };
        plan.steps.iter().enumerate().map(peak).max().unwrap_or(0)
    }

    fn scratch(&self, num_pieces: u64) -> u64 {
        let BlockSizes { embedding, layer, head } = self.sizes;
        let most = (SCRATCH_PARAMS as u64 / self.num_pieces).max(1);
        (self.num_pieces - num_pieces) * most.min(embedding.max(layer).max(head))
    }

    /// Bytes of an activation's number.
    fn number_bytes(&self) -> u64 {
        self.problem.compute_dtype.bytes()
    }

    /// Of a token in a layer, what the backward needs besides the layer's input: two normed rows with an fp32 number each,
    /// fused query, key and value, the heads' output with an fp32 number for each, the middle of the layer, gate and up.
    fn saved_bytes_per_token(&self) -> u64 {
        let config = &self.problem.model;
        let qkv = self.hidden() + 2 * config.kv_size() as u64;
        let activations = 4 * self.hidden() + qkv + 2 * config.intermediate_size as u64;
        self.number_bytes() * activations + FP32_BYTES * (config.num_attention_heads as u64 + 2)
    }

    fn activations_bytes(&self, num_slots: u64) -> u64 {
        let of_row = self.number_bytes() * self.hidden();
        let saved = if self.problem.recompute { 0 } else { self.num_layers() * self.saved_bytes_per_token() };
        let of_pass = self.rows() * ((self.num_layers() + 1) * of_row + saved);
        match self.problem.gather {
            // Each micro-batch leaves the gradient of its embedded tokens to the end of the slot.
            Gather::Step => of_pass + (self.num_micro_batches() - 1) * self.rows() * of_row,
            Gather::Block => num_slots * self.num_micro_batches() * of_pass,
        }
    }

    fn logits(&self) -> u64 {
        let vocab = self.problem.model.vocab_size;
        (piece_rows(vocab) as u64).min(self.rows()) * vocab as u64
    }

    /// Three rows with a number for each token, and the piece of logits. In bf16 the piece has a copy as well, as has the
    /// projection; when the piece is gone, the norm's backward needs two fp32 rows.
    fn head_bytes(&self) -> u64 {
        let (rows, row) = (self.rows(), self.rows() * self.hidden());
        let of_rows = self.number_bytes() * 3 * row + FP32_BYTES * rows;
        of_rows
            + match self.problem.compute_dtype {
                ComputeDtype::Float32 => FP32_BYTES * self.logits(),
                ComputeDtype::Bfloat16 => {
                    let projection = (self.problem.model.vocab_size * self.problem.model.hidden_size) as u64;
                    let pieces = (FP32_BYTES + BF16_BYTES) * self.logits();
                    pieces.max(2 * FP32_BYTES * row) + BF16_BYTES * projection
                }
            }
    }

    /// Gated MLP, and where the layer is recomputed what it saves and puts out. In bf16 two more rows of the MLP, which the
    /// shim's kernels do without, and a copy of the parameters.
    fn layer_bytes(&self) -> u64 {
        let mlp = self.problem.model.intermediate_size as u64 * self.number_bytes();
        let recomputed = match self.problem.recompute {
            true => self.saved_bytes_per_token() + self.number_bytes() * self.hidden(),
            false => 0,
        };
        match self.problem.compute_dtype {
            ComputeDtype::Float32 => self.rows() * (mlp + recomputed),
            ComputeDtype::Bfloat16 => self.rows() * (3 * mlp + recomputed) + BF16_BYTES * self.sizes.layer,
        }
    }

    fn traffic(&self, num_pieces: u64, owned_params: u64) -> StepTraffic {
        let of_layers = self.num_layers() * self.sizes.layer;
        let gathered = match self.problem.gather {
            Gather::Step => self.num_params,
            Gather::Block => self.num_params + of_layers,
        };
        StepTraffic {
            sums_sent_bytes: FP32_BYTES * num_pieces * (self.copies * self.num_params - owned_params),
            sums_received_bytes: FP32_BYTES * (self.num_pieces - num_pieces) * owned_params,
            params_bytes: FP32_BYTES * gathered * (self.num_workers - self.copies) / self.num_workers,
        }
    }
}
