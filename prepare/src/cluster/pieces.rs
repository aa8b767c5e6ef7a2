//! What a file has become before its turn: its batches, examined and encoded, in a few objects beside the journal.
//!
//! A result lies under `.prepare/.pieces/WORK/`, where WORK is the digest of everything that it follows from, so that one of
//! another file, plan or format is never taken for it. `000000`, `000001`, ... are pieces: an 8-byte magic, then for each
//! batch its length (u32, little-endian) and a Zstandard frame with a [`v1::ExaminedBatch`]. `index.json`, written last,
//! has the pieces' digests; its own digest is what a helper tells the leader.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Buf, Bytes};
use futures::{StreamExt, TryStreamExt};
use polo_proto::v1::{self, examined_record::Outcome, record_place};
use polo_store::{Digest, Store};
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, task::JoinHandle};

use crate::{
    cleaning::duplicates::Signature,
    encode::Encoder,
    error::{Place, PrepareError},
    journal,
    reason::{Rejected, excerpt},
    stages::{Body, Candidate, Examined},
};

/// To be raised whenever results are written in another way.
pub const FORMAT_VERSION: u32 = 1;

/// No source can be called so.
const FOLDER: &str = ".pieces";
const INDEX: &str = "index.json";
const MAGIC: &[u8; 8] = b"POLOPCS1";
/// A piece is stored when it has this many bytes.
const PIECE_BYTES: usize = 8 << 20;
/// Speed matters more than size: results lie there for a short time.
const ZSTD_LEVEL: i32 = 1;
/// Objects removed at the same time.
const CONCURRENCY: usize = 16;

/// What a result follows from: the format, the plan, the source, and the file with its size and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work(pub Digest);

impl Work {
    /// The work of making of `file`, as the journal describes it, what `plan` says.
    pub fn new(plan: &journal::Plan, source: &str, file: &str) -> Self {
        Self(Digest::of(format!("{FORMAT_VERSION}\n{plan:?}\n{source}\n{file}").as_bytes()))
    }

    fn folder(self) -> String {
        self.0.to_string()[..32].to_owned()
    }
}

/// What a result consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultIndex {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Piece {
    num_batches: u64,
    digest: Digest,
}

/// The results of a preparation.
#[derive(Debug, Clone)]
pub struct Pieces {
    store: Store,
    runtime: Handle,
    /// Numbers of the pieces of results that were read, which are to be removed.
    read: Arc<Mutex<HashMap<Work, usize>>>,
}

impl Pieces {
    /// Those of the preparation of `output`. To be called in a runtime.
    pub fn new(output: &Store) -> Self {
        Self { store: output.child(journal::FOLDER).child(FOLDER), runtime: Handle::current(), read: Arc::default() }
    }

    /// Which of `wanted` are there. All others are removed.
    pub async fn sift(&self, wanted: impl Iterator<Item = Work>) -> Result<HashSet<Work>, PrepareError> {
        let listed = self.store.list("").await?;
        let mut by_folder: HashMap<String, Work> = HashMap::new();
        if !listed.is_empty() {
            by_folder.extend(wanted.map(|work| (work.folder(), work)));
        }
        let (mut there, mut spent) = (HashSet::new(), vec![]);
        for entry in listed {
            let (folder, name) = entry.key.split_once('/').unwrap_or((&entry.key, ""));
            match by_folder.get(folder) {
                Some(work) if name == INDEX => drop(there.insert(*work)),
                Some(_) => {} // begun: it will be overwritten
                None => spent.push(entry.key),
            }
        }
        let removals = futures::stream::iter(&spent).map(|key| self.store.delete(key));
        removals.buffer_unordered(CONCURRENCY).try_collect::<Vec<_>>().await?;
        Ok(there)
    }

    /// The index of a result; with another digest than `expected` it is not the one that was told.
    pub fn open(&self, work: Work, expected: Option<Digest>) -> Result<ResultIndex, PrepareError> {
        let key = format!("{}/{INDEX}", work.folder());
        let bytes = self.runtime.block_on(self.store.get(&key))?;
        let damaged = |reason| PrepareError::DamagedPiece { url: self.store.url_of(&key), reason };
        if expected.is_some_and(|expected| expected != Digest::of(&bytes)) {
            return Err(damaged("another digest than was told".to_owned()));
        }
        let index: ResultIndex = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(work, index.pieces.len());
        Ok(index)
    }

    /// The packed batches of a result with their numbers, from number `first` on. Ends after the first error.
    pub fn batches(&self, work: Work, index: ResultIndex, first: u64) -> PackedBatches {
        let mut next_batch = 0;
        let mut pieces: Vec<_> = index.pieces.into_iter().enumerate().collect();
        pieces.retain(|(_, piece)| {
            let ends_before = next_batch + piece.num_batches <= first;
            next_batch += if ends_before { piece.num_batches } else { 0 };
            // Only from the start: once one is kept, `next_batch` stays.
            !ends_before
        });
        let (pieces, fetched) = (pieces.into_iter(), None);
        let mut batches =
            PackedBatches { from: self.clone(), work, pieces, fetched, frames: vec![].into_iter(), next_batch, first };
        batches.fetch_ahead();
        batches
    }

    /// Removes a result that was read, if this one was.
    pub async fn remove(&self, work: Work) -> Result<(), PrepareError> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner).remove(&work);
        let Some(num_pieces) = read else { return Ok(()) };
        self.discard(work, num_pieces).await
    }

    /// Removes a result of which nothing has been read.
    pub async fn remove_unread(&self, work: Work) -> Result<(), PrepareError> {
        let num_pieces = self.store.list(&work.folder()).await?.len().saturating_sub(1);
        self.discard(work, num_pieces).await
    }

    /// The index goes first: without it, the rest is no result.
    async fn discard(&self, work: Work, num_pieces: usize) -> Result<(), PrepareError> {
        self.store.delete(&format!("{}/{INDEX}", work.folder())).await?;
        let removals = (0..num_pieces).map(|number| async move { self.store.delete(&piece_key(work, number)).await });
        futures::stream::iter(removals).buffer_unordered(CONCURRENCY).try_collect::<Vec<_>>().await?;
        Ok(())
    }

    /// Writes a result.
    pub fn writer(&self, work: Work) -> PieceWriter {
        let (to, index) = (self.clone(), ResultIndex::default());
        PieceWriter { to, work, buffer: vec![], num_batches: 0, index }
    }
}

fn piece_key(work: Work, number: usize) -> String {
    format!("{}/{number:06}", work.folder())
}

/// Writes the result of one file, piece by piece.
pub struct PieceWriter {
    to: Pieces,
    work: Work,
    buffer: Vec<u8>,
    num_batches: u64,
    index: ResultIndex,
}

impl PieceWriter {
    /// Appends a packed batch.
    pub fn push(&mut self, packed: &[u8]) -> Result<(), PrepareError> {
        if self.buffer.is_empty() {
            self.buffer.extend(MAGIC);
        }
        let too_long = |_| PrepareError::DamagedPiece {
            url: self.to.store.url_of(&self.work.folder()),
            reason: format!("a batch of {} bytes", packed.len()),
        };
        self.buffer.extend(u32::try_from(packed.len()).map_err(too_long)?.to_le_bytes());
        self.buffer.extend(packed);
        self.num_batches += 1;
        if self.buffer.len() >= PIECE_BYTES { self.store_piece() } else { Ok(()) }
    }

    fn store_piece(&mut self) -> Result<(), PrepareError> {
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let piece = Piece { num_batches: std::mem::take(&mut self.num_batches), digest: Digest::of(&bytes) };
        let key = piece_key(self.work, self.index.pieces.len());
        self.to.runtime.block_on(self.to.store.put(&key, bytes))?;
        self.index.pieces.push(piece);
        Ok(())
    }

    /// Writes what is left and the index, and gives the index's digest.
    pub fn finish(mut self) -> Result<Digest, PrepareError> {
        if self.num_batches > 0 {
            self.store_piece()?;
        }
        let bytes = Bytes::from(serde_json::to_vec(&self.index).unwrap_or_default()); // plain fields: it cannot fail
        let digest = Digest::of(&bytes);
        self.to.runtime.block_on(self.to.store.put(&format!("{}/{INDEX}", self.work.folder()), bytes))?;
        Ok(digest)
    }
}

/// The packed batches of a result, read ahead by one piece.
pub struct PackedBatches {
    from: Pieces,
    work: Work,
    pieces: std::vec::IntoIter<(usize, Piece)>,
    fetched: Option<JoinHandle<Result<Vec<Bytes>, PrepareError>>>,
    frames: std::vec::IntoIter<Bytes>,
    next_batch: u64,
    first: u64,
}

impl PackedBatches {
    fn fetch_ahead(&mut self) {
        let Some((number, piece)) = self.pieces.next() else { return };
        let (store, key) = (self.from.store.clone(), piece_key(self.work, number));
        self.fetched = Some(self.from.runtime.spawn(async move {
            let bytes = store.get(&key).await?;
            let damaged =
                |reason: &str| PrepareError::DamagedPiece { url: store.url_of(&key), reason: reason.to_owned() };
            if Digest::of(&bytes) != piece.digest {
                return Err(damaged("another digest than its index says"));
            }
            let frames = split(bytes).filter(|frames| frames.len() as u64 == piece.num_batches);
            frames.ok_or_else(|| damaged("its batches are not those of its index"))
        }));
    }

    fn next_piece(&mut self) -> Option<Result<Vec<Bytes>, PrepareError>> {
        let fetched = self.fetched.take()?;
        let frames = self.from.runtime.block_on(fetched).map_err(|_| PrepareError::ThreadLost).flatten();
        match &frames {
            Ok(_) => self.fetch_ahead(),
            Err(_) => self.pieces = vec![].into_iter(),
        }
        Some(frames)
    }
}

impl Iterator for PackedBatches {
    type Item = Result<(u64, Bytes), PrepareError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            while let Some(frame) = self.frames.next() {
                self.next_batch += 1;
                if self.next_batch > self.first {
                    return Some(Ok((self.next_batch - 1, frame)));
                }
            }
            match self.next_piece()? {
                Ok(frames) => self.frames = frames.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

fn split(mut bytes: Bytes) -> Option<Vec<Bytes>> {
    if !bytes.starts_with(MAGIC) {
        return None;
    }
    bytes.advance(MAGIC.len());
    let mut frames = vec![];
    while !bytes.is_empty() {
        let length = bytes.try_get_u32_le().ok()? as usize;
        if length > bytes.len() {
            return None;
        }
        frames.push(bytes.split_to(length));
    }
    Some(frames)
}

/// Encodes and packs a batch. An error is the machine's own: whatever is wrong with the batch is packed with it.
pub fn pack(encoder: &Encoder, examined: Examined) -> Result<Vec<u8>, PrepareError> {
    let Examined { key, documents, .. } = examined;
    let (mut ids, mut records) = (vec![], Vec::with_capacity(documents.len()));
    for found in documents {
        let outcome = match found {
            Ok(candidate) => {
                let start = ids.len();
                encoder.append(&key, &candidate, &mut ids)?;
                Outcome::Document(packed_document(candidate, ids.len() - start))
            }
            Err(rejected) => Outcome::Rejected(packed_rejected(rejected)?),
        };
        records.push(v1::ExaminedRecord { outcome: Some(outcome) });
    }
    let token_ids = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let batch = v1::ExaminedBatch { key: key.clone(), records, token_ids };
    zstd::bulk::compress(&batch.encode_to_vec(), ZSTD_LEVEL).map_err(|source| PrepareError::Unreadable { key, source })
}

fn packed_document(candidate: Candidate, num_tokens: usize) -> v1::ExaminedDocument {
    let Candidate { place, num_bytes_text, signature, body } = candidate;
    let may_be_dropped = signature != Signature::default();
    let excerpt = match body {
        Body::Text(text) if may_be_dropped => excerpt(&text),
        Body::Ids { excerpt, .. } => excerpt,
        Body::Text(_) => String::new(),
    };
    v1::ExaminedDocument {
        place: Some(packed_place(place)),
        num_tokens: num_tokens as u64,
        num_bytes_text,
        has_exact: signature.exact.is_some(),
        signature: signature.to_bytes().collect(),
        excerpt,
    }
}

fn packed_rejected(rejected: Rejected) -> Result<v1::RejectedRecord, PrepareError> {
    let Rejected { reason, place, num_bytes_text, excerpt, fault } = rejected;
    let fault = match fault {
        // Not of the file, but of the way to it.
        Some(fault) if fault.reason().is_none() => return Err(*fault),
        fault => fault.map(|fault| fault.to_string()),
    };
    let reason = reason.into_owned();
    Ok(v1::RejectedRecord { reason, place: place.map(packed_place), num_bytes_text, excerpt, fault })
}

fn packed_place(place: Place) -> v1::RecordPlace {
    let place = match place {
        Place::Line(line) => record_place::Place::Line(line),
        Place::Row(row) => record_place::Place::Row(row),
    };
    v1::RecordPlace { place: Some(place) }
}

/// The key and the documents of a packed batch.
pub fn unpack(packed: &[u8]) -> (String, Vec<Result<Candidate, Rejected>>) {
    try_unpack(packed).unwrap_or_else(|reason| {
        let url = format!("a batch in {FOLDER}");
        (String::new(), vec![Err(PrepareError::DamagedPiece { url, reason }.into())])
    })
}

type Unpacked = (String, Vec<Result<Candidate, Rejected>>);

fn try_unpack(packed: &[u8]) -> Result<Unpacked, String> {
    let bytes = zstd::stream::decode_all(io::Cursor::new(packed)).map_err(|error| error.to_string())?;
    let batch = v1::ExaminedBatch::decode(&*bytes).map_err(|error| error.to_string())?;
    let (mut ids, rest) = batch.token_ids.as_chunks::<4>();
    if !rest.is_empty() {
        return Err("token ids that are cut off".to_owned());
    }
    let mut documents = Vec::with_capacity(batch.records.len());
    for record in batch.records {
        documents.push(match record.outcome.ok_or("an empty record")? {
            Outcome::Document(document) => Ok(unpacked_document(document, &mut ids)?),
            Outcome::Rejected(rejected) => Err(unpacked_rejected(rejected)?),
        });
    }
    Ok((batch.key, documents))
}

fn unpacked_document(document: v1::ExaminedDocument, ids: &mut &[[u8; 4]]) -> Result<Candidate, String> {
    let own = ids.split_off(..document.num_tokens as usize).ok_or("fewer token ids than its documents have")?;
    let ids = own.iter().map(|id| i32::from_le_bytes(*id)).collect();
    let (words, _) = document.signature.as_chunks();
    Ok(Candidate {
        place: unpacked_place(document.place)?.ok_or("a document without a place")?,
        num_bytes_text: document.num_bytes_text,
        signature: Signature::from_words(words, document.has_exact),
        body: Body::Ids { ids, excerpt: document.excerpt },
    })
}

fn unpacked_rejected(rejected: v1::RejectedRecord) -> Result<Rejected, String> {
    let v1::RejectedRecord { reason, place, num_bytes_text, excerpt, fault } = rejected;
    let fault = fault.map(|message| Box::new(PrepareError::Told { message }));
    let (reason, place) = (Cow::Owned(reason), unpacked_place(place)?);
    Ok(Rejected { reason, place, num_bytes_text, excerpt, fault })
}

fn unpacked_place(place: Option<v1::RecordPlace>) -> Result<Option<Place>, String> {
    let Some(place) = place else { return Ok(None) };
    Ok(Some(match place.place.ok_or("an empty place")? {
        record_place::Place::Line(line) => Place::Line(line),
        record_place::Place::Row(row) => Place::Row(row),
    }))
}
