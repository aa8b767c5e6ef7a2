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

    /// The packed batches of a result with their numbers, from number `first` on; the first of them are fetched from now
    /// on. Ends after the first error, such as that its index has another digest than `expected`.
    pub fn batches(&self, work: Work, expected: Option<Digest>, first: u64) -> PackedBatches {
        let from = self.clone();
        let opened = self.runtime.spawn(async move { from.open(work, expected, first).await });
        PackedBatches { from: self.clone(), work, first, opened: Some(opened), left: Left::default() }
    }

    async fn open(self, work: Work, expected: Option<Digest>, first: u64) -> Result<Left, PrepareError> {
        let index = self.index(work, expected).await?;
        let (mut pieces, mut next_batch) = (index.pieces.into_iter().enumerate().peekable(), 0);
        while let Some((_, piece)) = pieces.next_if(|(_, piece)| next_batch + piece.num_batches <= first) {
            next_batch += piece.num_batches;
        }
        let mut pieces = pieces.collect::<Vec<_>>().into_iter();
        let frames = match pieces.next() {
            Some((number, piece)) => self.clone().piece(work, number, piece).await?,
            None => vec![],
        };
        let mut left = Left { pieces, fetched: None, frames: frames.into_iter(), next_batch };
        left.fetch_ahead(&self, work);
        Ok(left)
    }

    async fn index(&self, work: Work, expected: Option<Digest>) -> Result<ResultIndex, PrepareError> {
        let key = format!("{}/{INDEX}", work.folder());
        let bytes = self.store.get(&key).await?;
        let damaged = |reason| PrepareError::DamagedPiece { url: self.store.url_of(&key), reason };
        if expected.is_some_and(|expected| expected != Digest::of(&bytes)) {
            return Err(damaged("another digest than was told".to_owned()));
        }
        let index: ResultIndex = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(work, index.pieces.len());
        Ok(index)
    }

    async fn piece(self, work: Work, number: usize, piece: Piece) -> Result<Vec<Bytes>, PrepareError> {
        let key = piece_key(work, number);
        let bytes = self.store.get(&key).await?;
        let damaged =
            |reason: &str| PrepareError::DamagedPiece { url: self.store.url_of(&key), reason: reason.to_owned() };
        if Digest::of(&bytes) != piece.digest {
            return Err(damaged("another digest than its index says"));
        }
        let frames = split(bytes).filter(|frames| frames.len() as u64 == piece.num_batches);
        frames.ok_or_else(|| damaged("its batches are not those of its index"))
    }

    /// Removes those of these results that were read.
    pub async fn remove(&self, works: Vec<Work>) -> Result<(), PrepareError> {
        let read = |work: Work| {
            let num_pieces = self.read.lock().unwrap_or_else(PoisonError::into_inner).remove(&work)?;
            Some(self.discard(work, num_pieces))
        };
        let removals = works.into_iter().filter_map(read).collect::<Vec<_>>();
        futures::stream::iter(removals).buffer_unordered(CONCURRENCY).try_collect::<Vec<_>>().await?;
        Ok(())
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
        if self.buffer.len() < PIECE_BYTES {
            return Ok(());
        }
        let runtime = self.to.runtime.clone();
        runtime.block_on(self.store_piece())
    }

    async fn store_piece(&mut self) -> Result<(), PrepareError> {
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let piece = Piece { num_batches: std::mem::take(&mut self.num_batches), digest: Digest::of(&bytes) };
        let key = piece_key(self.work, self.index.pieces.len());
        self.to.store.put(&key, bytes).await?;
        self.index.pieces.push(piece);
        Ok(())
    }

    /// Writes what is left and the index, and gives the index's digest.
    pub async fn finish(mut self) -> Result<Digest, PrepareError> {
        if self.num_batches > 0 {
            self.store_piece().await?;
        }
        let bytes = Bytes::from(serde_json::to_vec(&self.index).unwrap_or_default()); // plain fields: it cannot fail
        let digest = Digest::of(&bytes);
        self.to.store.put(&format!("{}/{INDEX}", self.work.folder()), bytes).await?;
        Ok(digest)
    }
}

/// The packed batches of a result, read ahead by one piece.
pub struct PackedBatches {
    from: Pieces,
    work: Work,
    first: u64,
    opened: Option<JoinHandle<Result<Left, PrepareError>>>,
    left: Left,
}

/// What is left of a result.
#[derive(Default)]
struct Left {
    pieces: std::vec::IntoIter<(usize, Piece)>,
    fetched: Option<JoinHandle<Result<Vec<Bytes>, PrepareError>>>,
    frames: std::vec::IntoIter<Bytes>,
    next_batch: u64,
}

impl Left {
    fn fetch_ahead(&mut self, from: &Pieces, work: Work) {
        if let Some((number, piece)) = self.pieces.next() {
            self.fetched = Some(from.runtime.spawn(from.clone().piece(work, number, piece)));
        }
    }
}

impl PackedBatches {
    /// Takes what was fetched; false at the end.
    fn next_piece(&mut self) -> Result<bool, PrepareError> {
        let runtime = &self.from.runtime;
        if let Some(opened) = self.opened.take() {
            self.left = runtime.block_on(opened).map_err(|_| PrepareError::ThreadLost).flatten()?;
            return Ok(true);
        }
        let Some(fetched) = self.left.fetched.take() else { return Ok(false) };
        let frames = runtime.block_on(fetched).map_err(|_| PrepareError::ThreadLost).flatten()?;
        self.left.frames = frames.into_iter();
        self.left.fetch_ahead(&self.from, self.work);
        Ok(true)
    }
}

impl Iterator for PackedBatches {
    type Item = Result<(u64, Bytes), PrepareError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            for frame in self.left.frames.by_ref() {
                self.left.next_batch += 1;
                if self.left.next_batch > self.first {
                    return Some(Ok((self.left.next_batch - 1, frame)));
                }
            }
            match self.next_piece() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)), // nothing is fetched after it
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
    fn stored(runtime: &Runtime, pieces: &Pieces, work: Work) -> Digest {
        let mut writer = pieces.writer(work);
        (0..7).for_each(|number| writer.push(&vec![number; PIECE_BYTES / 3]).expect("pushed"));
        runtime.block_on(writer.finish()).expect("stored")
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
        let (mut numbers, mut error) = (vec![], None);
        for batch in pieces.batches(work, None, first) {
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
        let digest = stored(&runtime, &pieces, work("a"));
        assert_eq!(pieces.batches(work("a"), Some(digest), 0).filter(Result::is_ok).count(), 7);
        assert!(pieces.batches(work("a"), Some(Digest::of(b"other")), 0).all(|batch| batch.is_err()));
        for first in 0..=7 {
            let expected: Vec<_> = (first..7).map(|number| (number, number as u8)).collect();
            assert_eq!(read(&pieces, work("a"), first), (expected, None));
        }
    }

    #[test]
    fn damage_ends_the_batches_where_it_is() {
        let runtime = Runtime::new().expect("a runtime");
        let (store, pieces) = pieces(&runtime, "pieces-damaged");
        stored(&runtime, &pieces, work("a"));
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
            stored(&runtime, &pieces, work(name));
        }
        runtime.block_on(pieces.writer(work("d")).store_piece()).expect("begun only");
        let num_objects = || runtime.block_on(store.list("")).expect("listed").len();
        let there = runtime.block_on(pieces.sift(["a", "b", "d"].map(work).into_iter())).expect("sifted");
        assert_eq!((there, num_objects()), (HashSet::from([work("a"), work("b")]), 9));
        runtime.block_on(pieces.remove(vec![work("a")])).expect("nothing was read of it");
        assert_eq!(num_objects(), 9);
        assert_eq!(read(&pieces, work("a"), 5).0.len(), 2);
        runtime.block_on(pieces.remove(vec![work("a"), work("b")])).expect("removed");
        assert_eq!(num_objects(), 5);
        runtime.block_on(pieces.remove_unread(work("b"))).expect("removed");
        assert_eq!(num_objects(), 1);
    }
}
