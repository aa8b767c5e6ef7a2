//! Token shards and the manifest: cut, digested, stored, and read back.

use bytes::Bytes;
use polo_store::{
    Digest, Store,
    corpus::{CorpusManifest, MANIFEST_KEY, ShardEntry, Source},
    indexed::{Index, ShardWriter},
};
use tokio::runtime::Handle;

use super::{encode::Encoded, error::PrepareError};

/// Writes one source's shards. One shard is in memory at a time.
pub struct SourceWriter {
    runtime: Handle,
    store: Store,
    shard_tokens: u64,
    shard: ShardWriter<Vec<u8>>,
    source: Source,
}

impl SourceWriter {
    /// A source without documents so far. A shard is closed after the document that fills it to `shard_tokens`.
    pub fn new(runtime: Handle, store: Store, shard_tokens: u64, name: String, language: Option<String>) -> Self {
        let source = Source { name, language, num_tokens: 0, num_documents: 0, num_bytes_text: 0, shards: vec![] };
        Self { runtime, store, shard_tokens, shard: ShardWriter::new(vec![]), source }
    }

    /// Appends the documents.
    pub fn push(&mut self, encoded: &Encoded) -> Result<(), PrepareError> {
        let mut ids = encoded.ids.as_slice();
        for length in &encoded.lengths {
            let (document, rest) = ids.split_at(*length);
            ids = rest;
            self.shard.push_document(document)?;
            if self.shard.num_tokens() >= self.shard_tokens {
                self.close_shard()?;
            }
        }
        self.source.num_bytes_text += encoded.num_bytes_text;
        Ok(())
    }

    /// Stores what the open shard holds, if anything.
    pub fn close_shard(&mut self) -> Result<(), PrepareError> {
        if self.shard.num_tokens() == 0 {
            return Ok(());
        }
        let (bin, index) = std::mem::replace(&mut self.shard, ShardWriter::new(vec![])).finish();
        let entry = self.runtime.block_on(self.store_shard(bin.into(), &index))?;
        self.source.num_tokens += entry.num_tokens;
        self.source.num_documents += entry.num_documents;
        self.source.shards.push(entry);
        Ok(())
    }

    /// The pair's common name has a piece of the digest in it: a corpus that is replaced stays whole until the new
    /// manifest is there.
    async fn store_shard(&self, bin: Bytes, index: &Index) -> Result<ShardEntry, PrepareError> {
        let idx = Bytes::from(index.to_bytes());
        let (bin_digest, idx_digest) = (Digest::of(&bin), Digest::of(&idx));
        let stem = format!("{}/{:05}-{}", self.source.name, self.source.shards.len(), &bin_digest.to_string()[..12]);
        let (bin_key, idx_key) = (format!("{stem}.bin"), format!("{stem}.idx"));
        let num_bytes = bin.len() as u64;
        self.store.put(&bin_key, bin).await?;
        self.store.put(&idx_key, idx).await?;
        let (num_tokens, num_documents) = (index.num_tokens(), index.num_documents());
        let entry = ShardEntry { bin_key, idx_key, num_tokens, num_documents, bin_digest, idx_digest };
        self.read_back(&entry, num_bytes).await?;
        Ok(entry)
    }

    async fn read_back(&self, entry: &ShardEntry, num_bytes: u64) -> Result<(), PrepareError> {
        let differs = |key: &str, reason| PrepareError::ReadBack { url: self.store.url_of(key), reason };
        let found = self.store.size_bytes(&entry.bin_key).await?;
        if found != num_bytes {
            return Err(differs(&entry.bin_key, format!("{found} bytes instead of {num_bytes}")));
        }
        let idx = self.store.get(&entry.idx_key).await?;
        if Digest::of(&idx) != entry.idx_digest {
            return Err(differs(&entry.idx_key, "another digest".to_owned()));
        }
        Ok(())
    }

    /// Closes the last shard and gives the source's entry in the manifest.
    pub fn finish(mut self) -> Result<Source, PrepareError> {
        self.close_shard()?;
        Ok(self.source)
    }
}

/// Puts the manifest, which makes the corpus exist; over another only with `force`.
pub async fn store_manifest(store: &Store, manifest: &CorpusManifest, force: bool) -> Result<(), PrepareError> {
    let url = store.url_of(MANIFEST_KEY);
    manifest.check(&url)?;
    let bytes = Bytes::from(manifest.to_json());
    if force {
        store.put(MANIFEST_KEY, bytes).await?;
    } else if !store.put_if_absent(MANIFEST_KEY, bytes).await? {
        return Err(PrepareError::OutputExists { output: store.url().to_owned() });
    }
    let found = CorpusManifest::load(store).await?;
    if found != *manifest {
        return Err(PrepareError::ReadBack { url, reason: "other contents".to_owned() });
    }
    Ok(())
}
