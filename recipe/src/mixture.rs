//! Which source each sample of a stage comes from.
//!
//! A source that gives `u` of every `p` samples is a row of unit jobs with windows: job `j` may take the positions from
//! `floor(j p / u)` up to, but not including, `ceil((j + 1) p / u)`. A sequence in which every job lies in its window
//! has each source strictly within one sample of its share in every prefix, and serving the earliest deadline first
//! always finds such a sequence (these are the Pfair windows of Baruah et al., "Proportionate Progress", 1996, on a
//! single processor).
//!
//! The sequence repeats after `p` samples. One period is walked when the mixture is made, and how many samples of each
//! source came before every [`CHECKPOINT_INTERVAL`]-th position is kept; a query walks on from there.

use std::ops::Range;

/// Positions between two checkpoints: 40 sources over a period of 80 million samples keep 12 MB.
const CHECKPOINT_INTERVAL: u64 = 1024;

/// The most samples one mixture may have, so that products of two counts fit in 64 bits.
pub const MAX_SAMPLES: u64 = u32::MAX as u64;

/// Where one sample of a stage comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// Index of the source among the mixture's weights.
    pub source: usize,
    /// How many samples of that source come before it in the mixture.
    pub index: u64,
}

/// An interleaving of sources in proportion to their weights.
#[derive(Debug, Clone)]
pub struct Mixture {
    counts: Vec<u64>,
    /// Samples that each source gives to a period.
    units: Vec<u64>,
    period: u64,
    /// For every checkpoint of the first period, how many samples of each source come before it.
    checkpoints: Vec<u32>,
}

impl Mixture {
    /// Mixes `num_samples` (1 to [`MAX_SAMPLES`]) by `weights`, of which at least one is above zero.
    ///
    /// Weights that reduce to small numbers are kept exactly and make a short period. Others are rounded to whole
    /// samples of the mixture, by largest remainder, and the period is the whole mixture.
    pub fn new(weights: &[u64], num_samples: u64) -> Self {
        assert!((1..=MAX_SAMPLES).contains(&num_samples), "{num_samples} samples are not 1 to {MAX_SAMPLES}");
        let units = reduced(weights, num_samples).unwrap_or_else(|| largest_remainder(weights, num_samples));
        let period = units.iter().sum();
        let mut mixture = Self { counts: Vec::new(), units, period, checkpoints: Vec::new() };
        mixture.checkpoints = mixture.walk_one_period();
        mixture.counts = mixture.counts_before(num_samples);
        mixture
    }

    /// How many samples each source gives; they sum to the number of samples.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// How many samples of each source are among the first `position`.
    pub fn counts_before(&self, position: u64) -> Vec<u64> {
        self.walk_from(position).served
    }

    /// Where the samples at `positions` come from, in order.
    pub fn assignments(&self, positions: Range<u64>) -> Vec<Assignment> {
        let len = positions.end.saturating_sub(positions.start) as usize;
        self.walk_from(positions.start).take(len).collect()
    }

    fn walk_one_period(&self) -> Vec<u32> {
        let mut walk = Walk::new(self, 0, vec![0; self.units.len()]);
        let mut checkpoints = Vec::new();
        while walk.position < self.period {
            if walk.position.is_multiple_of(CHECKPOINT_INTERVAL) {
                checkpoints.extend(walk.served.iter().map(|&served| served as u32));
            }
            walk.next();
        }
        checkpoints
    }

    fn walk_from(&self, position: u64) -> Walk<'_> {
        let (periods, within) = (position / self.period, position % self.period);
        let first = (within / CHECKPOINT_INTERVAL) as usize * self.units.len();
        let in_period = &self.checkpoints[first..first + self.units.len()];
        let served =
            self.units.iter().zip(in_period).map(|(unit, &served)| periods * unit + u64::from(served)).collect();
        let past_checkpoint = within % CHECKPOINT_INTERVAL;
        let mut walk = Walk::new(self, position - past_checkpoint, served);
        walk.by_ref().take(past_checkpoint as usize).for_each(drop);
        walk
    }
}

/// Goes through the sequence, for ever: at each position, of the jobs whose window has begun, the one with the earliest
/// deadline is served.
struct Walk<'a> {
    mixture: &'a Mixture,
    position: u64,
    /// Samples of each source before `position`, which is also the number of its next job.
    served: Vec<u64>,
    /// Window of each source's next job: first position, and position before which it is served.
    windows: Vec<(u64, u64)>,
}

impl<'a> Walk<'a> {
    fn new(mixture: &'a Mixture, position: u64, served: Vec<u64>) -> Self {
        let windows =
            served.iter().zip(&mixture.units).map(|(&job, &unit)| window(job, unit, mixture.period)).collect();
        Self { mixture, position, served, windows }
    }
}

fn window(job: u64, unit: u64, period: u64) -> (u64, u64) {
    if unit == 0 {
        return (u64::MAX, u64::MAX);
    }
    (job * period / unit, ((job + 1) * period).div_ceil(unit))
}

impl Iterator for Walk<'_> {
    type Item = Assignment;

    fn next(&mut self) -> Option<Assignment> {
        let (mut source, mut earliest) = (0, u64::MAX);
        for (candidate, &(start, deadline)) in self.windows.iter().enumerate() {
            let deadline = if start <= self.position { deadline } else { u64::MAX };
            if deadline < earliest {
                (source, earliest) = (candidate, deadline);
            }
        }
        let index = self.served[source];
        self.served[source] += 1;
        self.position += 1;
        self.windows[source] = window(index + 1, self.mixture.units[source], self.mixture.period);
        Some(Assignment { source, index })
    }
}

/// The weights without their common divisor, unless they then still sum to more than `limit`.
fn reduced(weights: &[u64], limit: u64) -> Option<Vec<u64>> {
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
    let units: Vec<u64> = weights.iter().map(|weight| weight / divisor).collect();
    let sum: u128 = units.iter().map(|&unit| u128::from(unit)).sum();
    (sum > 0 && sum <= u128::from(limit)).then_some(units)
}

pub(crate) fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Divides `total` in proportion to `weights`; what rounding down leaves goes to the largest remainders.
fn largest_remainder(weights: &[u64], total: u64) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|&w| u128::from(w)).sum();
    assert!(sum > 0, "a mixture needs a weight above zero");
    let exact = |source: usize| u128::from(weights[source]) * u128::from(total);
    let mut counts: Vec<u64> = (0..weights.len()).map(|source| (exact(source) / sum) as u64).collect();
    let left = total - counts.iter().sum::<u64>();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|&source| (std::cmp::Reverse(exact(source) % sum), source));
    by_remainder.into_iter().take(left as usize).for_each(|source| counts[source] += 1);
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weights() -> impl Strategy<Value = Vec<u64>> {
        // Spread over many magnitudes, with runs of equal ones, where deadlines meet.
        prop::collection::vec((0u32..20, 1u64..4).prop_map(|(shift, factor)| factor << shift), 1..40)
    }

    /// Whether all sources are strictly within one sample of their share after `position`.
    fn fair(mixture: &Mixture, seen: &[u64], position: u64) -> bool {
        seen.iter().zip(&mixture.units).all(|(&seen, &unit)| {
            let (have, share) = (i128::from(seen) * i128::from(mixture.period), i128::from(position * unit));
            (have - share).abs() < i128::from(mixture.period)
        })
    }

    proptest! {
        #[test]
        fn every_prefix_has_each_source_within_one_sample_of_its_share(weights in weights(), n in 1u64..3000) {
            let mixture = Mixture::new(&weights, n);
            let mut seen = vec![0; weights.len()];
            for (position, assignment) in (1..).zip(mixture.assignments(0..n)) {
                prop_assert_eq!(assignment.index, seen[assignment.source]);
                seen[assignment.source] += 1;
                prop_assert!(fair(&mixture, &seen, position), "after {}: {:?}", position, seen);
            }
            prop_assert_eq!(&seen, mixture.counts());
        }

        #[test]
        fn any_part_is_what_a_walk_from_the_start_gives(weights in weights(), n in 1u64..20_000, at in 0f64..1.0) {
            let mixture = Mixture::new(&weights, n);
            let start = (at * n as f64) as u64;
            let all = mixture.assignments(0..n);
            prop_assert_eq!(&mixture.assignments(start..n), &all[start as usize..]);
            let mut seen = vec![0; weights.len()];
            all[..start as usize].iter().for_each(|assignment| seen[assignment.source] += 1);
            prop_assert_eq!(seen, mixture.counts_before(start));
        }

        #[test]
        fn counts_are_the_weights_share_rounded(weights in weights(), n in 0u64..MAX_SAMPLES) {
            let counts = largest_remainder(&weights, n);
            let sum: u64 = weights.iter().sum();
            prop_assert_eq!(counts.iter().sum::<u64>(), n);
            for (&count, &weight) in counts.iter().zip(&weights) {
                let exact = u128::from(weight) * u128::from(n);
                prop_assert!((u128::from(count) * u128::from(sum)).abs_diff(exact) < u128::from(sum));
            }
        }
    }

    #[test]
    fn equal_weights_take_turns() {
        let sources: Vec<usize> = Mixture::new(&[5, 5, 5], 6).assignments(0..6).iter().map(|a| a.source).collect();
        assert_eq!(sources, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn remainders_go_to_the_largest() {
        // Shares of 10: 4.76, 3.33, 1.90.
        assert_eq!(Mixture::new(&[10, 7, 4], 10).counts(), [5, 3, 2]);
    }

    #[test]
    fn a_source_too_light_for_the_stage_gives_nothing() {
        let mixture = Mixture::new(&[1_000_000, 1], 10);
        assert_eq!(mixture.counts(), [10, 0]);
        assert!(mixture.assignments(0..10).iter().all(|a| a.source == 0));
    }

    #[test]
    fn the_sequence_never_changes_between_versions() {
        let sources: String =
            Mixture::new(&[50, 30, 20], 10).assignments(0..10).iter().map(|a| a.source.to_string()).collect();
        assert_eq!(sources, "0102010102");
    }
}
