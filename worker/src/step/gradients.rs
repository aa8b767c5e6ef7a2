//! From the gradients of a rank's slots to the sums of all slots, block by block: the thread that computes adds slots
//! to sums of subtrees, and while it goes on with the backward, these are reduced with the other ranks'.

use std::time::Duration;

use futures::{
    channel::mpsc::{Receiver, Sender},
    future::{FutureExt, LocalBoxFuture},
    sink::SinkExt,
    stream::StreamExt,
};
use polo_recipe::slots::SumPlan;
use tokio::time::Instant;

use crate::{
    flat::{
        Flat,
        ops::{add_assign, are_finite},
    },
    plane::{DataPlane, PlaneError},
    pool::{Pool, Returns},
    reduce::{ExactReduce, Sums, Traffic},
    rig::Gradients,
    step::{Setting, StepError, all_reduce::AllReduce, gather::Gatherer},
    trace::{Trace, Track},
};

/// A block of which this rank's slots are summed as far as one rank can.
pub(super) struct Ready {
    block: usize,
    /// Sums of the rank's subtrees.
    pieces: Vec<Flat>,
}

/// Sums the gradients of a rank's slots.
pub(super) struct SlotSums<'a> {
    setting: &'a Setting,
    plan: &'a SumPlan,
    pool: &'a mut Pool,
    ready: Sender<Ready>,
    /// By block and buffer of the plan.
    partial: Vec<Vec<Option<Flat>>>,
    /// Of each slot, whether its gradient is finite, if that is looked at.
    are_finite: Option<Vec<bool>>,
    /// Spent waiting for reductions.
    pub(super) blocked: Duration,
}

impl<'a> SlotSums<'a> {
    /// Nothing summed yet.
    pub(super) fn new(
        setting: &'a Setting,
        plan: &'a SumPlan,
        pool: &'a mut Pool,
        ready: Sender<Ready>,
        looks: bool,
    ) -> Self {
        let partial = setting.layout.blocks.iter().map(|_| (0..plan.num_buffers).map(|_| None).collect()).collect();
        let are_finite = looks.then(|| vec![true; plan.steps.len()]);
        Self { setting, plan, pool, ready, partial, are_finite, blocked: Duration::ZERO }
    }

    /// How many slots the rank has.
    pub(super) fn num_slots(&self) -> usize {
        self.plan.steps.len()
    }

    /// Of each slot, whether its gradient is finite; none if that was not looked at.
    pub(super) fn are_finite(&self) -> Option<&[bool]> {
        self.are_finite.as_deref()
    }

    /// For a rank without slots: it brings nothing to any sum.
    pub(super) async fn bring_nothing(&mut self) -> Result<(), StepError> {
        for block in (0..self.setting.layout.blocks.len()).rev() {
            self.send(block, Vec::new()).await?;
        }
        Ok(())
    }

    async fn add(&mut self, slot: usize, block: usize, grads: Flat) -> Result<(), StepError> {
        if let Some(all) = &mut self.are_finite {
            all[slot] &= are_finite(grads.as_slice());
        }
        let steps = &self.plan.steps;
        let partial = &mut self.partial[block];
        partial[steps[slot].buffer] = Some(grads);
        for merge in &steps[slot].merges {
            let term = partial[merge.from].take();
            if let (Some(sum), Some(term)) = (&mut partial[merge.into], term) {
                add_assign(sum.as_mut_slice(), term.as_slice());
                self.pool.give(term);
            }
        }
        if slot + 1 < steps.len() {
            return Ok(());
        }
        let pieces = partial.iter_mut().filter_map(Option::take).collect();
        self.send(block, pieces).await
    }

    async fn send(&mut self, block: usize, pieces: Vec<Flat>) -> Result<(), StepError> {
        let (started, _waiting) = (Instant::now(), self.setting.trace.wait("waiting for reductions"));
        // The other side is gone only with an error of its own, which then goes before this one.
        let sent = self.ready.send(Ready { block, pieces }).await;
        self.blocked += started.elapsed();
        sent.map_err(|_| PlaneError::Aborted.into())
    }
}

impl Gradients for SlotSums<'_> {
    fn take(&mut self, block: usize) -> Flat {
        self.pool.zeros(self.setting.layout.blocks[block].range.len())
    }

    fn complete<'a>(&'a mut self, slot: usize, block: usize, grads: Flat) -> LocalBoxFuture<'a, Result<(), StepError>> {
        self.add(slot, block, grads).boxed_local()
    }
}

/// What the reduction of a step's blocks needs and fills.
pub(super) struct Reduction<'a> {
    pub(super) reduce: &'a mut ExactReduce,
    pub(super) ready: Receiver<Ready>,
    /// What takes the place of `reduce`, if that is wanted.
    pub(super) all_reduce: Option<AllReduce<'a>>,
    pub(super) sums: &'a mut Sums,
    pub(super) returns: Returns,
}

impl Reduction<'_> {
    /// Reduces the next block that is ready. False if no more come.
    async fn next(
        &mut self,
        plane: &mut dyn DataPlane,
        trace: &Trace,
        traffic: &mut Traffic,
    ) -> Result<bool, PlaneError> {
        let Some(Ready { block, mut pieces }) = self.ready.next().await else { return Ok(false) };
        let _reducing = trace.block(Track::Exchange, "reduce", block);
        *traffic += match &self.all_reduce {
            Some(all_reduce) => all_reduce.run(plane, block, &mut pieces, self.sums).await?,
            None => self.reduce.run(plane, block, &pieces, self.sums).await?,
        };
        pieces.into_iter().for_each(|piece| self.returns.give(piece));
        Ok(true)
    }
}

/// What goes on beside a step's computation, in the same order on every rank: blocks are gathered ahead of the forward, and
/// on the way back ahead of the backward, each before the one that the backward has just left is reduced. Ends early when
/// whoever computes has given up.
pub(super) async fn gather_and_reduce(
    plane: &mut dyn DataPlane,
    mut gatherer: Option<Gatherer<'_>>,
    mut reduction: Reduction<'_>,
    setting: &Setting,
) -> Result<Traffic, PlaneError> {
    let mut traffic = Traffic::default();
    let last = setting.layout.blocks.len() - 1;
    let is_layer = |block: &usize| (1..last).contains(block);
    if let Some(gatherer) = &mut gatherer {
        for block in (0..=last).chain(last.checked_sub(1).filter(is_layer)) {
            if !gatherer.gather(plane, block, &mut traffic).await? {
                return Ok(traffic);
            }
        }
    }
    for block in (0..=last).rev() {
        if let (Some(gatherer), Some(next)) = (&mut gatherer, block.checked_sub(2).filter(is_layer))
            && !gatherer.gather(plane, next, &mut traffic).await?
        {
            return Ok(traffic);
        }
        if !reduction.next(plane, &setting.trace, &mut traffic).await? {
            return Ok(traffic);
        }
    }
    Ok(traffic)
}
