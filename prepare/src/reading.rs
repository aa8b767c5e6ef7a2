//! Input files, opened in order, the next few ahead of time: an object store answers late, and files may be small.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use polo_store::{Digest, Store};
use tokio::runtime::Handle;

use crate::{
    aligned::AlignedBatches,
    cluster::{
        FileInPlan,
        pieces::{PackedBatches, Pieces},
    },
    documents::{Batch, Batches, Records, decompress},
    error::{PrepareError, read_error},
    inputs::{Format, Input},
    journal::Position,
    object_reader::ObjectReader,
    pairs::{PairFormat, Pairs},
    parquet_file::{RangeReader, RowBatches},
    stages::{Material, Origin, Read},
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

/// The batches of one file.
pub type FileBatches = Box<dyn Iterator<Item = Result<Batch, PrepareError>> + Send>;

/// Batches with their numbers in the file.
type Numbered<'a> = Box<dyn Iterator<Item = (u64, Result<Material, PrepareError>)> + Send + 'a>;

/// How a file is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It is read here.
    Read,
    /// Its result is there; with the digest of its index, if somebody told it.
    Result(Option<Digest>),
    /// Not at all: the preparation has failed.
    Stop,
}

/// A file that is had in one way or another.
enum Had {
    Opened(Opened),
    Packed(PackedBatches),
    Not,
}

/// Knows how each file is to be had. Files go by their number among all.
pub trait Supply: Send + Sync {
    /// How a file that comes soon is to be had, if that is known: then it is opened before its turn.
    fn early(&self, file: usize) -> Option<Way>;
    /// Waits until it is known how the file whose turn it is, and of which it was not known before, is to be had.
    fn turn(&self, file: usize) -> Way;
    /// Has everybody who waits give up: the preparation has failed.
    fn stop(&self);
    /// Tells people something.
    fn tell(&self, words: String);
}

/// A file whose first fetch is under way.
pub enum Opened {
    /// It has no bytes.
    Empty,
    /// One stream.
    Stream(ObjectReader),
    /// Two whose lines correspond.
    Pair(Box<[ObjectReader; 2]>),
    /// Ranges here and there.
    Ranges(RangeReader),
}

impl Reading {
    /// All batches of all `files`, from where each source goes on. Each file comes as `supply` has it: read here, or as
    /// the result that lies in `pieces`.
    pub fn batches<'a>(
        self,
        files: &'a [FileInPlan],
        positions: &'a [Position],
        supply: &'a dyn Supply,
        pieces: &'a Pieces,
    ) -> impl Iterator<Item = Read> + Send + use<'a> {
        let left = files.iter().enumerate().filter(|(_, file)| file.number >= positions[file.source].file);
        let reading = self.clone();
        let first = |file: &FileInPlan| {
            let position = positions[file.source];
            if file.number == position.file { position.batch } else { 0 }
        };
        let early = left.map(move |(number, file)| {
            let had = supply.early(number).map(|way| reading.had(way, file, first(file), pieces));
            (number, file, had)
        });
        ahead(early).flat_map(move |(number, file, had)| {
            let first = first(file);
            let had = had.unwrap_or_else(|| self.had(supply.turn(number), file, first, pieces));
            let batches: Numbered<'a> = match had {
                Had::Opened(opened) => self.raw(file, opened, first),
                Had::Packed(packed) => Box::new(self.clone().packed(file, packed, first, supply)),
                // It has failed already; if not, no file must be left out for it.
                Had::Not => Box::new(std::iter::once((first, Err(PrepareError::ThreadLost)))),
            };
            let origin = move |batch: u64| Origin { source: file.source, file: file.number, batch };
            batches.map(move |(batch, read)| (origin(batch), read))
        })
    }

    fn had(&self, way: Way, file: &FileInPlan, first: u64, pieces: &Pieces) -> Had {
        match way {
            Way::Read => Had::Opened(self.open(&file.input)),
            Way::Result(expected) => Had::Packed(pieces.batches(file.work, expected, first)),
            Way::Stop => Had::Not,
        }
    }

    /// The batches of a result; where it turns out to be damaged, the file is read instead from that batch on.
    fn packed<'a>(
        self,
        file: &'a FileInPlan,
        mut packed: PackedBatches,
        first: u64,
        supply: &'a dyn Supply,
    ) -> impl Iterator<Item = (u64, Result<Material, PrepareError>)> + Send + use<'a> {
        let (mut next, mut instead): (u64, Option<Numbered<'a>>) = (first, None);
        std::iter::from_fn(move || {
            if let Some(raw) = &mut instead {
                return raw.next();
            }
            match packed.next() {
                Some(Ok((number, batch))) => {
                    next = number + 1;
                    Some((number, Ok(Material::Packed(batch))))
                }
                Some(Err(error)) => {
                    supply.tell(format!("{}: {error}; reading it here", file.input.key));
                    instead.insert(self.raw(file, self.open(&file.input), next)).next()
                }
                None => {
                    self.num_bytes_read.fetch_add(file.input.total_bytes(), Ordering::Relaxed);
                    None
                }
            }
        })
        .fuse()
    }

    fn raw<'a>(&self, file: &FileInPlan, opened: Opened, first: u64) -> Numbered<'a> {
        let batches = (0..).zip(self.batches_of(file.source, &file.input, opened)).skip(first as usize);
        Box::new(batches.map(|(number, batch)| (number, batch.map(Material::Raw))))
    }

    /// Opens a file, of which the first bytes are fetched from now on.
    pub fn open(&self, input: &Input) -> Opened {
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

    /// The batches of a file of source number `source`.
    pub fn batches_of(&self, source: usize, input: &Input, opened: Opened) -> FileBatches {
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

#[cfg(test)]
mod tests {
    use tokio::runtime::Runtime;

    use super::*;
    use crate::{cluster::pieces::Work, inputs::Compression};

    struct Helped;

    impl Supply for Helped {
        fn early(&self, _: usize) -> Option<Way> {
            None
        }

        fn turn(&self, _: usize) -> Way {
            Way::Result(None)
        }

        fn stop(&self) {}

        fn tell(&self, _: String) {}
    }

    /// A file of five batches of one line, and a result of as many, in pieces of two, of which the second is damaged.
    #[test]
    fn a_damaged_result_is_read_on_from_where_it_ends() {
        let runtime = Runtime::new().expect("a runtime");
        let _entered = runtime.enter();
        let store = Store::open("memory://a-damaged-result").expect("a store");
        let line = format!("{}\n", "x".repeat(1 << 20));
        runtime.block_on(store.put("a", line.repeat(5).into())).expect("stored");
        let (key, num_bytes, work) = ("a".to_owned(), 5 * line.len() as u64, Work(Digest::of(b"a")));
        let input = Input { key, num_bytes, format: Format::Jsonl, compression: Compression::None, aligned: None };
        let files = [FileInPlan { source: 0, number: 0, input, work }];
        let pieces = Pieces::new(&store);
        let mut writer = pieces.writer(work);
        (0..5).for_each(|number| writer.push(&vec![number; 5 << 20]).expect("pushed"));
        runtime.block_on(writer.finish()).expect("stored");
        let listed = runtime.block_on(store.list(".prepare")).expect("listed");
        assert_eq!(listed.len(), 4, "three pieces and an index: {listed:?}");
        runtime.block_on(store.put(&listed[1].key, "other".into())).expect("stored");

        let reading = || Reading {
            runtime: Handle::current(),
            store: store.clone(),
            num_bytes_read: Arc::default(),
            text_column: "text".to_owned(),
            text_is_paragraphs: false,
            max_document_bytes: 10 << 20,
            pairs: vec![None],
        };
        for first in 0..3 {
            let positions = [Position { file: 0, batch: first, outcome: 0 }];
            let batches = reading().batches(&files, &positions, &Helped, &pieces);
            let told: Vec<_> = batches
                .map(|(origin, batch)| match batch {
                    Ok(Material::Packed(packed)) => (origin.batch, format!("packed {}", packed[0])),
                    Ok(Material::Raw(batch)) => (origin.batch, format!("line {}", batch.first)),
                    Err(error) => (origin.batch, error.to_string()),
                })
                .collect();
            let all = ["packed 0", "packed 1", "line 3", "line 4", "line 5"].map(str::to_owned);
            let expected: Vec<_> = (0..).zip(all).skip(first as usize).collect();
            assert_eq!(told, expected);
        }
    }
}
