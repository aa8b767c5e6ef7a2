//! What can go wrong in `polo prepare`.

use std::io;

use polo_store::{StoreError, corpus::ManifestError, indexed::IndexedError};

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
    #[error("source '{name}' has no text: all of its {num_inputs} inputs are empty")]
    EmptySource { name: String, num_inputs: usize },
    #[error("{key} belongs to both '{first}' and '{second}', so it would be trained twice; narrow their patterns")]
    TwoSources { key: String, first: String, second: String },
    #[error("{key}: {reason}; name the source with --source NAME={key}")]
    SourceName { key: String, reason: String },
    #[error("{key}: its name does not tell its format (.jsonl or .txt, then .gz or .zst); use --format")]
    UnknownFormat { key: String },
    #[error("--language names '{name}', which is no source")]
    UnknownLanguageSource { name: String },
    #[error("tokenizer {file}: {reason}")]
    Tokenizer { file: String, reason: String },
    #[error("{output} holds a corpus already; choose another --output or replace it with --force")]
    OutputExists { output: String },
    #[error("{key}: cannot be decompressed: {source}")]
    Unreadable { key: String, source: io::Error },
    #[error(
        "{key}: line {line}: not UTF-8 at byte {byte} of the decompressed text; convert it, or use --on-error skip"
    )]
    NotUtf8 { key: String, line: u64, byte: u64 },
    #[error("{key}: line {line}: invalid JSON: {reason}; repair it, or use --on-error skip")]
    InvalidJson { key: String, line: u64, reason: String },
    #[error("{key}: line {line}: no text: '{field}' {problem}; use --text-field or --on-error skip")]
    NoText { key: String, line: u64, field: String, problem: &'static str },
    #[error("{key}: line {line}: the tokenizer failed: {reason}")]
    Encode { key: String, line: u64, reason: String },
    #[error("{url} was written, but reads back differently ({reason}); check the output store and prepare again")]
    ReadBack { url: String, reason: String },
    #[error("a thread of the preparation ended without an answer")]
    ThreadLost,
}

impl PrepareError {
    /// Whether the fault lies in one input's contents, so that leaving it out is a way on.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Unreadable { .. } | Self::NotUtf8 { .. } | Self::InvalidJson { .. } | Self::NoText { .. })
    }
}
