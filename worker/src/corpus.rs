//! A prepared corpus as a worker sees it: any window of any source's token stream, by number.

use std::{collections::BTreeSet, ops::Range};

use futures::{StreamExt, TryFutureExt, TryStreamExt, stream};
use polo_store::{
    Cache, CacheError, Cached, Digest, Store,
    corpus::{CorpusManifest, ManifestError, ShardEntry, Source},
    indexed::{IndexedError, Shard},
};
use tokio::sync::OnceCell;

/// Each is fetched in several pieces at once.
const MAX_SHARDS_FETCHED_AT_ONCE: usize = 4;

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
    BadToken { name: String, url: String, offset: u64, id: i32, vocab_size: u64 },
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
            Self::Cache(CacheError::Disk { .. }) | Self::Shard { source: IndexedError::Io { .. }, .. } => false,
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

/// An opened corpus. Shards are fetched into the cache when first needed, and stay open.
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

/// A shard, and what keeps its files in the cache.
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

    /// The shards that hold `range`, which lies within the stream, and which of their own tokens that is.
    fn parts(&self, range: Range<u64>) -> impl Iterator<Item = (usize, Range<u64>)> {
        let first = self.bounds.partition_point(|bound| *bound <= range.start) - 1; // the first bound is 0
        let shards = self.bounds[first..].windows(2).zip(first..);
        let reached = shards.take_while(move |(bounds, _)| bounds[0] < range.end);
        reached.map(move |(bounds, number)| {
            (number, range.start.max(bounds[0]) - bounds[0]..range.end.min(bounds[1]) - bounds[0])
        })
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

    /// Fetches and checks what shards of `windows` are not here yet, some at a time.
    pub async fn fetch(&self, windows: &[Window], seq_len: usize) -> Result<(), CorpusError> {
        let mut missing = BTreeSet::new();
        for window in windows {
            let range = self.range(*window, seq_len)?;
            let numbers = self.streams[window.source].parts(range).map(|(number, _)| (window.source, number));
            missing.extend(numbers.filter(|(source, number)| !self.streams[*source].shards[*number].initialized()));
        }
        let fetches = missing.into_iter().map(|(source, number)| self.shard(source, number).map_ok(drop));
        stream::iter(fetches).buffer_unordered(MAX_SHARDS_FETCHED_AT_ONCE).try_collect().await
    }

    /// Appends the `seq_len + 1` token ids of a window to `out`: those at `window * seq_len` and after in the source's
    /// stream. Found in O(log shards). A shard that is not here yet is fetched.
    pub async fn window(&self, sample: Window, seq_len: usize, out: &mut Vec<i32>) -> Result<(), CorpusError> {
        let range = self.range(sample, seq_len)?;
        for (number, part) in self.streams[sample.source].parts(range) {
            self.read_shard(sample.source, number, part, out).await?;
        }
        Ok(())
    }

    /// Where a window lies in its source's stream.
    fn range(&self, Window { source, window }: Window, seq_len: usize) -> Result<Range<u64>, CorpusError> {
        let num_windows = self.num_windows(source, seq_len);
        if window >= num_windows {
            let name = self.manifest.sources[source].name.clone();
            return Err(CorpusError::NoSuchWindow { name, window, seq_len, num_windows });
        }
        let start = window * seq_len as u64;
        Ok(start..start + seq_len as u64 + 1)
    }

    async fn read_shard(
        &self,
        source: usize,
        number: usize,
        range: Range<u64>,
        out: &mut Vec<i32>,
    ) -> Result<(), CorpusError> {
        let first = out.len();
        let shard = self.shard(source, number).await?;
        shard.read(range.clone(), out).map_err(|error| self.shard_error(self.entry(source, number), error))?;
        let ids = &out[first..];
        // A negative id becomes a huge one. The greatest is found faster than the first that is too great.
        if ids.iter().map(|id| id.cast_unsigned()).max().is_some_and(|id| self.is_unknown(id)) {
            return Err(self.bad_token(source, number, range.start, ids));
        }
        Ok(())
    }

    fn is_unknown(&self, id: u32) -> bool {
        u64::from(id) >= self.vocab_size
    }

    /// The error about `ids`, which begin at `start` of a shard.
    fn bad_token(&self, source: usize, number: usize, start: u64, ids: &[i32]) -> CorpusError {
        let at = ids.iter().position(|id| self.is_unknown(id.cast_unsigned())).unwrap_or_default();
        let url = self.store.url_of(&self.entry(source, number).bin_key);
        let (name, offset, id) = (self.manifest.sources[source].name.clone(), start + at as u64, ids[at]);
        CorpusError::BadToken { name, url, offset, id, vocab_size: self.vocab_size }
    }

    /// Fetching is boxed: its future is large, and would be moved about with every window.
    async fn shard(&self, source: usize, number: usize) -> Result<&Shard, CorpusError> {
        let cell = &self.streams[source].shards[number];
        if let Some(open) = cell.get() {
            return Ok(&open.shard);
        }
        let open = || self.open_shard(self.entry(source, number));
        Ok(&Box::pin(cell.get_or_try_init(open)).await?.shard)
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
