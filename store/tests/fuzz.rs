//! What readers of stored objects make of damaged ones: an error, or something that is written as it was read.
#![allow(missing_docs)]

use polo_fuzz::fuzz;
use polo_store::{
    Digest,
    corpus::{CorpusManifest, FORMAT_VERSION, ShardEntry, Source},
    indexed::{Index, ShardWriter},
};

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn fuzz_indexes() {
    let index = |documents: &[&[i32]]| {
        let mut writer = ShardWriter::new(Vec::new());
        documents.iter().for_each(|document| writer.push_document(document).expect("a Vec takes everything"));
        writer.finish().1.to_bytes()
    };
    let seeds = [index(&[]), index(&[&[1]]), index(&[&[5, 6, 7, 0], &[0], &[151_642, 1, 0], &[9, 0]])];
    fuzz(FOLDER, "indexes", &seeds, |bytes| {
        let Ok(index) = Index::parse("fuzz.idx", bytes) else { return };
        index.num_tokens();
        assert_eq!(index.document_token_bounds().len() as u64, index.num_documents() + 1);
        assert_eq!(
            Index::parse("again.idx", &index.to_bytes()).map(|again| again.to_bytes()).ok(),
            Some(index.to_bytes())
        );
    });
}

#[test]
fn fuzz_corpus_manifests() {
    let shard = |number: u64| ShardEntry {
        bin_key: format!("ne/{number}.bin"),
        idx_key: format!("ne/{number}.idx"),
        num_tokens: 10,
        num_documents: 2,
        bin_digest: Digest::of(&number.to_le_bytes()),
        idx_digest: Digest::of(b"idx"),
    };
    let source = Source {
        name: "ne".into(),
        language: Some("ne".into()),
        num_tokens: 20,
        num_documents: 4,
        num_bytes_text: 100,
        intake: None,
        shards: vec![shard(0), shard(1)],
    };
    let (tokenizer_digest, vocab_size, eos_id) = (Digest::of(b"tokenizer"), 151_669, 151_643);
    let sources = vec![source.clone(), Source { name: "en".into(), ..source }];
    let manifest = CorpusManifest { format_version: FORMAT_VERSION, tokenizer_digest, vocab_size, eos_id, sources };
    fuzz(FOLDER, "corpus-manifests", &[manifest.to_json(), serde_json::to_vec(&manifest).expect("JSON")], |bytes| {
        let Ok(manifest) = CorpusManifest::parse("fuzz", bytes) else { return };
        let again = CorpusManifest::parse("again", &manifest.to_json()).expect("what it writes can be read");
        assert_eq!((again.digest(), &again), (manifest.digest(), &manifest));
    });
}
