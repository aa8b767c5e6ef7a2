//! A run's curves as TensorBoard reads them, in the run's store.
//!
//! Objects cannot be appended to, so every so often what is new becomes a file of its own. TensorBoard reads the files of a
//! folder one after the other, in the order of their names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use polo_proto::v1::StepSummary;
use polo_store::Store;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use crate::{
    News,
    machine::{Notice, SourceLoss},
};

use super::event_file::{Event, Scalar, Summary, append, first};

/// From one file to the next.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);

/// What is not written yet is bounded, should the store be away for long.
const MAX_PENDING_BYTES: usize = 64 << 20;

/// Writes event files.
#[derive(Debug)]
pub struct TensorBoard {
    store: Store,
    /// Records of the next file.
    pending: Vec<u8>,
    /// Steps are completed again after an interruption, with the same numbers.
    newest_step: u64,
}

impl TensorBoard {
    /// Into the run's store.
    pub fn new(store: Store) -> Self {
        Self { store, pending: Vec::new(), newest_step: 0 }
    }

    /// Writes what happens until nothing more does.
    pub async fn follow(mut self, mut news: mpsc::UnboundedReceiver<News>) {
        let mut turn = interval(WRITE_INTERVAL);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                next = news.recv() => match next {
                    Some(news) => self.take(&news, SystemTime::now()),
                    None => break,
                },
                _ = turn.tick() => self.write(SystemTime::now()).await,
            }
        }
        self.write(SystemTime::now()).await;
    }

    fn take(&mut self, news: &News, now: SystemTime) {
        let (step, values) = match news {
            News::Step(summary) if summary.step > self.newest_step => {
                self.newest_step = summary.step;
                (summary.step, of_step(summary))
            }
            News::Notice(Notice::Validated(step, sources)) => {
                let value = |loss: &SourceLoss| scalar(format!("validation/{}", loss.source), loss.loss);
                (step.0, sources.iter().map(|change| value(&change.now)).collect())
            }
            _ => return,
        };
        if self.pending.len() > MAX_PENDING_BYTES {
            return;
        }
        let event = Event {
            wall_time: seconds(now),
            step: i64::try_from(step).unwrap_or(i64::MAX),
            summary: Some(Summary { values }),
            ..Event::default()
        };
        append(&mut self.pending, &event);
    }

    async fn write(&mut self, now: SystemTime) {
        if self.pending.is_empty() {
            return;
        }
        let mut file = Vec::new();
        append(&mut file, &first(seconds(now)));
        file.extend_from_slice(&self.pending);
        let key = key(now);
        match self.store.put(&key, file.into()).await {
            Ok(()) => self.pending.clear(),
            Err(error) => tracing::warn!(%error, "curves for TensorBoard could not be written; they are tried again"),
        }
    }
}

/// Names that sort as they were written, also those of a coordinator and the one after it.
fn key(now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("tensorboard/events.out.tfevents.{:010}.{:06}", now.as_secs(), now.subsec_micros())
}

fn of_step(step: &StepSummary) -> Vec<Scalar> {
    let run = [
        ("loss", step.loss),
        ("learning_rate", step.learning_rate),
        ("grad_norm", step.grad_norm),
        ("speed/tokens_per_second", step.tokens_per_second),
        ("speed/step_seconds", step.step_ms as f64 / 1000.0),
        ("speed/data_wait_seconds", step.data_wait_ms as f64 / 1000.0),
        ("speed/workers", f64::from(step.num_workers)),
    ];
    let mfu = step.mfu.map(|mfu| scalar("speed/mfu".into(), mfu));
    let sources = step.sources.iter().map(|source| scalar(format!("loss/{}", source.source), source.loss));
    run.map(|(tag, value)| scalar(tag.into(), value)).into_iter().chain(mfu).chain(sources).collect()
}

fn scalar(tag: String, value: f64) -> Scalar {
    Scalar { tag, simple_value: value as f32 }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
