//! How long steps take: what may be expected of the next one, and who is slower than the others.

use std::collections::{BTreeMap, VecDeque};

use polo_recipe::ids::Step;

use super::{NowMs, StepDone, WorkerId};

/// Steps that are remembered.
const WINDOW: usize = 20;
/// In so many of them a worker must be slow to be called a straggler.
const NUM_SLOW: usize = 15;
/// Slow is so many times the median of the others ...
const SLOWDOWN: f64 = 2.0;
/// ... and so much longer for its slots of a step: below this, clocks and schedulers decide.
const LEAST_LAG_MS: f64 = 20.0;
/// A step may take so many times the median of recent ones, and never less than [`LEAST_LIMIT_MS`].
const PATIENCE: u64 = 10;
const LEAST_LIMIT_MS: NowMs = 20_000;

/// Recent steps of the run.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// Of steps that were completed for the first time, the newest last.
    step_ms: VecDeque<u64>,
    /// The step whose reports are coming in, and each worker's time for a slot and number of slots.
    step: Step,
    slot_times: BTreeMap<WorkerId, (f64, u32)>,
}

/// One worker's recent steps.
#[derive(Debug, Clone, Default)]
pub struct Slowness {
    /// Its time for a slot as a multiple of the others' median, and whether that was slow.
    recent: VecDeque<(f64, bool)>,
    compute_ms: VecDeque<u64>,
}

impl Pace {
    /// A step was completed for the first time.
    pub(super) fn add_step(&mut self, step_ms: u64) {
        push(&mut self.step_ms, step_ms);
    }

    /// How long the next step may take.
    pub(super) fn limit_ms(&self) -> NowMs {
        let mut sorted: Vec<_> = self.step_ms.iter().copied().collect();
        sorted.sort_unstable();
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0);
        LEAST_LIMIT_MS.max(PATIENCE * median)
    }

    /// Takes a member's report. Once all `num_members` have reported a step, how each compares with the others: its time
    /// for a slot as a multiple of the others' median, and whether that is slow.
    pub(super) fn compare(
        &mut self,
        worker: &WorkerId,
        done: &StepDone,
        num_members: usize,
    ) -> Vec<(WorkerId, f64, bool)> {
        if done.step < self.step || done.num_slots == 0 {
            return Vec::new();
        }
        if done.step > self.step {
            self.step = done.step;
            self.slot_times.clear();
        }
        let slot_ms = done.compute_ms as f64 / f64::from(done.num_slots);
        self.slot_times.insert(worker.clone(), (slot_ms, done.num_slots));
        if self.slot_times.len() < num_members || num_members < 2 {
            return Vec::new();
        }
        compared(&std::mem::take(&mut self.slot_times))
    }
}

fn compared(slot_times: &BTreeMap<WorkerId, (f64, u32)>) -> Vec<(WorkerId, f64, bool)> {
    let mut sorted: Vec<_> = slot_times.values().map(|(ms, _)| *ms).collect();
    sorted.sort_by(f64::total_cmp);
    let one = |(worker, (ms, num_slots)): (&WorkerId, &(f64, u32))| {
        let own = sorted.partition_point(|other| other < ms);
        let median = median_without(&sorted, own);
        let is_slow = *ms > SLOWDOWN * median && (ms - median) * f64::from(*num_slots) >= LEAST_LAG_MS;
        // Clocks count whole milliseconds.
        (worker.clone(), ms / median.max(1.0), is_slow)
    };
    slot_times.iter().map(one).collect()
}

/// The median of at least two ascending numbers without the one at `skipped`.
fn median_without(sorted: &[f64], skipped: usize) -> f64 {
    let others = sorted.len() - 1;
    let at = |place: usize| sorted[if place < skipped { place } else { place + 1 }];
    (at((others - 1) / 2) + at(others / 2)) / 2.0
}

impl Slowness {
    pub(super) fn add(&mut self, multiple: f64, is_slow: bool) {
        push(&mut self.recent, (multiple, is_slow));
    }

    pub(super) fn add_compute(&mut self, compute_ms: u64) {
        push(&mut self.compute_ms, compute_ms);
    }

    /// How many times as long as the others it takes, if it does so consistently.
    pub fn slowdown(&self) -> Option<f64> {
        let num_slow = self.recent.iter().filter(|(_, is_slow)| *is_slow).count();
        let mut multiples: Vec<_> = self.recent.iter().map(|(multiple, _)| *multiple).collect();
        multiples.sort_by(f64::total_cmp);
        (num_slow >= NUM_SLOW).then(|| multiples[multiples.len() / 2])
    }

    /// Mean time for the slots of a step.
    pub fn mean_compute_ms(&self) -> Option<u64> {
        let num = self.compute_ms.len() as u64;
        (num > 0).then(|| self.compute_ms.iter().sum::<u64>() / num)
    }
}

fn push<T>(window: &mut VecDeque<T>, new: T) {
    if window.len() == WINDOW {
        window.pop_front();
    }
    window.push_back(new);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_the_others_leaves_out_one() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!([0, 1, 2, 3].map(|skipped| median_without(&sorted, skipped)), [4.0, 4.0, 2.0, 2.0]);
        assert_eq!(median_without(&[3.0, 9.0], 1), 3.0);
        assert_eq!(median_without(&[1.0, 2.0, 9.0], 2), 1.5);
    }

    #[test]
    fn a_step_may_take_ten_times_the_median_but_at_least_twenty_seconds() {
        let mut pace = Pace::default();
        assert_eq!(pace.limit_ms(), 20_000);
        for step_ms in [100, 5000, 4000, 6000, 100_000] {
            pace.add_step(step_ms);
        }
        assert_eq!(pace.limit_ms(), 50_000);
    }
}
