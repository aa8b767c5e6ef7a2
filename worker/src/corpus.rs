//! A prepared corpus as a worker sees it: any window of any source's token stream, by number.

use std::ops::Range;

use polo_store::{
    Cache, CacheError, Cached, Digest, Store,
    corpus::{CorpusManifest, ManifestError, ShardEntry, Source},
    indexed::{IndexedError, Shard},
};
use tokio::sync::OnceCell;

/// What can be wrong with a corpus or with what is asked of it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum CorpusError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Cache(CacheError),
    #[error("{0}, or prepare the corpus again")]
    Damaged(CacheError),
    #[error("{url}: {source}")]
    Shard { url: String, source: IndexedError },
    #[error("{url} holds {found} tokens, and the manifest says {expected}; prepare the corpus again")]
    TokenCount { url: String, expected: u64, found: u64 },
    #[error(
        "the corpus at {url} was prepared with a tokenizer of {corpus} ids, more than the model's vocab_size {model}; \
         prepare it with the model's tokenizer"
    )]
    Vocabulary { url: String, corpus: u64, model: u64 },
    #[error("the corpus at {url} has no source '{name}'; it has {known}")]
    UnknownSource { url: String, name: String, known: String },
    #[error("window {window} of {seq_len} tokens asked of source '{name}', which has {num_windows}")]
    NoSuchWindow { name: String, window: u64, seq_len: usize, num_windows: u64 },
    #[error(
        "source '{name}': {url}: token {offset} is {id}, outside the model's vocabulary of {vocab_size}; prepare the \
         corpus again"
    )]
    BadToken { name: String, url: String, offset: u64, id: i64, vocab_size: u64 },
}

impl From<CacheError> for CorpusError {
    fn from(error: CacheError) -> Self {
        if matches!(error, CacheError::Damaged { .. }) { Self::Damaged(error) } else { Self::Cache(error) }
    }
}

impl CorpusError {
    /// Whether every worker would meet the same, and not only this one with its disk and its network.
    pub fn is_everybodys(&self) -> bool {
        match self {
            Self::Cache(CacheError::Disk { .. }) => false,
            Self::Cache(CacheError::Store(error)) | Self::Manifest(ManifestError::Store(error)) => !error.is_local(),
            _ => true,
        }
    }
}

/// A sample: one window of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// Position of the source in the manifest (see [`Corpus::source_number`]).
    pub source: usize,
    /// Number of the window in the source's stream.
    pub window: u64,
}

/// An opened corpus. Shards are fetched into the cache when first needed, and mapped.
#[derive(Debug)]
pub struct Corpus {
    store: Store,
    cache: Cache,
    vocab_size: u64,
    manifest: CorpusManifest,
    /// One stream per source of the manifest.
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    /// Where each shard begins in the stream, in tokens, and after the last its end.
    bounds: Vec<u64>,
    shards: Vec<OnceCell<OpenShard>>,
}

/// A mapped shard, and what keeps its files in the cache.
#[derive(Debug)]
struct OpenShard {
    shard: Shard,
    _files: [Cached; 2],
}

impl Stream {
    fn new(source: &Source) -> Self {
        let mut bounds = vec![0];
        bounds.extend(source.shards.iter().scan(0, |end, shard| {
            *end = u64::saturating_add(*end, shard.num_tokens); // only a nonsensical manifest gets so far
            Some(*end)
        }));
        Self { bounds, shards: source.shards.iter().map(|_| OnceCell::new()).collect() }
    }
}

impl Corpus {
    /// Opens the corpus at `store` for a model of `vocab_size` ids, with `cache` for its shards.
    pub async fn open(store: Store, cache: Cache, vocab_size: usize) -> Result<Self, CorpusError> {
        let manifest = CorpusManifest::load(&store).await?;
        let (corpus, model) = (manifest.vocab_size, vocab_size as u64);
        if corpus > model {
            return Err(CorpusError::Vocabulary { url: store.url().to_owned(), corpus, model });
        }
        let streams = manifest.sources.iter().map(Stream::new).collect();
        Ok(Self { store, cache, vocab_size: model, manifest, streams })
    }

    /// What the corpus is made of.
    pub fn manifest(&self) -> &CorpusManifest {
        &self.manifest
    }

    /// The corpus digest.
    pub fn digest(&self) -> Digest {
        self.manifest.digest()
    }

    /// The number that stands for the source `name` in [`Window`].
    pub fn source_number(&self, name: &str) -> Result<usize, CorpusError> {
        self.manifest.sources.iter().position(|source| source.name == name).ok_or_else(|| {
            let known = self.manifest.sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(", ");
            CorpusError::UnknownSource { url: self.store.url().to_owned(), name: name.to_owned(), known }
        })
    }

    /// How many windows of `seq_len` trained tokens a source has: each needs one token more, shared with the next.
    pub fn num_windows(&self, source: usize, seq_len: usize) -> u64 {
        self.manifest.sources[source].num_tokens.saturating_sub(1) / seq_len as u64
    }

    /// Fetches, checks and maps every shard of the sources `numbers`, so that training will not wait for the store.
    pub async fn fetch_all(&self, numbers: impl IntoIterator<Item = usize>) -> Result<(), CorpusError> {
        for source in numbers {
            for shard in 0..self.streams[source].shards.len() {
                self.shard(source, shard).await?;
            }
        }
        Ok(())
    }

    /// Appends the `seq_len + 1` token ids of a window to `out`: those at `window * seq_len` and after in the source's
    /// stream. Found in O(log shards). A shard that is not here yet is fetched.
    pub async fn window(&self, sample: Window, seq_len: usize, out: &mut Vec<i64>) -> Result<(), CorpusError> {
        let Window { source, window } = sample;
        let num_windows = self.num_windows(source, seq_len);
        if window >= num_windows {
            let name = self.manifest.sources[source].name.clone();
            return Err(CorpusError::NoSuchWindow { name, window, seq_len, num_windows });
        }
        let start = window * seq_len as u64;
        self.tokens(source, start..start + seq_len as u64 + 1, out).await
    }

    /// Appends the ids at `range`, which lies within the stream.
    async fn tokens(&self, source: usize, range: Range<u64>, out: &mut Vec<i64>) -> Result<(), CorpusError> {
        let bounds = &self.streams[source].bounds;
        let mut at = range.start;
        let mut number = bounds.partition_point(|bound| *bound <= at) - 1; // the first bound is 0
        while at < range.end {
            let end = range.end.min(bounds[number + 1]);
            self.read_shard(source, number, at - bounds[number]..end - bounds[number], out).await?;
            (at, number) = (end, number + 1);
        }
        Ok(())
    }

    async fn read_shard(
        &self,
        source: usize,
        number: usize,
        range: Range<u64>,
        out: &mut Vec<i64>,
    ) -> Result<(), CorpusError> {
        let first = out.len();
        let shard = self.shard(source, number).await?;
        shard.read(range.clone(), out).map_err(|error| self.shard_error(self.entry(source, number), error))?;
        // A negative id becomes a huge one.
        if let Some(at) = out[first..].iter().position(|id| *id as u64 >= self.vocab_size) {
            let name = self.manifest.sources[source].name.clone();
            let (url, id) = (self.store.url_of(&self.entry(source, number).bin_key), out[first + at]);
            let (offset, vocab_size) = (range.start + at as u64, self.vocab_size);
            return Err(CorpusError::BadToken { name, url, offset, id, vocab_size });
        }
        Ok(())
    }

    async fn shard(&self, source: usize, number: usize) -> Result<&Shard, CorpusError> {
        let open = || self.open_shard(self.entry(source, number));
        Ok(&self.streams[source].shards[number].get_or_try_init(open).await?.shard)
    }

    async fn open_shard(&self, entry: &ShardEntry) -> Result<OpenShard, CorpusError> {
        let bin = self.cache.fetch(&self.store, &entry.bin_key, entry.bin_digest).await?;
        let idx = self.cache.fetch(&self.store, &entry.idx_key, entry.idx_digest).await?;
        let shard = Shard::open(bin.path(), idx.path()).map_err(|error| self.shard_error(entry, error))?;
        let (expected, found) = (entry.num_tokens, shard.num_tokens());
        if expected != found {
            return Err(CorpusError::TokenCount { url: self.store.url_of(&entry.bin_key), expected, found });
        }
        Ok(OpenShard { shard, _files: [bin, idx] })
    }

    fn entry(&self, source: usize, number: usize) -> &ShardEntry {
        &self.manifest.sources[source].shards[number]
    }

    fn shard_error(&self, entry: &ShardEntry, source: IndexedError) -> CorpusError {
        CorpusError::Shard { url: self.store.url_of(&entry.bin_key), source }
    }
}
