//! Small changes of bytes, as damage and malice make them.

use proptest::prelude::*;

/// Numbers at the edges of their types, as lengths and counts.
const EDGES: [u64; 10] = [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX];
/// What has a meaning in JSON and TOML.
const WORDS: [&str; 14] =
    ["{", "}", "[", "]", "\"", ",", "=", "-1", "1e999", "null", "18446744073709551616", "\n", "\u{0}", "[[a]]\n"];
const MAX_INPUT_BYTES: usize = 1 << 20;

/// One change. Places are taken modulo the length, so that every change can be made to every input.
#[derive(Debug, Clone)]
pub enum Mutation {
    Flip { at: usize, bit: u8 },
    Set { at: usize, byte: u8 },
    Insert { at: usize, bytes: Vec<u8> },
    Word { at: usize, word: usize },
    Number { at: usize, edge: usize, num_bytes: usize },
    Remove { at: usize, len: usize },
    Repeat { at: usize, len: usize, times: usize },
    Truncate { at: usize },
    Splice { at: usize, other_at: usize },
}

impl Arbitrary for Mutation {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        let at = any::<usize>;
        prop_oneof![
            (at(), 0..8_u8).prop_map(|(at, bit)| Self::Flip { at, bit }),
            (at(), any::<u8>()).prop_map(|(at, byte)| Self::Set { at, byte }),
            (at(), proptest::collection::vec(any::<u8>(), 1..16)).prop_map(|(at, bytes)| Self::Insert { at, bytes }),
            (at(), 0..WORDS.len()).prop_map(|(at, word)| Self::Word { at, word }),
            (at(), 0..EDGES.len(), prop_oneof![Just(1_usize), Just(2), Just(4), Just(8)])
                .prop_map(|(at, edge, num_bytes)| Self::Number { at, edge, num_bytes }),
            (at(), 1..64_usize).prop_map(|(at, len)| Self::Remove { at, len }),
            (at(), 1..64_usize, 1..100_usize).prop_map(|(at, len, times)| Self::Repeat { at, len, times }),
            at().prop_map(|at| Self::Truncate { at }),
            (at(), at()).prop_map(|(at, other_at)| Self::Splice { at, other_at }),
        ]
        .boxed()
    }
}

/// `bytes` after all of these, one after the other; pieces come from `other`.
pub fn mutated(mut bytes: Vec<u8>, other: &[u8], mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        change(&mut bytes, other, mutation);
        bytes.truncate(MAX_INPUT_BYTES);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], mutation: &Mutation) {
    let place = |at: usize| at % (bytes.len() + 1);
    match mutation {
        Mutation::Flip { at, bit } => overwrite(bytes, *at, |byte| byte ^ 1 << bit),
        Mutation::Set { at, byte } => overwrite(bytes, *at, |_| *byte),
        Mutation::Insert { at, bytes: new } => insert(bytes, *at, new),
        Mutation::Word { at, word } => insert(bytes, *at, WORDS[*word].as_bytes()),
        Mutation::Number { at, edge, num_bytes } => {
            let (start, number) = (place(*at), EDGES[*edge].to_le_bytes());
            let end = bytes.len().min(start + num_bytes);
            bytes[start..end].copy_from_slice(&number[..end - start]);
        }
        Mutation::Remove { at, len } => {
            let start = place(*at);
            bytes.drain(start..bytes.len().min(start + len));
        }
        Mutation::Repeat { at, len, times } => {
            let start = place(*at);
            let piece = bytes[start..bytes.len().min(start + len)].repeat(*times);
            insert(bytes, start, &piece);
        }
        Mutation::Truncate { at } => bytes.truncate(place(*at)),
        Mutation::Splice { at, other_at } => {
            bytes.truncate(place(*at));
            bytes.extend_from_slice(&other[other_at % (other.len() + 1)..]);
        }
    }
}

fn overwrite(bytes: &mut [u8], at: usize, change: impl FnOnce(u8) -> u8) {
    if !bytes.is_empty() {
        let at = at % bytes.len();
        bytes[at] = change(bytes[at]);
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    let at = at % (bytes.len() + 1);
    bytes.splice(at..at, new.iter().copied());
}
