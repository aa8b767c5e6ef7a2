//! The undisturbed run, computed in the plainest way, and the arithmetic that both it and the workers use.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use polo_recipe::{
    config::{OptimizerState, Recipe},
    ids::{Generation, Step},
    layout::{ChunkSpec, Layout},
    slots::split,
};
use polo_store::{Digest, checkpoint};
use polo_worker::{decision::Tally, flat::ops::chunk_square_norm, optimizer::clip_coefficient, state::digest_of};

/// Vectors of the whole model.
#[derive(Debug, Clone, PartialEq)]
pub struct Whole {
    /// Parameters.
    pub params: Vec<f32>,
    /// First moments.
    pub exp_avg: Vec<f32>,
    /// Second moments.
    pub exp_avg_sq: Vec<f32>,
}

/// What must be true at every step, and what was seen that is not.
pub struct Oracle {
    /// Where parameters lie.
    pub layout: Layout,
    /// The state after each step.
    pub states: Vec<Whole>,
    /// Tokens that a step trains.
    pub tokens_per_step: u64,
    members: Mutex<BTreeMap<Generation, Vec<String>>>,
    wrong: Mutex<Vec<String>>,
}

/// A number from -1 to 1 that follows from the words.
fn noise(words: [u64; 4]) -> f32 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in words {
        state = (state ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state ^= state >> 29;
    }
    (state >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// Parameters of step 0.
pub fn initial(seed: u64, params: &mut [f32]) {
    (0..).zip(params).for_each(|(at, param)| *param = noise([seed, u64::MAX, 0, at]));
}

/// The gradient of one slot: every element depends on parameters of other chunks, so that a mixed state shows.
pub fn gradient(seed: u64, step: Step, slot: usize, params: &[f32], grads: &mut [f32]) {
    let len = params.len();
    for (at, grad) in grads.iter_mut().enumerate() {
        let far = params[(at * 31 + slot * 7 + step.0 as usize) % len];
        *grad = 0.3 * far + noise([seed, step.0, slot as u64, at as u64]);
    }
}

/// Loss and tokens of one slot, by source.
pub fn tallies(recipe: &Recipe, step: Step, slot: usize) -> Vec<Tally> {
    let num_tokens = (recipe.batch.samples_per_slot() * recipe.batch.seq_len) as u64;
    let loss = f64::from(noise([recipe.run.seed, step.0, slot as u64, u64::MAX])) + 2.0;
    // What is counted must not depend on who counts; the plan's own shares are tested elsewhere.
    vec![Tally { loss, num_tokens: num_tokens / 2 }, Tally { loss, num_tokens: num_tokens - num_tokens / 2 }]
}

/// One update, element by element.
pub fn update(params: &mut [f32], exp_avg: &mut [f32], exp_avg_sq: &mut [f32], grads: &[f32], clip_coefficient: f64) {
    for (((param, first), second), grad) in params.iter_mut().zip(exp_avg).zip(exp_avg_sq).zip(grads) {
        let grad = grad * clip_coefficient as f32;
        *first = 0.9 * *first + 0.1 * grad;
        *second = 0.95 * *second + 0.05 * grad * grad;
        *param -= 0.01 * *first / (second.sqrt() + 1e-3);
    }
}

/// Whether a stage that resets the optimizer's state begins with this step. Counted here on its own, not by the plan.
fn begins_anew(recipe: &Recipe, step: Step) -> bool {
    let mut first_step = 0;
    recipe.stages.iter().any(|stage| {
        let begins = first_step == step.0 && stage.optimizer_state == OptimizerState::Reset;
        first_step += stage.num_steps(&recipe.batch);
        begins
    })
}

fn tree_sum(slots: &[Vec<f32>], node: std::ops::Range<usize>) -> Vec<f32> {
    let Some(mid) = split(&node) else { return slots[node.start].clone() };
    let (left, right) = (tree_sum(slots, node.start..mid), tree_sum(slots, mid..node.end));
    left.iter().zip(&right).map(|(left, right)| left + right).collect()
}

impl Whole {
    fn next(&self, recipe: &Recipe, layout: &Layout, step: Step) -> Self {
        let slot_gradient = |slot: usize| {
            let mut grads = vec![0.0; self.params.len()];
            gradient(recipe.run.seed, step, slot, &self.params, &mut grads);
            grads
        };
        let slots: Vec<_> = (0..recipe.batch.slots).map(slot_gradient).collect();
        let sum = tree_sum(&slots, 0..slots.len());
        let square: f64 = layout.chunks.iter().map(|c| chunk_square_norm(&sum[c.range.clone()])).sum();
        let clip_coefficient = clip_coefficient(square.sqrt(), recipe.optimizer.max_grad_norm);
        let Self { mut params, mut exp_avg, mut exp_avg_sq } = self.clone();
        if begins_anew(recipe, step) {
            exp_avg.fill(0.0);
            exp_avg_sq.fill(0.0);
        }
        update(&mut params, &mut exp_avg, &mut exp_avg_sq, &sum, clip_coefficient);
        Self { params, exp_avg, exp_avg_sq }
    }

    fn vectors(&self, chunk: &ChunkSpec) -> [&[f32]; 3] {
        [&self.params, &self.exp_avg, &self.exp_avg_sq].map(|v| &v[chunk.range.clone()])
    }

    /// Digest of the stored form of a chunk.
    pub fn chunk_digest(&self, chunk: &ChunkSpec) -> Digest {
        digest_of(&self.vectors(chunk))
    }
}

impl Oracle {
    /// Computes the whole run.
    pub fn new(recipe: &Recipe) -> Arc<Self> {
        let layout = Layout::qwen2(&recipe.model.qwen2);
        let zeros = vec![0.0; layout.num_params];
        let mut first = Whole { params: zeros.clone(), exp_avg: zeros.clone(), exp_avg_sq: zeros };
        initial(recipe.run.seed, &mut first.params);
        let mut states = vec![first];
        for step in (0..recipe.num_steps()).map(Step) {
            let next = states[step.0 as usize].next(recipe, &layout, step);
            states.push(next);
        }
        let tokens_per_step = recipe.batch.tokens_per_step();
        Arc::new(Self { layout, states, tokens_per_step, members: Mutex::default(), wrong: Mutex::default() })
    }

    /// Digest of the last state.
    pub fn last_digest(&self) -> Digest {
        let (step, last) = (self.states.len() as u64 - 1, &self.states[self.states.len() - 1]);
        let digests: Vec<_> = self.layout.chunks.iter().map(|chunk| last.chunk_digest(chunk)).collect();
        checkpoint::state_digest(step, &digests)
    }

    /// Notes something that must not be.
    pub fn note(&self, what: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// What was noted.
    pub fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A worker was told of a generation with these members.
    pub fn check_members(&self, generation: Generation, members: &[String]) {
        let mut known = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if known.entry(generation).or_insert_with(|| members.to_vec()) != members {
            self.note(format!("generation {generation} has two memberships"));
        }
    }

    /// A worker computes step `step` with these parameters.
    pub fn check_params(&self, who: &str, step: Step, params: &[f32]) {
        let expected = &self.states[step.0 as usize].params;
        if let Some(at) = (0..params.len()).find(|at| params[*at].to_bits() != expected[*at].to_bits()) {
            self.note(format!(
                "{who} computes step {step} with a wrong parameter {at}: {} not {}",
                params[at], expected[at]
            ));
        }
    }

    /// A worker has brought this chunk to `step`.
    pub fn check_chunk(&self, who: &str, step: Step, chunk: &ChunkSpec, vectors: [&[f32]; 3]) {
        let expected =
            self.states[step.0 as usize].vectors(chunk).map(|v| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        let found = vectors.map(|v| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        if expected != found {
            self.note(format!("{who} has a wrong chunk {} at step {step}", chunk.id.0));
        }
    }
}
