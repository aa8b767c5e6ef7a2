//! Writes the journal, entry after entry, and finds out when another coordinator does.

use bytes::Bytes;
use polo_store::{Store, StoreError};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{Holder, JournalError, Line, Past, Record, key, line, read};
use crate::machine::{Entry, RecordError};

/// How the store is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fencing {
    /// By create-only puts, which one of two coordinators loses.
    CreateOnly,
    /// By plain puts after a look: two coordinators can then both act.
    None,
}

/// The journal of one run, as one coordinator writes it.
pub struct Journal {
    /// Number of the entry with which this coordinator took up the run.
    pub epoch: u64,
    queue: mpsc::UnboundedSender<Queued>,
    writing: JoinHandle<()>,
}

struct Queued {
    /// None: only find out whether this coordinator still holds the run.
    entry: Option<Entry>,
    answer: oneshot::Sender<Result<(), RecordError>>,
}

impl Journal {
    /// Takes up the run of which `past` was read, for `holder`. Fails if another coordinator was quicker.
    pub async fn take_up(store: Store, past: &Past, holder: Holder, fencing: Fencing) -> Result<Self, JournalError> {
        let mut writer = Writer { coordinator: holder.coordinator, next: past.next, store, fencing };
        match writer.write(Record::Opened(holder)).await {
            Ok(()) => {}
            Err(WriteError::Taken) => return Err(writer.held().await),
            Err(WriteError::Journal(error)) => return Err(error),
        }
        let epoch = writer.next - 1;
        let (queue, entries) = mpsc::unbounded_channel();
        Ok(Self { epoch, queue, writing: tokio::spawn(writer.run(entries)) })
    }

    /// Writes an entry after those before it; the answer comes once it is there.
    pub fn record(&self, entry: Entry) -> impl Future<Output = Result<(), RecordError>> + Send + 'static {
        self.queue(Some(entry))
    }

    /// Finds out, after what was recorded before, whether this coordinator still holds the run.
    pub fn confirm(&self) -> impl Future<Output = Result<(), RecordError>> + Send + 'static {
        self.queue(None)
    }

    fn queue(&self, entry: Option<Entry>) -> impl Future<Output = Result<(), RecordError>> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        let _ = self.queue.send(Queued { entry, answer });
        async move { answered.await.unwrap_or_else(|_| Err(RecordError::Failed("the journal is closed".into()))) }
    }

    /// Waits until all that was recorded is written. The store's own limits bound the wait.
    pub async fn close(self) {
        drop(self.queue);
        let _ = self.writing.await;
    }
}

struct Writer {
    store: Store,
    coordinator: u64,
    next: u64,
    fencing: Fencing,
}

enum WriteError {
    /// The number is another coordinator's.
    Taken,
    Journal(JournalError),
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> Self {
        Self::Journal(error.into())
    }
}

impl From<JournalError> for WriteError {
    fn from(error: JournalError) -> Self {
        Self::Journal(error)
    }
}

impl Writer {
    async fn run(mut self, mut entries: mpsc::UnboundedReceiver<Queued>) {
        let mut superseded = None;
        while let Some(Queued { entry, answer }) = entries.recv().await {
            let result = match &superseded {
                Some(by) => Err(RecordError::Superseded(String::clone(by))),
                None => self.append(entry).await,
            };
            if let Err(RecordError::Superseded(by)) = &result {
                superseded = Some(by.clone());
            }
            let _ = answer.send(result);
        }
    }

    async fn append(&mut self, entry: Option<Entry>) -> Result<(), RecordError> {
        let done = match entry {
            Some(entry) => self.write(Record::Entry(entry)).await,
            None => self.pass_own().await,
        };
        match done {
            Ok(()) => Ok(()),
            Err(WriteError::Taken) => Err(RecordError::Superseded(self.newest_holder().await)),
            Err(WriteError::Journal(error)) => Err(RecordError::Failed(error.to_string())),
        }
    }

    async fn write(&mut self, record: Record) -> Result<(), WriteError> {
        let line = Line { coordinator: self.coordinator, record };
        // Plain structs of numbers and strings: this cannot fail.
        let bytes = Bytes::from(serde_json::to_vec(&line).unwrap_or_else(|error| unreachable!("{error}")));
        while !self.create(bytes.clone()).await? {
            self.pass_own().await?;
        }
        self.next += 1;
        Ok(())
    }

    async fn create(&self, bytes: Bytes) -> Result<bool, StoreError> {
        let key = key(self.next);
        match self.fencing {
            Fencing::CreateOnly => self.store.put_if_absent(&key, bytes).await,
            Fencing::None if self.store.exists(&key).await? => Ok(false),
            Fencing::None => self.store.put(&key, bytes).await.map(|()| true),
        }
    }

    /// Moves past entries of this coordinator's own: one that was given up when the store did not answer may have got
    /// there all the same, and is no sign of another coordinator. Then the next number must be free.
    async fn pass_own(&mut self) -> Result<(), WriteError> {
        while let Some(found) = self.at_next().await? {
            if found.coordinator != self.coordinator {
                return Err(WriteError::Taken);
            }
            self.next += 1;
        }
        Ok(())
    }

    async fn at_next(&self) -> Result<Option<Line>, JournalError> {
        match line(self.store.clone(), self.next).await {
            Ok(line) => Ok(Some(line)),
            Err(JournalError::Store(error)) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Who took up the run last, in words.
    async fn newest_holder(&self) -> String {
        match read(&self.store).await {
            Ok(Past { holder: Some(holder), .. }) => holder.to_string(),
            _ => "another coordinator".into(),
        }
    }

    async fn held(&self) -> JournalError {
        let holder = match read(&self.store).await {
            Ok(past) => past.holder,
            Err(error) => return error,
        };
        let address = holder.as_ref().map(|h| h.address.clone()).unwrap_or_default();
        let holder = holder.map_or_else(|| "another coordinator".into(), |h| h.to_string());
        JournalError::Held { url: self.store.url().into(), holder, address }
    }
}
