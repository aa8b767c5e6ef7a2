//! What a membership needs of its surroundings: something that computes, and something that reaches the other ranks.
//!
//! In a worker these are libtorch ([`crate::torch`]) and TCP ([`crate::trainer`]); the simulation brings its own. All
//! that decides what becomes of a step is above them and the same for both.

use std::{ops::Range, time::Duration};

use futures::future::{BoxFuture, LocalBoxFuture};
use polo_recipe::{
    config::Gather,
    ids::Step,
    layout::{ChunkId, Layout},
};
use polo_store::StoreError;

use crate::{
    decision::Tally,
    flat::Flat,
    params::Params,
    plane::{AbortHandle, DataPlane, Lane, PlaneError},
    session::Order,
    state::Moments,
    step::{Parameters, StepError},
};

/// The slots that are to be computed, from `first` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// The first step.
    pub first: Step,
    /// Slots of that step.
    pub first_slots: Range<usize>,
    /// Slots of all later ones.
    pub slots: Range<usize>,
}

/// Held-out samples that are evaluated at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldOut {
    /// Number of the plan's validation set.
    pub set: usize,
    /// Windows of its source.
    pub windows: Range<u64>,
}

/// What the computation of one slot came to, beside its gradient.
#[derive(Debug, Clone)]
pub struct SlotDone {
    /// By source of the plan.
    pub tallies: Vec<Tally>,
    /// Spent waiting for samples.
    pub data_wait: Duration,
}

/// The update of one chunk.
#[derive(Debug)]
pub struct Update<'a> {
    /// The chunk.
    pub chunk: ChunkId,
    /// The step that is taken.
    pub step: Step,
    /// What the gradients are multiplied by.
    pub clip_coefficient: f64,
    /// The chunk's parameters.
    pub params: &'a mut [f32],
    /// Its moments.
    pub moments: &'a mut Moments,
    /// Its summed gradients, which may be changed.
    pub grads: &'a mut [f32],
}

/// Where the gradients of slots go.
pub trait Gradients {
    /// Zeros, to which a slot's gradient of a block is to be added.
    fn take(&mut self, block: usize) -> Flat;

    /// A block's gradient is there, of the rank's slot of that number, counted from 0. Each slot's blocks come from the last
    /// to the first, each block's slots from the first to the last.
    fn complete<'a>(&'a mut self, slot: usize, block: usize, grads: Flat) -> LocalBoxFuture<'a, Result<(), StepError>>;
}

/// Computes slots by a function from a slot's number and all parameters to its whole gradient, for arithmetic that does not
/// go block by block. In between it goes through the blocks as any arithmetic has to.
pub async fn whole_gradients(
    num_slots: usize,
    params: &mut Parameters<'_>,
    grads: &mut dyn Gradients,
    layout: &Layout,
    mut gradient: impl AsyncFnMut(usize, &[f32]) -> Result<Vec<f32>, StepError>,
) -> Result<(), StepError> {
    let num_blocks = layout.blocks.len();
    for slots in waves(params.gather(), num_slots) {
        let all = all_blocks(params, num_blocks).await?;
        let mut whole = Vec::new();
        for slot in slots.clone() {
            whole.push(gradient(slot, &all).await?);
        }
        for block in (0..num_blocks).rev() {
            if (1..num_blocks - 1).contains(&block) {
                params.block(block).await?;
            }
            for (slot, whole) in slots.clone().zip(&whole) {
                let mut part = grads.take(block);
                part.as_mut_slice().copy_from_slice(&whole[layout.blocks[block].range.clone()]);
                grads.complete(slot, block, part).await?;
            }
        }
    }
    Ok(())
}

/// All parameters, asked for block by block.
async fn all_blocks(params: &mut Parameters<'_>, num_blocks: usize) -> Result<Vec<f32>, StepError> {
    let mut all = Vec::new();
    for block in 0..num_blocks {
        all.extend_from_slice(&params.block(block).await?);
    }
    Ok(all)
}

/// Computes losses by a function from a group and all parameters, for arithmetic that does not go block by block.
pub async fn whole_losses(
    groups: &[HeldOut],
    params: &mut Parameters<'_>,
    num_blocks: usize,
    mut loss: impl AsyncFnMut(&HeldOut, &[f32]) -> Result<f64, StepError>,
) -> Result<Vec<f64>, StepError> {
    let mut losses = Vec::with_capacity(groups.len());
    for wave in waves(params.gather(), groups.len()) {
        let all = all_blocks(params, num_blocks).await?;
        for group in &groups[wave] {
            losses.push(loss(group, &all).await?);
        }
    }
    Ok(losses)
}

/// What of `0..number` goes through all blocks together, and what goes through them one after the other.
pub fn waves(gather: Gather, number: usize) -> impl Iterator<Item = Range<usize>> {
    let width = match gather {
        Gather::Step => 1,
        Gather::Block => number.max(1),
    };
    (0..number).step_by(width).map(move |first| first..first + width)
}

/// All arithmetic that the exact reduction does not do. Nothing here may depend on the world.
pub trait Arithmetic {
    /// Sets those parameters of step 0 that are held.
    fn initialize<'a>(
        &'a mut self,
        layout: &'a Layout,
        params: &'a mut Params,
    ) -> LocalBoxFuture<'a, Result<(), StoreError>>;

    /// Refuses to be one of so many members if their state does not fit where this one computes.
    fn check_room(&self, _num_members: usize) -> Result<(), StepError> {
        Ok(())
    }

    /// Says which slots will be asked for, in this order, so that their samples can be read ahead.
    fn begin(&mut self, work: Work) -> Result<(), StepError>;

    /// Computes the next `num_slots` slots, at least one, and hands their gradients to `grads`, block by block. It asks
    /// `params` for the blocks in order, and for the layers again on the way back: all slots together where blocks are
    /// gathered ([`waves`]), with the same bits either way. Gives up with [`StepError::Plane`] soon after `is_cancelled`.
    fn gradients<'a>(
        &'a mut self,
        step: Step,
        num_slots: usize,
        params: &'a mut Parameters<'_>,
        grads: &'a mut dyn Gradients,
        is_cancelled: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, Result<Vec<SlotDone>, StepError>>;

    /// The summed losses of the tokens of each group, with the parameters of `step`. It asks `params` for the blocks in order,
    /// all groups together where blocks are gathered, and gives up as [`Arithmetic::gradients`] does.
    fn losses<'a>(
        &'a mut self,
        step: Step,
        groups: &'a [HeldOut],
        params: &'a mut Parameters<'_>,
        is_cancelled: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, Result<Vec<f64>, StepError>>;

    /// Updates a chunk in place.
    fn update(&mut self, update: Update<'_>) -> Result<(), StepError>;
}

/// The way to the other ranks.
pub trait Network: Send + Sync {
    /// Connects to all ranks of a generation.
    fn form<'a>(
        &'a self,
        order: &'a Order,
        lane: Lane,
        abort: &'a AbortHandle,
    ) -> BoxFuture<'a, Result<Box<dyn DataPlane>, PlaneError>>;

    /// Runs both to their ends, side by side: `main` may block its thread.
    fn together<'a>(&'a self, main: LocalBoxFuture<'a, ()>, side: BoxFuture<'a, ()>) -> LocalBoxFuture<'a, ()>;
}
