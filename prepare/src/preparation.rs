//! The blocking part of a preparation: from assigned inputs to stored shards.

use std::{num::NonZeroUsize, sync::Arc};

use polo_store::{
    Store,
    corpus::{CorpusManifest, FORMAT_VERSION, Source},
};
use tokio::runtime::Handle;

use crate::{
    PrepareArgs,
    args::OnError,
    cluster::{FileInPlan, pieces::Pieces},
    encode::Encoder,
    error::PrepareError,
    journal::{Finished, Journal, Position, SourceInPlan},
    output::{Destination, SourceWriter},
    pipeline::{self, Stages},
    progress::Progress,
    reading::Supply,
    stages::{Deduplication, Encoded, encode, examine},
    tools::{Tools, language_of},
};

/// What the blocking part of the work needs.
pub struct Preparation {
    /// The command line.
    pub args: PrepareArgs,
    /// What makes documents of text.
    pub tools: Arc<Tools>,
    /// All files, in input order.
    pub files: Arc<Vec<FileInPlan>>,
    /// Where raw text lies.
    pub input: Store,
    /// Where the corpus goes.
    pub output: Store,
    /// What is done already, and where to write more of it down.
    pub journal: Journal,
    /// What files have become before their turn.
    pub pieces: Pieces,
}

impl Preparation {
    /// Reads, encodes and stores everything that `finished` lacks, each file as `supply` has it, and gives the manifest.
    pub fn write_shards(
        &self,
        in_plan: &[SourceInPlan],
        finished: Vec<Finished>,
        supply: &dyn Supply,
        mut progress: Progress,
    ) -> Result<CorpusManifest, PrepareError> {
        let positions: Vec<Position> = finished.iter().map(Finished::next).collect();
        let mut writers: Vec<_> =
            in_plan.iter().zip(&finished).map(|(source, finished)| self.writer(source, finished)).collect();
        let reading = self.tools.reading(&self.input, progress.num_bytes_read());

        let signatures = finished.into_iter().map(|finished| finished.signatures).collect();
        let cleaner = &self.tools.cleaner;
        let max_document_bytes = self.tools.options.max_document_bytes.get();
        let mut deduplication =
            Deduplication::new(cleaner, self.tools.sources.clone(), signatures, self.args.max_index_bytes);
        let stages = Stages {
            examine: &|read| examine(cleaner, &self.tools.encoder, max_document_bytes, read),
            decide: &mut |batch| deduplication.decide(batch),
            encode: &|batch| encode(&self.tools.encoder, batch),
        };
        let batches = reading.batches(&self.files, &positions, supply, &self.pieces);
        let mut current = 0;
        let mut consume = |mut encoded: Encoded| {
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
        };
        // Whoever reads may wait for a helper.
        pipeline::run(num_jobs(&self.args), batches, stages, |encoded| {
            consume(encoded).inspect_err(|_| supply.stop())
        })?;
        let with_intake = self.args.cleaning.is_some();
        let entries: Vec<Source> = writers.into_iter().map(|w| w.finish(with_intake)).collect::<Result<_, _>>()?;
        check_none_empty(&entries, in_plan)?;
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
            pieces: self.pieces.clone(),
            shard_tokens: self.tools.options.shard_tokens.get(),
        };
        SourceWriter::new(to, source.clone(), language_of(&self.tools.options, &source.name), finished)
    }

    fn manifest(&self, sources: Vec<Source>) -> CorpusManifest {
        let Encoder { digest, vocab_size, eos_id, .. } = self.tools.encoder;
        CorpusManifest { format_version: FORMAT_VERSION, tokenizer_digest: digest, vocab_size, eos_id, sources }
    }
}

/// Threads that examine and encode.
pub fn num_jobs(args: &PrepareArgs) -> usize {
    args.jobs.or(std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
}

fn check_none_empty(entries: &[Source], sources: &[SourceInPlan]) -> Result<(), PrepareError> {
    let Some((entry, source)) = entries.iter().zip(sources).find(|(entry, _)| entry.num_tokens == 0) else {
        return Ok(());
    };
    let dropped = entry.intake.iter().flat_map(|intake| &intake.dropped);
    let counts: Vec<_> = dropped.map(|(reason, dropped)| format!("{} {reason}", dropped.num_documents)).collect();
    let what_was_dropped =
        if counts.is_empty() { String::new() } else { format!(" (left out: {})", counts.join(", ")) };
    Err(PrepareError::EmptySource { name: entry.name.clone(), num_inputs: source.works.len(), what_was_dropped })
}
