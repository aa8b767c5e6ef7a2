//! The gradients of slots while their micro-batches are computed one after the other.

use std::collections::BTreeMap;

use polo_recipe::layout::Layout;
use tch::Tensor;

use crate::{
    flat::{Flat, view_mut},
    model::{ModelError, pass::EmbeddingGrad, views::is_tied},
    rig::Gradients,
    step::StepError,
};

/// Adds up micro-batches, and hands a slot's gradient of a block over with the last of them.
pub(super) struct SlotGrads<'a> {
    grads: &'a mut dyn Gradients,
    layout: &'a Layout,
    /// Micro-batches of a slot. They are numbered through all slots of the rank.
    per_slot: usize,
    /// By slot and block.
    waiting: BTreeMap<(usize, usize), Flat>,
    /// Of the slots' embedded tokens.
    rows: BTreeMap<usize, Vec<EmbeddingGrad>>,
}

impl<'a> SlotGrads<'a> {
    pub(super) fn new(grads: &'a mut dyn Gradients, layout: &'a Layout, per_slot: usize) -> Self {
        Self { grads, layout, per_slot, waiting: BTreeMap::new(), rows: BTreeMap::new() }
    }

    fn slot(&self, micro_batch: usize) -> usize {
        micro_batch / self.per_slot
    }

    fn is_last(&self, micro_batch: usize) -> bool {
        (micro_batch + 1).is_multiple_of(self.per_slot)
    }

    fn resume(&mut self, slot: usize, block: usize) -> Flat {
        self.waiting.remove(&(slot, block)).unwrap_or_else(|| self.grads.take(block))
    }

    async fn put(&mut self, micro_batch: usize, block: usize, of_block: Flat) -> Result<(), StepError> {
        let slot = self.slot(micro_batch);
        if self.is_last(micro_batch) {
            return self.grads.complete(slot, block, of_block).await;
        }
        self.waiting.insert((slot, block), of_block);
        Ok(())
    }

    /// Adds a micro-batch to the gradient of a layer.
    pub(super) async fn add(
        &mut self,
        micro_batch: usize,
        block: usize,
        add: impl FnOnce(&Tensor) -> Result<(), ModelError>,
    ) -> Result<(), StepError> {
        let mut of_block = self.resume(self.slot(micro_batch), block);
        add(&view_mut(of_block.as_mut_slice()))?;
        self.put(micro_batch, block, of_block).await
    }

    /// Adds a micro-batch to the gradients of the head and, if the embedding is its projection, of that: the second tensor
    /// is empty if not.
    pub(super) async fn add_head<T>(
        &mut self,
        micro_batch: usize,
        add: impl FnOnce([&Tensor; 2]) -> Result<T, ModelError>,
    ) -> Result<T, StepError> {
        let (slot, last) = (self.slot(micro_batch), self.layout.blocks.len() - 1);
        let mut of_last = self.resume(slot, last);
        let mut of_first = if is_tied(self.layout) { self.resume(slot, 0) } else { Flat::default() };
        let added = add([&view_mut(of_last.as_mut_slice()), &view_mut(of_first.as_mut_slice())])?;
        if is_tied(self.layout) {
            self.waiting.insert((slot, 0), of_first);
        }
        self.put(micro_batch, last, of_last).await?;
        Ok(added)
    }

    /// A micro-batch has left by the embedding. All rows of a slot are added after all gradients of its head, whose
    /// projection may be the embedding.
    pub(super) async fn leave(&mut self, micro_batch: usize, rows: EmbeddingGrad) -> Result<(), StepError> {
        let slot = self.slot(micro_batch);
        self.rows.entry(slot).or_default().push(rows);
        if !self.is_last(micro_batch) {
            return Ok(());
        }
        let mut of_first = self.resume(slot, 0);
        for rows in self.rows.remove(&slot).unwrap_or_default() {
            rows.add_to(&view_mut(of_first.as_mut_slice()), self.layout)?;
        }
        self.grads.complete(slot, 0, of_first).await
    }
}
