//! What the members of a generation show each other in a step: their slots' losses, and what they were told.

use std::{ops::Range, time::Duration};

use polo_recipe::ids::Rank;

use super::shape::members;
use crate::{boundary::Boundary, decision::Tally};

/// What one slot's computation came to.
pub(super) struct Slot {
    pub(super) tallies: Vec<Tally>,
    pub(super) is_finite: bool,
    pub(super) data_wait: Duration,
}

impl Slot {
    /// One whose numbers were not looked at.
    pub(super) fn new(tallies: Vec<Tally>, data_wait: Duration) -> Self {
        Self { tallies, is_finite: true, data_wait }
    }

    pub(super) fn num_bytes(num_sources: usize) -> usize {
        1 + 16 * num_sources
    }

    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.push(self.is_finite.into());
        for tally in &self.tallies {
            bytes.extend(tally.loss.to_le_bytes());
            bytes.extend(tally.num_tokens.to_le_bytes());
        }
    }
}

/// What all members have shown each other in a step.
pub(super) struct Records {
    /// In rank order.
    pub(super) boundaries: Vec<Boundary>,
    /// By source, summed in the order of slots.
    pub(super) tallies: Vec<Tally>,
    /// Ranks with a slot whose numbers are not finite, as far as that was looked at.
    pub(super) suspects: Vec<Rank>,
}

impl Records {
    pub(super) fn read(gathered: &[Vec<u8>], shares: &[Range<usize>], num_sources: usize) -> Self {
        let boundaries = gathered.iter().map(|r| Boundary::decode(&std::array::from_fn(|i| r[i]))).collect();
        let slots = |rank: usize| gathered[rank][Boundary::NUM_BYTES..].chunks_exact(Slot::num_bytes(num_sources));
        let mut by_slot: Vec<_> = (0..shares.len()).collect();
        by_slot.sort_by_key(|rank| shares[*rank].start);
        let mut tallies = vec![Tally::default(); num_sources];
        for slot in by_slot.into_iter().flat_map(slots) {
            for (sum, bytes) in tallies.iter_mut().zip(slot[1..].as_chunks::<16>().0) {
                let word = |at: usize| std::array::from_fn(|i| bytes[at + i]);
                sum.loss += f64::from_le_bytes(word(0));
                sum.num_tokens += u64::from_le_bytes(word(8));
            }
        }
        let is_suspect = |rank: &Rank| slots(rank.index()).any(|slot| slot[0] == 0);
        Self { boundaries, tallies, suspects: members(shares.len()).filter(is_suspect).collect() }
    }
}
