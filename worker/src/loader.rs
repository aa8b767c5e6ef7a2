//! Batches read ahead of training, on a thread of their own.

use std::{io, sync::Arc, thread};

use tokio::{runtime::Handle, sync::mpsc};

use crate::corpus::{Corpus, CorpusError, Window};

/// Batches that training has read ahead.
pub const NUM_AHEAD: usize = 4;

/// The tokens of some samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The samples, in the order asked for.
    pub windows: Vec<Window>,
    /// Token ids, `[windows.len(), seq_len + 1]`, row-major. The first `seq_len` of a row are the inputs, the last
    /// `seq_len` the targets.
    pub tokens: Vec<i32>,
}

/// Reads batches ahead, in the order of a plan.
///
/// At most `num_ahead` batches wait, and one more is being read; dropping the loader stops its thread, also while it
/// waits for the store.
#[derive(Debug)]
pub struct Loader {
    batches: Option<mpsc::Receiver<Result<Batch, CorpusError>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Loader {
    /// Starts reading the batches of `plan`: for each micro-batch its samples. Shards that are not in the cache are
    /// fetched through `runtime`, a multi-threaded one.
    pub fn start(
        corpus: Arc<Corpus>,
        seq_len: usize,
        num_ahead: usize,
        runtime: Handle,
        plan: impl Iterator<Item = Vec<Window>> + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, batches) = mpsc::channel(num_ahead.max(1));
        let thread = thread::Builder::new()
            .name("loader".to_owned())
            .spawn(move || runtime.block_on(read_ahead(&corpus, seq_len, plan, &sender)))?;
        Ok(Self { batches: Some(batches), thread: Some(thread) })
    }

    /// The next batch, as soon as it is read; none after the plan's last one or after an error.
    pub async fn next_batch(&mut self) -> Option<Result<Batch, CorpusError>> {
        self.batches.as_mut()?.recv().await
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        drop(self.batches.take()); // the thread sees the channel close, wherever it waits
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has been printed, and ended the batches
        }
    }
}

async fn read_ahead(
    corpus: &Corpus,
    seq_len: usize,
    plan: impl Iterator<Item = Vec<Window>>,
    sender: &mpsc::Sender<Result<Batch, CorpusError>>,
) {
    for windows in plan {
        let batch = tokio::select! {
            biased;
            () = sender.closed() => return,
            batch = read(corpus, seq_len, windows) => batch,
        };
        let failed = batch.is_err();
        if sender.send(batch).await.is_err() || failed {
            return;
        }
    }
}

async fn read(corpus: &Corpus, seq_len: usize, windows: Vec<Window>) -> Result<Batch, CorpusError> {
    corpus.fetch(&windows, seq_len).await?;
    let mut tokens = Vec::with_capacity(windows.len() * (seq_len + 1));
    for window in &windows {
        corpus.window(*window, seq_len, &mut tokens).await?;
    }
    Ok(Batch { windows, tokens })
}
