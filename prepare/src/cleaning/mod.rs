//! Cleaning: which documents of a source stay. Each step is on where the cleaning file has its table.
//!
//! What a document alone decides ([`Cleaner::examine`]) is found on any thread; what depends on the documents before it
//! ([`duplicates::Seen`]) is decided in input order. So the result depends on neither threads nor restarts.

mod arpa;
pub mod config;
pub mod duplicates;
mod evaluation;
mod heuristics;
mod identify;
mod minhash;
mod perplexity;
mod units;

use polo_store::Digest;
use twox_hash::XxHash3_128;

use crate::{documents::Document, encode::Encoder, error::PrepareError, reason::Rejected};
use config::CleaningConfig;
use duplicates::Signature;
use evaluation::EvaluationNgrams;
use minhash::MinHash;
use perplexity::Perplexity;
use units::Units;
use whatlang::Lang;

/// What there is to know of a source.
#[derive(Debug, Clone)]
pub struct SourceKind {
    /// Its name.
    pub name: String,
    /// Its language as a BCP 47 tag.
    pub language: Option<String>,
    /// Whether its documents are pairs put into words. Heuristics, language, perplexity and near-duplicates do not apply to
    /// those.
    pub is_parallel: bool,
}

/// The steps that apply to one source.
#[derive(Debug, Default)]
struct Steps {
    heuristics: bool,
    languages: Option<Vec<Lang>>,
    /// Name of the model.
    perplexity: Option<String>,
    exact_duplicates: bool,
    near_duplicates: bool,
    evaluation_overlap: bool,
}

/// Judges documents. Shared by all threads.
#[derive(Debug)]
pub struct Cleaner {
    config: CleaningConfig,
    steps: Vec<Steps>,
    perplexity: Option<Perplexity>,
    evaluation: Option<EvaluationNgrams>,
    minhash: Option<MinHash>,
}

impl Cleaner {
    /// A cleaner of `sources`; reads the models of perplexity and the evaluation sets if there are any. Also gives what
    /// people should be told.
    pub async fn new(
        config: CleaningConfig,
        sources: &[SourceKind],
        encoder: &Encoder,
    ) -> Result<(Self, Vec<String>), PrepareError> {
        let steps: Vec<Steps> = sources.iter().map(|source| Steps::of(&config, source)).collect();
        let mut notes = identify::notes(config.language.as_ref(), sources);
        let models: Vec<&str> = steps.iter().filter_map(|steps| steps.perplexity.as_deref()).collect();
        let perplexity = match &config.perplexity {
            Some(step) => Some(Perplexity::load(step, &models, encoder).await?),
            None => None,
        };
        notes.extend(perplexity::notes(config.perplexity.as_ref(), sources));
        notes.extend(perplexity.iter().flat_map(Perplexity::notes));
        let evaluation = match &config.evaluation_overlap {
            Some(step) => Some(EvaluationNgrams::load(&step.input, step.ngram).await?),
            None => None,
        };
        notes.extend(evaluation.as_ref().map(EvaluationNgrams::note));
        let minhash = config.near_duplicates.as_ref().map(|step| MinHash::new(step.ngram, step.bands, step.rows));
        Ok((Self { config, steps, perplexity, evaluation, minhash }, notes))
    }

    /// Digest of the evaluation sets, which decide what stays.
    pub fn evaluation_digest(&self) -> Option<Digest> {
        self.evaluation.as_ref().map(|evaluation| evaluation.digest)
    }

    /// Digests of the models of perplexity, which decide it too.
    pub fn perplexity_digests(&self) -> String {
        self.perplexity.as_ref().map(Perplexity::digests).unwrap_or_default()
    }

    /// Words of the signatures of source number `source`.
    pub fn signature_words(&self, source: usize) -> usize {
        let steps = &self.steps[source];
        let bands = self.minhash.as_ref().filter(|_| steps.near_duplicates).map_or(0, MinHash::num_bands);
        2 * usize::from(steps.exact_duplicates) + bands
    }

    /// Whether signatures of source number `source` have the hash of the text.
    pub fn has_exact(&self, source: usize) -> bool {
        self.steps[source].exact_duplicates
    }

    /// Judges a document of source number `source` by itself, and gives what tells whether it is a duplicate.
    pub fn examine(&self, encoder: &Encoder, source: usize, document: &Document) -> Result<Signature, Rejected> {
        let text = document.text.as_str();
        let dropped = |reason| Rejected::dropped(reason, document.place, text);
        let steps = &self.steps[source];
        if text.trim().is_empty() {
            return Err(dropped("empty"));
        }
        let heuristics = self.config.heuristics.as_ref().filter(|_| steps.heuristics);
        if let Some(reason) = heuristics.and_then(|limits| heuristics::reason_against(limits, text)) {
            return Err(dropped(reason));
        }
        let evaluation = self.evaluation.as_ref().filter(|_| steps.evaluation_overlap);
        let minhash = self.minhash.as_ref().filter(|_| steps.near_duplicates);
        let repetition =
            heuristics.and_then(|limits| Some((limits.max_repeated_ngram_ratio?, limits.repetition_ngram)));
        let needs_units = evaluation.is_some() || minhash.is_some() || repetition.is_some();
        let units = if needs_units { Units::of(text) } else { Units::default() };
        if repetition.is_some_and(|(most, ngram)| units.repeated_ratio(ngram) > most) {
            return Err(dropped("repeated_ngrams"));
        }
        if let (Some(languages), Some(step)) = (&steps.languages, &self.config.language)
            && !identify::is_one_of(text, languages, step.min_confidence)
        {
            return Err(dropped("language"));
        }
        if let (Some(perplexity), Some(model)) = (&self.perplexity, &steps.perplexity)
            && let Some(reason) = perplexity.reason_against(model, encoder, text)
        {
            return Err(dropped(reason));
        }
        if evaluation.is_some_and(|evaluation| evaluation.overlaps(&units)) {
            return Err(dropped("evaluation_overlap"));
        }
        let exact = steps.exact_duplicates.then(|| XxHash3_128::oneshot(text.as_bytes()));
        Ok(Signature { exact, bands: minhash.map(|minhash| minhash.bands(&units)).unwrap_or_default() })
    }

    /// Whether duplicates are looked for in all sources together, by kind: exact, near.
    pub fn spans_sources(&self) -> (bool, bool) {
        let corpus = |scope| scope == config::Scope::Corpus;
        let exact = self.config.exact_duplicates.as_ref().is_some_and(|step| corpus(step.scope));
        let near = self.config.near_duplicates.as_ref().is_some_and(|step| corpus(step.scope));
        (exact, near)
    }
}

impl Steps {
    fn of(config: &CleaningConfig, source: &SourceKind) -> Self {
        let applies = |except: &[String]| !except.contains(&source.name);
        let to_text = |except: &[String]| applies(except) && !source.is_parallel;
        let language = config.language.as_ref().filter(|step| to_text(&step.except));
        let perplexity = config.perplexity.as_ref().filter(|step| to_text(&step.except));
        let model = perplexity.and_then(|step| perplexity::model_for(step, source.language.as_deref()?));
        Self {
            heuristics: config.heuristics.as_ref().is_some_and(|step| to_text(&step.except)),
            languages: language.and_then(|step| identify::accepted(step, source.language.as_deref()?)),
            perplexity: model.map(str::to_owned),
            exact_duplicates: config.exact_duplicates.as_ref().is_some_and(|step| applies(&step.except)),
            near_duplicates: config.near_duplicates.as_ref().is_some_and(|step| to_text(&step.except)),
            evaluation_overlap: config.evaluation_overlap.as_ref().is_some_and(|step| applies(&step.except)),
        }
    }
}
