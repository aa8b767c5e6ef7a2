//! What people see while a corpus is prepared, and the table at its end. All of it goes to stderr.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{error::PrepareError, journal::Finished, stages::Encoded};
use polo_store::corpus::Source;

/// Faults shown one by one before they are only counted.
const MAX_FAULTS_SHOWN: u64 = 10;

/// Without a terminal, a line is written this often.
pub const LINE_EVERY: Duration = Duration::from_secs(30);

/// Where people are told things, whoever tells them.
#[derive(Clone)]
pub struct Screen(ProgressBar);

impl Screen {
    /// Writes a line.
    pub fn say(&self, words: &str) {
        self.0.suspend(|| eprintln!("{words}"));
    }

    /// Shows where the helpers stand.
    pub fn set_helpers(&self, words: String) {
        self.0.set_prefix(words);
    }

    /// Whether there is no terminal, so that only lines are seen.
    pub fn is_hidden(&self) -> bool {
        self.0.is_hidden()
    }
}

/// The progress display and the counts behind it.
pub struct Progress {
    bar: ProgressBar,
    start: Instant,
    last_line: Instant,
    num_bytes_left: u64,
    num_bytes_read: Arc<AtomicU64>,
    num_bytes_text: u64,
    num_tokens: u64,
    num_faults: u64,
}

impl Progress {
    /// A display over `num_bytes` of stored input, after the shards and the results of `num_results` files that are there
    /// already: a bar, or where stderr is no terminal a line now and then.
    pub fn new(num_bytes: u64, finished: &[Finished], num_results: usize) -> Self {
        let num_shards: usize = finished.iter().map(|finished| finished.records.len()).sum();
        if num_shards > 0 {
            eprintln!("going on after {num_shards} finished shards");
        }
        if num_results > 0 {
            eprintln!("{num_results} files were prepared ahead of their turn before");
        }
        let bar = ProgressBar::with_draw_target(Some(num_bytes), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}  {msg}  ETA {eta}  {prefix}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let (start, num_bytes_read) = (Instant::now(), Arc::default());
        let last_line = start;
        Self {
            bar,
            start,
            last_line,
            num_bytes_left: num_bytes,
            num_bytes_read,
            num_bytes_text: 0,
            num_tokens: 0,
            num_faults: 0,
        }
    }

    /// Where others tell people things.
    pub fn screen(&self) -> Screen {
        Screen(self.bar.clone())
    }

    /// Where readers add the stored bytes they have taken.
    pub fn num_bytes_read(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.num_bytes_read)
    }

    /// Counts what was encoded.
    pub fn add(&mut self, encoded: &Encoded) {
        self.num_bytes_text += encoded.outcomes.iter().flatten().map(|kept| kept.num_bytes_text).sum::<u64>();
        self.num_tokens += encoded.ids.len() as u64;
        self.bar.set_position(self.num_bytes_read.load(Ordering::Relaxed));
        self.bar.set_message(self.speed());
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let read = self.bar.position() as f64 / self.num_bytes_left.max(1) as f64;
            let left_s = self.start.elapsed().as_secs_f64() * (1.0 / read.max(1e-9) - 1.0).max(0.0);
            let helpers = self.bar.prefix();
            let helpers = if helpers.is_empty() { helpers } else { format!("; {helpers}") };
            eprintln!("{:.1} % of the input, {}, ETA {left_s:.0} s{helpers}", 100.0 * read, self.speed());
        }
    }

    fn speed(&self) -> String {
        let seconds = self.start.elapsed().as_secs_f64().max(1e-3);
        let (megabytes, tokens) = (self.num_bytes_text as f64 / 1e6 / seconds, self.num_tokens as f64 / seconds);
        format!("{megabytes:.1} MB/s of text, {tokens:.0} tokens/s")
    }

    /// Tells of something left out.
    pub fn skip(&mut self, fault: &PrepareError) {
        self.num_faults += 1;
        if self.num_faults <= MAX_FAULTS_SHOWN {
            self.bar.suspend(|| eprintln!("skipped: {fault}"));
        }
    }

    /// Ends the display and prints the tables of sources and of what was left out of them.
    pub fn finish(&self, sources: &[Source]) {
        self.bar.finish_and_clear();
        eprint!("{}{}", table(sources), table_of_dropped(sources));
        let seconds = self.start.elapsed().as_secs_f64();
        eprintln!("{} tokens in {seconds:.1} s ({})", self.num_tokens, self.speed());
    }
}

fn width_of_names(sources: &[Source]) -> usize {
    sources.iter().map(|source| source.name.len()).max().unwrap_or(0).max("source".len())
}

/// What was left out of each source: a line for each reason, in shares of the documents read.
fn table_of_dropped(sources: &[Source]) -> String {
    let width = width_of_names(sources);
    let mut lines = String::new();
    for source in sources {
        let Some(intake) = &source.intake else { continue };
        for (reason, dropped) in &intake.dropped {
            let share = 100.0 * dropped.num_documents as f64 / intake.num_documents.max(1) as f64;
            lines += &format!(
                "{:width$}  {reason:20}  {:>9}  {share:>7.2} %  {:>14}\n",
                source.name, dropped.num_documents, dropped.num_bytes_text
            );
        }
    }
    if lines.is_empty() {
        return lines;
    }
    format!("\n{:width$}  left out              documents  of those read  bytes of text\n{lines}\n", "source")
}

fn table(sources: &[Source]) -> String {
    let width = width_of_names(sources);
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
