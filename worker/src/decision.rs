//! How a step is decided: from the gradient norms of every chunk, told by every owner of it.
//!
//! Whoever holds all of them knows what all others will do, so a step that anybody has applied can be applied by everybody
//! else later ([`Decision`] is all that it takes), and one that nobody has applied can be taken again.

use polo_recipe::{config::OnNonFinite, ids::Rank, layout::ChunkId};

/// Loss and tokens of one source in one step or slot.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    /// Summed over tokens.
    pub loss: f64,
    /// Tokens.
    pub num_tokens: u64,
}

/// What becomes of a step, on all ranks alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// By source of the plan.
    pub tallies: Vec<Tally>,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Whether the update is left out.
    pub skip: bool,
}

impl Decision {
    /// Bytes of [`Decision::encode`] for so many sources.
    pub fn num_bytes(num_sources: usize) -> usize {
        9 + 16 * num_sources
    }

    /// Little-endian: norm, skip, then loss and tokens of each source.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.grad_norm.to_le_bytes().to_vec();
        bytes.push(self.skip.into());
        for tally in &self.tallies {
            bytes.extend(tally.loss.to_le_bytes());
            bytes.extend(tally.num_tokens.to_le_bytes());
        }
        bytes
    }

    /// Reads [`Decision::encode`]'s bytes, of which there must be at least nine.
    pub fn decode(bytes: &[u8]) -> Self {
        let word = |at: usize| std::array::from_fn(|i| bytes[at + i]);
        let tally =
            |at: usize| Tally { loss: f64::from_le_bytes(word(at)), num_tokens: u64::from_le_bytes(word(at + 8)) };
        let tallies = (9..bytes.len() - 15).step_by(16).map(tally).collect();
        Self { tallies, grad_norm: f64::from_le_bytes(word(0)), skip: bytes[8] != 0 }
    }

    /// Mean loss per token over all sources.
    pub fn loss(&self) -> f64 {
        let num_tokens: u64 = self.tallies.iter().map(|t| t.num_tokens).sum();
        self.tallies.iter().map(|t| t.loss).sum::<f64>() / num_tokens as f64
    }

    /// Whether loss and gradient are finite.
    pub fn is_finite(&self) -> bool {
        self.loss().is_finite() && self.grad_norm.is_finite()
    }
}

/// What the owners' norms say.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// All owners agree: the squared norm of each chunk, in chunk order.
    Agreed(Vec<f64>),
    /// Owners of a chunk hold different sums of it.
    Differ {
        /// The first such chunk.
        chunk: ChunkId,
        /// Who is outvoted, or all its owners where there is no majority.
        suspects: Vec<Rank>,
        /// Whether there is a majority.
        is_certain: bool,
    },
}

/// Compares the squared norms that the owners of each chunk have taken. `norms` has for each rank those of its chunks, in
/// chunk order.
pub fn compare(owners: &[Vec<Rank>], norms: &[Vec<f64>]) -> Verdict {
    let mut next = vec![0; norms.len()];
    let mut agreed = Vec::with_capacity(owners.len());
    for (chunk, ranks) in (0..).map(ChunkId).zip(owners) {
        let votes: Vec<_> = ranks.iter().map(|rank| (*rank, take_next(norms, &mut next, *rank))).collect();
        let Some((_, norm)) = votes.first() else { continue };
        // A NaN has many forms, and any of them is an agreement about trouble.
        if votes.iter().all(|(_, vote)| same(*vote, *norm)) {
            agreed.push(*norm);
            continue;
        }
        let (suspects, is_certain) = outvoted(&votes);
        return Verdict::Differ { chunk, suspects, is_certain };
    }
    Verdict::Agreed(agreed)
}

fn take_next(norms: &[Vec<f64>], next: &mut [usize], rank: Rank) -> f64 {
    let norm = norms[rank.index()][next[rank.index()]];
    next[rank.index()] += 1;
    norm
}

fn same(left: f64, right: f64) -> bool {
    left.to_bits() == right.to_bits() || left.is_nan() && right.is_nan()
}

/// Those who do not vote with the majority; everybody if there is none.
fn outvoted(votes: &[(Rank, f64)]) -> (Vec<Rank>, bool) {
    let num_votes = |norm: f64| votes.iter().filter(|(_, vote)| same(*vote, norm)).count();
    let majority = votes.iter().map(|(_, norm)| *norm).find(|norm| 2 * num_votes(*norm) > votes.len());
    let is_suspect = |vote: f64| majority.is_none_or(|norm| !same(vote, norm));
    (votes.iter().filter(|(_, vote)| is_suspect(*vote)).map(|(rank, _)| *rank).collect(), majority.is_some())
}

/// What is done about numbers that are not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// The run stops.
    Stop,
    /// The step is skipped.
    Skip,
    /// Other workers compute the same samples.
    Recheck,
}

/// The remedy that a recipe wants, on the first look at the step's samples or on a later one. With one worker that has
/// slots there is nobody else to look.
pub fn remedy(policy: OnNonFinite, was_rechecked: bool, num_computing: usize) -> Remedy {
    match policy {
        OnNonFinite::Stop => Remedy::Stop,
        OnNonFinite::Recheck if !was_rechecked && num_computing > 1 => Remedy::Recheck,
        OnNonFinite::Skip | OnNonFinite::Recheck => Remedy::Skip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(numbers: &[u32]) -> Vec<Rank> {
        numbers.iter().copied().map(Rank).collect()
    }

    #[test]
    fn a_decision_survives_encoding() {
        let tallies = vec![Tally { loss: 2.5, num_tokens: 7 }, Tally::default()];
        let decision = Decision { tallies, grad_norm: 0.25, skip: true };
        assert_eq!(decision.encode().len(), Decision::num_bytes(2));
        assert_eq!(Decision::decode(&decision.encode()), decision);
    }

    #[test]
    fn owners_that_agree_decide_in_chunk_order() {
        let owners = [ranks(&[0, 1]), ranks(&[1, 2]), ranks(&[0, 2])];
        let norms = [vec![1.0, 3.0], vec![1.0, 2.0], vec![2.0, 3.0]];
        assert_eq!(compare(&owners, &norms), Verdict::Agreed(vec![1.0, 2.0, 3.0]));
    }

    #[test]
    fn of_two_owners_that_differ_both_are_suspects() {
        let owners = [ranks(&[0, 1]), ranks(&[0, 1])];
        let differ = Verdict::Differ { chunk: ChunkId(1), suspects: ranks(&[0, 1]), is_certain: false };
        assert_eq!(compare(&owners, &[vec![1.0, 2.0], vec![1.0, 2.5]]), differ);
    }

    #[test]
    fn of_three_owners_the_odd_one_is_certain() {
        let differ = Verdict::Differ { chunk: ChunkId(0), suspects: ranks(&[1]), is_certain: true };
        assert_eq!(compare(&[ranks(&[0, 1, 2])], &[vec![1.0], vec![1.5], vec![1.0]]), differ);
    }

    #[test]
    fn owners_agree_about_what_is_not_a_number() {
        let verdict = compare(&[ranks(&[0, 1])], &[vec![f64::NAN], vec![-f64::NAN]]);
        assert!(matches!(verdict, Verdict::Agreed(norms) if norms[0].is_nan()));
    }

    #[test]
    fn samples_are_looked_at_again_once_and_by_somebody_else() {
        assert_eq!(remedy(OnNonFinite::Stop, false, 3), Remedy::Stop);
        assert_eq!(remedy(OnNonFinite::Skip, false, 3), Remedy::Skip);
        assert_eq!(remedy(OnNonFinite::Recheck, false, 3), Remedy::Recheck);
        assert_eq!(remedy(OnNonFinite::Recheck, true, 3), Remedy::Skip);
        assert_eq!(remedy(OnNonFinite::Recheck, false, 1), Remedy::Skip);
    }
}
