//! Evaluation sets, as the n-grams that no document may have.

use std::{collections::HashSet, io::Read};

use polo_store::{Digest, Store};
use serde_json::Value;

use super::units::Units;
use crate::{
    documents::decompress,
    error::{Place, PrepareError, read_error},
    inputs::{self, Format},
};

/// The n-grams of all evaluation texts.
#[derive(Debug)]
pub struct EvaluationNgrams {
    ngram: usize,
    ngrams: HashSet<u64>,
    num_texts: usize,
    num_short: usize,
    /// Digest of all that was read.
    pub digest: Digest,
}

impl EvaluationNgrams {
    /// Reads all evaluation sets at `input`.
    pub async fn load(input: &str, ngram: usize) -> Result<Self, PrepareError> {
        let store = Store::open(input)?;
        let entries = store.list("").await?;
        if entries.is_empty() {
            return Err(PrepareError::EmptyInput { input: store.url().to_owned() });
        }
        let digest = Digest::of(b"");
        let mut all = Self { ngram, ngrams: HashSet::new(), num_texts: 0, num_short: 0, digest };
        let mut digests = String::new();
        for entry in entries {
            let (format, compression) = inputs::format_by_name(&entry.key)?;
            let packed = store.get(&entry.key).await?;
            digests += &format!("{} {}\n", entry.key, Digest::of(&packed));
            let mut text = String::new();
            let unpacked = decompress(std::io::Cursor::new(packed), compression);
            unpacked
                .and_then(|mut stream| stream.read_to_string(&mut text))
                .map_err(|error| read_error(&store.url_of(&entry.key), error))?;
            all.add_file(&store.url_of(&entry.key), format, &text)?;
        }
        Ok(Self { digest: Digest::of(digests.as_bytes()), ..all })
    }

    fn add_file(&mut self, key: &str, format: Format, text: &str) -> Result<(), PrepareError> {
        for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            if format != Format::Jsonl {
                self.add(text);
                continue;
            }
            let value = serde_json::from_str(text).map_err(|error| PrepareError::InvalidJson {
                key: key.to_owned(),
                place: Place::Line(line),
                reason: error.to_string(),
            })?;
            self.add_strings(&value);
        }
        Ok(())
    }

    fn add_strings(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.add(text),
            Value::Array(values) => values.iter().for_each(|value| self.add_strings(value)),
            Value::Object(fields) => fields.values().for_each(|value| self.add_strings(value)),
            _ => {}
        }
    }

    fn add(&mut self, text: &str) {
        let units = Units::of(text);
        self.num_texts += 1;
        self.num_short += usize::from(units.len() < self.ngram);
        self.ngrams.extend(units.ngrams(self.ngram));
    }

    /// Whether a document shares an n-gram with an evaluation text.
    pub fn overlaps(&self, units: &Units) -> bool {
        units.ngrams(self.ngram).any(|ngram| self.ngrams.contains(&ngram))
    }

    /// What was read.
    pub fn note(&self) -> String {
        let Self { ngram, num_texts, num_short, .. } = self;
        format!(
            "{num_texts} evaluation texts, of which {num_short} have fewer than {ngram} words and are not looked for"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_of_shared_words_is_an_overlap() {
        let store = Store::open("memory://evaluation-sets").expect("a store");
        let jsonl = r#"{"question": "How many moons does the planet Mars have?", "options": ["one", {"b": "two"}]}"#;
        store.put("a/mars.jsonl", jsonl.into()).await.expect("stored");
        store.put("b.txt", "the first line of a text\nshort\n".into()).await.expect("stored");
        let ngrams = EvaluationNgrams::load("memory://evaluation-sets", 4).await.expect("read");
        let overlaps = |text: &str| ngrams.overlaps(&Units::of(text));
        assert!(overlaps("So, how MANY moons\ndoes it have?"));
        assert!(overlaps("It was the first line of all."));
        assert!(!overlaps("How many moons has the planet Mars"));
        assert!(!overlaps("short one two"));
        assert_eq!(ngrams.note(), "5 evaluation texts, of which 3 have fewer than 4 words and are not looked for");
    }
}
