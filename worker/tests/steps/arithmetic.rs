//! Arithmetic that costs nothing, and that can be wrong in one slot of one step.

use std::{collections::VecDeque, time::Duration};

use futures::future::{FutureExt, LocalBoxFuture};
use polo_recipe::{
    ids::{Rank, Step},
    layout::Layout,
};
use polo_store::StoreError;
use polo_worker::{
    decision::Tally,
    params::Params,
    rig::{Arithmetic, Gradients, HeldOut, SlotDone, Update, Work, whole_gradients, whole_losses},
    step::{Parameters, StepError},
};

use crate::scene::layout;

/// Numbers that are not finite.
#[derive(Debug, Clone, Copy)]
pub struct Bad {
    /// In which step.
    pub step: Step,
    /// In which of its slots.
    pub slot: usize,
    /// On which rank; on all if the samples are at fault.
    pub only_on: Option<Rank>,
    /// Which number.
    pub kind: Kind,
}

/// Which number is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    NanGradient,
    InfiniteGradient,
    InfiniteLoss,
}

/// Tokens of a slot.
pub const SLOT_TOKENS: u64 = 8;

/// One rank's arithmetic.
pub struct Fake {
    rank: Rank,
    bad: Option<Bad>,
    work: Option<Work>,
    /// Slots that are left of a step.
    left: VecDeque<usize>,
    step: Option<Step>,
}

impl Fake {
    pub fn new(rank: Rank, bad: Option<Bad>) -> Self {
        Self { rank, bad, work: None, left: VecDeque::new(), step: None }
    }

    fn next_slot(&mut self, step: Step) -> Option<usize> {
        let work = self.work.as_ref()?;
        if self.step.replace(step) != Some(step) {
            let slots = if step == work.first { &work.first_slots } else { &work.slots };
            self.left = slots.clone().collect();
        }
        self.left.pop_front()
    }

    async fn compute(
        &mut self,
        step: Step,
        num_slots: usize,
        params: &mut Parameters<'_>,
        to: &mut dyn Gradients,
    ) -> Result<Vec<SlotDone>, StepError> {
        let mut done = Vec::with_capacity(num_slots);
        let gradient = async |_, params: &[f32]| {
            let slot = self.next_slot(step).ok_or(StepError::NoBatch(step))?;
            let (loss, grads) = self.slot(step, slot, params);
            let tallies = vec![Tally { loss, num_tokens: SLOT_TOKENS }];
            done.push(SlotDone { tallies, data_wait: Duration::ZERO });
            Ok(grads)
        };
        whole_gradients(num_slots, params, to, &layout(), gradient).await?;
        Ok(done)
    }

    /// Loss and gradient of a slot, which may be wrong.
    fn slot(&self, step: Step, slot: usize, params: &[f32]) -> (f64, Vec<f32>) {
        let mut grads = vec![0.0; params.len()];
        gradient(step, slot, params, &mut grads);
        let mut loss = SLOT_TOKENS as f64 * (2.0 + f64::from(noise(step, slot, 0)));
        let is_here = |bad: &Bad| bad.only_on.is_none_or(|rank| rank == self.rank);
        match self.bad.filter(|bad| (bad.step, bad.slot) == (step, slot)).filter(is_here).map(|bad| bad.kind) {
            Some(Kind::NanGradient) => grads[params.len() / 2] = f32::NAN,
            Some(Kind::InfiniteGradient) => grads[params.len() / 2] = f32::NEG_INFINITY,
            Some(Kind::InfiniteLoss) => loss = f64::INFINITY,
            None => {}
        }
        (loss, grads)
    }
}

impl Arithmetic for Fake {
    fn initialize<'a>(
        &'a mut self,
        layout: &'a Layout,
        params: &'a mut Params,
    ) -> LocalBoxFuture<'a, Result<(), StoreError>> {
        let all: Vec<_> = (0..layout.num_params).map(|at| noise(Step(0), usize::MAX, at)).collect();
        params.set(layout, &(0..layout.num_params), &all);
        async { Ok(()) }.boxed_local()
    }

    fn begin(&mut self, work: Work) -> Result<(), StepError> {
        (self.work, self.step) = (Some(work), None);
        Ok(())
    }

    fn gradients<'a>(
        &'a mut self,
        step: Step,
        num_slots: usize,
        params: &'a mut Parameters<'_>,
        grads: &'a mut dyn Gradients,
        _: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, Result<Vec<SlotDone>, StepError>> {
        self.compute(step, num_slots, params, grads).boxed_local()
    }

    fn losses<'a>(
        &'a mut self,
        _: Step,
        groups: &'a [HeldOut],
        params: &'a mut Parameters<'_>,
        _: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, Result<Vec<f64>, StepError>> {
        let loss = async |group: &HeldOut, params: &[f32]| {
            // Rounded, so that sums in another order differ.
            let of_window = |window: u64| f64::from(params[(window as usize * 31) % params.len()]) * 0.1;
            Ok(group.windows.clone().map(of_window).sum())
        };
        async move { whole_losses(groups, params, layout().blocks.len(), loss).await }.boxed_local()
    }

    fn update(&mut self, update: Update<'_>) -> Result<(), StepError> {
        let Update { clip_coefficient, params, moments, grads, .. } = update;
        let (first, second) = (moments.exp_avg.as_mut_slice(), moments.exp_avg_sq.as_mut_slice());
        for (((param, first), second), grad) in params.iter_mut().zip(first).zip(second).zip(grads) {
            let grad = *grad * clip_coefficient as f32;
            *first = 0.9 * *first + 0.1 * grad;
            *second = 0.95 * *second + 0.05 * grad * grad;
            *param -= 0.01 * *first / (second.sqrt() + 1e-3);
        }
        Ok(())
    }
}

/// Every element depends on parameters of other chunks, so that a mixed state shows.
fn gradient(step: Step, slot: usize, params: &[f32], grads: &mut [f32]) {
    for (at, grad) in grads.iter_mut().enumerate() {
        *grad = 0.3 * params[(at * 31 + slot * 7) % params.len()] + noise(step, slot, at);
    }
}

/// A number from -1 to 1 that follows from the others.
fn noise(step: Step, slot: usize, at: usize) -> f32 {
    let mix = |state: u64, word: u64| (state ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(29);
    let state = [step.0, slot as u64, at as u64, 0].into_iter().fold(0x9e37_79b9_7f4a_7c15, mix);
    (state >> 40) as f32 / (1 << 23) as f32 - 1.0
}
