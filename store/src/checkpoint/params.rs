//! A checkpoint's parameters by range, without its moments.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::{Manifest, chunk_num_bytes, get_chunk};
use crate::{Store, StoreError};

/// Reads ranges of the flat parameter vector of one checkpoint. Best asked in rising order: the last chunk is kept.
#[derive(Debug)]
pub struct ParamReader<'a> {
    store: &'a Store,
    manifest: &'a Manifest,
    /// First parameter of each chunk.
    starts: Vec<usize>,
    last: Mutex<Option<(usize, Bytes)>>,
}

impl<'a> ParamReader<'a> {
    /// Reads the checkpoint of `manifest` from the run's `store`.
    pub fn new(store: &'a Store, manifest: &'a Manifest) -> Self {
        let ends = manifest.chunks.iter().scan(0, |end, chunk| {
            let start = *end;
            *end += chunk.num_params as usize;
            Some(start)
        });
        Self { store, manifest, starts: ends.collect(), last: Mutex::default() }
    }

    /// The parameters in `range` of the flat vector, from chunks whose digest is checked.
    ///
    /// # Panics
    /// When the range ends past the last parameter.
    pub async fn read(&self, range: Range<usize>) -> Result<Vec<f32>, StoreError> {
        let mut values = Vec::with_capacity(range.len());
        let mut chunk = self.starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        while values.len() < range.len() {
            let start = range.start + values.len() - self.starts[chunk];
            let end = (range.end - self.starts[chunk]).min(self.manifest.chunks[chunk].num_params as usize);
            let object = self.chunk(chunk).await?;
            let floats = object[start * 4..end * 4].chunks_exact(4);
            values.extend(floats.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            chunk += 1;
        }
        Ok(values)
    }

    async fn chunk(&self, number: usize) -> Result<Bytes, StoreError> {
        let kept = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, object)) = kept.filter(|(kept, _)| *kept == number) {
            return Ok(object);
        }
        let chunk = &self.manifest.chunks[number];
        let object = get_chunk(self.store, &chunk.digest, chunk_num_bytes(chunk.num_params)).await?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((number, object.clone()));
        Ok(object)
    }
}
