//! What can go wrong in `polo prepare`.

use std::{fmt, io};

use polo_store::{StoreError, corpus::ManifestError, indexed::IndexedError};
use polo_transport::TransportError;

/// Where in an input object something lies, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A line of the decompressed text.
    Line(u64),
    /// A row of a Parquet file.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// A preparation that failed. Each message names the object and what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum PrepareError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Shard(#[from] IndexedError),
    #[error("{input}: nothing to read there; check --input")]
    EmptyInput { input: String },
    #[error("source '{name}' matches no input object; check its --source pattern")]
    NoInputs { name: String },
    #[error("source '{name}' has no text: nothing is left of its {num_inputs} inputs{what_was_dropped}")]
    EmptySource { name: String, num_inputs: usize, what_was_dropped: String },
    #[error("source '{name}' is given twice with --source; give all its patterns at once, parted by commas")]
    DuplicateSource { name: String },
    #[error("source '{name}' is given twice with {flag}; give it once")]
    DuplicateFlag { name: String, flag: &'static str },
    #[error("{key} belongs to both '{first}' and '{second}', so it would be trained twice; narrow their patterns")]
    TwoSources { key: String, first: String, second: String },
    #[error("{key}: {reason}; name the source with --source NAME={key}")]
    SourceName { key: String, reason: String },
    #[error("{key}: its name does not tell its format (.jsonl, .txt or .parquet, then .gz or .zst); use --format")]
    UnknownFormat { key: String },
    #[error("{key}: Parquet files are compressed inside, not with .gz or .zst around them; unpack it")]
    PackedParquet { key: String },
    #[error("{key}: pairs lie in .tsv or .jsonl files, or in two files that end in .SRC and .TGT; see --pairs")]
    UnknownPairFormat { key: String },
    #[error("{key}: its translations should be in {partner} (.gz or .zst too), which is not there")]
    NoPartner { key: String, partner: String },
    #[error("{flag} names '{name}', which is no source")]
    UnknownSource { name: String, flag: &'static str },
    #[error("tokenizer {file}: {reason}")]
    Tokenizer { file: String, reason: String },
    #[error("{output} holds a corpus already; choose another --output or replace it with --force")]
    OutputExists { output: String },
    #[error(
        "{output} holds an unfinished preparation with other {differs}; go on with the same as then, choose another \
         --output, or start anew with --force"
    )]
    OtherPreparation { output: String, differs: String },
    #[error("{url}: not a record of a preparation: {source}; start anew with --force")]
    Journal { url: String, source: serde_json::Error },
    #[error("{url} is damaged: {reason}; start anew with --force")]
    DamagedJournal { url: String, reason: String },
    #[error("{key}: cannot be read: {source}; fetch or make the file again, or use --on-error skip")]
    Unreadable { key: String, source: io::Error },
    #[error("{key}: not a Parquet file that can be read: {reason}; make it again, or use --on-error skip")]
    Parquet { key: String, reason: String },
    #[error("{key}: no column '{column}' of strings: it has {found}; use --text-column or --on-error skip")]
    NoColumn { key: String, column: String, found: String },
    #[error("{key}: {place}: not UTF-8 at byte {byte} of the decompressed text; convert it, or use --on-error skip")]
    NotUtf8 { key: String, place: Place, byte: u64 },
    #[error("{key}: {place}: invalid JSON: {reason}; repair it, or use --on-error skip")]
    InvalidJson { key: String, place: Place, reason: String },
    #[error("{key}: {place}: no text: '{field}' {problem}; use --text-column or --on-error skip")]
    NoText { key: String, place: Place, field: String, problem: &'static str },
    #[error("{key}: {place}: {reason}; repair it, or use --on-error skip")]
    NoPair { key: String, place: Place, reason: String },
    #[error(
        "{key}: {place}: a document of more than {max_bytes} bytes; cut it, raise --max-document-bytes (and see to the \
         memory), or use --on-error skip"
    )]
    TooLong { key: String, place: Place, max_bytes: u64 },
    #[error(
        "{key}: ends after {num_lines} lines, and {other} goes on; fetch or make both files again, or use --on-error skip"
    )]
    Unaligned { key: String, other: String, num_lines: u64 },
    #[error("{key}: {place}: the tokenizer failed: {reason}")]
    Encode { key: String, place: Place, reason: String },
    #[error("cleaning {file}: {reason}")]
    Cleaning { file: String, reason: String },
    #[error(
        "source '{name}': duplicates of {num_documents} documents are looked for, which needs more than \
         {max_bytes} bytes; raise --max-index-bytes, lower near_duplicates.bands, or make the source several, then \
         start again: it goes on from here"
    )]
    IndexTooLarge { name: String, num_documents: u64, max_bytes: u64 },
    #[error("{url}: not what a helper writes: {reason}; check the output store, and start anew with --force")]
    DamagedPiece { url: String, reason: String },
    #[error("cannot listen on {address}: {source}; choose another address for --listen")]
    Listen { address: String, source: io::Error },
    #[error("{num_bytes} bytes of tokenizer and options are more than the {max_bytes} that are sent to helpers")]
    DescriptionTooLarge { num_bytes: usize, max_bytes: usize },
    #[error(
        "nobody leads a preparation at {url} ({problem}), tried for {for_s} s; start `polo prepare --listen` there with the \
         same options as before, then this again"
    )]
    NoLeader { url: String, problem: String, for_s: u64 },
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("the leader at {url} does not take this helper: {reason}")]
    HelperRefused { url: String, reason: String },
    #[error("the preparation that {url} leads failed: {reason}")]
    LeaderFailed { url: String, reason: String },
    #[error("this machine comes to other {differs} than the leader at {url}; both must read the same")]
    OtherTools { url: String, differs: String },
    #[error(
        "the preparation is not in {output} here; the output must be the same place for the leader and its helpers: a \
         bucket, or a folder that they share under this name"
    )]
    NotShared { output: String },
    #[error("{message}")]
    Told { message: String },
    #[error("{url} was written, but reads back differently ({reason}); check the output store and prepare again")]
    ReadBack { url: String, reason: String },
    #[error("a thread of the preparation ended without an answer")]
    ThreadLost,
}

impl PrepareError {
    /// Why a document or a file is left out, if leaving it out is a way on; as it stands in the manifest.
    pub fn reason(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unreadable { .. } | Self::Parquet { .. } | Self::Unaligned { .. } => "unreadable_file",
            Self::NoColumn { .. } => "no_column",
            Self::NotUtf8 { .. } => "not_utf8",
            Self::InvalidJson { .. } => "invalid_json",
            Self::NoText { .. } => "no_text",
            Self::NoPair { .. } => "no_pair",
            Self::TooLong { .. } => "too_long",
            Self::Told { .. } => "told_by_a_helper", // which has told the reason besides
            _ => return None,
        })
    }
}

/// A failure while reading `key`: the store's own, or that of its contents.
pub fn read_error(key: &str, error: io::Error) -> PrepareError {
    match error.downcast::<StoreError>() {
        Ok(error) => PrepareError::Store(error),
        Err(source) => PrepareError::Unreadable { key: key.to_owned(), source },
    }
}
