//! The corpus manifest: which token shards a prepared corpus has, and what is in them.
//!
//! It lies as [`MANIFEST_KEY`] beside the shards and is written last, so a corpus exists when its manifest exists. All
//! keys in it are relative to the manifest, so a corpus can be moved or copied as a folder.

use std::collections::{BTreeMap, BTreeSet};

use polo_recipe::config::Recipe;
use polo_recipe::error::RecipeError;
use polo_recipe::plan::{Plan, SourceTokens};
use serde::{Deserialize, Serialize};

use crate::{Digest, Store, StoreError};

/// Where a corpus keeps its manifest.
pub const MANIFEST_KEY: &str = "manifest.json";

/// The manifest format this code writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// What can be wrong with a manifest. `manifest` is where it was read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum ManifestError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{manifest}: not a corpus manifest: {source}")]
    Json { manifest: String, source: serde_json::Error },
    #[error("{manifest}: format_version {found}, and this polo reads {FORMAT_VERSION}; prepare the corpus again")]
    Version { manifest: String, found: u64 },
    #[error("{manifest}: no sources")]
    NoSources { manifest: String },
    #[error("{manifest}: source '{name}' is listed twice")]
    DuplicateSource { manifest: String, name: String },
    #[error("{manifest}: source '{name}' is empty")]
    EmptySource { manifest: String, name: String },
    #[error("{manifest}: source '{name}': {field} is {stated}, but its parts sum to {summed}")]
    WrongSum { manifest: String, name: String, field: &'static str, stated: u64, summed: u64 },
    #[error("{manifest}: eos_id {eos_id} is not below vocab_size {vocab_size}")]
    EosOutsideVocabulary { manifest: String, eos_id: u32, vocab_size: u64 },
    #[error("{url} is missing; put it back, or prepare the corpus again")]
    MissingFile { url: String },
    #[error(
        "{url} is damaged: it has {found} bytes, which {num_tokens} tokens do not take; put the right one back, or \
         prepare the corpus again"
    )]
    FileLength { url: String, found: u64, num_tokens: u64 },
    #[error(
        "{url} is damaged: it was changed after the corpus was prepared; its digest is {found}, and the manifest says \
         {expected}; put the right one back, or prepare the corpus again"
    )]
    ChangedFile { url: String, expected: Digest, found: Digest },
    #[error(
        "{path}: this tokenizer's digest is {found}, and the corpus was prepared with {expected}; set \
         `corpus.tokenizer` to that one, or prepare the corpus again"
    )]
    Tokenizer { path: String, expected: Digest, found: Digest },
}

/// A prepared corpus. Unknown fields are refused, so nothing that matters is silently left out of the digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusManifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Digest of the tokenizer file the text was encoded with.
    pub tokenizer_digest: Digest,
    /// Highest token id of the tokenizer, added tokens included, plus one: the least vocabulary a model must have.
    pub vocab_size: u64,
    /// The id that ends each document.
    pub eos_id: u32,
    /// The sources, by name.
    pub sources: Vec<Source>,
}

/// One source: its stream of tokens is the concatenation of its shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// What recipes call it.
    pub name: String,
    /// Its language as a BCP 47 tag, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// Tokens, the end-of-text ids included.
    pub num_tokens: u64,
    /// Documents.
    pub num_documents: u64,
    /// UTF-8 bytes of the documents' text: loss in bits per byte needs it.
    pub num_bytes_text: u64,
    /// What was read and left out; absent where nothing was left out and nothing was to be cleaned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intake: Option<Intake>,
    /// The shards, in stream order.
    pub shards: Vec<ShardEntry>,
}

/// What was read for a source, and what of that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intake {
    /// Documents read: those of the source and those left out. A file that could not be read (on) counts as one.
    pub num_documents: u64,
    /// What was left out, by reason.
    pub dropped: BTreeMap<String, Dropped>,
    /// Key of an object with a few examples of what was left out, as JSON lines; absent where nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples_key: Option<String>,
}

/// Documents left out for one reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// Documents.
    pub num_documents: u64,
    /// UTF-8 bytes of their text, where it could be read.
    pub num_bytes_text: u64,
}

/// One pair of files in Megatron's indexed-dataset format (see [`crate::indexed`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Key of the token file.
    pub bin_key: String,
    /// Key of the index file.
    pub idx_key: String,
    /// Tokens in the shard.
    pub num_tokens: u64,
    /// Documents in the shard.
    pub num_documents: u64,
    /// Digest of the token file.
    pub bin_digest: Digest,
    /// Digest of the index file.
    pub idx_digest: Digest,
}

impl CorpusManifest {
    /// Reads and checks the manifest of the corpus at `store`.
    pub async fn load(store: &Store) -> Result<Self, ManifestError> {
        Self::parse(&store.url_of(MANIFEST_KEY), &store.get(MANIFEST_KEY).await?)
    }

    /// Reads and checks a manifest; `manifest` says in errors where it came from.
    pub fn parse(manifest: &str, bytes: &[u8]) -> Result<Self, ManifestError> {
        let json_error = |source| ManifestError::Json { manifest: manifest.to_owned(), source };
        // The version first: a newer manifest should be called newer, not malformed.
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(json_error)?;
        if let Some(found) = value.get("format_version").and_then(serde_json::Value::as_u64)
            && found != u64::from(FORMAT_VERSION)
        {
            return Err(ManifestError::Version { manifest: manifest.to_owned(), found });
        }
        let parsed: Self = serde_json::from_value(value).map_err(json_error)?;
        parsed.check(manifest)?;
        Ok(parsed)
    }

    /// The bytes to store: indented, for people to read.
    pub fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default(); // plain fields only: it cannot fail
        bytes.push(b'\n');
        bytes
    }

    /// The corpus digest: that of the manifest's fields in their declared order as compact JSON. It
    /// does not depend on how the stored file is laid out, and through the shards' digests it covers every token.
    pub fn digest(&self) -> Digest {
        let canonical = serde_json::to_vec(self).unwrap_or_default(); // plain fields only: it cannot fail
        Digest::of(&canonical)
    }

    /// The source called `name`.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.name == name)
    }

    /// What `recipe` trains on this corpus, and when.
    pub fn plan(&self, recipe: &Recipe) -> Result<Plan, RecipeError> {
        let tokens = |source: &Source| SourceTokens { name: source.name.clone(), num_tokens: source.num_tokens };
        Plan::new(recipe, &self.sources.iter().map(tokens).collect::<Vec<_>>())
    }

    /// Checks that the fields agree with one another.
    pub fn check(&self, manifest: &str) -> Result<(), ManifestError> {
        let manifest = || manifest.to_owned();
        if self.sources.is_empty() {
            return Err(ManifestError::NoSources { manifest: manifest() });
        }
        if u64::from(self.eos_id) >= self.vocab_size {
            let (eos_id, vocab_size) = (self.eos_id, self.vocab_size);
            return Err(ManifestError::EosOutsideVocabulary { manifest: manifest(), eos_id, vocab_size });
        }
        let mut names = BTreeSet::new();
        for source in &self.sources {
            if !names.insert(&source.name) {
                return Err(ManifestError::DuplicateSource { manifest: manifest(), name: source.name.clone() });
            }
            source.check(manifest())?;
        }
        Ok(())
    }
}

impl Source {
    fn check(&self, manifest: String) -> Result<(), ManifestError> {
        if self.num_tokens == 0 {
            return Err(ManifestError::EmptySource { manifest, name: self.name.clone() });
        }
        // Saturating: damaged counts must end in the error below, not in an overflow.
        let sum = |count: fn(&ShardEntry) -> u64| self.shards.iter().map(count).fold(0, u64::saturating_add);
        let counts = [
            ("num_tokens", self.num_tokens, sum(|shard| shard.num_tokens)),
            ("num_documents", self.num_documents, sum(|shard| shard.num_documents)),
        ];
        let left_out =
            |intake: &Intake| intake.dropped.values().fold(0, |sum: u64, d| sum.saturating_add(d.num_documents));
        let intake = self.intake.as_ref().map(|intake| {
            ("intake.num_documents", intake.num_documents, self.num_documents.saturating_add(left_out(intake)))
        });
        match counts.into_iter().chain(intake).find(|(_, stated, summed)| stated != summed) {
            Some((field, stated, summed)) => {
                Err(ManifestError::WrongSum { manifest, name: self.name.clone(), field, stated, summed })
            }
            None => Ok(()),
        }
    }
}
