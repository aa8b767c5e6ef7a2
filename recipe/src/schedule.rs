//! The learning rate of every step of a stage.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate moves within a stage.
///
/// It rises linearly over `warmup_steps` (the last of them has the peak), then follows `kind`, which ends at the floor
/// on the stage's last step.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Shape after the warm-up: `cosine`, `linear`, `constant` or `wsd`.
    pub kind: ScheduleKind,
    /// Highest learning rate.
    pub peak_learning_rate: f64,
    /// Steps of the linear rise from zero; the first step's rate is above zero. Default 0.
    #[serde(default)]
    pub warmup_steps: u64,
    /// Lowest rate after the warm-up, as a fraction of the peak, from 0 to 1. `constant` never falls, so it stays
    /// above any floor. Default 0.
    #[serde(default)]
    pub floor: f64,
    /// Steps of the final linear decay of `wsd`; given for that kind and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
}

/// Shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine wave from the peak to the floor.
    Cosine,
    /// A straight line from the peak to the floor.
    Linear,
    /// The peak throughout.
    Constant,
    /// Warmup-stable-decay: the peak, then a straight line to the floor over the last `decay_steps`.
    Wsd,
}

/// The rate of step `step_in_stage` (from 0) of a stage of `num_steps`.
pub fn learning_rate(schedule: &Schedule, step_in_stage: u64, num_steps: u64) -> f64 {
    let done = step_in_stage + 1;
    if done <= schedule.warmup_steps {
        return schedule.peak_learning_rate * done as f64 / schedule.warmup_steps as f64;
    }
    let decay_steps = match schedule.kind {
        ScheduleKind::Constant => 0,
        ScheduleKind::Cosine | ScheduleKind::Linear => num_steps.saturating_sub(schedule.warmup_steps),
        ScheduleKind::Wsd => schedule.decay_steps.unwrap_or(0),
    };
    let decayed = done.saturating_sub(num_steps.saturating_sub(decay_steps)).min(decay_steps);
    let progress = if decay_steps == 0 { 0.0 } else { decayed as f64 / decay_steps as f64 };
    let height = match schedule.kind {
        ScheduleKind::Cosine => 0.5 + 0.5 * cos_pi(progress),
        _ => 1.0 - progress,
    };
    schedule.peak_learning_rate * (schedule.floor + (1.0 - schedule.floor) * height)
}

/// cos(pi x) for x in [0, 1], from its Taylor series around 1/2.
///
/// The C library's cosine may differ in its last bit from one version to the next, and the trained bits with it;
/// additions and multiplications do not.
fn cos_pi(x: f64) -> f64 {
    let angle = std::f64::consts::PI * (0.5 - x);
    let (mut term, mut sum) = (angle, angle);
    for n in 1..12 {
        term *= -angle * angle / f64::from((2 * n) * (2 * n + 1));
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind, warmup_steps: u64, floor: f64, decay_steps: Option<u64>) -> Schedule {
        Schedule { kind, peak_learning_rate: 0.01, warmup_steps, floor, decay_steps }
    }

    fn rates(schedule: &Schedule, num_steps: u64) -> Vec<f64> {
        (0..num_steps).map(|step| learning_rate(schedule, step, num_steps)).collect()
    }

    fn assert_close(actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        for (step, (a, e)) in actual.iter().zip(expected).enumerate() {
            assert!((a - e).abs() < 1e-15, "step {step}: {a} is not {e}");
        }
    }

    #[test]
    fn linear_rises_to_the_peak_and_falls_to_the_floor() {
        let linear = schedule(ScheduleKind::Linear, 2, 0.1, None);
        assert_close(&rates(&linear, 5), &[0.005, 0.01, 0.007, 0.004, 0.001]);
    }

    #[test]
    fn cosine_passes_its_known_points() {
        let cosine = schedule(ScheduleKind::Cosine, 1, 0.2, None);
        // After the warm-up, cos(pi p) at p = 1/4, 1/2, 3/4, 1: 0.7071..., 0, -0.7071..., -1.
        let quarter = 0.01 * (0.2 + 0.8 * 0.853_553_390_593_273_8);
        let three_quarters = 0.01 * (0.2 + 0.8 * 0.146_446_609_406_726_2);
        assert_close(&rates(&cosine, 5), &[0.01, quarter, 0.006, three_quarters, 0.002]);
    }

    #[test]
    fn constant_holds_the_peak_after_the_warm_up() {
        let constant = schedule(ScheduleKind::Constant, 4, 0.5, None);
        assert_close(&rates(&constant, 6), &[0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01]);
    }

    #[test]
    fn wsd_holds_the_peak_until_its_decay() {
        let wsd = schedule(ScheduleKind::Wsd, 1, 0.0, Some(2));
        assert_close(&rates(&wsd, 5), &[0.01, 0.01, 0.01, 0.005, 0.0]);
    }

    #[test]
    fn a_stage_that_is_all_warm_up_ends_at_the_peak() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear] {
            assert_close(&rates(&schedule(kind, 2, 0.0, None), 2), &[0.005, 0.01]);
        }
    }

    #[test]
    fn the_own_cosine_is_the_cosine() {
        for i in 0..=1000 {
            let x = f64::from(i) / 1000.0;
            assert!((cos_pi(x) - (std::f64::consts::PI * x).cos()).abs() < 1e-15, "at {x}");
        }
    }
}
