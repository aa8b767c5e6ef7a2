//! Duplicates: of documents that are alike, the first in input order stays.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
    mem::size_of,
};

/// What tells whether a document is a duplicate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Signature {
    /// Hash of its text.
    pub exact: Option<u128>,
    /// A number for each MinHash band.
    pub bands: Vec<u64>,
}

impl Signature {
    /// As bytes, eight for each word.
    pub fn to_bytes(&self) -> impl Iterator<Item = u8> {
        let exact = self.exact.into_iter().flat_map(u128::to_le_bytes);
        exact.chain(self.bands.iter().flat_map(|band| band.to_le_bytes()))
    }

    /// The signature in `words` of eight bytes, the first two of them the text's hash if `has_exact`.
    pub fn from_words(words: &[[u8; 8]], has_exact: bool) -> Self {
        let numbers = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut exact = None;
        let mut bands: Vec<u64> = numbers.collect();
        if has_exact && bands.len() >= 2 {
            exact = Some(u128::from(bands[0]) | (u128::from(bands[1]) << 64));
            bands.drain(..2);
        }
        Self { exact, bands }
    }
}

/// A hasher of what is a hash already.
#[derive(Debug, Default, Clone, Copy)]
pub struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) | u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn write_u128(&mut self, number: u128) {
        self.0 = number as u64;
    }
}

type HashOf<T> = HashSet<T, BuildHasherDefault<AsItIs>>;

/// An index would grow beyond its bound.
#[derive(Debug, PartialEq, Eq)]
pub struct IndexFull {
    /// Documents in it.
    pub num_documents: u64,
}

/// The documents that were kept so far.
#[derive(Debug)]
pub struct Seen {
    exact: HashOf<u128>,
    bands: HashOf<u64>,
    num_documents: u64,
    max_bytes: u64,
}

impl Seen {
    /// Nothing yet. The index never takes more than `max_bytes`, about; it doubles as it grows, so it takes between 10 and
    /// 30 bytes for each band of a document, and twice that for its text's hash.
    pub fn new(max_bytes: u64) -> Self {
        Self { exact: HashOf::default(), bands: HashOf::default(), num_documents: 0, max_bytes }
    }

    /// Why a document is a duplicate; if it is none, it is remembered.
    pub fn admit(&mut self, signature: &Signature) -> Result<Option<&'static str>, IndexFull> {
        if signature.exact.is_some_and(|hash| self.exact.contains(&hash)) {
            return Ok(Some("exact_duplicate"));
        }
        if signature.bands.iter().any(|band| self.bands.contains(band)) {
            return Ok(Some("near_duplicate"));
        }
        self.remember(signature)?;
        Ok(None)
    }

    /// Adds a document that was kept.
    pub fn remember(&mut self, signature: &Signature) -> Result<(), IndexFull> {
        let exact_bytes = bytes_with(&self.exact, usize::from(signature.exact.is_some()));
        if exact_bytes + bytes_with(&self.bands, signature.bands.len()) > self.max_bytes {
            return Err(IndexFull { num_documents: self.num_documents });
        }
        self.exact.extend(signature.exact);
        self.bands.extend(signature.bands.iter().copied());
        self.num_documents += 1;
        Ok(())
    }

    /// Forgets the text hashes or the bands, where those are looked for in each source by itself.
    pub fn end_source(&mut self, exact_spans_sources: bool, near_spans_sources: bool) {
        if !exact_spans_sources {
            self.exact = HashOf::default();
        }
        if !near_spans_sources {
            self.bands = HashOf::default();
        }
    }
}

/// The most that the table takes once it has `num_more` entries more: a table that grows has twice its size beside it.
fn bytes_with<T>(table: &HashOf<T>, num_more: usize) -> u64 {
    let entry_bytes = (size_of::<T>() + 1) as u64;
    let slots = |capacity: usize| (capacity as u64) * 8 / 7;
    let now = slots(table.capacity()) * entry_bytes;
    if table.len() + num_more <= table.capacity() { now } else { 3 * now.max(entry_bytes * num_more as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(exact: u128, bands: &[u64]) -> Signature {
        Signature { exact: Some(exact), bands: bands.to_vec() }
    }

    #[test]
    fn the_first_of_its_kind_stays() {
        let mut seen = Seen::new(1 << 20);
        assert_eq!(seen.admit(&signature(1, &[10, 20])), Ok(None));
        assert_eq!(seen.admit(&signature(1, &[30, 40])), Ok(Some("exact_duplicate")));
        assert_eq!(seen.admit(&signature(2, &[30, 20])), Ok(Some("near_duplicate")));
        // What was dropped is not remembered: 30 was only on documents that went.
        assert_eq!(seen.admit(&signature(3, &[30, 40])), Ok(None));
        seen.end_source(true, false);
        assert_eq!(seen.admit(&signature(4, &[30, 40])), Ok(None));
        assert_eq!(seen.admit(&signature(1, &[50, 60])), Ok(Some("exact_duplicate")));
    }

    #[test]
    fn a_full_index_says_so_instead_of_growing() {
        let mut seen = Seen::new(10_000);
        let refused = (0..u64::MAX).find_map(|n| seen.admit(&signature(n.into(), &[2 * n, 2 * n + 1])).err());
        let IndexFull { num_documents } = refused.expect("it is full at some time");
        assert!((50..200).contains(&num_documents), "{num_documents}");
    }

    #[test]
    fn signatures_as_bytes() {
        let signature = signature(u128::MAX - 5, &[7, u64::MAX]);
        let bytes: Vec<u8> = signature.to_bytes().collect();
        assert_eq!(Signature::from_words(bytes.as_chunks().0, true), signature);
        let bands = Signature { exact: None, ..signature };
        let bytes: Vec<u8> = bands.to_bytes().collect();
        assert_eq!(Signature::from_words(bytes.as_chunks().0, false), bands);
    }
}
