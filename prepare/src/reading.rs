//! Input files, opened in order, the next few ahead of time: an object store answers late, and files may be small.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, atomic::AtomicU64},
};

use polo_store::Store;
use tokio::runtime::Handle;

use crate::{
    aligned::AlignedBatches,
    documents::{Batch, Batches, Records, decompress},
    error::{PrepareError, read_error},
    inputs::{Format, Input, SourceInputs},
    journal::Position,
    object_reader::ObjectReader,
    pairs::{PairFormat, Pairs},
    parquet_file::{RangeReader, RowBatches},
    stages::{Origin, Read},
};

/// Files whose first bytes are fetched before their turn.
const FILES_AHEAD: usize = 8;

/// How files are read.
#[derive(Clone)]
pub struct Reading {
    /// Where fetches run.
    pub runtime: Handle,
    /// Where the files lie.
    pub store: Store,
    /// Counts stored bytes that were fetched.
    pub num_bytes_read: Arc<AtomicU64>,
    /// The column of Parquet files and the field of JSON lines that holds the text.
    pub text_column: String,
    /// Whether blank lines part the documents of plain text.
    pub text_is_paragraphs: bool,
    /// Most bytes of a document as it lies in its file.
    pub max_document_bytes: usize,
    /// How pairs become documents, by number of the source.
    pub pairs: Vec<Option<Pairs>>,
}

type FileBatches = Box<dyn Iterator<Item = Result<Batch, PrepareError>> + Send>;

/// A file whose first fetch is under way.
enum Opened {
    Empty,
    Stream(ObjectReader),
    Pair(Box<[ObjectReader; 2]>),
    Ranges(RangeReader),
}

impl Reading {
    /// All batches of all `sources`, from where each goes on.
    pub fn batches<'a>(
        self,
        sources: &'a [SourceInputs],
        positions: &'a [Position],
    ) -> impl Iterator<Item = Read> + Send + use<'a> {
        let numbered = sources.iter().zip(positions).enumerate().flat_map(|(source, (inputs, position))| {
            let files = inputs.inputs.iter().enumerate().skip(position.file);
            files
                .map(move |(file, input)| (source, file, input, if file == position.file { position.batch } else { 0 }))
        });
        let reading = self.clone();
        ahead(numbered.map(move |(source, file, input, skip)| (source, file, input, skip, reading.open(input))))
            .flat_map(move |(source, file, input, num_to_skip, opened)| {
                let batches = self.batches_of(source, input, opened);
                let origin = move |batch: u64| Origin { source, file, batch };
                (0..).zip(batches).skip(num_to_skip as usize).map(move |(batch, read)| (origin(batch), read))
            })
    }

    fn open(&self, input: &Input) -> Opened {
        let stream = |input: &Input| {
            let num_bytes_read = Arc::clone(&self.num_bytes_read);
            ObjectReader::new(self.runtime.clone(), self.store.clone(), &input.key, input.num_bytes, num_bytes_read)
        };
        match (&input.aligned, input.format) {
            (Some(aligned), _) => Opened::Pair(Box::new([stream(input), stream(aligned)])),
            _ if input.num_bytes == 0 => Opened::Empty,
            (_, Format::Parquet) => {
                let (runtime, store, counter) =
                    (self.runtime.clone(), self.store.clone(), Arc::clone(&self.num_bytes_read));
                Opened::Ranges(RangeReader::new(runtime, store, &input.key, input.num_bytes, counter))
            }
            _ => Opened::Stream(stream(input)),
        }
    }

    fn batches_of(&self, source: usize, input: &Input, opened: Opened) -> FileBatches {
        let batches: Result<FileBatches, PrepareError> = match opened {
            Opened::Empty => Ok(Box::new(std::iter::empty())),
            Opened::Ranges(reader) => RowBatches::open(reader, &self.text_column).map(|rows| Box::new(rows) as _),
            Opened::Stream(stream) => decompress(stream, input.compression)
                .map(|stream| Batches::new(&input.key, self.records(source, input), self.max_document_bytes, stream))
                .map(|batches| Box::new(batches) as _)
                .map_err(|error| read_error(&input.key, error)),
            Opened::Pair(pair) => self.aligned_batches(source, input, *pair),
        };
        batches.unwrap_or_else(|error| Box::new(std::iter::once(Err(error))))
    }

    fn aligned_batches(
        &self,
        source: usize,
        input: &Input,
        [first, second]: [ObjectReader; 2],
    ) -> Result<FileBatches, PrepareError> {
        let Some(other) = &input.aligned else { return Ok(Box::new(std::iter::empty())) };
        let unpacked = |stream: ObjectReader, input: &Input| {
            if input.num_bytes == 0 {
                return Ok(Box::new(io::empty()) as Box<dyn io::Read + Send>);
            }
            decompress(stream, input.compression).map_err(|error| read_error(&input.key, error))
        };
        let streams = [unpacked(first, input)?, unpacked(second, other)?];
        let keys = [input.key.as_str(), other.key.as_str()];
        let records = self.records(source, input);
        Ok(Box::new(AlignedBatches::new(keys, records, self.max_document_bytes, streams)))
    }

    fn records(&self, source: usize, input: &Input) -> Records {
        match (input.format, &self.pairs[source]) {
            (Format::Pairs(format), Some(pairs)) => Records::Pairs(Pairs { format, ..pairs.clone() }),
            (Format::Pairs(PairFormat::Jsonl) | Format::Jsonl, _) => Records::Jsonl { field: self.text_column.clone() },
            (Format::Text, _) if self.text_is_paragraphs => Records::Paragraphs,
            _ => Records::File,
        }
    }
}

/// The same items, each made when there are fewer than [`FILES_AHEAD`] before it.
fn ahead<T>(mut items: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    let mut made = VecDeque::new();
    std::iter::from_fn(move || {
        while made.len() < FILES_AHEAD
            && let Some(item) = items.next()
        {
            made.push_back(item);
        }
        made.pop_front()
    })
}
