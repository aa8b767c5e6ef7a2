//! The steps of a run in a bounded number of points, for curves.

use polo_proto::v1;

/// Enough for any screen.
const MAX_POINTS: usize = 2000;
/// Losses in all points together, so that many sources do not make a page of many megabytes.
const MAX_LOSSES: usize = 400_000;

/// Steps as they were completed: all of them, or those whose number is a multiple of a power of two.
#[derive(Debug)]
pub struct History {
    every_steps: u64,
    steps: Vec<v1::StepSummary>,
}

impl Default for History {
    fn default() -> Self {
        Self { every_steps: 1, steps: Vec::new() }
    }
}

impl History {
    /// Takes a step that is newer than all before.
    pub fn add(&mut self, step: &v1::StepSummary) {
        if !step.step.is_multiple_of(self.every_steps) {
            return;
        }
        self.steps.push(v1::StepSummary { samples: Vec::new(), ..step.clone() });
        while self.steps.len() > MAX_POINTS || self.num_losses() > MAX_LOSSES {
            self.every_steps *= 2;
            self.steps.retain(|known| known.step.is_multiple_of(self.every_steps));
        }
    }

    fn num_losses(&self) -> usize {
        self.steps.iter().map(|step| 1 + step.sources.len()).sum()
    }

    /// The points, by step.
    pub fn steps(&self) -> &[v1::StepSummary] {
        &self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(history: &History) -> Vec<u64> {
        history.steps().iter().map(|step| step.step).collect()
    }

    fn after(num_steps: u64) -> History {
        let mut history = History::default();
        (1..=num_steps).for_each(|step| history.add(&v1::StepSummary { step, ..Default::default() }));
        history
    }

    #[test]
    fn a_short_run_has_every_step() {
        assert_eq!(numbers(&after(5)), [1, 2, 3, 4, 5]);
        assert_eq!(numbers(&after(2000)), (1..=2000).collect::<Vec<_>>());
    }

    #[test]
    fn a_long_run_has_evenly_spaced_steps_and_never_more_than_the_bound() {
        assert_eq!(numbers(&after(2001)), (1..=1000).map(|n| 2 * n).collect::<Vec<_>>());
        assert_eq!(numbers(&after(10_000)), (1..=1250).map(|n| 8 * n).collect::<Vec<_>>());
    }

    #[test]
    fn many_sources_leave_fewer_points() {
        let mut history = History::default();
        let sources = vec![v1::SourceLoss::default(); 999];
        (1..=401)
            .for_each(|step| history.add(&v1::StepSummary { step, sources: sources.clone(), ..Default::default() }));
        assert_eq!(numbers(&history), (1..=200).map(|n| 2 * n).collect::<Vec<_>>());
    }
}
