//! How much of the time went into steps that were kept.

use serde::{Deserialize, Serialize};

use super::NowMs;

/// Time since the run's first generation, and what of it went into first-time completed steps. Time without a
/// coordinator is in neither.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodput {
    /// Of steps that were completed for the first time.
    pub trained_ms: u64,
    /// Before `since_ms`.
    pub elapsed_ms: u64,
    /// Since when this process counts, on its own clock; absent before its first generation.
    #[serde(skip)]
    pub since_ms: Option<NowMs>,
}

impl Goodput {
    /// A generation runs: from now on, time counts.
    pub(super) fn begin(&mut self, now: NowMs) {
        self.since_ms.get_or_insert(now);
    }

    /// A step was completed for the first time.
    pub(super) fn add_step(&mut self, step_ms: u64) {
        self.trained_ms += step_ms;
    }

    /// As it is written down now.
    pub(super) fn at(&self, now: NowMs) -> Self {
        let elapsed_ms = self.elapsed_ms + self.since_ms.map_or(0, |since| now - since);
        Self { elapsed_ms, since_ms: None, ..*self }
    }

    /// The share, once there is time to share out.
    pub fn share(&self, now: NowMs) -> Option<f64> {
        let Self { trained_ms, elapsed_ms, .. } = self.at(now);
        (elapsed_ms > 0).then(|| (trained_ms as f64 / elapsed_ms as f64).min(1.0))
    }
}
