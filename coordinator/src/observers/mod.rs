//! What follows a run beside it, from its news: curves for TensorBoard and traces for a collector.
//!
//! Each has a task of its own. None of them can hold up a run, change it, or make it fail: what cannot be written is
//! reported and left out.

mod event_file;
mod tensorboard;
mod traces;

use std::time::Duration;

use polo_store::Store;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

use crate::News;

use self::{tensorboard::TensorBoard, traces::Traces};

/// How long after a run's end what has been seen of it may take to be written.
const FAREWELL: Duration = Duration::from_secs(10);

/// Whom to tell of a run.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Writes TensorBoard's event files into the run's store, under `tensorboard/`.
    pub tensorboard: bool,
    /// Sends traces to the OTLP collector there, over gRPC: `http://HOST:4317`.
    pub traces_to: Option<String>,
}

/// Those who are told.
#[derive(Debug, Default)]
pub struct Observers {
    tasks: JoinSet<()>,
}

/// Passes news on to who wants them and to the one who is returned.
pub fn observe(
    wanted: &Wanted,
    run: &str,
    store: Store,
    mut news: mpsc::UnboundedReceiver<News>,
) -> (Observers, mpsc::UnboundedReceiver<News>) {
    let mut tasks = JoinSet::new();
    let (sender, passed_on) = mpsc::unbounded_channel();
    let mut listeners = vec![sender];
    let mut listen = || {
        let (sender, receiver) = mpsc::unbounded_channel();
        listeners.push(sender);
        receiver
    };
    if wanted.tensorboard {
        tasks.spawn(TensorBoard::new(store).follow(listen()));
    }
    match wanted.traces_to.as_deref().map(|collector| Traces::to(collector, run)) {
        Some(Ok(traces)) => drop(tasks.spawn(traces.follow(listen()))),
        Some(Err(problem)) => tracing::warn!(problem, "no traces are sent"),
        None => {}
    }
    tokio::spawn(async move {
        while let Some(news) = news.recv().await {
            listeners.retain(|listener| listener.send(news.clone()).is_ok());
        }
    });
    (Observers { tasks }, passed_on)
}

impl Observers {
    /// Waits, for a bounded time, until what they have seen is written.
    pub async fn finish(mut self) {
        let finished = timeout(FAREWELL, async { while self.tasks.join_next().await.is_some() {} });
        if finished.await.is_err() {
            tracing::warn!("curves or traces of the run's end were not written within {} s", FAREWELL.as_secs());
        }
    }
}
