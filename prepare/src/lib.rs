//! `polo prepare`: raw text in object storage -> token shards and a manifest.
//!
//! The listing is assigned to sources ([`inputs`]), files are cut into batches of whole records ([`reading`]), batches are
//! examined, freed of duplicates and encoded ([`stages`], [`pipeline`]), and the results, taken in order, become shards
//! ([`output`]), each written down when it is there ([`journal`]). The corpus is the same to the byte for any number of
//! jobs and however often the preparation is killed and started again.

mod aligned;
mod args;
mod cleaning;
mod documents;
mod encode;
mod error;
mod fast_path;
mod inputs;
mod journal;
mod json_field;
mod languages;
mod object_reader;
mod output;
mod pairs;
mod parquet_file;
mod pipeline;
mod preparation;
mod progress;
mod reading;
mod reason;
mod stages;
mod templates;

use std::time::UNIX_EPOCH;

use polo_store::{
    Digest, Entry, Store,
    corpus::{CorpusManifest, MANIFEST_KEY},
};

pub use args::PrepareArgs;
use cleaning::{Cleaner, SourceKind, config::CleaningConfig};
use encode::Encoder;
pub use error::{Place, PrepareError};
use inputs::{Input, SourceInputs, SourceLanguage, check_given_once};
use journal::{InputDigests, Journal, Plan, SourceInPlan};
use preparation::Preparation;

/// To be raised whenever the same input and options come to another corpus: what an older program has begun is then not
/// gone on with.
const PREPARATION_VERSION: u32 = 1;

/// Runs `polo prepare`: progress and a table to stderr, one JSON line about the corpus to stdout.
pub async fn run(args: PrepareArgs) -> Result<(), PrepareError> {
    let (input, output) = (Store::open(&args.input)?, Store::open(&args.output)?);
    let entries = input.list("").await?;
    let sources = assign_inputs(&args, &input, &entries)?;
    let encoder = Encoder::from_file(&args.tokenizer)?;
    let (cleaning, cleaning_text) = read_cleaning(&args, &sources)?;
    let filters = cleaning.pairs.clone();
    let (cleaner, notes) = Cleaner::new(cleaning, &source_kinds(&args, &sources), &encoder).await?;
    notes.iter().for_each(|note| eprintln!("note: {note}"));

    let plan = plan(&args, &encoder, &cleaner, cleaning_text);
    if !args.force && output.exists(MANIFEST_KEY).await? && !Journal::is_of(&output, &plan).await? {
        return Err(PrepareError::OutputExists { output: output.url().to_owned() });
    }
    let journal = Journal::open(&output, &plan, args.force).await?;
    let in_plan = sources_in_plan(&sources, &entries, &cleaner);
    let finished = journal.finished(&in_plan).await?;
    let force = args.force;
    let preparation =
        Preparation { args, input, output: output.clone(), journal: journal.clone(), encoder, cleaner, filters };
    let work = move || preparation.write_shards(&sources, &in_plan, finished);
    let manifest = tokio::task::spawn_blocking(work).await.map_err(|_| PrepareError::ThreadLost)??;
    output::store_manifest(&output, &manifest, force).await?;
    println!("{}", summary(&output, &manifest));
    journal.remove().await
}

fn summary(output: &Store, manifest: &CorpusManifest) -> serde_json::Value {
    serde_json::json!({
        "corpus": output.url(),
        "corpus_digest": manifest.digest(),
        "num_tokens": manifest.sources.iter().map(|source| source.num_tokens).sum::<u64>(),
        "num_documents": manifest.sources.iter().map(|source| source.num_documents).sum::<u64>(),
    })
}

fn assign_inputs(args: &PrepareArgs, input: &Store, entries: &[Entry]) -> Result<Vec<SourceInputs>, PrepareError> {
    if entries.is_empty() {
        return Err(PrepareError::EmptyInput { input: input.url().to_owned() });
    }
    let sources = inputs::assign(entries, &args.sources, &args.pairs, args.format.map(Into::into))?;
    let twice = |name| PrepareError::DuplicateFlag { name, flag: "--language" };
    check_given_once(args.languages.iter().map(|language| &language.name), twice)?;
    check_known(args.languages.iter().map(|language| &language.name), &sources, "--language")?;
    Ok(sources)
}

fn check_known<'a>(
    mut names: impl Iterator<Item = &'a String>,
    sources: &[SourceInputs],
    flag: &'static str,
) -> Result<(), PrepareError> {
    match names.find(|name| !sources.iter().any(|source| source.name == **name)) {
        Some(name) => Err(PrepareError::UnknownSource { name: name.clone(), flag }),
        None => Ok(()),
    }
}

fn read_cleaning(args: &PrepareArgs, sources: &[SourceInputs]) -> Result<(CleaningConfig, String), PrepareError> {
    let Some(path) = &args.cleaning else { return Ok(Default::default()) };
    let (config, text) = CleaningConfig::from_file(path)?;
    check_known(config.excepted(), sources, "--cleaning")?;
    Ok((config, text))
}

fn source_kinds(args: &PrepareArgs, sources: &[SourceInputs]) -> Vec<SourceKind> {
    let kind = |source: &SourceInputs| SourceKind {
        name: source.name.clone(),
        language: language_of(args, &source.name),
        is_parallel: args.pairs.iter().any(|pairs| pairs.name == source.name),
    };
    sources.iter().map(kind).collect()
}

fn language_of(args: &PrepareArgs, source: &str) -> Option<String> {
    let named = |language: &&SourceLanguage| language.name == source;
    args.languages.iter().find(named).map(|language| language.language.clone())
}

/// What decides the corpus, but for the input. `--jobs` and `--max-index-bytes` do not; neither does `--on-error`, since
/// nothing has gone wrong yet where a preparation goes on.
fn plan(args: &PrepareArgs, encoder: &Encoder, cleaner: &Cleaner, cleaning_text: String) -> Plan {
    let PrepareArgs { text_column, text_documents, max_document_bytes, shard_tokens, .. } = args;
    let PrepareArgs { pairs, pair_direction, pairs_per_document, pair_seed, languages, format, .. } = args;
    let evaluation = cleaner.evaluation_digest().map(|digest| digest.to_string()).unwrap_or_default();
    [
        ("version of polo prepare", PREPARATION_VERSION.to_string()),
        ("--tokenizer", encoder.digest.to_string()),
        ("--cleaning", cleaning_text),
        ("evaluation sets", evaluation),
        ("models of perplexity", cleaner.perplexity_digests()),
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

/// The sources with what their finished parts must agree with. Where duplicates are looked for in all sources together, a
/// source's documents also depend on the sources before it.
fn sources_in_plan(sources: &[SourceInputs], entries: &[Entry], cleaner: &Cleaner) -> Vec<SourceInPlan> {
    let by_key: std::collections::HashMap<&str, &Entry> =
        entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
    let describe = |input: &Input| {
        let modified = by_key.get(input.key.as_str()).and_then(|entry| entry.modified.duration_since(UNIX_EPOCH).ok());
        format!("{} {} {:?}", input.key, input.num_bytes, modified)
    };
    let spans_sources = cleaner.spans_sources() != (false, false);
    let mut before = Digest::of(b"");
    let in_plan = |(number, source): (usize, &SourceInputs)| {
        let files = source.inputs.iter().map(|input| {
            let aligned = input.aligned.as_deref().map(describe).unwrap_or_default();
            format!("{}\n{aligned}", describe(input))
        });
        let inputs = InputDigests::new(before, files);
        if spans_sources {
            before = inputs.all();
        }
        let (signature_words, has_exact) = (cleaner.signature_words(number), cleaner.has_exact(number));
        SourceInPlan { name: source.name.clone(), inputs, signature_words, has_exact }
    };
    sources.iter().enumerate().map(in_plan).collect()
}
