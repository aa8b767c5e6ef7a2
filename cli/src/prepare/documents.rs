//! From a file's bytes to documents: batches of whole records are cut off the stream, later taken apart in parallel.

use std::io::{self, BufRead, BufReader, Read};

use super::{
    error::PrepareError,
    inputs::{Compression, Format},
};

/// Batches end at the first record's end past this size.
const BATCH_BYTES: usize = 1 << 20;

/// How a file is divided into documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Records {
    /// One JSON object per line; the text is in this field.
    Jsonl {
        /// Name of the field.
        field: String,
    },
    /// Plain text; documents are parted by blank lines.
    Paragraphs,
    /// Plain text; the file is one document, held in memory whole.
    File,
}

impl Records {
    /// The division of a file of `format`.
    pub fn of(format: Format, field: &str, paragraphs: bool) -> Self {
        match (format, paragraphs) {
            (Format::Jsonl, _) => Self::Jsonl { field: field.to_owned() },
            (Format::Text, true) => Self::Paragraphs,
            (Format::Text, false) => Self::File,
        }
    }

    fn ends_with(&self, line: &[u8]) -> bool {
        match self {
            Self::Jsonl { .. } => true,
            Self::Paragraphs => line.iter().all(u8::is_ascii_whitespace),
            Self::File => false,
        }
    }
}

/// Some whole records of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The file's key.
    pub key: String,
    /// How to take it apart.
    pub records: Records,
    /// Number of the first line in the file, from 1.
    pub first_line: u64,
    /// Offset of the first byte in the decompressed file.
    pub first_byte: u64,
    /// The records as they lie in the file.
    pub bytes: Vec<u8>,
}

/// One document, with its place in the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Document {
    /// Number of its first line in the file, from 1.
    pub line: u64,
    /// Its text; may be empty.
    pub text: String,
}

/// Undoes `compression`.
pub fn decompress(stream: impl Read + Send + 'static, compression: Compression) -> io::Result<Box<dyn Read + Send>> {
    Ok(match compression {
        Compression::None => Box::new(stream),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(stream)),
        Compression::Zstd => Box::new(zstd::Decoder::new(stream)?),
    })
}

/// Cuts a decompressed stream into batches of whole records. Ends after the first error: what follows is unknown.
pub struct Batches<R> {
    key: String,
    records: Records,
    stream: BufReader<R>,
    next_line: u64,
    next_byte: u64,
    failed: bool,
}

impl<R: Read> Batches<R> {
    /// The batches of the file `key`.
    pub fn new(key: &str, records: Records, stream: R) -> Self {
        let stream = BufReader::with_capacity(1 << 16, stream);
        Self { key: key.to_owned(), records, stream, next_line: 1, next_byte: 0, failed: false }
    }

    fn read_batch(&mut self) -> io::Result<Option<Batch>> {
        let (first_line, first_byte) = (self.next_line, self.next_byte);
        let mut bytes = Vec::new();
        loop {
            let line_start = bytes.len();
            if self.stream.read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            self.next_line += 1;
            if bytes.len() >= BATCH_BYTES && self.records.ends_with(&bytes[line_start..]) {
                break;
            }
        }
        self.next_byte += bytes.len() as u64;
        let (key, records) = (self.key.clone(), self.records.clone());
        Ok((!bytes.is_empty()).then_some(Batch { key, records, first_line, first_byte, bytes }))
    }
}

impl<R: Read> Iterator for Batches<R> {
    type Item = io::Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let batch = self.read_batch();
        self.failed = batch.is_err();
        batch.transpose()
    }
}

impl Batch {
    /// The documents of the batch, in order; what is no document is an error in its place.
    pub fn documents(&self) -> Vec<Result<Document, PrepareError>> {
        match &self.records {
            Records::Jsonl { field } => {
                self.pieces(|_| true).map(|(line, byte, piece)| self.json_text(field, line, byte, piece)).collect()
            }
            Records::Paragraphs => {
                let blank = |line: &[u8]| line.iter().all(u8::is_ascii_whitespace);
                self.pieces(blank).map(|(line, byte, piece)| self.plain_text(line, byte, piece)).collect()
            }
            Records::File => vec![self.plain_text(self.first_line, self.first_byte, &self.bytes)],
        }
    }

    /// Runs of lines up to one for which `ends` holds, without those of white space only, each with the number of its
    /// first line and the offset of its first byte.
    fn pieces(&self, ends: impl Fn(&[u8]) -> bool) -> impl Iterator<Item = (u64, u64, &[u8])> {
        let (mut line, mut at) = (self.first_line, 0);
        std::iter::from_fn(move || {
            let (first_line, start) = (line, at);
            while at < self.bytes.len() {
                let rest = &self.bytes[at..];
                let length = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |newline| newline + 1);
                at += length;
                line += 1;
                if ends(&rest[..length]) {
                    break;
                }
            }
            (start < at).then(|| (first_line, self.first_byte + start as u64, &self.bytes[start..at]))
        })
        .filter(|(_, _, piece)| !piece.iter().all(u8::is_ascii_whitespace))
    }

    fn plain_text(&self, line: u64, byte: u64, bytes: &[u8]) -> Result<Document, PrepareError> {
        let text = self.utf8(line, byte, bytes)?;
        Ok(Document { line, text: text.trim_end_matches(['\r', '\n']).to_owned() })
    }

    fn json_text(&self, field: &str, line: u64, byte: u64, bytes: &[u8]) -> Result<Document, PrepareError> {
        let text = self.utf8(line, byte, bytes)?;
        let value: serde_json::Value = serde_json::from_str(text).map_err(|error| PrepareError::InvalidJson {
            key: self.key.clone(),
            line,
            reason: error.to_string(),
        })?;
        let no_text = |problem| PrepareError::NoText { key: self.key.clone(), line, field: field.to_owned(), problem };
        match value {
            serde_json::Value::Object(mut object) => match object.remove(field) {
                Some(serde_json::Value::String(text)) => Ok(Document { line, text }),
                Some(_) => Err(no_text("is not a string")),
                None => Err(no_text("is missing")),
            },
            _ => Err(no_text("is missing, as the line is not a JSON object")),
        }
    }

    fn utf8<'a>(&self, line: u64, byte: u64, bytes: &'a [u8]) -> Result<&'a str, PrepareError> {
        std::str::from_utf8(bytes).map_err(|error| {
            let good = &bytes[..error.valid_up_to()];
            let line = line + good.iter().filter(|byte| **byte == b'\n').count() as u64;
            PrepareError::NotUtf8 { key: self.key.clone(), line, byte: byte + good.len() as u64 }
        })
    }
}
