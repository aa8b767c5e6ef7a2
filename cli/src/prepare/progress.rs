//! What people see while a corpus is prepared, and the table at its end. All of it goes to stderr.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{encode::Encoded, error::PrepareError};
use polo_store::corpus::Source;

/// Faults shown one by one before they are only counted.
const MAX_FAULTS_SHOWN: u64 = 10;

/// The progress bar and the counts behind it.
pub struct Progress {
    bar: ProgressBar,
    start: Instant,
    num_bytes_read: Arc<AtomicU64>,
    num_bytes_text: u64,
    num_tokens: u64,
    num_faults: u64,
    num_empty: u64,
}

impl Progress {
    /// A bar over `num_bytes` of stored input; nothing is drawn where stderr is no terminal.
    pub fn new(num_bytes: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(num_bytes), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}  {msg}  ETA {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let num_bytes_read = Arc::default();
        Self {
            bar,
            start: Instant::now(),
            num_bytes_read,
            num_bytes_text: 0,
            num_tokens: 0,
            num_faults: 0,
            num_empty: 0,
        }
    }

    /// Where readers add the stored bytes they have taken.
    pub fn num_bytes_read(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.num_bytes_read)
    }

    /// Counts what was encoded.
    pub fn add(&mut self, encoded: &Encoded) {
        self.num_bytes_text += encoded.num_bytes_text;
        self.num_tokens += encoded.ids.len() as u64;
        self.num_empty += encoded.num_empty;
        let seconds = self.start.elapsed().as_secs_f64().max(1e-3);
        self.bar.set_position(self.num_bytes_read.load(Ordering::Relaxed));
        self.bar.set_message(format!(
            "{:.1} MB/s of text, {:.0} tokens/s",
            self.num_bytes_text as f64 / 1e6 / seconds,
            self.num_tokens as f64 / seconds
        ));
    }

    /// Tells of something left out.
    pub fn skip(&mut self, fault: &PrepareError) {
        self.num_faults += 1;
        if self.num_faults <= MAX_FAULTS_SHOWN {
            self.bar.suspend(|| eprintln!("skipped: {fault}"));
        }
    }

    /// Ends the bar and prints the table of sources.
    pub fn finish(&self, sources: &[Source]) {
        self.bar.finish_and_clear();
        eprint!("{}", table(sources));
        if self.num_faults + self.num_empty > 0 {
            eprintln!("left out: {} faulty, {} empty documents", self.num_faults, self.num_empty);
        }
        let seconds = self.start.elapsed().as_secs_f64().max(1e-3);
        let megabytes_per_s = self.num_bytes_text as f64 / 1e6 / seconds;
        eprintln!("{} tokens in {seconds:.1} s ({megabytes_per_s:.1} MB/s of text)", self.num_tokens);
    }
}

fn table(sources: &[Source]) -> String {
    let width = sources.iter().map(|source| source.name.len()).max().unwrap_or(0).max("source".len());
    let mut lines = format!("{:width$}  documents        tokens   bytes of text  bytes/token  shards\n", "source");
    for Source { name, num_documents, num_tokens, num_bytes_text, shards, .. } in sources {
        let bytes_per_token = *num_bytes_text as f64 / *num_tokens as f64;
        lines += &format!(
            "{name:width$}  {num_documents:>9}  {num_tokens:>12}  {num_bytes_text:>14}  {bytes_per_token:>11.2}  {:>6}\n",
            shards.len()
        );
    }
    lines
}
