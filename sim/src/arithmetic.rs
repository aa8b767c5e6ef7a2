//! Arithmetic that takes virtual time only, and compares every number with the undisturbed run's.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::future::{FutureExt, LocalBoxFuture};
use polo_recipe::{config::Recipe, ids::Step, layout::Layout};
use polo_store::StoreError;
use polo_worker::{
    params::Params,
    plane::PlaneError,
    rig::{Arithmetic, Gradients, HeldOut, SlotDone, Update, Work, whole_gradients, whole_losses},
    step::{Parameters, StepError},
};

use crate::oracle::{Oracle, gradient, initial, tallies, update};

/// How often a computation looks whether it is still wanted.
const CANCEL_POLL: Duration = Duration::from_millis(5);

/// The arithmetic of one simulated worker.
pub struct SimArithmetic {
    /// Whose it is.
    pub who: String,
    /// The run.
    pub recipe: Arc<Recipe>,
    /// What must come out.
    pub oracle: Arc<Oracle>,
    /// How long a slot takes.
    pub slot_time: Duration,
    /// The work that was begun last, and the slots left of the step that is computed.
    pub work: Option<Work>,
    /// Slots that are left of a step.
    pub left: Option<(Step, VecDeque<usize>)>,
}

impl SimArithmetic {
    fn next_slot(&mut self, step: Step) -> Option<usize> {
        let work = self.work.as_ref()?;
        let slots = if step == work.first { &work.first_slots } else { &work.slots };
        if self.left.as_ref().is_none_or(|(of, left)| *of != step || left.is_empty()) {
            self.left = Some((step, slots.clone().collect()));
        }
        self.left.as_mut()?.1.pop_front()
    }

    async fn compute(
        &mut self,
        step: Step,
        num_slots: usize,
        params: &mut Parameters<'_>,
        grads: &mut dyn Gradients,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<SlotDone>, StepError> {
        let (oracle, mut done) = (self.oracle.clone(), Vec::with_capacity(num_slots));
        let gradient = async |_, params: &[f32]| {
            let slot = self.next_slot(step).ok_or(StepError::NoBatch(step))?;
            self.oracle.check_params(&self.who, step, params);
            self.take_time(is_cancelled).await?;
            let mut whole = vec![0.0; params.len()];
            gradient(self.recipe.run.seed, step, slot, params, &mut whole);
            done.push(SlotDone { tallies: tallies(&self.recipe, step, slot), data_wait: Duration::ZERO });
            Ok(whole)
        };
        whole_gradients(num_slots, params, grads, &oracle.layout, gradient).await?;
        Ok(done)
    }

    async fn take_time(&self, is_cancelled: &dyn Fn() -> bool) -> Result<(), StepError> {
        let end = tokio::time::Instant::now() + self.slot_time;
        while tokio::time::Instant::now() < end {
            if is_cancelled() {
                return Err(PlaneError::Aborted.into());
            }
            tokio::time::sleep(CANCEL_POLL.min(end - tokio::time::Instant::now())).await;
        }
        Ok(())
    }
}

/// Depends on everything that it may depend on, and is rounded, so that sums in another order differ.
fn held_out_loss(group: &HeldOut, params: &[f32]) -> f64 {
    let of_window = |window: u64| f64::from(params[(window as usize * 31 + group.set * 7) % params.len()]) * 0.1 + 2.0;
    group.windows.clone().map(of_window).sum()
}

impl Arithmetic for SimArithmetic {
    fn initialize<'a>(
        &'a mut self,
        layout: &'a Layout,
        params: &'a mut Params,
    ) -> LocalBoxFuture<'a, Result<(), StoreError>> {
        let mut all = vec![0.0; layout.num_params];
        initial(self.recipe.run.seed, &mut all);
        params.set(layout, &(0..layout.num_params), &all);
        async { Ok(()) }.boxed_local()
    }

    fn begin(&mut self, work: Work) -> Result<(), StepError> {
        (self.work, self.left) = (Some(work), None);
        Ok(())
    }

    fn gradients<'a>(
        &'a mut self,
        step: Step,
        num_slots: usize,
        params: &'a mut Parameters<'_>,
        grads: &'a mut dyn Gradients,
        is_cancelled: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, Result<Vec<SlotDone>, StepError>> {
        self.compute(step, num_slots, params, grads, is_cancelled).boxed_local()
    }

    fn losses<'a>(
        &'a mut self,
        step: Step,
        groups: &'a [HeldOut],
        params: &'a mut Parameters<'_>,
        is_cancelled: &'a dyn Fn() -> bool,
    ) -> LocalBoxFuture<'a, Result<Vec<f64>, StepError>> {
        let num_blocks = self.oracle.layout.blocks.len();
        async move {
            let this = &*self;
            let loss = async |group: &HeldOut, params: &[f32]| {
                this.oracle.check_params(&this.who, step, params);
                this.take_time(is_cancelled).await?;
                Ok(held_out_loss(group, params))
            };
            whole_losses(groups, params, num_blocks, loss).await
        }
        .boxed_local()
    }

    fn update(&mut self, change: Update<'_>) -> Result<(), StepError> {
        let Update { chunk, step, clip_coefficient, params, moments, grads } = change;
        let (first, second) = (moments.exp_avg.as_mut_slice(), moments.exp_avg_sq.as_mut_slice());
        update(params, first, second, grads, clip_coefficient);
        let spec = &self.oracle.layout.chunks[chunk.0 as usize];
        self.oracle.check_chunk(&self.who, step.next(), spec, [params, first, second]);
        Ok(())
    }
}
