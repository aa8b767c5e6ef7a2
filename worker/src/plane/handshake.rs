//! The first words on a connection: who calls whom, for which run and generation, and proof that both are members.
//!
//! The generation's secret itself never travels. Each side shows a BLAKE3 keyed hash under it: the caller of its hello,
//! the called of that hello and its own answer. Hashes are compared in constant time (`blake3::Hash` does).

use std::fmt;

use polo_recipe::ids::{Generation, Rank};

/// Name and version of the protocol.
const MAGIC: [u8; 8] = *b"polodp\0\x02";
/// Length of the hello's part that is proved.
const CLAIM_BYTES: usize = 8 + 32 + 8 + 4 + 4 + 1;
/// Length of a hello in bytes.
pub(super) const HELLO_BYTES: usize = CLAIM_BYTES + 32;
/// Length of the answer in bytes: the answer's code and a proof, which is zero in refusals.
pub(super) const ANSWER_BYTES: usize = 1 + 32;

const WELCOME: u8 = 0;

/// What only the members of one generation know. It is not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// Another protocol version, or no worker at all.
    Protocol = 1,
    /// Another run.
    Run = 2,
    /// The generation is over, or this worker has already formed it or given it up.
    OldGeneration = 3,
    /// The caller does not know the generation's secret.
    Secret = 4,
    /// The ranks do not fit this worker's membership.
    Rank = 5,
    /// Too many callers are waiting; worth another try.
    Busy = 6,
}

impl Refusal {
    const ALL: [Self; 6] = [Self::Protocol, Self::Run, Self::OldGeneration, Self::Secret, Self::Rank, Self::Busy];

    /// The whole answer on the wire.
    pub(super) fn answer(self) -> [u8; ANSWER_BYTES] {
        let mut answer = [0; ANSWER_BYTES];
        answer[0] = self as u8;
        answer
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protocol => "it speaks another version of the protocol; run the same build everywhere",
            Self::Run => "it belongs to another run",
            Self::OldGeneration => "that generation is over there",
            Self::Secret => "the generation's secrets differ",
            Self::Rank => "its membership of that generation differs",
            Self::Busy => "too many connections wait there",
        })
    }
}

/// A caller's claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    /// Digest of the run's identity.
    pub(super) run: [u8; 32],
    pub(super) generation: Generation,
    pub(super) lane: u8,
    pub(super) from: Rank,
    pub(super) to: Rank,
}

impl Hello {
    /// On the wire: magic, run, generation (u64), from (u32), to (u32), lane (u8), proof; little-endian.
    pub(super) fn encode(&self, secret: &Secret) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..40].copy_from_slice(&self.run);
        bytes[40..48].copy_from_slice(&self.generation.0.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.from.0.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.to.0.to_le_bytes());
        bytes[56] = self.lane;
        let proof = blake3::keyed_hash(&secret.0, &bytes[..CLAIM_BYTES]);
        bytes[CLAIM_BYTES..].copy_from_slice(proof.as_bytes());
        bytes
    }

    /// Reads a claim without judging it; `None` if it is of another protocol.
    pub(super) fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<Self> {
        if bytes[..8] != MAGIC {
            return None;
        }
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let generation = Generation(u64::from(u32_at(40)) | u64::from(u32_at(44)) << 32);
        let mut run = [0; 32];
        run.copy_from_slice(&bytes[8..40]);
        Some(Self { run, generation, lane: bytes[56], from: Rank(u32_at(48)), to: Rank(u32_at(52)) })
    }
}

/// Whether the caller who sent `hello` knows `secret`.
pub(super) fn proves(hello: &[u8; HELLO_BYTES], secret: &Secret) -> bool {
    // The comparison of `blake3::Hash` with bytes is constant-time.
    blake3::keyed_hash(&secret.0, &hello[..CLAIM_BYTES]) == hello[CLAIM_BYTES..]
}

/// The answer that lets the sender of `hello` in.
pub(super) fn welcome(hello: &[u8; HELLO_BYTES], secret: &Secret) -> [u8; ANSWER_BYTES] {
    let mut answer = [WELCOME; ANSWER_BYTES];
    answer[1..].copy_from_slice(welcome_proof(hello, secret).as_bytes());
    answer
}

/// Reads the answer to `hello`. `None` if it is nothing that a member of the generation would say.
pub(super) fn read_answer(
    answer: &[u8; ANSWER_BYTES],
    hello: &[u8; HELLO_BYTES],
    secret: &Secret,
) -> Option<Result<(), Refusal>> {
    if answer[0] == WELCOME {
        return (welcome_proof(hello, secret) == answer[1..]).then_some(Ok(()));
    }
    Refusal::ALL.into_iter().find(|refusal| *refusal as u8 == answer[0]).map(Err)
}

fn welcome_proof(hello: &[u8; HELLO_BYTES], secret: &Secret) -> blake3::Hash {
    blake3::Hasher::new_keyed(&secret.0).update(hello).update(b"welcome").finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: Hello =
        Hello { run: [3; 32], generation: Generation(1 << 33 | 5), lane: 1, from: Rank(2), to: Rank(1) };

    #[test]
    fn a_hello_is_read_as_it_was_written_and_proves_its_secret() {
        let (secret, other) = (Secret([1; 32]), Secret([2; 32]));
        let bytes = HELLO.encode(&secret);
        assert_eq!(Hello::decode(&bytes), Some(HELLO));
        assert!(proves(&bytes, &secret) && !proves(&bytes, &other));
        let mut forged = bytes;
        forged[48] ^= 1;
        assert!(!proves(&forged, &secret));
    }

    #[test]
    fn only_a_member_can_welcome() {
        let (secret, other) = (Secret([1; 32]), Secret([2; 32]));
        let hello = HELLO.encode(&secret);
        assert_eq!(read_answer(&welcome(&hello, &secret), &hello, &secret), Some(Ok(())));
        assert_eq!(read_answer(&welcome(&hello, &other), &hello, &secret), None);
        assert_eq!(read_answer(&[77; ANSWER_BYTES], &hello, &secret), None);
        for refusal in Refusal::ALL {
            assert_eq!(read_answer(&refusal.answer(), &hello, &secret), Some(Err(refusal)));
        }
    }
}
