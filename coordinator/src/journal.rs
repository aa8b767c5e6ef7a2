//! The run's journal: numbered entries in its object store, each created once and never changed.
//!
//! Entry n says which workers generation n had. Whoever cannot create the next entry has been superseded by another
//! coordinator.

use std::collections::BTreeMap;

use polo_recipe::ids::Generation;
use polo_store::{Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::machine::WorkerId;

const FOLDER: &str = "journal";

/// What is written down of a generation.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    generation: Generation,
    /// Names in rank order.
    workers: Vec<String>,
}

/// The journal of one run.
#[derive(Clone)]
pub struct Journal {
    store: Store,
}

impl Journal {
    /// The journal in a run's store.
    pub fn new(store: Store) -> Self {
        Self { store }
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
        let entry = Entry { generation, workers: workers.into_iter().map(|w| w.0).collect() };
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

    /// All entries, by generation; for people.
    pub async fn entries(&self) -> Result<BTreeMap<Generation, Vec<String>>, StoreError> {
        let mut entries = BTreeMap::new();
        for listed in self.store.list(FOLDER).await? {
            let place = self.store.url_of(&listed.key);
            let bytes = self.store.get(&listed.key).await?;
            let entry: Entry = serde_json::from_slice(&bytes).map_err(|e| StoreError::damaged(place, e.to_string()))?;
            entries.insert(entry.generation, entry.workers);
        }
        Ok(entries)
    }
}
