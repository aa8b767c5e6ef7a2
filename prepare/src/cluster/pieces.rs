//! What a file has become before its turn: its batches, examined and encoded, in a few objects beside the journal.
//!
//! A result lies under `.prepare/.pieces/WORK/`, where WORK is the digest of everything that it follows from, so that one of
//! another file, plan or format is never taken for it. `000000`, `000001`, ... are pieces: an 8-byte magic, then for each
//! batch its length (u32, little-endian) and the packed batch ([`super::packing`]). `index.json`, written last,
//! has the pieces' digests; its own digest is what a helper tells the leader.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Buf, Bytes};
use futures::{StreamExt, TryStreamExt};
use polo_store::{Digest, Store};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, task::JoinHandle};

use crate::{error::PrepareError, journal};

/// To be raised whenever results are written in another way.
pub const FORMAT_VERSION: u32 = 1;

/// No source can be called so.
pub const FOLDER: &str = ".pieces";
const INDEX: &str = "index.json";
const MAGIC: &[u8; 8] = b"POLOPCS1";
/// A piece is stored when it has this many bytes.
const PIECE_BYTES: usize = 8 << 20;
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
        let (mut pieces, mut next_batch) = (index.pieces.into_iter().enumerate().peekable(), 0);
        while let Some((_, piece)) = pieces.next_if(|(_, piece)| next_batch + piece.num_batches <= first) {
            next_batch += piece.num_batches;
        }
        let (pieces, fetched) = (pieces.collect::<Vec<_>>().into_iter(), None);
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
            for frame in self.frames.by_ref() {
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

#[cfg(test)]
mod tests {
    use tokio::runtime::Runtime;

    use super::*;

    /// Three pieces of three, three and one batches, each a third of a piece and something.
    fn stored(pieces: &Pieces, work: Work) -> Digest {
        let mut writer = pieces.writer(work);
        (0..7).for_each(|number| writer.push(&vec![number; PIECE_BYTES / 3]).expect("pushed"));
        writer.finish().expect("stored")
    }

    fn pieces(runtime: &Runtime, name: &str) -> (Store, Pieces) {
        let _entered = runtime.enter();
        let store = Store::open(&format!("memory://{name}")).expect("a store");
        (store.clone(), Pieces::new(&store))
    }

    fn work(name: &str) -> Work {
        Work(Digest::of(name.as_bytes()))
    }

    /// Numbers and first bytes of batches, and what ends them early.
    fn read(pieces: &Pieces, work: Work, first: u64) -> (Vec<(u64, u8)>, Option<String>) {
        let index = pieces.open(work, None).expect("an index");
        let (mut numbers, mut error) = (vec![], None);
        for batch in pieces.batches(work, index, first) {
            match batch {
                Ok((number, bytes)) => numbers.push((number, bytes[0])),
                Err(found) => error = Some(found.to_string()),
            }
        }
        (numbers, error)
    }

    #[test]
    fn batches_come_from_where_they_are_wanted() {
        let runtime = Runtime::new().expect("a runtime");
        let (_, pieces) = pieces(&runtime, "pieces-from-where");
        let digest = stored(&pieces, work("a"));
        pieces.open(work("a"), Some(digest)).expect("as told");
        assert!(pieces.open(work("a"), Some(Digest::of(b"other"))).is_err());
        for first in 0..=7 {
            let expected: Vec<_> = (first..7).map(|number| (number, number as u8)).collect();
            assert_eq!(read(&pieces, work("a"), first), (expected, None));
        }
    }

    #[test]
    fn damage_ends_the_batches_where_it_is() {
        let runtime = Runtime::new().expect("a runtime");
        let (store, pieces) = pieces(&runtime, "pieces-damaged");
        stored(&pieces, work("a"));
        let key = format!(".prepare/.pieces/{}", piece_key(work("a"), 1));
        let mut bytes = runtime.block_on(store.get(&key)).expect("there").to_vec();
        bytes[PIECE_BYTES / 2] ^= 1;
        runtime.block_on(store.put(&key, bytes.into())).expect("stored");
        let (numbers, error) = read(&pieces, work("a"), 1);
        assert_eq!(numbers, [(1, 1), (2, 2)]);
        assert!(error.is_some_and(|error| error.contains("another digest")));
        assert_eq!(read(&pieces, work("a"), 6), (vec![(6, 6)], None));
    }

    #[test]
    fn what_is_not_wanted_is_removed_and_so_is_what_was_read() {
        let runtime = Runtime::new().expect("a runtime");
        let (store, pieces) = pieces(&runtime, "pieces-removed");
        for name in ["a", "b", "c"] {
            stored(&pieces, work(name));
        }
        pieces.writer(work("d")).store_piece().expect("begun only");
        let num_objects = || runtime.block_on(store.list("")).expect("listed").len();
        let there = runtime.block_on(pieces.sift(["a", "b", "d"].map(work).into_iter())).expect("sifted");
        assert_eq!((there, num_objects()), (HashSet::from([work("a"), work("b")]), 9));
        runtime.block_on(pieces.remove(work("a"))).expect("nothing was read of it");
        assert_eq!(num_objects(), 9);
        pieces.open(work("a"), None).expect("there");
        runtime.block_on(pieces.remove(work("a"))).expect("removed");
        runtime.block_on(pieces.remove_unread(work("b"))).expect("removed");
        assert_eq!(num_objects(), 1);
    }
}
