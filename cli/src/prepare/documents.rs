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

#[cfg(test)]
mod tests {
    use super::*;

    fn jsonl() -> Records {
        Records::Jsonl { field: "text".to_owned() }
    }

    fn batches(records: &Records, bytes: &[u8]) -> Vec<Batch> {
        Batches::new("f", records.clone(), bytes).collect::<Result<_, _>>().expect("memory can be read")
    }

    /// Line and text of every document, errors as their messages.
    fn documents(records: &Records, bytes: &[u8]) -> Vec<Result<(u64, String), String>> {
        let batches = batches(records, bytes);
        let documents = batches.iter().flat_map(Batch::documents);
        documents.map(|d| d.map(|d| (d.line, d.text)).map_err(|error| error.to_string())).collect()
    }

    fn ok(line: u64, text: &str) -> Result<(u64, String), String> {
        Ok((line, text.to_owned()))
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
            found.iter().map(|batch| (batch.first_line, batch.bytes.len() / 400_000)).collect::<Vec<_>>(),
            [(1, 3), (10, 3), (19, 2)]
        );
        assert_eq!(found[1].first_byte, 3 * paragraph.len() as u64);
        assert_eq!(found.iter().flat_map(|batch| batch.bytes.clone()).collect::<Vec<_>>(), text.as_bytes());
        let lines: Vec<u64> =
            documents(&Records::Paragraphs, text.as_bytes()).iter().map(|d| d.as_ref().expect("good").0).collect();
        assert_eq!(lines, [1, 4, 7, 10, 13, 16, 19, 22]);
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
        let mut batches = Batches::new("f", jsonl(), Broken);
        assert!(batches.next().is_some_and(|batch| batch.is_err()));
        assert!(batches.next().is_none());
    }
}
