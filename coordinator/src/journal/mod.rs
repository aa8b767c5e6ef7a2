//! The run's journal: numbered entries in its object store, each created once and never changed.
//!
//! One sequence holds all that must outlive a coordinator: who took up the run, generations, incidents, the end. Whoever
//! cannot create the next number has been superseded: another coordinator has taken up the run, and nothing that this one
//! decides is carried out any more, because a generation is announced only once its entry is there.
//!
//! Manifests need no such fence. They are create-only and say what a state's content is, which does not depend on who
//! asked for it; one that a superseded coordinator still writes is as good as any.

mod holder;
mod writer;

use futures::{StreamExt, TryStreamExt, stream};
use polo_store::{Store, StoreError};
use serde::{Deserialize, Serialize};

pub use self::{
    holder::{Holder, is_alive},
    writer::{Fencing, Journal},
};
use crate::machine::{Entry, Restored};

const FOLDER: &str = "journal";
/// Entries that are read at the same time.
const IN_FLIGHT: usize = 16;

/// One object of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Line {
    /// Drawn anew by every coordinator: lines of two are never alike, so a store that compares bytes to find out whether
    /// a write of its own got through does not take another coordinator's for it.
    coordinator: u64,
    #[serde(flatten)]
    record: Record,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    /// From here on, this coordinator holds the run.
    Opened(Holder),
    /// What it decided.
    Entry(Entry),
}

/// Why a journal cannot be read or taken up.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The run's store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An entry that this version cannot read.
    #[error(
        "{url} is no journal entry of this version ({problem}); go on with the version that wrote it, or give run.store an empty place"
    )]
    Entry {
        /// Where it is.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An entry is missing in the middle.
    #[error("{url} is missing though there are later entries; restore it, or give run.store an empty place")]
    Gap {
        /// Where it should be.
        url: String,
    },
    /// Another coordinator holds the run.
    #[error(
        "the run in {url} is held by {holder}; stop that coordinator first, or talk to it: polo status --address {address}"
    )]
    Held {
        /// The run's store.
        url: String,
        /// Who, in words.
        holder: String,
        /// Where it listens.
        address: String,
    },
}

/// What a journal says so far.
#[derive(Debug, Default)]
pub struct Past {
    /// The run as it was left.
    pub restored: Restored,
    /// Who took it up last, unless it has ended since.
    pub holder: Option<Holder>,
    next: u64,
}

fn key(number: u64) -> String {
    format!("{FOLDER}/{number:020}.json")
}

/// Reads all entries.
pub async fn read(store: &Store) -> Result<Past, JournalError> {
    let numbers = numbers(store).await?;
    if let Some(missing) = (1..).zip(&numbers).find(|(expected, found)| expected != *found) {
        return Err(JournalError::Gap { url: store.url_of(&key(missing.0)) });
    }
    let mut past = Past { next: numbers.len() as u64 + 1, ..Past::default() };
    let lines = stream::iter(numbers).map(|number| line(store.clone(), number)).buffered(IN_FLIGHT);
    let mut lines = std::pin::pin!(lines);
    while let Some(line) = lines.try_next().await? {
        past.replay(line);
    }
    Ok(past)
}

async fn numbers(store: &Store) -> Result<Vec<u64>, StoreError> {
    let entries = store.list(FOLDER).await?;
    Ok(entries.iter().filter_map(|e| e.key.rsplit('/').next()?.strip_suffix(".json")?.parse().ok()).collect())
}

async fn line(store: Store, number: u64) -> Result<Line, JournalError> {
    let bytes = store.get(&key(number)).await?;
    let url = || store.url_of(&key(number));
    serde_json::from_slice(&bytes).map_err(|error| JournalError::Entry { url: url(), problem: error.to_string() })
}

impl Past {
    fn replay(&mut self, line: Line) {
        match line.record {
            Record::Opened(holder) => self.holder = Some(holder),
            Record::Entry(entry) => {
                if matches!(entry, Entry::Ended(_)) {
                    self.holder = None;
                }
                self.restored.replay(entry);
            }
        }
    }
}

/// A journal as one text, with an object on each line: what [`replayed`] reads.
#[cfg(test)]
pub fn as_text(entries: impl IntoIterator<Item = Entry>) -> Vec<u8> {
    let record = |entry| Line { coordinator: 1, record: Record::Entry(entry) };
    let lines = entries.into_iter().map(|entry| serde_json::to_vec(&record(entry)).unwrap_or_default());
    lines.collect::<Vec<_>>().join(&b'\n')
}

#[cfg(test)]
pub fn replayed(text: &[u8]) -> serde_json::Result<Restored> {
    let mut past = Past::default();
    for line in text.split(|byte| *byte == b'\n') {
        past.replay(serde_json::from_slice(line)?);
    }
    Ok(past.restored)
}

#[cfg(test)]
mod exhaustive;
#[cfg(test)]
mod tests;
