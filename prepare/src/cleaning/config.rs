//! The cleaning file: TOML, a table for each step that is to be done. `configs/cleaning.toml` is a whole one.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use crate::{error::PrepareError, pairs::PairFilters};

/// The steps, in the order in which they are taken. The first that objects to a document names the reason.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CleaningConfig {
    /// Filters of parallel pairs.
    #[serde(default)]
    pub pairs: PairFilters,
    /// Simple measures of a text.
    pub heuristics: Option<Heuristics>,
    /// Documents in other languages than their source's go.
    pub language: Option<LanguageStep>,
    /// Documents that are too little or too much like what an n-gram model was made of go.
    pub perplexity: Option<PerplexityStep>,
    /// Documents that share a run of words with an evaluation set go.
    pub evaluation_overlap: Option<EvaluationOverlap>,
    /// Documents with the same text as an earlier one go.
    pub exact_duplicates: Option<ExactDuplicates>,
    /// Documents with nearly the same text as an earlier one go.
    pub near_duplicates: Option<NearDuplicates>,
}

/// Limits; those that are absent do not apply.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heuristics {
    /// Sources that are left as they are.
    #[serde(default)]
    pub except: Vec<String>,
    /// Fewest characters of a document.
    pub min_chars: Option<usize>,
    /// Most characters of a document.
    pub max_chars: Option<usize>,
    /// Most punctuation (Unicode category P), as a share of the characters that are not space.
    pub max_punctuation_ratio: Option<f64>,
    /// Most symbols (category S) and control characters (C), as a share of the characters that are not space.
    pub max_symbol_ratio: Option<f64>,
    /// Most characters in lines that stood in the document before, as a share of all in lines.
    pub max_repeated_line_ratio: Option<f64>,
    /// Most n-grams of words that stood in the document before, as a share of all.
    pub max_repeated_ngram_ratio: Option<f64>,
    /// Words of those n-grams.
    #[serde(default = "default_repetition_ngram")]
    pub repetition_ngram: usize,
}

/// Language identification by whatlang, on the first 10,000 characters.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageStep {
    /// Sources that are left as they are; so are sources without a language, or with one that whatlang does not know.
    #[serde(default)]
    pub except: Vec<String>,
    /// Documents whose language is less certain than this (0 to 1) go too.
    #[serde(default)]
    pub min_confidence: f64,
    /// By a source's language, those that may be found in its place: `ms = ["id"]`.
    #[serde(default)]
    pub accept: BTreeMap<String, Vec<String>>,
}

/// Perplexity by n-gram models: 10^(-log10 probability / words), over all lines of a document, each a sentence with an end
/// that counts as a word, as in CCNet (arXiv 1911.00359).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerplexityStep {
    /// Sources that are left as they are; so are sources without a language, or with one that has no model.
    #[serde(default)]
    pub except: Vec<String>,
    /// What the models' words are. Texts are to be cut as those that the models were made of.
    #[serde(default)]
    pub units: PerplexityUnits,
    /// Whether the models were made of text in lower case.
    #[serde(default)]
    pub lowercase: bool,
    /// By a source's language (`pt-BR`, or `pt` for all kinds of it), its model. All that are needed are in memory, each with
    /// up to 40 bytes for each n-gram.
    pub models: BTreeMap<String, LanguageModel>,
}

/// What an n-gram model's words are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PerplexityUnits {
    /// What white space (of ASCII) parts, as `lmplz` has it.
    #[default]
    Words,
    /// Tokens of the corpus's tokenizer as they stand in its vocabulary, also for languages that write no spaces: the model
    /// is made of lines of `" ".join(Tokenizer.from_file("tokenizer.json").encode(line).tokens)`. Each text is encoded twice.
    Tokens,
}

/// An n-gram model and its limits.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageModel {
    /// Path or address of a model in ARPA's format, as KenLM's `lmplz` and SRILM write it; it may be packed as `.gz` or
    /// `.zst`.
    pub file: String,
    /// Least perplexity of a document. Lists and boilerplate lie low.
    pub min: Option<f64>,
    /// Greatest perplexity of a document.
    pub max: Option<f64>,
}

/// Overlap with evaluation sets.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationOverlap {
    /// Sources that are left as they are.
    #[serde(default)]
    pub except: Vec<String>,
    /// Folder or address of the evaluation sets: each line of `.txt` files is a text, and each string in `.jsonl` files;
    /// both may be packed as `.gz` or `.zst`.
    pub input: String,
    /// Words that a document and an evaluation text must share in a row.
    #[serde(default = "default_overlap_ngram")]
    pub ngram: usize,
}

/// Where duplicates are looked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// In each source by itself. The index of one source is in memory at a time.
    #[default]
    Source,
    /// In all sources together, in order of their names.
    Corpus,
}

/// Exact duplicates: texts of equal 128-bit XXH3.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExactDuplicates {
    /// Sources that are left as they are.
    #[serde(default)]
    pub except: Vec<String>,
    /// Where they are looked for.
    #[serde(default)]
    pub scope: Scope,
}

/// Near-duplicates by MinHash with banding: two documents are taken for near-duplicates when all hashes of any band are
/// equal, which for n-gram sets of Jaccard similarity s has the probability 1 - (1 - s^rows)^bands.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NearDuplicates {
    /// Sources that are left as they are.
    #[serde(default)]
    pub except: Vec<String>,
    /// Where they are looked for.
    #[serde(default)]
    pub scope: Scope,
    /// Words of an n-gram.
    #[serde(default = "default_shingle_ngram")]
    pub ngram: usize,
    /// Bands.
    #[serde(default = "default_bands")]
    pub bands: usize,
    /// Hashes of a band.
    #[serde(default = "default_rows")]
    pub rows: usize,
}

fn default_repetition_ngram() -> usize {
    5
}

/// That of the GPT-3 paper (arXiv 2005.14165, appendix C).
fn default_overlap_ngram() -> usize {
    13
}

/// This and the next two: the defaults of datatrove, with which half of the pairs of similarity 0.72 are found.
fn default_shingle_ngram() -> usize {
    5
}

fn default_bands() -> usize {
    14
}

fn default_rows() -> usize {
    8
}

impl CleaningConfig {
    /// Reads a cleaning file, and gives its bytes too.
    pub fn from_file(path: &Path) -> Result<(Self, String), PrepareError> {
        let failed = |reason: String| PrepareError::Cleaning { file: path.display().to_string(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let config: Self = toml::from_str(&text).map_err(|error| failed(error.to_string()))?;
        config.check().map_err(failed)?;
        Ok((config, text))
    }

    /// The sources that are named as exceptions.
    pub fn excepted(&self) -> impl Iterator<Item = &String> {
        let heuristics = self.heuristics.iter().flat_map(|step| &step.except);
        let language = self.language.iter().flat_map(|step| &step.except);
        let perplexity = self.perplexity.iter().flat_map(|step| &step.except);
        let overlap = self.evaluation_overlap.iter().flat_map(|step| &step.except);
        let exact = self.exact_duplicates.iter().flat_map(|step| &step.except);
        let near = self.near_duplicates.iter().flat_map(|step| &step.except);
        heuristics.chain(language).chain(perplexity).chain(overlap).chain(exact).chain(near)
    }

    fn check(&self) -> Result<(), String> {
        let heuristics = self.heuristics.as_ref().map(|step| ("heuristics.repetition_ngram", step.repetition_ngram));
        let overlap = self.evaluation_overlap.as_ref().map(|step| ("evaluation_overlap.ngram", step.ngram));
        let near = self.near_duplicates.iter().flat_map(|step| {
            let NearDuplicates { ngram, bands, rows, .. } = step;
            [("near_duplicates.ngram", *ngram), ("near_duplicates.bands", *bands), ("near_duplicates.rows", *rows)]
        });
        match heuristics.into_iter().chain(overlap).chain(near).find(|(_, value)| !(1..=1000).contains(value)) {
            Some((name, value)) => Err(format!("{name} is {value}, and must be from 1 to 1000")),
            None => self.perplexity.as_ref().map_or(Ok(()), PerplexityStep::check),
        }
    }
}

impl PerplexityStep {
    fn check(&self) -> Result<(), String> {
        for (language, LanguageModel { min, max, .. }) in &self.models {
            let limits = (min.unwrap_or(0.0), max.unwrap_or(f64::INFINITY));
            if (min, max) == (&None, &None) || !(0.0 <= limits.0 && limits.0 < limits.1) {
                return Err(format!("perplexity.models.{language} needs a min or a max, and min is to be below max"));
            }
        }
        if self.models.is_empty() {
            Err("perplexity.models is empty: give a model by language".to_owned())
        } else {
            Ok(())
        }
    }
}
