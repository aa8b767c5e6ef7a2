//! A stored object as a blocking stream of bytes, read ahead by one piece, so that memory does not grow with the object.

use std::{
    io::{self, Read},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use polo_store::{Store, StoreError};
use tokio::{runtime::Handle, task::JoinHandle};

const PIECE_BYTES: u64 = 8 << 20;

type Piece = Vec<u8>;

/// Reads one object from its first byte to its last. Store errors come out wrapped in an [`io::Error`].
pub struct ObjectReader {
    runtime: Handle,
    store: Store,
    key: String,
    remaining: Range<u64>,
    ahead: Option<JoinHandle<Result<Piece, StoreError>>>,
    piece: io::Cursor<Piece>,
    num_bytes_read: Arc<AtomicU64>,
}

impl ObjectReader {
    /// A reader of `key`, which has `num_bytes`; bytes taken from it are added to `num_bytes_read`. Not to be read from
    /// inside the runtime's own threads.
    pub fn new(runtime: Handle, store: Store, key: &str, num_bytes: u64, num_bytes_read: Arc<AtomicU64>) -> Self {
        let piece = io::Cursor::default();
        let key = key.to_owned();
        let mut reader = Self { runtime, store, key, remaining: 0..num_bytes, ahead: None, piece, num_bytes_read };
        reader.fetch_ahead();
        reader
    }

    fn fetch_ahead(&mut self) {
        let Range { start, end } = self.remaining;
        if start == end {
            return;
        }
        let middle = end.min(start + PIECE_BYTES);
        self.remaining = middle..end;
        let (store, key) = (self.store.clone(), self.key.clone());
        self.ahead = Some(self.runtime.spawn(async move { Ok(store.get_range(&key, start..middle).await?.to_vec()) }));
    }

    /// Takes the piece that was read ahead; false at the end.
    fn next_piece(&mut self) -> io::Result<bool> {
        let Some(ahead) = self.ahead.take() else { return Ok(false) };
        let piece = self.runtime.block_on(ahead).map_err(io::Error::other)?.map_err(io::Error::other)?;
        self.num_bytes_read.fetch_add(piece.len() as u64, Ordering::Relaxed);
        self.piece = io::Cursor::new(piece);
        self.fetch_ahead();
        Ok(true)
    }
}

impl Read for ObjectReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let num_bytes = self.piece.read(buffer)?;
            if num_bytes > 0 || buffer.is_empty() || !self.next_piece()? {
                return Ok(num_bytes);
            }
        }
    }
}

impl Drop for ObjectReader {
    fn drop(&mut self) {
        if let Some(ahead) = &self.ahead {
            ahead.abort();
        }
    }
}
