//! What a membership needs of its surroundings: something that computes, and something that reaches the other ranks.
//!
//! In a worker these are libtorch ([`crate::torch`]) and TCP ([`crate::trainer`]); the simulation brings its own. All
//! that decides what becomes of a step is above them and the same for both.

use std::{ops::Range, time::Duration};

use futures::future::{BoxFuture, LocalBoxFuture};
use polo_recipe::{
    ids::Step,
    layout::{ChunkId, Layout},
};
use polo_store::StoreError;

use crate::{
    decision::Tally,
    flat::Flat,
    plane::{AbortHandle, DataPlane, Lane, PlaneError},
    session::Order,
    state::Moments,
    step::StepError,
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

/// Where the gradient of a slot goes.
pub trait Gradients {
    /// Zeros, to which the gradient of a block is to be added.
    fn take(&mut self, block: usize) -> Flat;

    /// A block's gradient is there.
    fn complete<'a>(&'a mut self, block: usize, grads: Flat) -> LocalBoxFuture<'a, Result<(), StepError>>;
}

/// Hands over a slot's gradient that was computed as one vector.
pub async fn complete_all(grads: &mut dyn Gradients, layout: &Layout, whole: &[f32]) -> Result<(), StepError> {
    for (number, block) in layout.blocks.iter().enumerate().rev() {
        let mut part = grads.take(number);
        part.as_mut_slice().copy_from_slice(&whole[block.range.clone()]);
        grads.complete(number, part).await?;
    }
    Ok(())
}

/// All arithmetic that the exact reduction does not do. Nothing here may depend on the world.
pub trait Arithmetic {
    /// Makes the parameters of step 0.
    fn initialize<'a>(
        &'a mut self,
        layout: &'a Layout,
        params: &'a mut [f32],
    ) -> LocalBoxFuture<'a, Result<(), StoreError>>;

    /// Says which slots will be asked for, in this order, so that their samples can be read ahead.
    fn begin(&mut self, work: Work) -> Result<(), StepError>;

    /// Hands the gradient of the next slot to `grads`, block by block from the last to the first. Gives up with
    /// [`StepError::Plane`] soon after `is_cancelled`.
    fn slot_gradient<'a>(
        &'a mut self,
        step: Step,
        params: &'a [f32],
        grads: &'a mut dyn Gradients,
        is_cancelled: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, Result<SlotDone, StepError>>;

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
