//! Parquet files: batches of the rows of one text column, read from an object store page by page.

use std::{
    io::{self, Read},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Buf, Bytes};
use parquet::{
    basic::Type as PhysicalType,
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::ByteArrayType,
    errors::ParquetError,
    file::reader::{ChunkReader, FileReader, Length, SerializedFileReader},
    schema::types::SchemaDescriptor,
};
use polo_store::{Store, StoreError};
use tokio::runtime::Handle;

use crate::{
    documents::{BATCH_BYTES, Batch, Content, Records},
    error::{PrepareError, read_error},
};

/// Bytes fetched at a time, unless a page is longer.
const WINDOW_BYTES: u64 = 8 << 20;
/// Rows taken from a page at a time.
const ROWS_AT_A_TIME: usize = 256;

/// A stored object of known size, read here and there; the last window of it is kept. Not to be used from inside the
/// runtime's own threads.
pub struct RangeReader {
    runtime: Handle,
    store: Store,
    key: String,
    num_bytes: u64,
    num_bytes_read: Arc<AtomicU64>,
    window: Mutex<(u64, Bytes)>,
}

impl RangeReader {
    /// A reader of `key`, which has `num_bytes`; bytes fetched are added to `num_bytes_read`.
    pub fn new(runtime: Handle, store: Store, key: &str, num_bytes: u64, num_bytes_read: Arc<AtomicU64>) -> Self {
        Self { runtime, store, key: key.to_owned(), num_bytes, num_bytes_read, window: Mutex::default() }
    }

    /// Bytes from `start` on, at least `length` of them.
    fn fetch(&self, start: u64, length: u64) -> Result<Bytes, ParquetError> {
        let end = start.checked_add(length).filter(|end| *end <= self.num_bytes).ok_or_else(|| {
            ParquetError::EOF(format!("{length} bytes at {start} of a file of {} are asked for", self.num_bytes))
        })?;
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, bytes) = &*window;
        if start < *at || end > at + bytes.len() as u64 {
            let range = start..end.max(self.num_bytes.min(start + WINDOW_BYTES));
            self.num_bytes_read.fetch_add(range.end - range.start, Ordering::Relaxed);
            let fetched = self.runtime.block_on(self.store.get_range(&self.key, range));
            *window = (start, fetched.map_err(|error| ParquetError::External(Box::new(error)))?);
        }
        Ok(window.1.slice((start - window.0) as usize..))
    }
}

impl Length for RangeReader {
    fn len(&self) -> u64 {
        self.num_bytes
    }
}

impl ChunkReader for RangeReader {
    type T = Box<dyn Read>;

    /// Page headers are read so; none is longer than a window.
    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        let length = self.num_bytes.saturating_sub(start).min(1 << 16);
        Ok(Box::new(self.fetch(start, length)?.reader()))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        Ok(self.fetch(start, length as u64)?.slice(..length))
    }
}

type Column = ColumnReaderImpl<ByteArrayType>;

/// The rows of one column, in batches. Ends after the first error: what follows is unknown.
pub struct RowBatches {
    key: String,
    file: SerializedFileReader<RangeReader>,
    column_name: String,
    column_number: usize,
    num_levels: i16,
    next_group: usize,
    column: Option<Column>,
    next_row: u64,
    failed: bool,
}

impl RowBatches {
    /// The batches of `column` in the file that `reader` reads.
    pub fn open(reader: RangeReader, column: &str) -> Result<Self, PrepareError> {
        let key = reader.key.clone();
        let file = SerializedFileReader::new(reader).map_err(|error| file_error(&key, error))?;
        let schema = file.metadata().file_metadata().schema_descr();
        let column_number = find_column(schema, column).ok_or_else(|| PrepareError::NoColumn {
            key: key.clone(),
            column: column.to_owned(),
            found: column_names(schema),
        })?;
        let num_levels = schema.column(column_number).max_def_level();
        let column_name = column.to_owned();
        let (next_group, next_row) = (0, 1);
        Ok(Self {
            key,
            file,
            column_name,
            column_number,
            num_levels,
            next_group,
            column: None,
            next_row,
            failed: false,
        })
    }

    fn read_batch(&mut self) -> Result<Option<Batch>, ParquetError> {
        let (mut rows, mut num_bytes, first_row) = (vec![], 0, self.next_row);
        while num_bytes < BATCH_BYTES {
            let Some(mut column) = self.open_column()? else { break };
            let (mut levels, mut values) = (vec![], vec![]);
            let (num_rows, ..) = column.read_records(ROWS_AT_A_TIME, Some(&mut levels), None, &mut values)?;
            if num_rows == 0 {
                continue; // the group is at its end, and open_column goes on to the next
            }
            self.column = Some(column);
            self.next_row += num_rows as u64;
            let mut values = values.into_iter();
            for row in 0..num_rows {
                let is_null = levels.get(row).is_some_and(|level| *level < self.num_levels);
                // A copy, so that a batch does not hold whole pages.
                let text = if is_null { None } else { values.next().map(|value| value.data().to_vec()) };
                num_bytes += text.as_ref().map_or(0, Vec::len);
                rows.push(text);
            }
        }
        let (key, records) = (self.key.clone(), Records::Rows { column: self.column_name.clone() });
        let is_empty = rows.is_empty();
        Ok((!is_empty).then_some(Batch { key, records, first: first_row, first_byte: 0, content: Content::Rows(rows) }))
    }

    /// The column of the group that is being read, or of the next one.
    fn open_column(&mut self) -> Result<Option<Column>, ParquetError> {
        if let Some(column) = self.column.take() {
            return Ok(Some(column));
        }
        if self.next_group == self.file.num_row_groups() {
            return Ok(None);
        }
        let group = self.file.get_row_group(self.next_group)?;
        self.next_group += 1;
        match group.get_column_reader(self.column_number)? {
            ColumnReader::ByteArrayColumnReader(column) => Ok(Some(column)),
            _ => Err(ParquetError::General("the column's type changes within the file".to_owned())),
        }
    }
}

impl Iterator for RowBatches {
    type Item = Result<Batch, PrepareError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let batch = self.read_batch().map_err(|error| file_error(&self.key, error));
        self.failed = batch.is_err();
        batch.transpose()
    }
}

/// The number of the leaf that is the top-level string column `name`.
fn find_column(schema: &SchemaDescriptor, name: &str) -> Option<usize> {
    schema.columns().iter().position(|column| {
        column.path().parts() == [name]
            && column.physical_type() == PhysicalType::BYTE_ARRAY
            && column.max_rep_level() == 0
    })
}

fn column_names(schema: &SchemaDescriptor) -> String {
    let names: Vec<_> =
        schema.columns().iter().map(|c| format!("{} ({})", c.path().string(), c.physical_type())).collect();
    names.join(", ")
}

fn file_error(key: &str, error: ParquetError) -> PrepareError {
    match error {
        ParquetError::External(error) => match error.downcast::<StoreError>() {
            Ok(error) => PrepareError::Store(*error),
            Err(error) => read_error(key, io::Error::other(error)),
        },
        error => PrepareError::Parquet { key: key.to_owned(), reason: error.to_string() },
    }
}
