//! What a stage is mixed from, whichever way its recipe writes it: sources with whole weights.

use super::{Batch, Group, Stage, StageSource};
use crate::mixture::{Mixture, greatest_common_divisor};

/// Parts of a group to which weights are rounded where their exact proportions take numbers beyond 64 bits. A stage has
/// fewer samples than 2^32, so no source is off by one of them.
const ROUNDED_PARTS: u64 = 1 << 40;

impl Stage {
    /// The stage's sources in the recipe's order, with weights in the proportions that its groups' shares ask for.
    pub fn weighted_sources(&self) -> Vec<StageSource> {
        if self.groups.is_empty() {
            return self.sources.clone();
        }
        let names = self.groups.iter().flat_map(|group| &group.sources).cloned();
        let weights = exact(&self.groups).unwrap_or_else(|| rounded(&self.groups));
        names.zip(weights).map(|(name, weight_tokens)| StageSource { name, weight_tokens }).collect()
    }

    /// Which source each of the stage's samples comes from.
    pub fn mixture(&self, batch: &Batch) -> Mixture {
        let weights: Vec<u64> = self.weighted_sources().iter().map(|source| source.weight_tokens).collect();
        Mixture::new(&weights, self.num_steps(batch) * batch.samples_per_step as u64)
    }
}

impl Group {
    /// The weight of each source within the group.
    fn weights_within(&self) -> Vec<u64> {
        if self.weights.is_empty() { vec![1; self.sources.len()] } else { self.weights.clone() }
    }
}

/// Weights exactly as the shares have them: a source has `share * weight / sum` of its group, and all get the least common
/// denominator. None if a number is too large.
fn exact(groups: &[Group]) -> Option<Vec<u64>> {
    let parts: Vec<_> = groups.iter().map(in_lowest_terms).collect::<Option<_>>()?;
    let denominator = parts.iter().try_fold(1, |common, (_, part)| least_common_multiple(common, *part))?;
    let weights = parts
        .iter()
        .flat_map(|(weights, part)| weights.iter().map(move |weight| weight.checked_mul(denominator / part)));
    weights.collect()
}

/// Numerators of a group's sources, and the denominator that all of them have.
fn in_lowest_terms(group: &Group) -> Option<(Vec<u64>, u64)> {
    let weights = group.weights_within();
    let sum = weights.iter().try_fold(0u64, |sum, weight| sum.checked_add(*weight))?;
    let numerators: Vec<u64> = weights.iter().map(|weight| weight.checked_mul(group.share)).collect::<Option<_>>()?;
    let divisor = numerators.iter().copied().fold(sum, greatest_common_divisor);
    Some((numerators.iter().map(|numerator| numerator / divisor).collect(), sum / divisor))
}

fn least_common_multiple(a: u64, b: u64) -> Option<u64> {
    (a / greatest_common_divisor(a, b)).checked_mul(b)
}

/// Weights to one part in [`ROUNDED_PARTS`] of a group. A share is below 2^20 and so a weight below 2^60.
fn rounded(groups: &[Group]) -> Vec<u64> {
    let of_group = |group: &Group| {
        let weights = group.weights_within();
        let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
        let share = group.share;
        let weight = move |weight: u64| (u128::from(weight) * u128::from(ROUNDED_PARTS) / sum) as u64 * share;
        weights.into_iter().map(weight)
    };
    groups.iter().flat_map(of_group).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn group(share: u64, weights: &[u64]) -> Group {
        let sources = (0..weights.len()).map(|n| format!("{share}-{n}")).collect();
        Group { name: share.to_string(), share, sources, weights: weights.to_vec() }
    }

    fn even(share: u64, num_sources: usize) -> Group {
        Group { weights: Vec::new(), ..group(share, &vec![7; num_sources]) }
    }

    #[test]
    fn shares_become_the_smallest_whole_weights() {
        assert_eq!(exact(&[even(50, 1), even(50, 2)]), Some(vec![50, 25, 25]));
        // A third of 1, and 2 split 3 to 1: the denominators are 3 and 2.
        assert_eq!(exact(&[even(1, 3), group(2, &[6, 2])]), Some(vec![2, 2, 2, 9, 3]));
        assert_eq!(exact(&[even(30, 8), even(9, 19)]).map(|w| (w[0], w[8])), Some((15 * 19, 9 * 4)));
    }

    #[test]
    fn weights_without_a_small_common_measure_are_rounded() {
        let large = [4_611_686_018_427_387_847, 3]; // the first is prime
        let groups = [group(70, &large), group(30, &[1_000_000_007, 998_244_353])];
        assert_eq!(exact(&groups), None);
        let weights = rounded(&groups);
        let sum: u64 = weights.iter().sum();
        assert!((weights[0] as f64 / sum as f64 - 0.7).abs() < 1e-9, "{weights:?}");
        assert!((weights[2] as f64 / sum as f64 - 0.3 * 0.500_439).abs() < 1e-6, "{weights:?}");
    }

    proptest! {
        #[test]
        fn exact_and_rounded_weights_agree(
            groups in prop::collection::vec((1u64..100, prop::collection::vec(1u64..20, 1..20)), 1..8),
        ) {
            let groups: Vec<_> = groups.iter().map(|(share, weights)| group(*share, weights)).collect();
            let (exact, rounded) = (exact(&groups), rounded(&groups));
            // Twenty weights below 20 have sums below 400, and eight of those a common multiple of at most 2^70.
            prop_assume!(exact.is_some());
            let exact = exact.unwrap_or_default();
            let sums = [&exact, &rounded].map(|weights| weights.iter().sum::<u64>() as f64);
            for (exact, rounded) in exact.iter().zip(&rounded) {
                prop_assert!((*exact as f64 / sums[0] - *rounded as f64 / sums[1]).abs() < 1e-9);
            }
        }
    }
}
