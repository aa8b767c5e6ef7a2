//! Corpora made of given token ids.

use crate::corpus::{CorpusManifest, FORMAT_VERSION, MANIFEST_KEY, ShardEntry, Source};
use crate::indexed::ShardWriter;
use crate::{Digest, Store};

/// Writes a corpus of `sources`, each a name and its shards of documents of token ids, and returns its manifest.
///
/// # Panics
/// When it cannot be written: for tests, that is the end.
pub async fn put_corpus(store: &Store, vocab_size: u64, sources: &[(&str, Vec<Vec<Vec<i32>>>)]) -> CorpusManifest {
    let mut listed = Vec::new();
    for (name, shards) in sources {
        listed.push(put_source(store, name, shards).await);
    }
    let manifest = CorpusManifest {
        format_version: FORMAT_VERSION,
        tokenizer_digest: Digest::of(b"tokenizer"),
        vocab_size,
        eos_id: 0,
        sources: listed,
    };
    store.put(MANIFEST_KEY, manifest.to_json().into()).await.expect("the manifest is stored");
    manifest
}

async fn put_source(store: &Store, name: &str, shards: &[Vec<Vec<i32>>]) -> Source {
    let mut entries = Vec::new();
    for (number, documents) in shards.iter().enumerate() {
        let mut writer = ShardWriter::new(Vec::new());
        documents.iter().for_each(|document| writer.push_document(document).expect("memory takes it"));
        let (bin, index) = writer.finish();
        let idx = index.to_bytes();
        let entry = ShardEntry {
            bin_key: format!("{name}/{number}.bin"),
            idx_key: format!("{name}/{number}.idx"),
            num_tokens: index.num_tokens(),
            num_documents: index.num_documents(),
            bin_digest: Digest::of(&bin),
            idx_digest: Digest::of(&idx),
        };
        store.put(&entry.bin_key, bin.into()).await.expect("a shard is stored");
        store.put(&entry.idx_key, idx.into()).await.expect("an index is stored");
        entries.push(entry);
    }
    Source {
        name: name.to_owned(),
        language: None,
        num_tokens: entries.iter().map(|entry| entry.num_tokens).sum(),
        num_documents: entries.iter().map(|entry| entry.num_documents).sum(),
        num_bytes_text: 1,
        intake: None,
        shards: entries,
    }
}
