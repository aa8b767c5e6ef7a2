//! The run's journal: numbered entries in its object store, each created once and never changed.
//!
//! Entry n says which workers generation n had. Whoever cannot create the next entry has been superseded by another
//! coordinator.

use polo_recipe::ids::Generation;
use polo_store::{Store, StoreError};
use serde::Serialize;

use crate::machine::WorkerId;

const FOLDER: &str = "journal";

/// What is written down of a generation.
#[derive(Debug, Serialize)]
struct Entry {
    generation: Generation,
    /// Drawn anew by every coordinator: entries of two are never alike, so a store that compares bytes to find out
    /// whether a write of its own got through does not take another coordinator's for it.
    coordinator: u64,
    /// Names in rank order.
    workers: Vec<String>,
}

/// The journal of one run, as one coordinator writes it.
#[derive(Clone)]
pub struct Journal {
    store: Store,
    coordinator: u64,
}

impl Journal {
    /// The journal in a run's store, for a coordinator that has just started.
    pub fn new(store: Store) -> Self {
        Self { store, coordinator: rand::random() }
    }

    /// The newest generation written down, 0 if none is.
    pub async fn last_generation(&self) -> Result<Generation, StoreError> {
        let entries = self.store.list(FOLDER).await?;
        let numbers = entries.iter().filter_map(|e| e.key.rsplit('/').next()?.strip_suffix(".json")?.parse().ok());
        Ok(Generation(numbers.max().unwrap_or(0)))
    }

    /// Writes down a generation; an error if its number is taken.
    pub async fn record(&self, generation: Generation, workers: Vec<WorkerId>) -> Result<(), String> {
        let key = format!("{FOLDER}/{:020}.json", generation.0);
        let workers = workers.into_iter().map(|w| w.0).collect();
        let entry = Entry { generation, coordinator: self.coordinator, workers };
        let bytes = serde_json::to_vec(&entry).map_err(|e| e.to_string())?;
        match self.store.put_if_absent(&key, bytes.into()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!(
                "{} exists already: another coordinator runs this run; stop one of them",
                self.store.url_of(&key)
            )),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(name: &str) -> Journal {
        Journal::new(Store::open(&format!("memory://journal-{name}")).expect("open"))
    }

    fn workers() -> Vec<WorkerId> {
        vec![WorkerId("a".into()), WorkerId("b".into())]
    }

    #[tokio::test]
    async fn the_newest_generation_is_found_among_those_written_down() {
        let journal = journal("newest");
        assert_eq!(journal.last_generation().await.expect("listed"), Generation(0));
        for generation in [1, 2, 10] {
            journal.record(Generation(generation), workers()).await.expect("a free number");
        }
        journal.store.put("journal/notes.txt", Default::default()).await.expect("put");
        assert_eq!(journal.last_generation().await.expect("listed"), Generation(10));
    }

    #[tokio::test]
    async fn the_second_of_two_coordinators_is_told_so() {
        let (first, second) = (journal("two"), journal("two"));
        first.record(Generation(1), workers()).await.expect("a free number");
        let error = second.record(Generation(1), workers()).await.expect_err("taken");
        assert!(
            error.contains("journal/00000000000000000001.json") && error.contains("another coordinator"),
            "{error}"
        );
        second.record(Generation(2), workers()).await.expect("a free number");
    }

    #[tokio::test]
    async fn two_coordinators_never_write_the_same_bytes() {
        let mut written = Vec::new();
        for name in ["one", "other"] {
            let journal = journal(name);
            journal.record(Generation(1), workers()).await.expect("a free number");
            written.push(journal.store.get("journal/00000000000000000001.json").await.expect("get"));
        }
        assert_ne!(written[0], written[1]);
    }
}
