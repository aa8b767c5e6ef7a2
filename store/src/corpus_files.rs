//! Whether the files of a corpus are still those that its manifest describes, before anybody trains on them.
//!
//! Reading terabytes to see that would take hours, so it is told from a listing: every file is there and as long as it
//! should be, and those that were written after the manifest, which comes last, are read and their digests compared. What
//! that does not find is found when a shard is fetched.

use std::{collections::HashMap, time::SystemTime};

use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    Digest, Entry, Store,
    corpus::{CorpusManifest, MANIFEST_KEY, ManifestError, ShardEntry},
    indexed::TokenType,
};

const MAX_FILES_READ_AT_ONCE: usize = 4;
const PIECE_BYTES: u64 = 8 << 20;

/// A file to be read.
struct Suspect<'a> {
    key: &'a str,
    num_bytes: u64,
    digest: Digest,
}

/// Checks the files of those of `sources` that the corpus at `store` has.
pub async fn check(store: &Store, manifest: &CorpusManifest, sources: &[String]) -> Result<(), ManifestError> {
    let entries = store.list("").await?;
    let by_key = entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
    let suspects = suspects(store, manifest, sources, &by_key)?;
    if !suspects.is_empty() {
        let (num_files, corpus) = (suspects.len(), store.url());
        tracing::warn!(num_files, corpus, "files are newer than the manifest; comparing their digests");
    }
    let comparisons = suspects.iter().map(|suspect| compare(store, suspect));
    stream::iter(comparisons).buffer_unordered(MAX_FILES_READ_AT_ONCE).try_collect().await
}

fn suspects<'a>(
    store: &Store,
    manifest: &'a CorpusManifest,
    sources: &[String],
    by_key: &HashMap<&str, &Entry>,
) -> Result<Vec<Suspect<'a>>, ManifestError> {
    let written = by_key.get(MANIFEST_KEY).map_or(SystemTime::UNIX_EPOCH, |entry| entry.modified);
    let mut suspects = Vec::new();
    let of_sources = manifest.sources.iter().filter(|source| sources.contains(&source.name));
    for shard in of_sources.flat_map(|source| &source.shards) {
        for (key, digest) in [(&shard.bin_key, shard.bin_digest), (&shard.idx_key, shard.idx_digest)] {
            let entry =
                by_key.get(key.as_str()).ok_or_else(|| ManifestError::MissingFile { url: store.url_of(key) })?;
            if *key == shard.bin_key && !may_hold(entry.num_bytes, shard) {
                let (url, found, num_tokens) = (store.url_of(key), entry.num_bytes, shard.num_tokens);
                return Err(ManifestError::FileLength { url, found, num_tokens });
            }
            if entry.modified > written {
                suspects.push(Suspect { key, num_bytes: entry.num_bytes, digest });
            }
        }
    }
    Ok(suspects)
}

fn may_hold(num_bytes: u64, shard: &ShardEntry) -> bool {
    [TokenType::Int32, TokenType::Uint16]
        .iter()
        .any(|kind| Some(num_bytes) == shard.num_tokens.checked_mul(kind.num_bytes()))
}

async fn compare(store: &Store, Suspect { key, num_bytes, digest }: &Suspect<'_>) -> Result<(), ManifestError> {
    let mut hasher = blake3::Hasher::new();
    for start in (0..*num_bytes).step_by(PIECE_BYTES as usize) {
        hasher.update(&store.get_range(key, start..(start + PIECE_BYTES).min(*num_bytes)).await?);
    }
    let found = Digest::from(hasher.finalize());
    if found == *digest {
        return Ok(());
    }
    Err(ManifestError::ChangedFile { url: store.url_of(key), expected: *digest, found })
}

/// Checks that the tokenizer at `path` is the one that the corpus was prepared with. One that is not on this machine is
/// not needed for training, and only noted.
pub fn check_tokenizer(manifest: &CorpusManifest, path: &str) -> Result<(), ManifestError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::warn!(path, %error, "`corpus.tokenizer` cannot be compared with the corpus's");
            return Ok(());
        }
    };
    let (expected, found) = (manifest.tokenizer_digest, Digest::of(&bytes));
    if found == expected {
        return Ok(());
    }
    Err(ManifestError::Tokenizer { path: path.to_owned(), expected, found })
}
