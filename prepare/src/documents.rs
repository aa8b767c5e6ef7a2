//! From a file's bytes to documents: batches of whole records are cut off the stream, later taken apart in parallel.

use std::io::{self, BufRead, BufReader, Read};

use crate::{
    error::{Place, PrepareError, read_error},
    inputs::Compression,
    json_field::{FoundField, find_field},
    pairs::Pairs,
    reason::Rejected,
};

/// Batches end at the first record's end past this size.
pub const BATCH_BYTES: usize = 1 << 20;

/// How a file is divided into documents.
#[derive(Debug, Clone, PartialEq)]
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
    /// Rows of a Parquet file; the text is in this column.
    Rows {
        /// Name of the column.
        column: String,
    },
    /// Pairs of texts in two languages.
    Pairs(Pairs),
}

impl Records {
    fn ends_with(&self, line: &[u8]) -> bool {
        match self {
            Self::Jsonl { .. } | Self::Rows { .. } | Self::Pairs(_) => true,
            Self::Paragraphs => is_blank(line),
            Self::File => false,
        }
    }
}

/// Some whole records of one file.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The file's key.
    pub key: String,
    /// How to take it apart.
    pub records: Records,
    /// Number of the first line or row in the file, from 1.
    pub first: u64,
    /// Offset of the first byte in the decompressed file.
    pub first_byte: u64,
    /// The records.
    pub content: Content,
}

/// The records of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// As they lie in the file.
    Bytes(Vec<u8>),
    /// Lines of two files, one of each by turns.
    LinePairs(Vec<u8>),
    /// The text column of rows; `None` is null.
    Rows(Vec<Option<Vec<u8>>>),
}

/// One document, with its place in the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Document {
    /// Its first line, or its row.
    pub place: Place,
    /// Its text; may be empty.
    pub text: String,
}

/// A document, or why there is none.
pub type Found = Result<Document, Rejected>;

/// Undoes `compression`.
pub fn decompress(stream: impl Read + Send + 'static, compression: Compression) -> io::Result<Box<dyn Read + Send>> {
    Ok(match compression {
        Compression::None => Box::new(stream),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(stream)),
        Compression::Zstd => Box::new(zstd::Decoder::new(stream)?),
    })
}

/// Cuts a decompressed stream into batches of whole records. A record that is too long is an error in its place, and the
/// next one follows; nothing follows a stream that cannot be read on.
pub struct Batches<R> {
    key: String,
    records: Records,
    stream: BufReader<R>,
    max_document_bytes: usize,
    next_line: u64,
    next_byte: u64,
    too_long: Option<u64>,
    failed: bool,
}

impl<R: Read> Batches<R> {
    /// The batches of the file `key`, none with a record of more than `max_document_bytes`.
    pub fn new(key: &str, records: Records, max_document_bytes: usize, stream: R) -> Self {
        let stream = BufReader::with_capacity(1 << 16, stream);
        let (key, too_long, failed) = (key.to_owned(), None, false);
        Self { key, records, stream, max_document_bytes, next_line: 1, next_byte: 0, too_long, failed }
    }

    fn read_batch(&mut self) -> io::Result<Option<Batch>> {
        let (first, first_byte) = (self.next_line, self.next_byte);
        let mut bytes = Vec::new();
        let (mut record_start, mut record_line) = (0, first);
        loop {
            let line_start = bytes.len();
            let room = (record_start + self.max_document_bytes + 1 - line_start) as u64;
            let num_read = self.stream.by_ref().take(room).read_until(b'\n', &mut bytes)?;
            self.next_byte += num_read as u64;
            if bytes.len() - record_start > self.max_document_bytes {
                self.skip_record(bytes.ends_with(b"\n"))?;
                self.too_long = Some(record_line);
                bytes.truncate(record_start);
                break;
            }
            if num_read == 0 {
                break;
            }
            self.next_line += 1;
            if self.records.ends_with(&bytes[line_start..]) {
                (record_start, record_line) = (bytes.len(), self.next_line);
                if bytes.len() >= BATCH_BYTES {
                    break;
                }
            }
        }
        let (key, records) = (self.key.clone(), self.records.clone());
        let is_empty = bytes.is_empty();
        Ok((!is_empty).then_some(Batch { key, records, first, first_byte, content: Content::Bytes(bytes) }))
    }

    /// Reads on to the end of a record without keeping it.
    fn skip_record(&mut self, mut line_has_ended: bool) -> io::Result<()> {
        loop {
            if !line_has_ended {
                self.next_byte += self.stream.skip_until(b'\n')? as u64;
            }
            self.next_line += 1;
            if self.records != Records::File && self.records != Records::Paragraphs {
                return Ok(());
            }
            // Enough of the next line to see whether it is blank; one that starts with this much space counts as blank.
            let mut start = vec![];
            let num_read = self.stream.by_ref().take(1 << 16).read_until(b'\n', &mut start)?;
            self.next_byte += num_read as u64;
            line_has_ended = start.ends_with(b"\n");
            if num_read == 0 || (line_has_ended && self.records.ends_with(&start)) {
                self.next_line += u64::from(num_read > 0);
                return Ok(());
            }
        }
    }
}

impl<R: Read> Iterator for Batches<R> {
    type Item = Result<Batch, PrepareError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = if self.failed || self.too_long.is_some() { Ok(None) } else { self.read_batch() };
        match batch {
            Ok(Some(batch)) => Some(Ok(batch)),
            Ok(None) => self.too_long.take().map(|line| {
                let (key, max_bytes) = (self.key.clone(), self.max_document_bytes as u64);
                Err(PrepareError::TooLong { key, place: Place::Line(line), max_bytes })
            }),
            Err(error) => {
                self.failed = true;
                Some(Err(read_error(&self.key, error)))
            }
        }
    }
}

impl Batch {
    /// The documents of the batch, in order; what is no document is told of in its place. Texts of white space only are
    /// left out where they only part others, and given where each was meant to be a document.
    pub fn documents(&self, max_document_bytes: usize) -> Vec<Found> {
        match (&self.records, &self.content) {
            (Records::Jsonl { field }, Content::Bytes(bytes)) => self
                .pieces(bytes, |_| true)
                .map(|(line, byte, piece)| self.json_text(field, line, byte, piece))
                .collect(),
            (Records::Paragraphs, Content::Bytes(bytes)) => {
                self.pieces(bytes, is_blank).map(|(line, byte, piece)| self.plain_text(line, byte, piece)).collect()
            }
            (Records::File, Content::Bytes(bytes)) => vec![self.plain_text(self.first, self.first_byte, bytes)],
            (Records::Rows { column }, Content::Rows(rows)) => {
                let rows = (self.first..).zip(rows);
                rows.map(|(row, text)| self.row_text(column, row, text.as_deref(), max_document_bytes)).collect()
            }
            (Records::Pairs(pairs), Content::Bytes(bytes)) => {
                pairs.documents(&self.key, self.pieces(bytes, |_| true).map(|(line, _, piece)| (line, piece)))
            }
            (Records::Pairs(pairs), Content::LinePairs(lines)) => pairs.aligned_documents(&self.key, self.first, lines),
            // Readers make no other combinations.
            _ => vec![],
        }
    }

    /// Runs of lines up to one for which `ends` holds, without those of white space only, each with the number of its
    /// first line and the offset of its first byte.
    fn pieces<'a, F: Fn(&[u8]) -> bool>(
        &self,
        bytes: &'a [u8],
        ends: F,
    ) -> impl Iterator<Item = (u64, u64, &'a [u8])> + use<'a, F> {
        let (mut line, first_byte, mut at) = (self.first, self.first_byte, 0);
        std::iter::from_fn(move || {
            let (first_line, start) = (line, at);
            while at < bytes.len() {
                let rest = &bytes[at..];
                let length = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |newline| newline + 1);
                at += length;
                line += 1;
                if ends(&rest[..length]) {
                    break;
                }
            }
            (start < at).then(|| (first_line, first_byte + start as u64, &bytes[start..at]))
        })
        .filter(|(_, _, piece)| !is_blank(piece))
    }

    fn plain_text(&self, line: u64, byte: u64, bytes: &[u8]) -> Found {
        let text = self.utf8(line, byte, bytes)?;
        Ok(Document { place: Place::Line(line), text: text.trim_end_matches(['\r', '\n']).to_owned() })
    }

    fn json_text(&self, field: &str, line: u64, byte: u64, bytes: &[u8]) -> Found {
        let place = Place::Line(line);
        let text = self.utf8(line, byte, bytes)?;
        let found = find_field(text, field).map_err(|error| PrepareError::InvalidJson {
            key: self.key.clone(),
            place,
            reason: error.to_string(),
        })?;
        match found {
            FoundField::Text(text) => Ok(Document { place, text }),
            FoundField::NotText => Err(self.no_text(place, field, "is not a string")),
            FoundField::Missing => Err(self.no_text(place, field, "is missing")),
            FoundField::NoObject => Err(self.no_text(place, field, "is missing, as the line is not a JSON object")),
        }
    }

    fn row_text(&self, column: &str, row: u64, text: Option<&[u8]>, max_document_bytes: usize) -> Found {
        let (key, place) = (self.key.clone(), Place::Row(row));
        let Some(text) = text else { return Err(self.no_text(place, column, "is null")) };
        if text.len() > max_document_bytes {
            return Err(PrepareError::TooLong { key, place, max_bytes: max_document_bytes as u64 }.into());
        }
        let text = str::from_utf8(text).map_err(|error| PrepareError::NotUtf8 {
            key,
            place,
            byte: error.valid_up_to() as u64,
        })?;
        Ok(Document { place, text: text.to_owned() })
    }

    fn no_text(&self, place: Place, field: &str, problem: &'static str) -> Rejected {
        PrepareError::NoText { key: self.key.clone(), place, field: field.to_owned(), problem }.into()
    }

    fn utf8<'a>(&self, line: u64, byte: u64, bytes: &'a [u8]) -> Result<&'a str, PrepareError> {
        str::from_utf8(bytes).map_err(|error| {
            let good = &bytes[..error.valid_up_to()];
            let line = line + good.iter().filter(|byte| **byte == b'\n').count() as u64;
            let place = Place::Line(line);
            PrepareError::NotUtf8 { key: self.key.clone(), place, byte: byte + good.len() as u64 }
        })
    }
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jsonl() -> Records {
        Records::Jsonl { field: "text".to_owned() }
    }

    const MAX_BYTES: usize = 10 << 20;

    fn batches(records: &Records, bytes: &[u8]) -> Vec<Batch> {
        Batches::new("f", records.clone(), MAX_BYTES, bytes).collect::<Result<_, _>>().expect("memory can be read")
    }

    fn bytes_of(batch: &Batch) -> &[u8] {
        match &batch.content {
            Content::Bytes(bytes) => bytes,
            _ => unreachable!("lines are bytes"),
        }
    }

    /// Place and text of every document, errors as their messages.
    fn told(found: Vec<Found>) -> impl Iterator<Item = Result<(Place, String), String>> {
        found.into_iter().map(|found| found.map(|d| (d.place, d.text)).map_err(|rejected| rejected.excerpt))
    }

    fn documents(records: &Records, bytes: &[u8]) -> Vec<Result<(Place, String), String>> {
        batches(records, bytes).iter().flat_map(|batch| told(batch.documents(MAX_BYTES))).collect()
    }

    fn ok(line: u64, text: &str) -> Result<(Place, String), String> {
        Ok((Place::Line(line), text.to_owned()))
    }

    #[test]
    fn json_lines() {
        let text = b"{\"text\": \"a\\nb\"}\r\n\n  \n{\"id\": 1, \"text\": \"\"}\n{\"text\": \"\xc3\xa9\"}";
        assert_eq!(documents(&jsonl(), text), [ok(1, "a\nb"), ok(4, ""), ok(5, "é")]);
    }

    #[test]
    fn plain_text_is_one_document_or_paragraphs() {
        let text = b"\n\na\nb\n \t\nc\n\n\n";
        assert_eq!(documents(&Records::File, text), [ok(1, "\n\na\nb\n \t\nc")]);
        assert_eq!(documents(&Records::Paragraphs, text), [ok(3, "a\nb\n \t"), ok(6, "c")]);
    }

    #[test]
    fn faults_have_their_place() {
        let text = b"{\"text\": \"a\"}\n{\"text\": }\n{\"txt\": \"a\"}\n[]\n{\"text\": 1}\n{\"text\": \"\xff\"}\n";
        let found: Vec<String> = documents(&jsonl(), text).into_iter().filter_map(Result::err).collect();
        let expected = [
            "f: line 2: invalid JSON",
            "f: line 3: no text: 'text' is missing",
            "f: line 4: no text: 'text' is missing, as",
            "f: line 5: no text: 'text' is not a string",
            "f: line 6: not UTF-8 at byte 63 of",
        ];
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
        assert_eq!(text[63], 0xff);
        let found = documents(&Records::File, b"a\nb\n\xff").remove(0).expect_err("not UTF-8");
        assert!(found.starts_with("f: line 3: not UTF-8 at byte 4 of"), "{found}");
    }

    #[test]
    fn batches_end_between_records_and_keep_their_place() {
        let paragraph = format!("{}\nsecond line\n\n", "x".repeat(400_000));
        let text = paragraph.repeat(8);
        let found = batches(&Records::Paragraphs, text.as_bytes());
        assert_eq!(
            found.iter().map(|batch| (batch.first, bytes_of(batch).len() / 400_000)).collect::<Vec<_>>(),
            [(1, 3), (10, 3), (19, 2)]
        );
        assert_eq!(found[1].first_byte, 3 * paragraph.len() as u64);
        assert_eq!(found.iter().flat_map(bytes_of).copied().collect::<Vec<_>>(), text.as_bytes());
        let lines: Vec<Place> =
            documents(&Records::Paragraphs, text.as_bytes()).iter().map(|d| d.as_ref().expect("good").0).collect();
        assert_eq!(lines, [1, 4, 7, 10, 13, 16, 19, 22].map(Place::Line));
        assert_eq!(batches(&Records::File, text.as_bytes()).len(), 1);
    }

    #[test]
    fn nothing_follows_a_file_that_breaks_off() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let mut batches = Batches::new("f", jsonl(), MAX_BYTES, Broken);
        assert!(batches.next().is_some_and(|batch| batch.is_err()));
        assert!(batches.next().is_none());
    }

    /// Texts of at most ten bytes with their places, and messages.
    fn short(records: &Records, bytes: &[u8]) -> Vec<Result<(Place, String), String>> {
        let batches = Batches::new("f", records.clone(), 10, bytes);
        let told = |batch: Result<Batch, PrepareError>| match batch {
            Ok(batch) => told(batch.documents(10)).collect(),
            Err(error) => vec![Err(error.to_string())],
        };
        batches.flat_map(told).collect()
    }

    fn too_long(line: u64) -> String {
        let (key, place) = ("f".to_owned(), Place::Line(line));
        PrepareError::TooLong { key, place, max_bytes: 10 }.to_string()
    }

    #[test]
    fn a_record_that_is_too_long_is_told_and_the_next_one_follows() {
        let pair = Pairs::for_tests();
        let lines = b"a\tb\n0123456789\tc\nd\te\n0123456789\tf";
        let found = short(&Records::Pairs(pair), lines);
        let places: Vec<_> = found.iter().map(|found| found.as_ref().map(|(place, _)| *place)).collect();
        let (two, four) = (too_long(2), too_long(4));
        assert_eq!(places, [Ok(Place::Line(1)), Err(&two), Ok(Place::Line(3)), Err(&four)]);
        let found = short(&Records::Paragraphs, b"a\nb\n\n0123\n4567\n89\nxy\n\nc\n \n0123456789");
        assert_eq!(found, [ok(1, "a\nb"), Err(too_long(4)), ok(9, "c\n "), ok(11, "0123456789")]);
        assert_eq!(short(&Records::File, b"01234\n67890\n\nx"), [Err(too_long(1))]);
        assert_eq!(short(&Records::File, b"01234\n6789"), [ok(1, "01234\n6789")]);
    }

    #[test]
    fn rows_are_documents() {
        let rows = [Some("a".into()), None, Some(vec![0xff]), Some("0123456789x".into()), Some("b".into())];
        let records = Records::Rows { column: "body".to_owned() };
        let content = Content::Rows(rows.into());
        let batch = Batch { key: "f".to_owned(), records, first: 7, first_byte: 0, content };
        let found: Vec<_> = told(batch.documents(10)).collect();
        let begin = ["f: row 8: no text: 'body' is null", "f: row 9: not UTF-8 at byte 0", "f: row 10: a document of"];
        assert_eq!((&found[0], &found[4]), (&Ok((Place::Row(7), "a".into())), &Ok((Place::Row(11), "b".into()))));
        for (found, begin) in found[1..4].iter().zip(begin) {
            assert!(found.as_ref().is_err_and(|message| message.starts_with(begin)), "{found:?}");
        }
    }
}
