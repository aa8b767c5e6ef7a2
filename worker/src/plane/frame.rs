//! The header before each message: it shows that both sides mean the same message.

use polo_recipe::ids::{Generation, Rank};

/// Length of a header in bytes.
pub const HEADER_BYTES: usize = 32;

const MAGIC: [u8; 4] = *b"polo";

/// A message between two ranks. Little-endian on the wire: magic, sender (u32), generation, sequence, length (u64).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// The sender.
    pub from: Rank,
    /// The plane's.
    pub generation: Generation,
    /// Counts the messages from the sender to the receiver.
    pub sequence: u64,
    /// Of the message that follows.
    pub len_bytes: u64,
}

impl Frame {
    /// The header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&self.from.0.to_le_bytes());
        header[8..16].copy_from_slice(&self.generation.0.to_le_bytes());
        header[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        header[24..].copy_from_slice(&self.len_bytes.to_le_bytes());
        header
    }

    /// What the header says, for an error's text.
    pub fn describe(header: &[u8; HEADER_BYTES]) -> String {
        let word = |at: usize| header[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if header[..4] != MAGIC {
            return "bytes that are no message header".into();
        }
        let from = word(0) >> 32;
        format!("message {} of {} bytes from rank {from} in generation {}", word(16), word(24), word(8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let frame = Frame { from: Rank(3), generation: Generation(1 << 40), sequence: 7, len_bytes: 9 };
        let text = Frame::describe(&frame.encode());
        assert_eq!(text, "message 7 of 9 bytes from rank 3 in generation 1099511627776");
        assert_eq!(Frame::describe(&[0; HEADER_BYTES]), "bytes that are no message header");
    }
}
