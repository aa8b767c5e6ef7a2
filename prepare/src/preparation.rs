//! The blocking part of a preparation: from assigned inputs to stored shards.

use std::num::NonZeroUsize;

use polo_store::{
    Store,
    corpus::{CorpusManifest, FORMAT_VERSION, Source},
};
use tokio::runtime::Handle;

use crate::{
    PrepareArgs,
    args::{OnError, PairDirection, TextDocuments},
    cleaning::Cleaner,
    encode::Encoder,
    error::PrepareError,
    inputs::SourceInputs,
    journal::{Finished, Journal, Position, SourceInPlan},
    language_of,
    languages::language,
    output::{Destination, SourceWriter},
    pairs::{PairFilters, PairFormat, Pairs},
    pipeline::{self, Stages},
    progress::Progress,
    reading::Reading,
    stages::{Deduplication, Encoded, encode, examine},
};

/// What the blocking part of the work needs.
pub struct Preparation {
    /// The command line.
    pub args: PrepareArgs,
    /// Where raw text lies.
    pub input: Store,
    /// Where the corpus goes.
    pub output: Store,
    /// What is done already, and where to write more of it down.
    pub journal: Journal,
    /// The tokenizer.
    pub encoder: Encoder,
    /// Judges documents.
    pub cleaner: Cleaner,
    /// Judge pairs.
    pub filters: PairFilters,
}

impl Preparation {
    /// Reads, encodes and stores everything that `finished` lacks, and gives the manifest.
    pub fn write_shards(
        &self,
        sources: &[SourceInputs],
        in_plan: &[SourceInPlan],
        finished: Vec<Finished>,
    ) -> Result<CorpusManifest, PrepareError> {
        let num_jobs = self.args.jobs.or(std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
        let positions: Vec<Position> = finished.iter().map(Finished::next).collect();
        let mut progress = Progress::new(num_bytes_left(sources, &positions), &finished);
        let mut writers: Vec<_> =
            in_plan.iter().zip(&finished).map(|(source, finished)| self.writer(source, finished)).collect();
        let reading = self.reading(sources, &progress);

        let names = sources.iter().map(|source| source.name.clone()).collect();
        let signatures = finished.into_iter().map(|finished| finished.signatures).collect();
        let mut deduplication = Deduplication::new(&self.cleaner, names, signatures, self.args.max_index_bytes);
        let stages = Stages {
            examine: &|read| examine(&self.cleaner, &self.encoder, self.args.max_document_bytes.get(), read),
            decide: &mut |batch| deduplication.decide(batch),
            encode: &|batch| encode(&self.encoder, batch),
        };
        let mut current = 0;
        pipeline::run(num_jobs, reading.batches(sources, &positions), stages, |mut encoded: Encoded| {
            let source = encoded.origin.source;
            if source != current {
                writers[current].end()?; // no more of it: sources come one after another
                current = source;
            }
            if let Some(error) = encoded.error.take() {
                return Err(error);
            }
            self.stop_at_faults(&mut encoded, &mut progress)?;
            progress.add(&encoded);
            writers[source].push(&encoded)
        })?;
        let with_intake = self.args.cleaning.is_some();
        let entries: Vec<Source> = writers.into_iter().map(|w| w.finish(with_intake)).collect::<Result<_, _>>()?;
        check_none_empty(&entries, sources)?;
        progress.finish(&entries);
        Ok(self.manifest(entries))
    }

    /// Lets faults pass where the user wants that, and shows them.
    fn stop_at_faults(&self, encoded: &mut Encoded, progress: &mut Progress) -> Result<(), PrepareError> {
        for rejected in encoded.outcomes.iter_mut().filter_map(|outcome| outcome.as_mut().err()) {
            let Some(fault) = rejected.fault.take() else { continue };
            if self.args.on_error == OnError::Fail || fault.reason().is_none() {
                return Err(*fault);
            }
            progress.skip(&fault);
        }
        Ok(())
    }

    fn writer(&self, source: &SourceInPlan, finished: &Finished) -> SourceWriter {
        let to = Destination {
            runtime: Handle::current(),
            store: self.output.clone(),
            journal: self.journal.clone(),
            shard_tokens: self.args.shard_tokens.get(),
        };
        let language = language_of(&self.args, &source.name);
        SourceWriter::new(to, source.name.clone(), language, source.inputs.clone(), finished)
    }

    fn reading(&self, sources: &[SourceInputs], progress: &Progress) -> Reading {
        Reading {
            runtime: Handle::current(),
            store: self.input.clone(),
            num_bytes_read: progress.num_bytes_read(),
            text_column: self.args.text_column.clone(),
            text_is_paragraphs: self.args.text_documents == TextDocuments::Paragraph,
            max_document_bytes: self.args.max_document_bytes.get(),
            pairs: sources.iter().map(|source| self.pairs(&source.name)).collect(),
        }
    }

    fn pairs(&self, source: &str) -> Option<Pairs> {
        let pairs = self.args.pairs.iter().find(|pairs| pairs.name == source)?;
        Some(Pairs {
            format: PairFormat::Tsv, // each file's own when its turn comes
            languages: (language(&pairs.src)?, language(&pairs.tgt)?),
            codes: (pairs.src.clone(), pairs.tgt.clone()),
            seed: self.args.pair_seed,
            either_direction: self.args.pair_direction == PairDirection::Either,
            per_document: self.args.pairs_per_document.get(),
            filters: self.filters.clone(),
        })
    }

    fn manifest(&self, sources: Vec<Source>) -> CorpusManifest {
        let Encoder { digest, vocab_size, eos_id, .. } = self.encoder;
        CorpusManifest { format_version: FORMAT_VERSION, tokenizer_digest: digest, vocab_size, eos_id, sources }
    }
}

/// Stored bytes of the files that are not done.
fn num_bytes_left(sources: &[SourceInputs], positions: &[Position]) -> u64 {
    let left = |(source, position): (&SourceInputs, &Position)| -> u64 {
        source.inputs.iter().skip(position.file).map(|input| input.total_bytes()).sum()
    };
    sources.iter().zip(positions).map(left).sum()
}

fn check_none_empty(entries: &[Source], sources: &[SourceInputs]) -> Result<(), PrepareError> {
    let Some((entry, source)) = entries.iter().zip(sources).find(|(entry, _)| entry.num_tokens == 0) else {
        return Ok(());
    };
    let dropped = entry.intake.iter().flat_map(|intake| &intake.dropped);
    let counts: Vec<_> = dropped.map(|(reason, dropped)| format!("{} {reason}", dropped.num_documents)).collect();
    let what_was_dropped =
        if counts.is_empty() { String::new() } else { format!(" (left out: {})", counts.join(", ")) };
    Err(PrepareError::EmptySource { name: entry.name.clone(), num_inputs: source.inputs.len(), what_was_dropped })
}
