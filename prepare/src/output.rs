//! Token shards and the manifest: cut, digested, stored, and read back.

use std::collections::VecDeque;

use bytes::Bytes;
use polo_store::{
    Digest, Store,
    corpus::{CorpusManifest, Intake, MANIFEST_KEY, ShardEntry, Source},
    indexed::{Index, ShardWriter},
};
use tokio::{runtime::Handle, task::JoinHandle};

use crate::{
    cluster::pieces::{Pieces, Work},
    error::PrepareError,
    journal::{Finished, InputDigests, Journal, Position, Record, SourceInPlan, Tally},
    reason::{Rejected, Sample},
    stages::{Encoded, Kept},
};

/// Shards that are stored at the same time, while the next one fills.
const MAX_UPLOADS: usize = 2;
/// Examples kept of each reason for which documents of a source are left out.
const SAMPLES_PER_REASON: usize = 5;

/// What writing a source needs.
#[derive(Clone)]
pub struct Destination {
    /// Where uploads run.
    pub runtime: Handle,
    /// Where shards go.
    pub store: Store,
    /// Where it is written down that they are there.
    pub journal: Journal,
    /// What files have become before their turn, to be removed when it is in shards.
    pub pieces: Pieces,
    /// A shard is closed after the document that fills it to this many tokens.
    pub shard_tokens: u64,
}

/// Writes one source's shards.
pub struct SourceWriter {
    to: Destination,
    source: Source,
    inputs: InputDigests,
    works: Vec<Work>,
    /// Files that are in shards, whole.
    num_spent: usize,
    resume_at: Position,
    shard: ShardWriter<Vec<u8>>,
    signatures: Vec<u8>,
    since_last_shard: Tally,
    total: Tally,
    uploads: VecDeque<JoinHandle<Result<(), PrepareError>>>,
}

impl SourceWriter {
    /// A source of which `finished` is there already.
    pub fn new(to: Destination, in_plan: SourceInPlan, language: Option<String>, finished: &Finished) -> Self {
        let SourceInPlan { name, inputs, works, .. } = in_plan;
        let mut source =
            Source { name, language, num_tokens: 0, num_documents: 0, num_bytes_text: 0, intake: None, shards: vec![] };
        let mut total = Tally::default();
        for record in &finished.records {
            add_shard(&mut source, record.shard.clone());
            total.add(&record.tally);
        }
        let shard = ShardWriter::new(vec![]);
        let (since_last_shard, uploads) = (Tally::default(), VecDeque::new());
        let resume_at = finished.next();
        let (num_spent, signatures) = (resume_at.file, vec![]);
        Self { to, source, inputs, works, num_spent, resume_at, shard, signatures, since_last_shard, total, uploads }
    }

    /// Appends what became of a batch, but for what finished shards hold.
    pub fn push(&mut self, encoded: &Encoded) -> Result<(), PrepareError> {
        let mut ids = encoded.ids.as_slice();
        for (number, outcome) in encoded.outcomes.iter().enumerate() {
            let position = Position { file: encoded.origin.file, batch: encoded.origin.batch, outcome: number };
            let document = match outcome {
                Ok(kept) => ids.split_off(..kept.num_tokens).unwrap_or_default(),
                Err(_) => &[],
            };
            if position < self.resume_at {
                continue;
            }
            match outcome {
                Ok(kept) => self.keep(document, kept)?,
                Err(rejected) => self.drop(rejected, &encoded.key),
            }
            if self.shard.num_tokens() >= self.to.shard_tokens {
                self.close_shard(Position { outcome: number + 1, ..position })?;
            }
        }
        Ok(())
    }

    fn keep(&mut self, document: &[i32], kept: &Kept) -> Result<(), PrepareError> {
        self.shard.push_document(document)?;
        self.signatures.extend(kept.signature.to_bytes());
        self.since_last_shard.num_bytes_text += kept.num_bytes_text;
        Ok(())
    }

    fn drop(&mut self, rejected: &Rejected, key: &str) {
        let reason = rejected.reason.to_string();
        let tallies = [&self.total, &self.since_last_shard];
        let num_before =
            tallies.iter().flat_map(|tally| &tally.samples).filter(|sample| sample.reason == reason).count();
        if num_before < SAMPLES_PER_REASON {
            let place = rejected.place.map(|place| place.to_string());
            let sample =
                Sample { reason: reason.clone(), key: key.to_owned(), place, excerpt: rejected.excerpt.clone() };
            self.since_last_shard.samples.push(sample);
        }
        let dropped = self.since_last_shard.dropped.entry(reason).or_default();
        dropped.num_documents += 1;
        dropped.num_bytes_text += rejected.num_bytes_text;
    }

    /// Has the open shard stored, if it holds anything.
    fn close_shard(&mut self, next: Position) -> Result<(), PrepareError> {
        if self.shard.num_tokens() == 0 {
            return Ok(());
        }
        let (bin, index) = std::mem::replace(&mut self.shard, ShardWriter::new(vec![])).finish();
        let (bin, idx) = (Bytes::from(bin), Bytes::from(index.to_bytes()));
        let number = self.source.shards.len();
        let shard = shard_entry(&self.source.name, number, &bin, &idx, &index);
        let tally = std::mem::take(&mut self.since_last_shard);
        self.total.add(&tally);
        add_shard(&mut self.source, shard.clone());

        let signatures = Bytes::from(std::mem::take(&mut self.signatures));
        let record = Record { shard, next, inputs: self.inputs.up_to(next), tally };
        let (to, name) = (self.to.clone(), self.source.name.clone());
        let spent = self.works[self.num_spent..next.file].to_vec();
        self.num_spent = next.file;
        let upload = async move {
            store_shard(&to.store, &record.shard, bin, idx).await?;
            to.journal.add(&name, number, &record, signatures).await?;
            to.pieces.remove(spent).await
        };
        self.wait_for_uploads(MAX_UPLOADS - 1)?;
        self.uploads.push_back(self.to.runtime.spawn(upload));
        Ok(())
    }

    /// Stores what is left: the source has been read to its end.
    pub fn end(&mut self) -> Result<(), PrepareError> {
        self.close_shard(self.inputs.end())?;
        self.wait_for_uploads(0)
    }

    /// Waits until no more than `most` uploads are under way.
    fn wait_for_uploads(&mut self, most: usize) -> Result<(), PrepareError> {
        while self.uploads.len() > most
            && let Some(upload) = self.uploads.pop_front()
        {
            self.to.runtime.block_on(upload).map_err(|_| PrepareError::ThreadLost)??;
        }
        Ok(())
    }

    /// Ends the source and gives its entry in the manifest, with an intake if anything was left out or
    /// `with_intake` wants one.
    pub fn finish(mut self, with_intake: bool) -> Result<Source, PrepareError> {
        self.end()?;
        let mut total = self.total;
        total.add(&self.since_last_shard); // what was left out after the last document that was kept
        let mut source = self.source;
        source.num_bytes_text = total.num_bytes_text;
        if with_intake || !total.dropped.is_empty() {
            let samples_key = self.to.runtime.block_on(store_samples(&self.to.store, &source.name, &total.samples))?;
            let num_dropped: u64 = total.dropped.values().map(|dropped| dropped.num_documents).sum();
            let num_documents = source.num_documents + num_dropped;
            source.intake = Some(Intake { num_documents, dropped: total.dropped, samples_key });
        }
        Ok(source)
    }
}

fn add_shard(source: &mut Source, shard: ShardEntry) {
    source.num_tokens += shard.num_tokens;
    source.num_documents += shard.num_documents;
    source.shards.push(shard);
}

/// The pair's common name has a piece of the digest in it: a corpus that is replaced stays whole until the new manifest is
/// there.
fn shard_entry(source: &str, number: usize, bin: &[u8], idx: &[u8], index: &Index) -> ShardEntry {
    let (bin_digest, idx_digest) = (Digest::of(bin), Digest::of(idx));
    let stem = format!("{source}/{number:05}-{}", &bin_digest.to_string()[..12]);
    let (bin_key, idx_key) = (format!("{stem}.bin"), format!("{stem}.idx"));
    let (num_tokens, num_documents) = (index.num_tokens(), index.num_documents());
    ShardEntry { bin_key, idx_key, num_tokens, num_documents, bin_digest, idx_digest }
}

async fn store_shard(store: &Store, shard: &ShardEntry, bin: Bytes, idx: Bytes) -> Result<(), PrepareError> {
    let num_bytes = bin.len() as u64;
    store.put(&shard.bin_key, bin).await?;
    store.put(&shard.idx_key, idx).await?;
    let differs = |key: &str, reason| PrepareError::ReadBack { url: store.url_of(key), reason };
    let found = store.size_bytes(&shard.bin_key).await?;
    if found != num_bytes {
        return Err(differs(&shard.bin_key, format!("{found} bytes instead of {num_bytes}")));
    }
    let idx = store.get(&shard.idx_key).await?;
    if Digest::of(&idx) != shard.idx_digest {
        return Err(differs(&shard.idx_key, "another digest".to_owned()));
    }
    Ok(())
}

async fn store_samples(store: &Store, source: &str, samples: &[Sample]) -> Result<Option<String>, PrepareError> {
    if samples.is_empty() {
        return Ok(None);
    }
    let line = |sample| serde_json::to_string(sample).unwrap_or_default() + "\n"; // plain fields only: it cannot fail
    let lines = Bytes::from(samples.iter().map(line).collect::<String>());
    let key = format!("{source}/left-out-{}.jsonl", &Digest::of(&lines).to_string()[..12]);
    store.put(&key, lines).await?;
    Ok(Some(key))
}

/// Puts the manifest, which makes the corpus exist; over another only with `force`.
pub async fn store_manifest(store: &Store, manifest: &CorpusManifest, force: bool) -> Result<(), PrepareError> {
    let url = store.url_of(MANIFEST_KEY);
    manifest.check(&url)?;
    let bytes = Bytes::from(manifest.to_json());
    if force {
        store.put(MANIFEST_KEY, bytes).await?;
    } else if !store.put_if_absent(MANIFEST_KEY, bytes.clone()).await? && store.get(MANIFEST_KEY).await? != bytes {
        return Err(PrepareError::OutputExists { output: store.url().to_owned() });
    }
    let found = CorpusManifest::load(store).await?;
    if found != *manifest {
        return Err(PrepareError::ReadBack { url, reason: "other contents".to_owned() });
    }
    Ok(())
}
