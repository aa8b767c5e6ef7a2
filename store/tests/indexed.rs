//! The indexed-dataset format on its own: what is written is read back, and every defect has its own error.
#![allow(missing_docs)]

use std::path::Path;

use polo_store::indexed::{Index, IndexedError, Shard, ShardWriter, TokenType, pair_paths};
use proptest::prelude::*;

const DOCUMENTS: [&[i32]; 4] = [&[5, 6, 7, 0], &[0], &[151_642, 1, 0], &[9, 0]];

fn write(documents: &[impl AsRef<[i32]>]) -> (Vec<u8>, Vec<u8>) {
    let mut writer = ShardWriter::new(Vec::new());
    for document in documents {
        writer.push_document(document.as_ref()).expect("a Vec takes everything");
    }
    let (bin, index) = writer.finish();
    (bin, index.to_bytes())
}

fn open(dir: &Path, bin: &[u8], idx: &[u8]) -> Result<Shard, IndexedError> {
    let (bin_path, idx_path) = pair_paths(&dir.join("shard"));
    std::fs::write(&bin_path, bin).expect("write bin");
    std::fs::write(&idx_path, idx).expect("write idx");
    Shard::open(&bin_path, &idx_path)
}

fn parse_error(idx: &[u8]) -> IndexedError {
    Index::parse("x.idx", idx).expect_err("the index is damaged")
}

fn with_bytes(idx: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut damaged = idx.to_vec();
    damaged[at..at + bytes.len()].copy_from_slice(bytes);
    damaged
}

#[test]
fn index_has_the_published_layout() {
    let (_, idx) = write(&DOCUMENTS);
    let mut expected = b"MMIDIDX\0\0\x01\0\0\0\0\0\0\0\x04\x04\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0".to_vec();
    expected.extend([4i32, 1, 3, 2].iter().flat_map(|length| length.to_le_bytes()));
    expected.extend([0i64, 16, 20, 32, 0, 1, 2, 3, 4].iter().flat_map(|number| number.to_le_bytes()));
    assert_eq!(idx, expected);
}

#[test]
fn any_range_is_read_across_documents() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (bin, idx) = write(&DOCUMENTS);
    let shard = open(dir.path(), &bin, &idx).expect("a good shard");
    assert_eq!((shard.num_tokens(), shard.index().num_documents()), (10, 4));
    let stream: Vec<i32> = DOCUMENTS.concat();
    for (start, end) in (0..=10).flat_map(|start| (start..=10).map(move |end| (start, end))) {
        let mut ids = Vec::new();
        shard.read(start..end, &mut ids).expect("within the shard");
        assert_eq!(ids, stream[start as usize..end as usize]);
    }
    let error = shard.read(8..11, &mut Vec::new()).expect_err("past the end");
    assert!(matches!(error, IndexedError::OutOfRange { num_tokens: 10, .. }), "{error}");
}

#[test]
fn uint16_tokens_are_read() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (_, idx) = write(&[[0; 2], [0; 2]]);
    let mut idx = with_bytes(&idx, 17, &[8]);
    idx = with_bytes(&idx, 34 + 8 + 8, &4i64.to_le_bytes()); // the second sequence now begins at byte 4, not 8
    let bin: Vec<u8> = [1u16, 65_499, 3, 40_000].iter().flat_map(|id| id.to_le_bytes()).collect();
    let shard = open(dir.path(), &bin, &idx).expect("a good shard");
    assert_eq!(shard.index().token_type(), TokenType::Uint16);
    let mut ids = Vec::new();
    shard.read(1..4, &mut ids).expect("within the shard");
    assert_eq!(ids, [65_499, 3, 40_000]);
}

#[test]
fn an_empty_shard_is_a_shard() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (bin, idx) = write(&[[0; 0]; 0]);
    let shard = open(dir.path(), &bin, &idx).expect("a good shard");
    assert_eq!((shard.num_tokens(), shard.index().num_documents()), (0, 0));
}

#[test]
fn each_defect_of_an_index_is_named() {
    use IndexedError as E;
    let (_, idx) = write(&DOCUMENTS);
    let (lengths, pointers, bounds) = (34, 34 + 16, 34 + 16 + 32);

    assert!(matches!(parse_error(b""), E::BadMagic { .. }));
    assert!(matches!(parse_error(b"PK\x03\x04, not an index"), E::BadMagic { .. }));
    assert!(matches!(parse_error(&with_bytes(&idx, 9, &[2])), E::BadVersion { found: 2, .. }));
    assert!(matches!(parse_error(&with_bytes(&idx, 17, &[5])), E::BadTokenType { found: 5, .. }));
    assert!(matches!(parse_error(&[&idx[..], &[0]].concat()), E::TrailingBytes { excess: 1, .. }));
    let huge = with_bytes(&idx, 18, &u64::MAX.to_le_bytes());
    assert!(matches!(parse_error(&huge), E::Truncated { expected: u64::MAX, .. }));
    let negative = with_bytes(&idx, lengths + 4, &(-1i32).to_le_bytes());
    assert!(matches!(parse_error(&negative), E::NegativeLength { sequence: 1, length: -1, .. }));
    for found in [-16i64, 12, 1 << 40] {
        let moved = with_bytes(&idx, pointers + 8, &found.to_le_bytes());
        assert!(matches!(parse_error(&moved), E::PointerOutOfPlace { sequence: 1, expected: 16, .. }));
    }
    for (bound, found) in [(0, 1i64), (2, 0), (4, 5), (4, 3)] {
        let error = parse_error(&with_bytes(&idx, bounds + 8 * bound, &found.to_le_bytes()));
        assert!(matches!(error, E::BadDocumentBound { bound: at, .. } if at == bound), "bound {bound}: {error}");
    }
}

#[test]
fn an_index_cut_anywhere_is_truncated_or_has_no_magic() {
    let (_, idx) = write(&DOCUMENTS);
    for num_bytes in 0..idx.len() {
        let error = parse_error(&idx[..num_bytes]);
        match error {
            IndexedError::BadMagic { .. } => assert!(num_bytes < 9),
            IndexedError::Truncated { found, .. } => assert_eq!(found, num_bytes as u64),
            other => panic!("cut to {num_bytes} bytes: {other}"),
        }
    }
}

#[test]
fn a_bin_of_another_size_than_its_index_says_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (bin, idx) = write(&DOCUMENTS);
    for damaged in [&bin[..bin.len() - 1], &[&bin[..], &[0; 4]].concat()] {
        let error = open(dir.path(), damaged, &idx).expect_err("the sizes differ");
        assert!(matches!(error, IndexedError::BinSize { expected: 40, .. }), "{error}");
        assert!(error.to_string().contains("shard.bin"), "{error}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(documents in prop::collection::vec(prop::collection::vec(0..i32::MAX, 0..40), 0..40)) {
        let dir = tempfile::tempdir().expect("tempdir");
        let (bin, idx) = write(&documents);
        let shard = open(dir.path(), &bin, &idx).expect("a good shard");
        let lengths: Vec<i32> = documents.iter().map(|document| document.len() as i32).collect();
        prop_assert_eq!(shard.index().sequence_lengths(), lengths);
        let mut ids = Vec::new();
        shard.read(0..shard.num_tokens(), &mut ids).expect("the whole shard");
        prop_assert_eq!(ids, documents.concat());
    }

    #[test]
    fn no_damage_to_an_index_makes_it_panic(at in 0usize..120, value: u8) {
        let (_, idx) = write(&DOCUMENTS);
        let _ = Index::parse("x.idx", &with_bytes(&idx, at.min(idx.len() - 1), &[value]));
    }
}
