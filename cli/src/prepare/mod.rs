//! `polo prepare`: raw text in object storage -> token shards and a manifest.
//!
//! The listing is assigned to sources ([`inputs`]), files are cut into batches of whole records ([`documents`]), batches
//! are encoded in parallel ([`pipeline`]), and the results, taken in order, become shards ([`output`]). The corpus is
//! the same to the byte for any number of jobs.

mod documents;
mod encode;
mod error;
mod inputs;
mod object_reader;
mod output;
mod pipeline;
mod progress;

use std::{
    io::{self, Read},
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use polo_store::{
    Store, StoreError,
    corpus::{CorpusManifest, FORMAT_VERSION, MANIFEST_KEY, Source},
};
use tokio::runtime::Handle;

use documents::{Batch, Batches, Records, decompress};
use encode::Encoder;
pub use error::PrepareError;
use inputs::{Format, Input, SourceInputs, SourceLanguage, SourceRule};
use object_reader::ObjectReader;
use output::SourceWriter;
use progress::Progress;

/// Turn raw text in object storage into a corpus of token shards.
#[derive(Debug, Clone, clap::Args)]
pub struct PrepareArgs {
    /// Where the raw text lies: a folder, file:// or s3:// address. Read are .jsonl, .ndjson, .json (a JSON object per
    /// line) and .txt files, also with .gz or .zst
    #[arg(long, value_name = "URL")]
    input: String,
    /// Where to write the corpus
    #[arg(long, value_name = "URL")]
    output: String,
    /// The tokenizer.json to encode with; it must have an <|endoftext|> token
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// A source and the objects it is made of; `*` stands for anything but `/`, `**` for anything, and a folder for all
    /// in it. Repeatable. Without it, each top-level folder or file is a source
    #[arg(long = "source", value_name = "NAME=PATTERN[,PATTERN...]")]
    sources: Vec<SourceRule>,
    /// The language of a source, as a BCP 47 tag. Repeatable
    #[arg(long = "language", value_name = "NAME=TAG")]
    languages: Vec<SourceLanguage>,
    /// Read all objects in this format, whatever their names say
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
    /// The field of a JSON line that holds the text
    #[arg(long, value_name = "FIELD", default_value = "text")]
    text_field: String,
    /// What one document of plain text is
    #[arg(long, value_enum, default_value_t = TextDocuments::File)]
    text_documents: TextDocuments,
    /// Threads that encode [default: one per core]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Close a shard after the document that fills it to this many tokens of 4 bytes
    #[arg(long, value_name = "N", default_value = "16777216")]
    shard_tokens: NonZeroU64,
    /// What to do about text that is not UTF-8, invalid JSON, a missing field and files that cannot be decompressed
    #[arg(long, value_enum, default_value_t = OnError::Fail)]
    on_error: OnError,
    /// Replace a corpus that is there already
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FormatArg {
    /// One JSON object per line
    Jsonl,
    /// Plain text
    Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TextDocuments {
    /// The whole file
    File,
    /// What lies between blank lines
    Paragraph,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnError {
    /// Stop and write no manifest
    Fail,
    /// Leave it out and count it
    Skip,
}

/// Runs `polo prepare`: progress and a table to stderr, one JSON line about the corpus to stdout.
pub async fn run(args: PrepareArgs) -> Result<(), PrepareError> {
    let (input, output) = (Store::open(&args.input)?, Store::open(&args.output)?);
    if !args.force && output.exists(MANIFEST_KEY).await? {
        return Err(PrepareError::OutputExists { output: output.url().to_owned() });
    }
    let sources = assign_inputs(&args, &input).await?;
    let encoder = Encoder::from_file(&args.tokenizer)?;
    let force = args.force;
    let manifest = {
        let (output, runtime) = (output.clone(), Handle::current());
        let work = move || Preparation { args, input, output, encoder, runtime }.write_shards(&sources);
        tokio::task::spawn_blocking(work).await.map_err(|_| PrepareError::ThreadLost)??
    };
    output::store_manifest(&output, &manifest, force).await?;
    println!(
        "{}",
        serde_json::json!({
            "corpus": output.url(),
            "corpus_digest": manifest.digest(),
            "num_tokens": manifest.sources.iter().map(|source| source.num_tokens).sum::<u64>(),
            "num_documents": manifest.sources.iter().map(|source| source.num_documents).sum::<u64>(),
        })
    );
    Ok(())
}

async fn assign_inputs(args: &PrepareArgs, input: &Store) -> Result<Vec<SourceInputs>, PrepareError> {
    let entries = input.list("").await?;
    if entries.is_empty() {
        return Err(PrepareError::EmptyInput { input: input.url().to_owned() });
    }
    let format = args.format.map(|format| match format {
        FormatArg::Jsonl => Format::Jsonl,
        FormatArg::Text => Format::Text,
    });
    let sources = inputs::assign(&entries, &args.sources, format)?;
    let unknown = |language: &&SourceLanguage| !sources.iter().any(|source| source.name == language.name);
    if let Some(SourceLanguage { name, .. }) = args.languages.iter().find(unknown) {
        return Err(PrepareError::UnknownLanguageSource { name: name.clone() });
    }
    Ok(sources)
}

/// What the blocking part of the work needs.
struct Preparation {
    args: PrepareArgs,
    input: Store,
    output: Store,
    encoder: Encoder,
    runtime: Handle,
}

impl Preparation {
    /// Reads, encodes and stores everything but the manifest, which it returns.
    fn write_shards(&self, sources: &[SourceInputs]) -> Result<CorpusManifest, PrepareError> {
        let num_jobs = self.args.jobs.or(std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        let mut progress = Progress::new(sources.iter().flat_map(|source| &source.inputs).map(|i| i.num_bytes).sum());
        let mut writers: Vec<_> = sources.iter().map(|source| self.writer(source)).collect();
        let mut current = 0;
        let batches = self.batches(sources, progress.num_bytes_read());
        pipeline::encode_all(&self.encoder, num_jobs, batches, |source, outcome| {
            if source != current {
                writers[current].close_shard()?; // no more of it: sources come one after another
                current = source;
            }
            match outcome {
                Ok(encoded) => {
                    progress.add(&encoded);
                    writers[source].push(&encoded)?;
                    encoded.faults.into_iter().try_for_each(|fault| self.judge(fault, &mut progress))
                }
                Err(fault) => self.judge(fault, &mut progress),
            }
        })?;
        let entries: Vec<Source> = writers.into_iter().map(SourceWriter::finish).collect::<Result<_, _>>()?;
        check_none_empty(&entries, sources)?;
        progress.finish(&entries);
        Ok(self.manifest(entries))
    }

    fn writer(&self, source: &SourceInputs) -> SourceWriter {
        let named = |language: &&SourceLanguage| language.name == source.name;
        let language = self.args.languages.iter().find(named).map(|language| language.language.clone());
        let (runtime, output) = (self.runtime.clone(), self.output.clone());
        SourceWriter::new(runtime, output, self.args.shard_tokens.get(), source.name.clone(), language)
    }

    /// All batches of all files, each with the number of its source; files are opened when their turn comes.
    fn batches<'a>(
        &'a self,
        sources: &'a [SourceInputs],
        num_bytes_read: Arc<AtomicU64>,
    ) -> impl Iterator<Item = (usize, Result<Batch, PrepareError>)> + Send + use<'a> {
        let files = sources
            .iter()
            .enumerate()
            .flat_map(|(number, source)| source.inputs.iter().map(move |file| (number, file)));
        files.flat_map(move |(number, file)| {
            let opened = self.open(file, Arc::clone(&num_bytes_read));
            let (batches, failure) = match opened {
                Ok(batches) => (Some(batches), None),
                Err(error) => (None, Some(Err(error))),
            };
            let batches = batches.into_iter().flatten().chain(failure);
            batches.map(move |batch| (number, batch.map_err(|error| read_error(&file.key, error))))
        })
    }

    fn open(&self, file: &Input, num_bytes_read: Arc<AtomicU64>) -> io::Result<Batches<Box<dyn Read + Send>>> {
        let stream =
            ObjectReader::new(self.runtime.clone(), self.input.clone(), &file.key, file.num_bytes, num_bytes_read);
        let paragraphs = self.args.text_documents == TextDocuments::Paragraph;
        let records = Records::of(file.format, &self.args.text_field, paragraphs);
        Ok(Batches::new(&file.key, records, decompress(stream, file.compression)?))
    }

    /// Lets a fault pass where the user wants that, counted and shown.
    fn judge(&self, fault: PrepareError, progress: &mut Progress) -> Result<(), PrepareError> {
        if self.args.on_error == OnError::Skip && fault.is_bad_input() {
            progress.skip(&fault);
            return Ok(());
        }
        Err(fault)
    }

    fn manifest(&self, sources: Vec<Source>) -> CorpusManifest {
        let Encoder { digest, vocab_size, eos_id, .. } = self.encoder;
        CorpusManifest { format_version: FORMAT_VERSION, tokenizer_digest: digest, vocab_size, eos_id, sources }
    }
}

fn check_none_empty(entries: &[Source], sources: &[SourceInputs]) -> Result<(), PrepareError> {
    match entries.iter().zip(sources).find(|(entry, _)| entry.num_tokens == 0) {
        Some((entry, source)) => {
            Err(PrepareError::EmptySource { name: entry.name.clone(), num_inputs: source.inputs.len() })
        }
        None => Ok(()),
    }
}

/// A failure while reading `key`: the store's own, or that of its contents.
fn read_error(key: &str, error: io::Error) -> PrepareError {
    match error.downcast::<StoreError>() {
        Ok(error) => PrepareError::Store(error),
        Err(source) => PrepareError::Unreadable { key: key.to_owned(), source },
    }
}
