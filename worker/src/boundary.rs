//! What the ranks of a generation agree on at every step: who was told what.
//!
//! Each rank puts what its coordinator told it into a record; all ranks see all records of a step and draw the same
//! conclusion. So a stop, a checkpoint or a change of membership happens after the same step everywhere, and the
//! coordinator need not know which step that is.

use polo_recipe::ids::Generation;

/// What one rank was told so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boundary {
    /// The newest generation that it was told of.
    pub newest_order: Generation,
    /// Whether it was told to stop.
    pub stop: bool,
    /// How many checkpoints it was asked for since its process began.
    pub checkpoints_wanted: u64,
}

/// What all ranks do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Take the next step.
    GoOn,
    /// Leave for a newer generation, which every rank knows of.
    ChangeOver,
    /// Take no more steps.
    Stop,
}

impl Boundary {
    /// Bytes of an encoded record.
    pub const NUM_BYTES: usize = 17;

    /// The record as bytes, little-endian.
    pub fn encode(&self) -> [u8; Self::NUM_BYTES] {
        let mut bytes = [0; Self::NUM_BYTES];
        bytes[..8].copy_from_slice(&self.newest_order.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.checkpoints_wanted.to_le_bytes());
        bytes[16] = self.stop.into();
        bytes
    }

    /// Reads [`Boundary::encode`]'s bytes.
    pub fn decode(bytes: &[u8; Self::NUM_BYTES]) -> Self {
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Self { newest_order: Generation(number(0)), checkpoints_wanted: number(8), stop: bytes[16] != 0 }
    }
}

/// What the ranks of `generation` do after the step in which they showed each other these records.
pub fn verdict(generation: Generation, records: &[Boundary]) -> Verdict {
    let all_know_newer = records.iter().map(|r| r.newest_order).min().is_some_and(|oldest| oldest > generation);
    if records.iter().any(|r| r.stop) {
        Verdict::Stop
    } else if all_know_newer {
        Verdict::ChangeOver
    } else {
        Verdict::GoOn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(newest_order: u64, stop: bool) -> Boundary {
        Boundary { newest_order: Generation(newest_order), stop, checkpoints_wanted: 3 }
    }

    #[test]
    fn records_survive_encoding() {
        assert_eq!(Boundary::decode(&record(258, true).encode()), record(258, true));
    }

    #[test]
    fn a_change_over_waits_until_every_rank_knows_of_it() {
        let verdict_of = |orders: [u64; 2]| verdict(Generation(4), &orders.map(|o| record(o, false)));
        assert_eq!(verdict_of([4, 4]), Verdict::GoOn);
        assert_eq!(verdict_of([5, 4]), Verdict::GoOn);
        assert_eq!(verdict_of([5, 6]), Verdict::ChangeOver);
    }

    #[test]
    fn one_rank_that_was_told_to_stop_stops_all() {
        assert_eq!(verdict(Generation(4), &[record(5, false), record(5, true)]), Verdict::Stop);
    }
}
