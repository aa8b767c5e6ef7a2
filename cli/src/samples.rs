//! `polo samples`: the documents that a step is trained on, by calculation from recipe and corpus.

use std::{collections::HashMap, fmt::Write, ops::Range};

use polo_recipe::{
    config::Recipe,
    error::RecipeError,
    ids::Step,
    plan::{Plan, SampleRef},
};
use polo_store::{
    Digest, Store, StoreError,
    corpus::{CorpusManifest, ManifestError, ShardEntry, Source},
    indexed::{Index, IndexedError, TokenType},
};
use serde::Serialize;
use tokenizers::Tokenizer;

use crate::stored_run::{RunArgs, StoredRun};

const HELP: &str = "\
Step K is the one that starts from the state after K steps and makes that of K + 1, as in the messages about numbers
that are not finite; the first is 0. A sample has one token more than seq_len: the last is only predicted.

Examples:
  polo samples recipe.toml --step 1234 --text";

/// Prints the documents that a step is trained on
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// The run, which need not have begun.
    #[command(flatten)]
    pub run: RunArgs,
    /// The step, from 0
    #[arg(long, value_name = "K")]
    pub step: u64,
    /// Prints each document's part as text too; needs the recipe's corpus.tokenizer
    #[arg(long)]
    pub text: bool,
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
}

/// Why a step's samples cannot be printed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum Error {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Index(#[from] IndexedError),
    #[error("there is no step {step}; the recipe has the steps 0 to {last}")]
    NoSuchStep { step: u64, last: u64 },
    #[error("--text needs the corpus's tokenizer; set corpus.tokenizer in the recipe")]
    NoTokenizer,
    #[error("{file}: {reason}; name the tokenizer.json that the corpus was prepared with as corpus.tokenizer")]
    Tokenizer { file: String, reason: String },
}

/// What a step is trained on.
#[derive(Debug, Serialize)]
struct StepSamples {
    step: u64,
    stage: String,
    step_in_stage: u64,
    slots: Vec<SlotSamples>,
}

#[derive(Debug, Serialize)]
struct SlotSamples {
    slot: usize,
    samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
struct Sample {
    source: String,
    epoch: u64,
    window: u64,
    /// In the source's stream.
    tokens: Range<u64>,
    documents: Vec<Part>,
}

/// The part of a document that is in a sample.
#[derive(Debug, Serialize)]
struct Part {
    /// Key of the shard's token file.
    shard: String,
    /// Number of the document within the shard.
    document: u64,
    /// In the document.
    tokens: Range<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// `polo samples`. `recipe` is the one that `args` names, if it names one.
pub async fn run(args: Args, recipe: Option<Recipe>) -> Result<(), Error> {
    let recipe = match recipe {
        Some(recipe) => recipe,
        None => StoredRun::open(args.run.store.as_deref().unwrap_or_default()).await?.recipe,
    };
    let store = Store::open(&recipe.corpus.url)?;
    let manifest = CorpusManifest::load(&store).await?;
    let plan = manifest.plan(&recipe)?;
    let tokenizer = if args.text { Some(tokenizer(&recipe, &manifest)?) } else { None };
    let mut reader = Reader { store, manifest, tokenizer, shards: HashMap::new() };
    let samples = step_samples(&recipe, &plan, args.step, &mut reader).await?;
    match serde_json::to_string_pretty(&samples) {
        Ok(json) if args.json => println!("{json}"),
        _ => print!("{}", samples.to_text()),
    }
    Ok(())
}

fn tokenizer(recipe: &Recipe, manifest: &CorpusManifest) -> Result<Tokenizer, Error> {
    let file = recipe.corpus.tokenizer.clone().ok_or(Error::NoTokenizer)?;
    let failed = |reason: String| Error::Tokenizer { file: file.clone(), reason };
    let bytes = std::fs::read(&file).map_err(|error| failed(error.to_string()))?;
    let (found, expected) = (Digest::of(&bytes), manifest.tokenizer_digest);
    if found != expected {
        return Err(failed(format!("its digest is {found}, and the corpus was prepared with {expected}")));
    }
    Tokenizer::from_bytes(&bytes).map_err(|error| failed(error.to_string()))
}

async fn step_samples(recipe: &Recipe, plan: &Plan, step: u64, reader: &mut Reader) -> Result<StepSamples, Error> {
    if step >= plan.num_steps() {
        return Err(Error::NoSuchStep { step, last: plan.num_steps().saturating_sub(1) });
    }
    let mut slots = Vec::new();
    for slot in 0..recipe.batch.slots {
        let mut samples = Vec::new();
        for sample in plan.samples(Step(step), plan.slot_samples(slot)) {
            let source = &plan.sources()[sample.source.0 as usize];
            samples.push(reader.sample(source, sample, recipe.batch.seq_len as u64).await?);
        }
        slots.push(SlotSamples { slot, samples });
    }
    let stage = plan.stage_at(Step(step));
    Ok(StepSamples { step, stage: stage.name.into(), step_in_stage: stage.step_in_stage, slots })
}

/// Looks documents up, and reads each index once.
struct Reader {
    store: Store,
    manifest: CorpusManifest,
    tokenizer: Option<Tokenizer>,
    /// By key of the index.
    shards: HashMap<String, (Vec<u64>, TokenType)>,
}

impl Reader {
    async fn sample(&mut self, source: &str, sample: SampleRef, seq_len: u64) -> Result<Sample, Error> {
        let start = sample.window * seq_len;
        let tokens = start..start + seq_len + 1;
        let mut documents = Vec::new();
        // The plan was made from this manifest, so it has the source.
        for (entry, range) in self.manifest.source(source).map(|source| shards_of(source, &tokens)).unwrap_or_default()
        {
            documents.extend(self.parts(&entry, range).await?);
        }
        Ok(Sample { source: source.into(), epoch: sample.epoch, window: sample.window, tokens, documents })
    }

    /// The documents that have tokens in a range of a shard's stream.
    async fn parts(&mut self, entry: &ShardEntry, range: Range<u64>) -> Result<Vec<Part>, Error> {
        let (bounds, kind) = self.index(entry).await?;
        let overlaps = overlapping(&bounds, &range);
        let mut parts = Vec::new();
        for (document, part) in overlaps {
            let begin = bounds[document];
            let text = self.text(entry, kind, part.clone()).await?;
            let tokens = part.start - begin..part.end - begin;
            parts.push(Part { shard: entry.bin_key.clone(), document: document as u64, tokens, text });
        }
        Ok(parts)
    }

    /// Where documents begin in a shard, and how its ids are stored.
    async fn index(&mut self, entry: &ShardEntry) -> Result<(Vec<u64>, TokenType), Error> {
        if let Some(known) = self.shards.get(&entry.idx_key) {
            return Ok(known.clone());
        }
        let (url, bytes) = (self.store.url_of(&entry.idx_key), self.store.get(&entry.idx_key).await?);
        let found = Digest::of(&bytes);
        if found != entry.idx_digest {
            return Err(StoreError::damaged(url, format!("its content has the digest {found}")).into());
        }
        let index = Index::parse(&url, &bytes)?;
        let known = (index.document_token_bounds(), index.token_type());
        self.shards.insert(entry.idx_key.clone(), known.clone());
        Ok(known)
    }

    /// Tokens of a shard as text, if there is a tokenizer.
    async fn text(&self, entry: &ShardEntry, kind: TokenType, range: Range<u64>) -> Result<Option<String>, Error> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(None) };
        let width = kind.num_bytes();
        let bytes = self.store.get_range(&entry.bin_key, range.start * width..range.end * width).await?;
        let ids: Vec<u32> = match kind {
            TokenType::Int32 => bytes.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect(),
            TokenType::Uint16 => bytes.as_chunks().0.iter().map(|id| u16::from_le_bytes(*id).into()).collect(),
        };
        let failed = |reason: String| Error::Tokenizer { file: self.store.url_of(&entry.bin_key), reason };
        tokenizer.decode(&ids, false).map(Some).map_err(|error| failed(error.to_string()))
    }
}

/// The shards that hold a range of a source's stream, and which of their own tokens that is.
fn shards_of(source: &Source, tokens: &Range<u64>) -> Vec<(ShardEntry, Range<u64>)> {
    let mut begin = 0;
    let part = |entry: &ShardEntry| {
        let stream = begin..begin + entry.num_tokens;
        begin = stream.end;
        let range = tokens.start.max(stream.start)..tokens.end.min(stream.end);
        (range.start < range.end).then(|| (entry.clone(), range.start - stream.start..range.end - stream.start))
    };
    source.shards.iter().filter_map(part).collect()
}

/// The spans between `bounds` that have something in `range`: their numbers, and what of the range is in them.
fn overlapping(bounds: &[u64], range: &Range<u64>) -> Vec<(usize, Range<u64>)> {
    let first = bounds.partition_point(|bound| *bound <= range.start).saturating_sub(1);
    let spans = bounds[first..].windows(2).enumerate().take_while(|(_, span)| span[0] < range.end);
    let part = |(number, span): (usize, &[u64])| (first + number, range.start.max(span[0])..range.end.min(span[1]));
    spans.map(part).filter(|(_, part)| !part.is_empty()).collect()
}

impl StepSamples {
    fn to_text(&self) -> String {
        let mut text = format!("step {} (stage {}, its step {})\n", self.step, self.stage, self.step_in_stage);
        for SlotSamples { slot, samples } in &self.slots {
            for sample in samples {
                let Sample { source, epoch, window, tokens, documents } = sample;
                let repeated = if *epoch > 0 { format!(" of epoch {epoch}") } else { String::new() };
                let Range { start, end } = tokens;
                // Writing to a string cannot fail.
                let _ = writeln!(text, "slot {slot}: {source} window {window}{repeated}: tokens {start}..{end}");
                for part in documents {
                    let Range { start, end } = part.tokens;
                    let _ = writeln!(text, "  {} document {}: tokens {start}..{end}", part.shard, part.document);
                    text.extend(part.text.iter().map(|words| format!("    {words:?}\n")));
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_where_documents_end_and_empty_documents_have_no_part() {
        let bounds = [0, 10, 10, 25, 30];
        assert_eq!(overlapping(&bounds, &(5..26)), [(0, 5..10), (2, 10..25), (3, 25..26)]);
        assert_eq!(overlapping(&bounds, &(10..11)), [(2, 10..11)]);
        assert_eq!(overlapping(&bounds, &(29..30)), [(3, 29..30)]);
    }
}
