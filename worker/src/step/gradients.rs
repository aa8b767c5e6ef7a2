//! From the gradients of a rank's slots to the sums of all slots, block by block: the thread that computes adds slots
//! to sums of subtrees, and while it goes on with the backward, these are reduced with the other ranks'.

use std::time::Duration;

use futures::{
    channel::mpsc::{Receiver, Sender},
    future::{FutureExt, LocalBoxFuture},
    sink::SinkExt,
    stream::StreamExt,
};
use polo_recipe::{layout::Layout, slots::SumPlan};
use tokio::time::Instant;

use crate::{
    flat::Flat,
    plane::{DataPlane, PlaneError},
    pool::{Pool, Returns},
    reduce::{ExactReduce, Sums, Traffic, add_assign},
    rig::Gradients,
    step::StepError,
};

/// A block of which this rank's slots are summed as far as one rank can.
pub(super) struct Ready {
    block: usize,
    /// Sums of the rank's subtrees.
    pieces: Vec<Flat>,
}

/// Sums the gradients of a rank's slots.
pub(super) struct SlotSums<'a> {
    layout: &'a Layout,
    plan: &'a SumPlan,
    pool: &'a mut Pool,
    ready: Sender<Ready>,
    /// By block and buffer of the plan.
    partial: Vec<Vec<Option<Flat>>>,
    /// Which of the rank's slots is computed.
    slot: usize,
    /// Whether the slot's gradient is finite, if that is looked at.
    is_finite: Option<bool>,
    /// Spent waiting for reductions.
    pub(super) blocked: Duration,
}

impl<'a> SlotSums<'a> {
    /// Begins with the rank's first slot.
    pub(super) fn new(layout: &'a Layout, plan: &'a SumPlan, pool: &'a mut Pool, ready: Sender<Ready>) -> Self {
        let partial = layout.blocks.iter().map(|_| (0..plan.num_buffers).map(|_| None).collect()).collect();
        Self { layout, plan, pool, ready, partial, slot: 0, is_finite: None, blocked: Duration::ZERO }
    }

    /// How many slots the rank has.
    pub(super) fn num_slots(&self) -> usize {
        self.plan.steps.len()
    }

    /// Looks, in the next slot, whether its gradient is finite.
    pub(super) fn look(&mut self) {
        self.is_finite = Some(true);
    }

    /// The slot is computed. Returns whether its gradient was finite as far as that was looked at.
    pub(super) fn next_slot(&mut self) -> bool {
        self.slot += 1;
        self.is_finite.take().unwrap_or(true)
    }

    /// For a rank without slots: it brings nothing to any sum.
    pub(super) async fn bring_nothing(&mut self) -> Result<(), StepError> {
        for block in (0..self.layout.blocks.len()).rev() {
            self.send(block, Vec::new()).await?;
        }
        Ok(())
    }

    async fn add(&mut self, block: usize, grads: Flat) -> Result<(), StepError> {
        if let Some(is_finite) = &mut self.is_finite {
            *is_finite &= grads.as_slice().iter().all(|g| g.is_finite());
        }
        let slot = &self.plan.steps[self.slot];
        let partial = &mut self.partial[block];
        partial[slot.buffer] = Some(grads);
        for merge in &slot.merges {
            let term = partial[merge.from].take();
            if let (Some(sum), Some(term)) = (&mut partial[merge.into], term) {
                add_assign(sum.as_mut_slice(), term.as_slice());
                self.pool.give(term);
            }
        }
        if self.slot + 1 < self.plan.steps.len() {
            return Ok(());
        }
        let pieces = partial.iter_mut().filter_map(Option::take).collect();
        self.send(block, pieces).await
    }

    async fn send(&mut self, block: usize, pieces: Vec<Flat>) -> Result<(), StepError> {
        let started = Instant::now();
        // The other side is gone only with an error of its own, which then goes before this one.
        let sent = self.ready.send(Ready { block, pieces }).await;
        self.blocked += started.elapsed();
        sent.map_err(|_| PlaneError::Aborted.into())
    }
}

impl Gradients for SlotSums<'_> {
    fn take(&mut self, block: usize) -> Flat {
        self.pool.zeros(self.layout.blocks[block].range.len())
    }

    fn complete<'a>(&'a mut self, block: usize, grads: Flat) -> LocalBoxFuture<'a, Result<(), StepError>> {
        self.add(block, grads).boxed_local()
    }
}

/// Reduces blocks as they become ready, until no more come.
pub(super) async fn reduce_blocks(
    reduce: &mut ExactReduce,
    plane: &mut dyn DataPlane,
    mut ready: Receiver<Ready>,
    sums: &mut Sums,
    returns: Returns,
) -> Result<Traffic, PlaneError> {
    let mut traffic = Traffic::default();
    while let Some(Ready { block, pieces }) = ready.next().await {
        traffic += reduce.run(plane, block, &pieces, sums).await?;
        pieces.into_iter().for_each(|piece| returns.give(piece));
    }
    Ok(traffic)
}
