//! Which source each sample of a stage comes from.
//!
//! The samples of a source are unit jobs with windows: job `j` of a source that gives `c` of `n` samples may take the
//! positions from `floor(j n / c)` up to, but not including, `ceil((j + 1) n / c)`. A sequence in which every job lies
//! in its window has each source strictly within one sample of its share in every prefix, and serving the earliest
//! deadline first always finds such a sequence (these are the Pfair windows of Baruah et al., "Proportionate Progress",
//! 1996, on a single processor).
//!
//! The sequence is walked once when the mixture is made, which takes some 20 ns per sample, and only how many samples of
//! each source came before every [`CHECKPOINT_INTERVAL`]-th position is kept. A query walks on from there.

use std::ops::Range;

/// Positions between two checkpoints: 40 sources over 80 million samples keep 3 MB.
const CHECKPOINT_INTERVAL: u64 = 4096;

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
    num_samples: u64,
    /// For every checkpoint, how many samples of each source come before it.
    checkpoints: Vec<u32>,
}

impl Mixture {
    /// Mixes `num_samples` (at most [`MAX_SAMPLES`]) by `weights`, of which at least one is above zero.
    pub fn new(weights: &[u64], num_samples: u64) -> Self {
        assert!(num_samples <= MAX_SAMPLES, "{num_samples} samples are more than {MAX_SAMPLES}");
        let counts = largest_remainder(weights, num_samples);
        let mut walk = Walk::new(&counts, num_samples, 0, vec![0; counts.len()]);
        let mut checkpoints = Vec::new();
        for position in 0..=num_samples {
            if position % CHECKPOINT_INTERVAL == 0 {
                checkpoints.extend(walk.served.iter().map(|&served| served as u32));
            }
            walk.next();
        }
        Self { counts, num_samples, checkpoints }
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

    fn walk_from(&self, position: u64) -> Walk<'_> {
        let (checkpoint, num_sources) = (position / CHECKPOINT_INTERVAL, self.counts.len());
        let served = self.checkpoints[checkpoint as usize * num_sources..][..num_sources].iter();
        let start = checkpoint * CHECKPOINT_INTERVAL;
        let mut walk = Walk::new(&self.counts, self.num_samples, start, served.map(|&s| u64::from(s)).collect());
        walk.by_ref().take((position - start) as usize).for_each(drop);
        walk
    }
}

/// Goes through the sequence: at each position, of the jobs whose window has begun, the earliest deadline is served.
struct Walk<'a> {
    counts: &'a [u64],
    num_samples: u64,
    position: u64,
    /// Samples of each source before `position`, which is also the number of its next job.
    served: Vec<u64>,
    /// Window of each source's next job: first position, and position before which it is served.
    windows: Vec<(u64, u64)>,
}

impl<'a> Walk<'a> {
    fn new(counts: &'a [u64], num_samples: u64, position: u64, served: Vec<u64>) -> Self {
        let mut walk = Self { counts, num_samples, position, served, windows: vec![(0, 0); counts.len()] };
        (0..counts.len()).for_each(|source| walk.set_window(source));
        walk
    }

    fn set_window(&mut self, source: usize) {
        let (job, count) = (self.served[source], self.counts[source]);
        self.windows[source] = if job < count {
            (job * self.num_samples / count, ((job + 1) * self.num_samples).div_ceil(count))
        } else {
            (u64::MAX, u64::MAX)
        };
    }
}

impl Iterator for Walk<'_> {
    type Item = Assignment;

    fn next(&mut self) -> Option<Assignment> {
        let mut earliest = u64::MAX;
        let mut due = None;
        for (source, &(start, deadline)) in self.windows.iter().enumerate() {
            if start <= self.position && deadline < earliest {
                (earliest, due) = (deadline, Some(source));
            }
        }
        let source = due?;
        let index = self.served[source];
        self.served[source] += 1;
        self.position += 1;
        self.set_window(source);
        Some(Assignment { source, index })
    }
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
        seen.iter().zip(&mixture.counts).all(|(&seen, &count)| {
            let (have, share) = (i128::from(seen) * i128::from(mixture.num_samples), i128::from(position * count));
            (have - share).abs() < i128::from(mixture.num_samples)
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
    fn an_empty_mixture_is_empty() {
        let mixture = Mixture::new(&[1, 2], 0);
        assert_eq!((mixture.counts_before(0), mixture.assignments(0..0)), (vec![0, 0], vec![]));
    }
}
