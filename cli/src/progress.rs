//! What a run says while it goes on: a line for each step, a line for each event, a table at the end.

use std::collections::BTreeMap;

use polo_coordinator::{News, machine::Notice};
use polo_proto::v1::StepSummary;
use tokio::sync::mpsc;

use crate::talk::say;

/// Steps at either end of the run over which the table's losses are averaged.
const TABLE_STEPS: usize = 10;

/// Mean losses of one source, step by step.
#[derive(Debug, Default)]
struct SourceHistory {
    num_tokens: u64,
    /// Summed loss and tokens of each step that had samples of the source.
    steps: Vec<(f64, u64)>,
}

/// Follows a run.
#[derive(Debug)]
pub struct Progress {
    log_every: u64,
    sources: BTreeMap<String, SourceHistory>,
    last_loss: Option<f64>,
    num_incidents: usize,
}

impl Progress {
    /// Prints a step's line every `log_every` steps.
    pub fn new(log_every: u64) -> Self {
        Self { log_every, sources: BTreeMap::new(), last_loss: None, num_incidents: 0 }
    }

    /// Prints news until there are no more.
    pub async fn follow(mut self, mut news: mpsc::UnboundedReceiver<News>) -> Self {
        while let Some(news) = news.recv().await {
            match news {
                News::Notice(notice) => {
                    self.num_incidents += usize::from(matches!(notice, Notice::Interrupted(..)));
                    say(notice);
                }
                News::Step(step) => self.take_step(step),
            }
        }
        self
    }

    fn take_step(&mut self, step: StepSummary) {
        self.last_loss = Some(step.loss);
        for source in &step.sources {
            let history = self.sources.entry(source.source.clone()).or_default();
            history.num_tokens += source.num_tokens;
            history.steps.push((source.loss * source.num_tokens as f64, source.num_tokens));
        }
        if step.step.is_multiple_of(self.log_every) {
            say(line(&step));
        }
    }

    /// Loss of the last step.
    pub fn last_loss(&self) -> Option<f64> {
        self.last_loss
    }

    /// Interruptions so far.
    pub fn num_incidents(&self) -> usize {
        self.num_incidents
    }

    /// Prints each source's loss at the beginning and at the end of what was seen here.
    pub fn print_table(&self) {
        if self.sources.is_empty() {
            return;
        }
        say(format_args!("{:<16} {:>12} {:>10} {:>10}", "source", "tokens", "loss first", "loss last"));
        for (name, history) in &self.sources {
            let n = TABLE_STEPS.min(history.steps.len().div_ceil(2));
            let first = mean(&history.steps[..n]);
            let last = mean(&history.steps[history.steps.len() - n..]);
            say(format_args!("{name:<16} {:>12} {first:>10.3} {last:>10.3}", history.num_tokens));
        }
    }
}

fn mean(steps: &[(f64, u64)]) -> f64 {
    let (loss, num_tokens) = steps.iter().fold((0.0, 0), |(l, n), (loss, num)| (l + loss, n + num));
    loss / num_tokens as f64
}

/// A step in one line.
pub fn line(step: &StepSummary) -> String {
    let sources: Vec<_> = step.sources.iter().map(|s| format!("{} {:.2}", s.source, s.loss)).collect();
    let eta = format!("{}:{:02}:{:02}", step.eta_seconds / 3600, step.eta_seconds / 60 % 60, step.eta_seconds % 60);
    let workers = if step.num_workers == 1 { "1 worker".into() } else { format!("{} workers", step.num_workers) };
    let sent = step.sent_bytes as f64 / 1e6;
    let skipped = if step.skipped { "  skipped" } else { "" };
    format!(
        "step {:>5} {}  loss {:.4} ({})  lr {:.2e}  grad norm {:.3}  {:.0} tokens/s  {workers}  sent {sent:.1} MB  eta {eta}{skipped}",
        step.step,
        step.stage,
        step.loss,
        sources.join(", "),
        step.learning_rate,
        step.grad_norm,
        step.tokens_per_second,
    )
}
