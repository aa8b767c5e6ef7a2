//! What makes a preparation restartable: a record beside the shards of each shard that is done.
//!
//! A record says up to where the input is in the shards, so whoever comes after a kill goes on from the last of an unbroken
//! row of records. What was in flight is made again, with the same bytes under the same keys. Records lie under
//! [`FOLDER`], which no source can be called, and are removed once the manifest is there.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use polo_store::{
    Digest, Store,
    corpus::{Dropped, ShardEntry},
};
use serde::{Deserialize, Serialize};

use crate::{cleaning::duplicates::Signature, cluster::pieces::Work, error::PrepareError, reason::Sample};

/// Where records lie in the output store.
pub const FOLDER: &str = ".prepare";
/// Objects read or removed at the same time.
const CONCURRENCY: usize = 16;

/// What a corpus is made of and how, by name: two preparations with equal plans make equal corpora.
pub type Plan = BTreeMap<String, String>;

/// A place in a source's input: the record that comes next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Number of the file.
    pub file: usize,
    /// Number of the batch in it.
    pub batch: u64,
    /// Number of the outcome in it.
    pub outcome: usize,
}

/// What was read for some documents of a source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// UTF-8 bytes of the documents that were kept.
    pub num_bytes_text: u64,
    /// What was left out, by reason.
    pub dropped: BTreeMap<String, Dropped>,
    /// Examples of it.
    pub samples: Vec<Sample>,
}

impl Tally {
    /// Adds another's counts and samples.
    pub fn add(&mut self, other: &Self) {
        self.num_bytes_text += other.num_bytes_text;
        for (reason, more) in &other.dropped {
            let dropped = self.dropped.entry(reason.clone()).or_default();
            dropped.num_documents += more.num_documents;
            dropped.num_bytes_text += more.num_bytes_text;
        }
        self.samples.extend(other.samples.iter().cloned());
    }
}

/// A shard that is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The shard.
    pub shard: ShardEntry,
    /// What comes after it.
    pub next: Position,
    /// What the input was up to there (see [`InputDigests`]).
    pub inputs: Digest,
    /// What was read since the shard before.
    pub tally: Tally,
}

/// Digests of a source's files by name, size and time: of none, of the first, of the first two, and so on. So a file that
/// is repaired or added undoes no shard that ends before it.
#[derive(Debug, Clone)]
pub struct InputDigests(Vec<Digest>);

impl InputDigests {
    /// Those of files that are described by `files`; all are others where `before` is another.
    pub fn new(before: Digest, files: impl Iterator<Item = String>) -> Self {
        let mut digests = vec![before];
        for file in files {
            let chained = format!("{}\n{file}", digests[digests.len() - 1]);
            digests.push(Digest::of(chained.as_bytes()));
        }
        Self(digests)
    }

    /// That of all files.
    pub fn all(&self) -> Digest {
        self.0[self.0.len() - 1]
    }

    /// Where the source ends.
    pub fn end(&self) -> Position {
        Position { file: self.0.len() - 1, ..Position::default() }
    }

    /// That of the files that are read, in part or whole, before `next`.
    pub fn up_to(&self, next: Position) -> Digest {
        self.0[(next.file + 1).min(self.0.len() - 1)]
    }

    /// Whether a record holds for these files: it ends in the midst of one of them, or with the last.
    fn agree_with(&self, record: &Record) -> bool {
        let Position { file, batch, outcome } = record.next;
        let is_end = (batch, outcome) == (0, 0);
        let is_place = if is_end { record.next == self.end() } else { file < self.end().file };
        is_place && self.up_to(record.next) == record.inputs
    }
}

/// What finished parts of a source must agree with.
#[derive(Debug, Clone)]
pub struct SourceInPlan {
    /// Its name.
    pub name: String,
    /// Its files.
    pub inputs: InputDigests,
    /// What their results are called.
    pub works: Vec<Work>,
    /// Words of its signatures.
    pub signature_words: usize,
    /// Whether those begin with a text's hash.
    pub has_exact: bool,
}

/// The finished part of a source.
#[derive(Debug, Default)]
pub struct Finished {
    /// Its shards, in order.
    pub records: Vec<Record>,
    /// The signatures of its documents, in order.
    pub signatures: Vec<Signature>,
}

impl Finished {
    /// Where the source goes on.
    pub fn next(&self) -> Position {
        self.records.last().map(|record| record.next).unwrap_or_default()
    }
}

/// The records of one preparation.
#[derive(Debug, Clone)]
pub struct Journal {
    output: Store,
    store: Store,
}

impl Journal {
    /// The journal of the preparation that `plan` describes. One of another preparation is refused, unless it has no
    /// records or `force` gives leave to remove it.
    pub async fn open(output: &Store, plan: &Plan, force: bool) -> Result<Self, PrepareError> {
        let journal = Self { output: output.clone(), store: output.child(FOLDER) };
        let bytes = Bytes::from(serde_json::to_vec_pretty(plan).unwrap_or_default()); // strings only: it cannot fail
        if journal.store.put_if_absent("plan.json", bytes.clone()).await? {
            return Ok(journal);
        }
        let found = journal.read_plan().await?;
        if found != *plan {
            if !force && journal.store.list("").await?.len() > 1 {
                let output = output.url().to_owned();
                return Err(PrepareError::OtherPreparation { output, differs: differences(&found, plan) });
            }
            journal.remove().await?;
            journal.store.put("plan.json", bytes).await?;
        }
        Ok(journal)
    }

    /// Whether there is one in `output`, of the preparation that `plan` describes.
    pub async fn is_of(output: &Store, plan: &Plan) -> Result<bool, PrepareError> {
        let journal = Self { output: output.clone(), store: output.child(FOLDER) };
        Ok(journal.store.exists("plan.json").await? && journal.read_plan().await? == *plan)
    }

    /// Whether a preparation has begun in `output` and not come to its end.
    pub async fn is_open(output: &Store) -> Result<bool, PrepareError> {
        Ok(output.child(FOLDER).exists("plan.json").await?)
    }

    async fn read_plan(&self) -> Result<Plan, PrepareError> {
        let bytes = self.store.get("plan.json").await?;
        let url = self.store.url_of("plan.json");
        serde_json::from_slice(&bytes).map_err(|source| PrepareError::Journal { url, source })
    }

    /// The finished parts of `sources`.
    pub async fn finished(&self, sources: &[SourceInPlan]) -> Result<Vec<Finished>, PrepareError> {
        let listed = self.output.list("").await?;
        let sizes: HashMap<&str, u64> = listed.iter().map(|entry| (entry.key.as_str(), entry.num_bytes)).collect();
        let mut all = vec![];
        for source in sources {
            let key = |number| format!("{FOLDER}/{}/{number:06}.json", source.name);
            let num_records = (0..).take_while(|number| sizes.contains_key(key(*number).as_str())).count();
            let mut records: Vec<Record> = futures::stream::iter(0..num_records)
                .map(|number| self.read_record(&source.name, number))
                .buffered(CONCURRENCY)
                .try_collect()
                .await?;
            // What has been lost or changed meanwhile is made again, and with it all that follows.
            let holds = |record: &Record| is_stored(&record.shard, &sizes) && source.inputs.agree_with(record);
            records.truncate(records.iter().take_while(|record| holds(record)).count());
            let signatures = self.read_signatures(source, &records).await?;
            all.push(Finished { records, signatures });
        }
        Ok(all)
    }

    async fn read_record(&self, source: &str, number: usize) -> Result<Record, PrepareError> {
        let key = format!("{source}/{number:06}.json");
        let bytes = self.store.get(&key).await?;
        serde_json::from_slice(&bytes).map_err(|source| PrepareError::Journal { url: self.store.url_of(&key), source })
    }

    async fn read_signatures(&self, source: &SourceInPlan, records: &[Record]) -> Result<Vec<Signature>, PrepareError> {
        let (mut signatures, num_words) = (vec![], source.signature_words);
        if num_words == 0 {
            return Ok(signatures);
        }
        for (number, record) in records.iter().enumerate() {
            let key = format!("{}/{number:06}.signatures", source.name);
            let bytes = self.store.get(&key).await?;
            if bytes.len() as u64 != 8 * num_words as u64 * record.shard.num_documents {
                let reason = format!("{} bytes for {} documents", bytes.len(), record.shard.num_documents);
                return Err(PrepareError::DamagedJournal { url: self.store.url_of(&key), reason });
            }
            let (words, _) = bytes.as_chunks();
            signatures.extend(words.chunks(num_words).map(|words| Signature::from_words(words, source.has_exact)));
        }
        Ok(signatures)
    }

    /// Writes down that shard `number` of `source` is stored.
    pub async fn add(
        &self,
        source: &str,
        number: usize,
        record: &Record,
        signatures: Bytes,
    ) -> Result<(), PrepareError> {
        if !signatures.is_empty() {
            self.store.put(&format!("{source}/{number:06}.signatures"), signatures).await?;
        }
        let bytes = serde_json::to_vec(record).unwrap_or_default(); // plain fields only: it cannot fail
        Ok(self.store.put(&format!("{source}/{number:06}.json"), bytes.into()).await?)
    }

    /// Removes all records; the plan goes last, so that a removal that is cut short can be told from no preparation.
    pub async fn remove(&self) -> Result<(), PrepareError> {
        let entries = self.store.list("").await?;
        let records = entries.iter().filter(|entry| entry.key != "plan.json");
        let removals = futures::stream::iter(records).map(|entry| self.store.delete(&entry.key));
        removals.buffer_unordered(CONCURRENCY).try_collect::<Vec<_>>().await?;
        Ok(self.store.delete("plan.json").await?)
    }
}

fn is_stored(shard: &ShardEntry, sizes: &HashMap<&str, u64>) -> bool {
    sizes.get(&*shard.bin_key) == Some(&(4 * shard.num_tokens)) && sizes.contains_key(&*shard.idx_key)
}

/// The names under which two plans differ.
pub fn differences(found: &Plan, plan: &Plan) -> String {
    let differs = |name: &&String| found.get(*name) != plan.get(*name);
    let mut names: Vec<_> = found.keys().chain(plan.keys()).filter(differs).cloned().collect();
    names.sort();
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(files: &[&str]) -> InputDigests {
        InputDigests::new(Digest::of(b""), files.iter().map(|file| (*file).to_owned()))
    }

    fn record(inputs: &InputDigests, next: Position) -> Record {
        let digest = Digest::of(b"x");
        let shard = ShardEntry {
            bin_key: String::new(),
            idx_key: String::new(),
            num_tokens: 1,
            num_documents: 1,
            bin_digest: digest,
            idx_digest: digest,
        };
        Record { shard, next, inputs: inputs.up_to(next), tally: Tally::default() }
    }

    #[test]
    fn a_record_holds_while_the_files_before_its_end_are_the_same() {
        let then = digests(&["a", "b", "c"]);
        let in_the_first = record(&then, Position { file: 0, batch: 0, outcome: 7 });
        let in_the_second = record(&then, Position { file: 1, batch: 2, outcome: 0 });
        let at_the_end = record(&then, then.end());
        for (files, expected) in [
            (vec!["a", "b", "c"], [true, true, true]),
            (vec!["a", "b", "other"], [true, true, false]),
            (vec!["a", "b", "c", "new"], [true, true, false]),
            (vec!["a", "other", "c"], [true, false, false]),
            (vec!["a"], [true, false, false]),
            (vec!["b", "c"], [false, false, false]),
        ] {
            let now = digests(&files);
            let found = [&in_the_first, &in_the_second, &at_the_end].map(|record| now.agree_with(record));
            assert_eq!(found, expected, "{files:?}");
        }
    }

    #[tokio::test]
    async fn records_of_another_preparation_are_refused_and_empty_ones_replaced() {
        let output = Store::open("memory://journal-of-another").expect("a store");
        let plan = |seed: &str| Plan::from([("options".to_owned(), seed.to_owned()), ("x".to_owned(), "y".to_owned())]);
        Journal::open(&output, &plan("1"), false).await.expect("the first");
        let journal = Journal::open(&output, &plan("2"), false).await.expect("nothing was in the first");
        let inputs = digests(&["a"]);
        journal.add("en", 0, &record(&inputs, inputs.end()), Bytes::new()).await.expect("recorded");
        assert!(Journal::is_of(&output, &plan("2")).await.expect("read"));
        let refused = Journal::open(&output, &plan("1"), false).await.expect_err("another");
        assert!(
            matches!(&refused, PrepareError::OtherPreparation { differs, .. } if differs == "options"),
            "{refused}"
        );
        Journal::open(&output, &plan("1"), true).await.expect("forced");
        assert_eq!(output.list("").await.expect("listed").len(), 1, "only the plan is left");
    }
}
