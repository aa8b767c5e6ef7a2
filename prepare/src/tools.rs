//! What turns raw text into documents of a corpus, the same on every machine that takes part.

use std::sync::{Arc, atomic::AtomicU64};

use polo_store::Store;
use tokio::runtime::Handle;

use crate::{
    args::{CorpusOptions, PairDirection, TextDocuments},
    cleaning::{Cleaner, SourceKind, config::CleaningConfig},
    encode::Encoder,
    error::PrepareError,
    inputs::SourceLanguage,
    journal::Plan,
    languages::language,
    pairs::{PairFilters, PairFormat, Pairs},
    reading::Reading,
};

/// To be raised whenever the same input and options come to another corpus: what an older program has begun is then not
/// gone on with.
const PREPARATION_VERSION: u32 = 2;

/// Everything that decides a corpus, but for its input.
pub struct Tools {
    /// The options.
    pub options: CorpusOptions,
    /// Names of the sources, in order.
    pub sources: Vec<String>,
    /// The tokenizer.
    pub encoder: Encoder,
    /// Judges documents.
    pub cleaner: Cleaner,
    /// Judge pairs.
    filters: PairFilters,
    /// The cleaning file.
    pub cleaning_text: String,
}

impl Tools {
    /// The tools for these `sources`, with the parsed cleaning file and its text; reads the models of perplexity and the
    /// evaluation sets if there are any. Also gives what people should be told.
    pub async fn new(
        options: CorpusOptions,
        sources: Vec<String>,
        encoder: Encoder,
        (cleaning, cleaning_text): (CleaningConfig, String),
    ) -> Result<(Self, Vec<String>), PrepareError> {
        let filters = cleaning.pairs.clone();
        let kinds: Vec<_> = sources.iter().map(|name| source_kind(&options, name)).collect();
        let (cleaner, notes) = Cleaner::new(cleaning, &kinds, &encoder).await?;
        Ok((Self { options, sources, encoder, cleaner, filters, cleaning_text }, notes))
    }

    /// What decides the corpus, but for the input. `--jobs` and `--max-index-bytes` do not; neither does `--on-error`,
    /// since nothing has gone wrong yet where a preparation goes on.
    pub fn plan(&self) -> Plan {
        let CorpusOptions { text_column, text_documents, max_document_bytes, shard_tokens, .. } = &self.options;
        let CorpusOptions { pairs, pair_direction, pairs_per_document, pair_seed, .. } = &self.options;
        let CorpusOptions { languages, format, .. } = &self.options;
        let evaluation = self.cleaner.evaluation_digest().map(|digest| digest.to_string()).unwrap_or_default();
        [
            ("version of polo prepare", PREPARATION_VERSION.to_string()),
            ("--tokenizer", self.encoder.digest.to_string()),
            ("--cleaning", self.cleaning_text.clone()),
            ("evaluation sets", evaluation),
            ("models of perplexity", self.cleaner.perplexity_digests()),
            ("--text-column", text_column.clone()),
            ("--text-documents", format!("{text_documents:?}")),
            ("--max-document-bytes", max_document_bytes.to_string()),
            ("--shard-tokens", shard_tokens.to_string()),
            ("--pairs", format!("{pairs:?}")),
            ("--pair-direction", format!("{pair_direction:?}")),
            ("--pairs-per-document", pairs_per_document.to_string()),
            ("--pair-seed", pair_seed.to_string()),
            ("--language", format!("{languages:?}")),
            ("--format", format!("{format:?}")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Reads files of `input`; stored bytes that are fetched are added to `num_bytes_read`.
    pub fn reading(&self, input: &Store, num_bytes_read: Arc<AtomicU64>) -> Reading {
        Reading {
            runtime: Handle::current(),
            store: input.clone(),
            num_bytes_read,
            text_column: self.options.text_column.clone(),
            text_is_paragraphs: self.options.text_documents == TextDocuments::Paragraph,
            max_document_bytes: self.options.max_document_bytes.get(),
            pairs: self.sources.iter().map(|source| self.pairs(source)).collect(),
        }
    }

    fn pairs(&self, source: &str) -> Option<Pairs> {
        let pairs = self.options.pairs.iter().find(|pairs| pairs.name == source)?;
        Some(Pairs {
            format: PairFormat::Tsv, // each file's own when its turn comes
            languages: (language(&pairs.src)?, language(&pairs.tgt)?),
            codes: (pairs.src.clone(), pairs.tgt.clone()),
            seed: self.options.pair_seed,
            either_direction: self.options.pair_direction == PairDirection::Either,
            per_document: self.options.pairs_per_document.get(),
            filters: self.filters.clone(),
        })
    }
}

fn source_kind(options: &CorpusOptions, source: &str) -> SourceKind {
    SourceKind {
        name: source.to_owned(),
        language: language_of(options, source),
        is_parallel: options.pairs.iter().any(|pairs| pairs.name == source),
    }
}

/// The language of a source, if it was given.
pub fn language_of(options: &CorpusOptions, source: &str) -> Option<String> {
    let named = |language: &&SourceLanguage| language.name == source;
    options.languages.iter().find(named).map(|language| language.language.clone())
}
