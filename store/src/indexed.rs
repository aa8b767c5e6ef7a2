//! Token shards in Megatron's indexed-dataset format: a `.bin` file of token ids and an `.idx` file that says where the
//! sequences and documents lie.
//!
//! The `.idx` file, all numbers little-endian (format: Megatron-LM, `megatron/core/datasets/indexed_dataset.py`):
//!
//! | bytes | what |
//! |---|---|
//! | 9 | magic `MMIDIDX\0\0` |
//! | 8 | version, u64 = 1 |
//! | 1 | dtype code of the `.bin`: 4 = int32, 8 = uint16 |
//! | 8 | number of sequences n, u64 |
//! | 8 | number of document bounds m, u64 (documents + 1) |
//! | 4n | sequence lengths in tokens, i32 |
//! | 8n | sequence pointers, byte offsets into the `.bin`, i64 |
//! | 8m | document bounds, sequence numbers, i64, the first 0, the last n |
//!
//! Polo writes int32, one sequence per document. It reads int32 and uint16, and asks that sequences follow one another
//! without gaps, which is how Megatron's own tools write them: only then is a shard one stream of tokens.

use std::{
    fs::File,
    io::{self, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use zerocopy::IntoBytes;

const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
const VERSION: u64 = 1;
const HEADER_BYTES: usize = 9 + 8 + 1 + 8 + 8;

/// What can be wrong with a shard. `file` is the path or key of the offending file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum IndexedError {
    #[error("{file}: {source}")]
    Io { file: String, source: io::Error },
    #[error("{file}: not an indexed dataset: it begins with {found:02x?} where the magic {MAGIC:02x?} belongs")]
    BadMagic { file: String, found: Vec<u8> },
    #[error("{file}: index version {found}, and only version {VERSION} can be read")]
    BadVersion { file: String, found: u64 },
    #[error("{file}: dtype code {found}; only 4 (int32) and 8 (uint16) are token ids that can be read")]
    BadTokenType { file: String, found: u8 },
    #[error("{file}: truncated: {found} bytes where its counts ask for {expected}; copy or prepare it again")]
    Truncated { file: String, expected: u64, found: u64 },
    #[error("{file}: {excess} bytes more than its counts ask for (multimodal index files are not supported)")]
    TrailingBytes { file: String, excess: u64 },
    #[error("{file}: sequence {sequence} has the negative length {length}")]
    NegativeLength { file: String, sequence: usize, length: i32 },
    #[error("{file}: sequence {sequence} points to byte {found}, but the ones before it end at byte {expected}")]
    PointerOutOfPlace { file: String, sequence: usize, expected: u64, found: i64 },
    #[error("{file}: document bound {bound} is {found}; bounds must rise from 0 to the {num_sequences} sequences")]
    BadDocumentBound { file: String, bound: usize, found: i64, num_sequences: usize },
    #[error("{file}: {found} bytes, but its index describes {expected}; copy or prepare both files again")]
    BinSize { file: String, expected: u64, found: u64 },
    #[error("tokens {}..{} asked of a shard of {num_tokens}", range.start, range.end)]
    OutOfRange { range: Range<u64>, num_tokens: u64 },
    #[error("a document of {num_tokens} tokens is longer than the format's limit of {}", i32::MAX)]
    DocumentTooLong { num_tokens: usize },
}

/// How token ids are stored in a `.bin` file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenType {
    /// Code 4: what Polo writes.
    Int32,
    /// Code 8: what Megatron tools write for vocabularies below 65,500.
    Uint16,
}

impl TokenType {
    const fn code(self) -> u8 {
        match self {
            Self::Int32 => 4,
            Self::Uint16 => 8,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            4 => Some(Self::Int32),
            8 => Some(Self::Uint16),
            _ => None,
        }
    }

    /// Bytes of one token id.
    pub const fn num_bytes(self) -> u64 {
        match self {
            Self::Int32 => 4,
            Self::Uint16 => 2,
        }
    }
}

/// The contents of an `.idx` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    token_type: TokenType,
    sequence_lengths: Vec<i32>,
    document_bounds: Vec<i64>,
}

impl Index {
    /// Reads and checks the bytes of an `.idx` file; `file` is its name in errors.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, IndexedError> {
        let file = || file.to_owned();
        let magic = &bytes[..MAGIC.len().min(bytes.len())];
        if magic != MAGIC {
            return Err(IndexedError::BadMagic { file: file(), found: magic.to_vec() });
        }
        if bytes.len() < HEADER_BYTES {
            let (expected, found) = (HEADER_BYTES as u64, bytes.len() as u64);
            return Err(IndexedError::Truncated { file: file(), expected, found });
        }
        let (header, body) = bytes.split_at(HEADER_BYTES);
        let version = u64_at(header, 9);
        if version != VERSION {
            return Err(IndexedError::BadVersion { file: file(), found: version });
        }
        let token_type = TokenType::from_code(header[17])
            .ok_or_else(|| IndexedError::BadTokenType { file: file(), found: header[17] })?;
        let (num_sequences, num_bounds) = (u64_at(header, 18), u64_at(header, 26));
        check_body_size(file(), num_sequences, num_bounds, body.len() as u64)?;

        let n = num_sequences as usize; // fits: the body of 12 bytes per sequence is in memory
        let (lengths, rest) = body.split_at(4 * n);
        let (pointers, bounds) = rest.split_at(8 * n);
        let sequence_lengths = numbers(lengths, i32::from_le_bytes);
        check_pointers(file(), token_type, &sequence_lengths, &numbers(pointers, i64::from_le_bytes))?;
        let document_bounds = numbers(bounds, i64::from_le_bytes);
        check_bounds(file(), &document_bounds, n)?;
        Ok(Self { token_type, sequence_lengths, document_bounds })
    }

    /// The bytes of the `.idx` file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (n, m) = (self.sequence_lengths.len(), self.document_bounds.len());
        let mut bytes = Vec::with_capacity(HEADER_BYTES + 12 * n + 8 * m);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.push(self.token_type.code());
        bytes.extend_from_slice(&(n as u64).to_le_bytes());
        bytes.extend_from_slice(&(m as u64).to_le_bytes());
        bytes.extend(self.sequence_lengths.iter().flat_map(|length| length.to_le_bytes()));
        let mut pointer = 0u64;
        for length in &self.sequence_lengths {
            bytes.extend_from_slice(&(pointer as i64).to_le_bytes());
            pointer += *length as u64 * self.token_type.num_bytes();
        }
        bytes.extend(self.document_bounds.iter().flat_map(|bound| bound.to_le_bytes()));
        bytes
    }

    /// Tokens of all sequences together.
    pub fn num_tokens(&self) -> u64 {
        self.sequence_lengths.iter().map(|length| *length as u64).sum()
    }

    /// Number of documents.
    pub fn num_documents(&self) -> u64 {
        self.document_bounds.len() as u64 - 1
    }

    /// Where each document begins in the shard's stream, in tokens, and after the last its end.
    pub fn document_token_bounds(&self) -> Vec<u64> {
        let mut sequence_bounds = vec![0];
        sequence_bounds.extend(self.sequence_lengths.iter().scan(0, |end, length| {
            *end += *length as u64; // checked not to be negative
            Some(*end)
        }));
        self.document_bounds.iter().map(|sequence| sequence_bounds[*sequence as usize]).collect()
    }

    /// How the token ids are stored.
    pub fn token_type(&self) -> TokenType {
        self.token_type
    }

    /// Length of each sequence in tokens.
    pub fn sequence_lengths(&self) -> &[i32] {
        &self.sequence_lengths
    }
}

fn check_body_size(file: String, num_sequences: u64, num_bounds: u64, found: u64) -> Result<(), IndexedError> {
    let body = u128::from(num_sequences) * 12 + u128::from(num_bounds) * 8; // a damaged count must not overflow
    let expected = u64::try_from(body).unwrap_or(u64::MAX);
    if found < expected {
        let header = HEADER_BYTES as u64;
        return Err(IndexedError::Truncated { file, expected: expected.saturating_add(header), found: found + header });
    }
    if found > expected {
        return Err(IndexedError::TrailingBytes { file, excess: found - expected });
    }
    Ok(())
}

fn check_pointers(file: String, kind: TokenType, lengths: &[i32], pointers: &[i64]) -> Result<(), IndexedError> {
    let mut expected = 0u64;
    for (sequence, (&length, &found)) in lengths.iter().zip(pointers).enumerate() {
        if length < 0 {
            return Err(IndexedError::NegativeLength { file, sequence, length });
        }
        if u64::try_from(found) != Ok(expected) {
            return Err(IndexedError::PointerOutOfPlace { file, sequence, expected, found });
        }
        expected += length as u64 * kind.num_bytes();
    }
    Ok(())
}

fn check_bounds(file: String, bounds: &[i64], num_sequences: usize) -> Result<(), IndexedError> {
    let error = |bound, found| IndexedError::BadDocumentBound { file: file.clone(), bound, found, num_sequences };
    let (Some(&first), Some(&last)) = (bounds.first(), bounds.last()) else { return Err(error(0, -1)) };
    if first != 0 {
        return Err(error(0, first));
    }
    if let Some(at) = bounds.windows(2).position(|pair| pair[1] < pair[0]) {
        return Err(error(at + 1, bounds[at + 1]));
    }
    if last != num_sequences as i64 {
        return Err(error(bounds.len() - 1, last));
    }
    Ok(())
}

/// Callers hold the header whole, so the eight bytes are there.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn numbers<T, const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|number| decode(*number)).collect()
}

/// Writes a shard document by document. Tokens go straight to `bin`; what stays in memory is four bytes per document.
#[derive(Debug)]
pub struct ShardWriter<W> {
    bin: W,
    sequence_lengths: Vec<i32>,
    num_tokens: u64,
    buffer: Vec<u8>,
}

impl<W: Write> ShardWriter<W> {
    /// A shard whose `.bin` is `bin`, empty so far.
    pub fn new(bin: W) -> Self {
        Self { bin, sequence_lengths: Vec::new(), num_tokens: 0, buffer: Vec::new() }
    }

    /// Appends one document, which is one sequence. Ids are non-negative; the caller has appended the end-of-text id.
    pub fn push_document(&mut self, ids: &[i32]) -> Result<(), IndexedError> {
        let num_tokens = ids.len();
        let length = i32::try_from(num_tokens).map_err(|_| IndexedError::DocumentTooLong { num_tokens })?;
        self.buffer.clear();
        self.buffer.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        self.bin
            .write_all(&self.buffer)
            .map_err(|source| IndexedError::Io { file: "a shard's .bin".into(), source })?;
        self.sequence_lengths.push(length);
        self.num_tokens += num_tokens as u64;
        Ok(())
    }

    /// Tokens written so far.
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Gives back `bin` and the index whose bytes are the `.idx` file.
    pub fn finish(self) -> (W, Index) {
        let document_bounds = (0..=self.sequence_lengths.len() as i64).collect();
        let index = Index { token_type: TokenType::Int32, sequence_lengths: self.sequence_lengths, document_bounds };
        (self.bin, index)
    }
}

/// A shard on the local disk, opened for reading: its index is in memory, its tokens are read from the file.
///
/// The file is not mapped: mapped pages count as the process's memory, and end it if the file gets shorter.
#[derive(Debug)]
pub struct Shard {
    index: Index,
    num_tokens: u64,
    bin: File,
    bin_path: PathBuf,
}

impl Shard {
    /// Opens and checks a pair of files.
    pub fn open(bin: &Path, idx: &Path) -> Result<Self, IndexedError> {
        let index = Index::parse(&idx.display().to_string(), &std::fs::read(idx).map_err(io_error(idx))?)?;
        let file = File::open(bin).map_err(io_error(bin))?;
        let num_tokens = index.num_tokens();
        let expected = num_tokens * index.token_type.num_bytes();
        let found = file.metadata().map_err(io_error(bin))?.len();
        if expected != found {
            return Err(IndexedError::BinSize { file: bin.display().to_string(), expected, found });
        }
        Ok(Self { index, num_tokens, bin: file, bin_path: bin.to_owned() })
    }

    /// The shard's index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Tokens in the shard.
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Appends the token ids at `range` of the shard's stream to `out`. Ids are as stored: an int32 may be negative
    /// in a damaged file, so the caller checks them against its vocabulary.
    pub fn read(&self, range: Range<u64>, out: &mut Vec<i32>) -> Result<(), IndexedError> {
        if range.start > range.end || range.end > self.num_tokens {
            return Err(IndexedError::OutOfRange { range, num_tokens: self.num_tokens });
        }
        let (first, num_ids) = (out.len(), (range.end - range.start) as usize);
        let read_at = |bytes: &mut [u8]| {
            let start = range.start * self.index.token_type.num_bytes();
            self.bin.read_exact_at(bytes, start).map_err(io_error(&self.bin_path))
        };
        match self.index.token_type {
            TokenType::Int32 => {
                out.resize(first + num_ids, 0);
                read_at(out[first..].as_mut_bytes())?;
                if cfg!(target_endian = "big") {
                    out[first..].iter_mut().for_each(|id| *id = i32::from_le(*id));
                }
            }
            TokenType::Uint16 => {
                let mut ids = vec![0u16; num_ids];
                read_at(ids.as_mut_bytes())?;
                out.extend(ids.into_iter().map(|id| i32::from(u16::from_le(id))));
            }
        }
        Ok(())
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> IndexedError {
    let file = path.display().to_string();
    |source| IndexedError::Io { file, source }
}

/// The paths of a pair with the common `prefix`, as Megatron names it: `prefix.bin` and `prefix.idx`.
pub fn pair_paths(prefix: &Path) -> (PathBuf, PathBuf) {
    let with = |suffix: &str| {
        let mut path = prefix.as_os_str().to_owned();
        path.push(suffix);
        PathBuf::from(path)
    };
    (with(".bin"), with(".idx"))
}
