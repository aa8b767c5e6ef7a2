//! `polo prepare`: raw text in object storage -> token shards and a manifest.
//!
//! The listing is assigned to sources ([`inputs`]), files are cut into batches of whole records ([`reading`]), batches are
//! examined, freed of duplicates and encoded ([`stages`], [`pipeline`]), and the results, taken in order, become shards
//! ([`output`]), each written down when it is there ([`journal`]). The corpus is the same to the byte for any number of
//! jobs, however often the preparation is killed and started again, and whoever helps ([`cluster`]).

mod aligned;
mod args;
mod cleaning;
mod cluster;
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
mod tools;

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::Arc,
    time::UNIX_EPOCH,
};

use polo_store::{
    Digest, Entry, Store,
    corpus::{CorpusManifest, MANIFEST_KEY},
};
use polo_transport::{Guard, ServerTls};
use tokio::net::TcpListener;

pub use args::PrepareArgs;
use cleaning::config::CleaningConfig;
use cluster::{
    Alone, FileInPlan, helper,
    leader::{Door, Leader, Opening},
    pieces::{Pieces, Work},
};
use encode::Encoder;
pub use error::{Place, PrepareError};
use inputs::{Input, SourceInputs, check_given_once};
use journal::{InputDigests, Journal, Plan, SourceInPlan};
use preparation::{Preparation, num_jobs};
use progress::{Progress, Screen};
use reading::Supply;
use tools::Tools;

/// Runs `polo prepare`: progress and a table to stderr, one JSON line about the corpus to stdout.
pub async fn run(args: PrepareArgs) -> Result<(), PrepareError> {
    match &args.cluster.join {
        Some(url) => helper::run(url, &args.cluster, args.jobs).await,
        None => prepare(args).await,
    }
}

async fn prepare(args: PrepareArgs) -> Result<(), PrepareError> {
    // That both are given, the command line has seen to.
    let open = |url: &Option<String>| Store::open(url.as_deref().unwrap_or_default());
    let (input, output) = (open(&args.input)?, open(&args.output)?);
    let door = door(&args).await?;
    let entries = input.list("").await?;
    let sources = assign_inputs(&args, &input, &entries)?;
    let encoder = Encoder::from_file(args.tokenizer.as_deref().unwrap_or(Path::new("")))?;
    let names = sources.iter().map(|source| source.name.clone()).collect();
    let (tools, notes) = Tools::new(args.options.clone(), names, encoder, read_cleaning(&args, &sources)?).await?;
    notes.iter().for_each(|note| eprintln!("note: {note}"));

    let plan = tools.plan();
    if !args.force && output.exists(MANIFEST_KEY).await? && !Journal::is_of(&output, &plan).await? {
        return Err(PrepareError::OutputExists { output: output.url().to_owned() });
    }
    let journal = Journal::open(&output, &plan, args.force).await?;
    let in_plan = sources_in_plan(&sources, &entries, &tools, &plan);
    let files = Arc::new(files_in_plan(&sources, &in_plan));
    let (tools, pieces) = (Arc::new(tools), Pieces::new(&output));
    Preparation { args, tools, files, input, output, journal, pieces }.run(in_plan, door).await
}

impl Preparation {
    /// Makes the corpus, with the help of others if there is something to listen on for them.
    async fn run(self, in_plan: Vec<SourceInPlan>, door: Option<Door>) -> Result<(), PrepareError> {
        let finished = self.journal.finished(&in_plan).await?;
        let past: Vec<bool> = self.files.iter().map(|file| file.number < finished[file.source].next().file).collect();
        let left = || self.files.iter().zip(&past).filter(|(_, past)| !**past).map(|(file, _)| file);
        let there = self.pieces.sift(left().map(|file| file.work)).await?;
        let progress = Progress::new(left().map(|file| file.input.total_bytes()).sum(), &finished, there.len());
        let done = (0..self.files.len()).filter(|number| there.contains(&self.files[*number].work)).collect();
        let (supply, leader) = self.supply(door, past, done, progress.screen())?;

        let (output, journal, force) = (self.output.clone(), self.journal.clone(), self.args.force);
        let work = move || self.write_shards(&in_plan, finished, &*supply, progress);
        let manifest = tokio::task::spawn_blocking(work).await.map_err(|_| PrepareError::ThreadLost).flatten();
        let stored = match manifest {
            Ok(manifest) => output::store_manifest(&output, &manifest, force).await.map(|()| manifest),
            Err(error) => Err(error),
        };
        // The journal is removed, with what helpers have written, when nobody writes any more.
        if let Some(leader) = leader {
            leader.end(stored.as_ref().err().map(ToString::to_string)).await;
        }
        println!("{}", summary(&output, &stored?));
        journal.remove().await
    }

    /// How files are had; nothing is needed any more of those that are `past`, and of those that are `done` there are
    /// results.
    fn supply(
        &self,
        door: Option<Door>,
        past: Vec<bool>,
        done: BTreeSet<usize>,
        screen: Screen,
    ) -> Result<(Arc<dyn Supply>, Option<Leader>), PrepareError> {
        let Some(door) = door else { return Ok((Arc::new(Alone::new(done, screen)), None)) };
        let opening = Opening {
            tools: self.tools.clone(),
            files: self.files.clone(),
            past,
            done,
            input: self.input.clone(),
            output: self.output.clone(),
            pieces: self.pieces.clone(),
            num_jobs: num_jobs(&self.args),
            screen,
        };
        let leader = Leader::start(door, &self.args.cluster, opening)?;
        Ok((leader.supply(), Some(leader)))
    }
}

async fn door(args: &PrepareArgs) -> Result<Option<Door>, PrepareError> {
    let Some(address) = &args.cluster.listen else { return Ok(None) };
    let failed = |source| PrepareError::Listen { address: address.clone(), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let (bound, protection) = (listener.local_addr().map_err(failed)?, args.cluster.protection.as_server());
    let (guard, tls) = (Guard::new(&protection, bound)?, ServerTls::new(&protection)?);
    eprintln!("listening for helpers on {bound}");
    Ok(Some(Door { listener, tls, guard }))
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
    let sources =
        inputs::assign(entries, &args.options.sources, &args.options.pairs, args.options.format.map(Into::into))?;
    let twice = |name| PrepareError::DuplicateFlag { name, flag: "--language" };
    check_given_once(args.options.languages.iter().map(|language| &language.name), twice)?;
    check_known(args.options.languages.iter().map(|language| &language.name), &sources, "--language")?;
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

/// All files in input order.
fn files_in_plan(sources: &[SourceInputs], in_plan: &[SourceInPlan]) -> Vec<FileInPlan> {
    let of_source = |(source, (inputs, in_plan)): (usize, (&SourceInputs, &SourceInPlan))| {
        let files = inputs.inputs.iter().zip(&in_plan.works).enumerate();
        let file = |(number, (input, work)): (usize, (&Input, &Work))| FileInPlan {
            source,
            number,
            input: input.clone(),
            work: *work,
        };
        files.map(file).collect::<Vec<_>>()
    };
    sources.iter().zip(in_plan).enumerate().flat_map(of_source).collect()
}

/// The sources with what their finished parts must agree with. Where duplicates are looked for in all sources together, a
/// source's documents also depend on the sources before it.
fn sources_in_plan(sources: &[SourceInputs], entries: &[Entry], tools: &Tools, plan: &Plan) -> Vec<SourceInPlan> {
    let cleaner = &tools.cleaner;
    let by_key: HashMap<&str, &Entry> = entries.iter().map(|entry| (entry.key.as_str(), entry)).collect();
    let describe = |input: &Input| {
        let modified = by_key.get(input.key.as_str()).and_then(|entry| entry.modified.duration_since(UNIX_EPOCH).ok());
        format!("{} {} {:?}", input.key, input.num_bytes, modified)
    };
    let spans_sources = cleaner.spans_sources() != (false, false);
    let mut before = Digest::of(b"");
    let in_plan = |(number, source): (usize, &SourceInputs)| {
        let file = |input: &Input| {
            let aligned = input.aligned.as_deref().map(describe).unwrap_or_default();
            format!("{}\n{aligned}", describe(input))
        };
        let files: Vec<String> = source.inputs.iter().map(file).collect();
        let works = files.iter().map(|file| Work::new(plan, &source.name, file)).collect();
        let inputs = InputDigests::new(before, files.into_iter());
        if spans_sources {
            before = inputs.all();
        }
        let (signature_words, has_exact) = (cleaner.signature_words(number), cleaner.has_exact(number));
        SourceInPlan { name: source.name.clone(), inputs, works, signature_words, has_exact }
    };
    sources.iter().enumerate().map(in_plan).collect()
}
