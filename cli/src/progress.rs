//! What a run says while it goes on: a line for each step, a line for each event, a table at the end.

use std::collections::{BTreeMap, BTreeSet};

use polo_coordinator::{News, machine::Notice};
use polo_log::say;
use polo_proto::v1::{Evaluation, SourceValidation, Status, StepSummary};
use polo_recipe::ids::Step;
use tokio::sync::mpsc;

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
    /// How the run stood when it ended.
    ended: Status,
}

impl Progress {
    /// Prints a step's line every `log_every` steps.
    pub fn new(log_every: u64) -> Self {
        Self { log_every, sources: BTreeMap::new(), last_loss: None, num_incidents: 0, ended: Status::default() }
    }

    /// Prints news until there are no more.
    pub async fn follow(mut self, mut news: mpsc::UnboundedReceiver<News>) -> Self {
        while let Some(news) = news.recv().await {
            match news {
                News::Notice(notice) => {
                    self.num_incidents += usize::from(matches!(notice, Notice::Interrupted(..)));
                    if let Notice::Formed(generation, _) = notice {
                        polo_log::in_generation(generation, None);
                    }
                    say(notice);
                }
                News::Step(step) => self.take_step(step),
                News::Ended(status) => self.ended = *status,
            }
        }
        self
    }

    fn take_step(&mut self, step: StepSummary) {
        self.last_loss = Some(step.loss);
        polo_log::at_step(Step(step.step));
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

    /// Where each source stood on held-out samples when the run ended.
    pub fn validation(&self) -> &[SourceValidation] {
        &self.ended.validation
    }

    /// How often a watched source had become worse than allowed when the run ended.
    pub fn num_alarms(&self) -> u32 {
        self.ended.num_alarms
    }

    /// Prints each source's loss at the beginning and at the end of what was seen here and, if it was evaluated on held-out
    /// samples, what came of that.
    pub fn print_table(&self) {
        self.table().into_iter().for_each(say);
    }

    fn table(&self) -> Vec<String> {
        let held_out: BTreeMap<_, _> = self.validation().iter().map(|v| (v.source.as_str(), v)).collect();
        let names: BTreeSet<_> = self.sources.keys().map(String::as_str).chain(held_out.keys().copied()).collect();
        if names.is_empty() {
            return Vec::new();
        }
        let mut title = format!("{:<16} {:>12} {:>10} {:>10}", "source", "tokens", "loss first", "loss last");
        if !held_out.is_empty() {
            title += &format!(" {:>18} {:>18}", "held-out baseline", "held-out last");
        }
        let row = |name| {
            let (of_training, of_held_out) = (self.sources.get(name), held_out.get(name));
            let trained =
                of_training.map_or_else(|| format!("{:>12} {:>10} {:>10}", "-", "-", "-"), SourceHistory::cells);
            let evaluated = of_held_out.map(|v| held_out_cells(v)).unwrap_or_default();
            format!("{name:<16} {trained}{evaluated}").trim_end().to_string()
        };
        std::iter::once(title).chain(names.into_iter().map(row)).collect()
    }
}

impl SourceHistory {
    fn cells(&self) -> String {
        let n = TABLE_STEPS.min(self.steps.len().div_ceil(2));
        let (first, last) = (mean(&self.steps[..n]), mean(&self.steps[self.steps.len() - n..]));
        format!("{:>12} {first:>10.3} {last:>10.3}", self.num_tokens)
    }
}

fn held_out_cells(validation: &SourceValidation) -> String {
    let cell = |evaluation: &Option<Evaluation>| evaluation.as_ref().map(measure).unwrap_or_default();
    let alarm = if validation.worse { "  alarm" } else { "" };
    format!(" {:>18} {:>18}{alarm}", cell(&validation.baseline), cell(&validation.last))
}

/// Bits per byte, which can be compared across tokenizers; the loss where that is not known.
fn measure(evaluation: &Evaluation) -> String {
    match evaluation.bits_per_byte {
        Some(bits) => format!("{bits:.4} bits/byte"),
        None => format!("loss {:.4}", evaluation.loss),
    }
}

/// What held-out samples say of a source, in one line.
pub fn validation_line(validation: &SourceValidation) -> String {
    let SourceValidation { source, baseline, last, watched, worse } = validation;
    let (Some(baseline), Some(last)) = (baseline, last) else { return format!("held-out {source}: not evaluated") };
    let change = match baseline.step == last.step {
        true => "the baseline".into(),
        false => format!(
            "{:+.2} % since {} at step {}",
            (last.loss / baseline.loss - 1.0) * 100.0,
            measure(baseline),
            baseline.step
        ),
    };
    let watch = match (watched, worse) {
        (_, true) => "  ALARM: worse than allowed",
        (true, false) => "  watched",
        (false, false) => "",
    };
    format!("held-out {source}: {} at step {}, {change}{watch}", measure(last), last.step)
}

fn mean(steps: &[(f64, u64)]) -> f64 {
    let (loss, num_tokens) = steps.iter().fold((0.0, 0), |(l, n), (loss, num)| (l + loss, n + num));
    loss / num_tokens as f64
}

/// Until the last step, in hours, minutes and seconds.
pub fn eta(step: &StepSummary) -> String {
    format!("{}:{:02}:{:02}", step.eta_seconds / 3600, step.eta_seconds / 60 % 60, step.eta_seconds % 60)
}

/// A step in one line.
pub fn line(step: &StepSummary) -> String {
    let sources: Vec<_> = step.sources.iter().map(|s| format!("{} {:.2}", s.source, s.loss)).collect();
    let eta = eta(step);
    let workers = if step.num_workers == 1 { "1 worker".into() } else { format!("{} workers", step.num_workers) };
    let sent = step.sent_bytes as f64 / 1e6;
    let data_wait = 100.0 * step.data_wait_ms as f64 / step.step_ms.max(1) as f64;
    let mfu = step.mfu.map(|share| format!("  MFU {:.1} %", share * 100.0)).unwrap_or_default();
    let skipped = if step.skipped { "  skipped" } else { "" };
    format!(
        "step {:>5} {}  loss {:.4} ({})  lr {:.2e}  grad norm {:.3}  {:.0} tokens/s{mfu}  {workers}  sent {sent:.1} MB  data wait {data_wait:.1} %  eta {eta}{skipped}",
        step.step,
        step.stage,
        step.loss,
        sources.join(", "),
        step.learning_rate,
        step.grad_norm,
        step.tokens_per_second,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluation(step: u64, loss: f64, bits_per_byte: Option<f64>) -> Option<Evaluation> {
        Some(Evaluation { step, loss, num_tokens: 24, bits_per_byte })
    }

    fn validation() -> Vec<SourceValidation> {
        let (baseline, last) = (evaluation(0, 2.0, Some(0.5)), evaluation(20, 2.5, Some(0.625)));
        let en = SourceValidation { source: "en".into(), baseline, last, watched: true, worse: true };
        let (baseline, last) = (evaluation(0, 4.0, None), evaluation(0, 4.0, None));
        vec![en, SourceValidation { source: "zh".into(), baseline, last, watched: false, worse: false }]
    }

    #[test]
    fn a_source_has_a_line_with_its_change_and_its_alarm() {
        assert_eq!(
            validation().iter().map(validation_line).collect::<Vec<_>>(),
            [
                "held-out en: 0.6250 bits/byte at step 20, +25.00 % since 0.5000 bits/byte at step 0  ALARM: worse than allowed",
                "held-out zh: loss 4.0000 at step 0, the baseline"
            ]
        );
    }

    #[test]
    fn the_table_has_columns_of_held_out_samples_where_there_are_any() {
        let mut progress = Progress::new(1);
        assert!(progress.table().is_empty());
        progress.sources.insert("en".into(), SourceHistory { num_tokens: 64, steps: vec![(128.0, 64)] });
        let plain = progress.table();
        assert!(!plain[0].contains("held-out") && plain[1].ends_with("2.000      2.000"), "{plain:?}");
        progress.ended.validation = validation();
        let table = progress.table();
        assert!(table[0].ends_with(" held-out baseline      held-out last"), "{table:?}");
        assert!(table[1].ends_with("2.000   0.5000 bits/byte   0.6250 bits/byte  alarm"), "{table:?}");
        assert!(
            table[2].starts_with("zh                          -") && table[2].ends_with("loss 4.0000"),
            "{table:?}"
        );
    }
}
