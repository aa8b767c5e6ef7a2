//! Perplexity by n-gram models: how little a document is like the text that its language's model was made of.

use std::{
    collections::BTreeMap,
    io::{self, BufReader, Read},
};

use polo_store::{Digest, Store};
use tokio::runtime::Handle;

use super::{
    SourceKind,
    arpa::{NgramModel, Score, Word},
    config::{LanguageModel, PerplexityStep, PerplexityUnits},
};
use crate::{
    documents::decompress, encode::Encoder, error::PrepareError, inputs::compression_by_name,
    object_reader::ObjectReader,
};

/// The models of the languages that sources are in.
#[derive(Debug)]
pub struct Perplexity {
    lowercase: bool,
    models: BTreeMap<String, Model>,
}

#[derive(Debug)]
struct Model {
    config: LanguageModel,
    ngrams: NgramModel,
    /// By id the word that a token is, where tokens are the units.
    words_of_ids: Option<Vec<Word>>,
    digest: Digest,
}

/// The name under which `step` has the model for documents in `tag`: the tag itself, or its language alone.
pub fn model_for<'a>(step: &PerplexityStep, tag: &'a str) -> Option<&'a str> {
    let language = tag.split('-').next().unwrap_or(tag);
    [tag, language].into_iter().find(|name| step.models.contains_key(*name))
}

impl Perplexity {
    /// Reads the models `names` of `step`.
    pub async fn load(step: &PerplexityStep, names: &[&str], encoder: &Encoder) -> Result<Self, PrepareError> {
        let mut models = BTreeMap::new();
        for (name, config) in step.models.iter().filter(|(name, _)| names.contains(&name.as_str())) {
            let (ngrams, digest) = read_model(&config.file).await?;
            let words_of_ids = (step.units == PerplexityUnits::Tokens).then(|| words_of_ids(encoder, &ngrams));
            models.insert(name.clone(), Model { config: config.clone(), ngrams, words_of_ids, digest });
        }
        Ok(Self { lowercase: step.lowercase, models })
    }

    /// What decides what goes, beside the cleaning file.
    pub fn digests(&self) -> String {
        self.models.iter().map(|(name, model)| format!("{name} {}\n", model.digest)).collect()
    }

    /// Why a text goes, if it does.
    pub fn reason_against(&self, model: &str, encoder: &Encoder, text: &str) -> Option<&'static str> {
        let model = self.models.get(model)?;
        let perplexity = self.score(model, encoder, text).perplexity()?;
        if model.config.max.is_some_and(|most| perplexity > most) {
            return Some("high_perplexity");
        }
        model.config.min.is_some_and(|fewest| perplexity < fewest).then_some("low_perplexity")
    }

    /// Each line is a sentence, as in CCNet (arXiv 1911.00359); blank ones are none.
    fn score(&self, model: &Model, encoder: &Encoder, text: &str) -> Score {
        let lower = self.lowercase.then(|| text.to_lowercase());
        let mut score = Score::default();
        for line in lower.as_deref().unwrap_or(text).lines().filter(|line| !line.trim().is_empty()) {
            score.add(match &model.words_of_ids {
                Some(words) => {
                    model.ngrams.score(ids(encoder, line).into_iter().filter_map(|id| words.get(id).copied()))
                }
                None => model.ngrams.score(line.split_ascii_whitespace().map(|word| model.ngrams.word(word))),
            });
        }
        score
    }

    /// What was read.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.models.values().map(|Model { config, ngrams, .. }| {
            format!("{}: {} n-grams of up to {} words", config.file, ngrams.num_ngrams(), ngrams.order())
        })
    }
}

/// What to tell about sources that are not looked at.
pub fn notes(step: Option<&PerplexityStep>, sources: &[SourceKind]) -> Vec<String> {
    let Some(step) = step else { return vec![] };
    let looked_at = sources.iter().filter(|source| !source.is_parallel && !step.except.contains(&source.name));
    let note = |source: &SourceKind| match source.language.as_deref() {
        None => {
            Some(format!("source '{}' has no --language, so its documents' perplexity is not looked at", source.name))
        }
        Some(tag) if model_for(step, tag).is_none() => Some(format!(
            "source '{}': perplexity.models has no model for '{tag}', so its documents' perplexity is not looked at",
            source.name
        )),
        Some(_) => None,
    };
    looked_at.filter_map(note).collect()
}

/// Without the end of text. What the tokenizer cannot encode has none; it is told of when the document is encoded.
fn ids(encoder: &Encoder, line: &str) -> Vec<usize> {
    let mut ids = vec![];
    if encoder.encode(line, &mut ids).is_ok() {
        ids.pop();
    }
    ids.into_iter().map(|id| id as usize).collect()
}

fn words_of_ids(encoder: &Encoder, ngrams: &NgramModel) -> Vec<Word> {
    let word = |id| ngrams.word(&encoder.token(id).unwrap_or_default());
    (0..encoder.vocab_size as u32).map(word).collect() // fits: ids have 32 bits
}

async fn read_model(file: &str) -> Result<(NgramModel, Digest), PrepareError> {
    let (folder, name) = file.rsplit_once('/').unwrap_or((".", file));
    let store = Store::open(if folder.is_empty() { "/" } else { folder })?;
    let num_bytes = store.size_bytes(name).await?;
    let (name, compression) = (name.to_owned(), compression_by_name(name).1);
    let read = move || -> io::Result<_> {
        let stream = ObjectReader::new(Handle::current(), store, &name, num_bytes, Default::default());
        let mut stream = Hashed { stream: decompress(stream, compression)?, hasher: blake3::Hasher::new() };
        let ngrams = NgramModel::read(BufReader::with_capacity(1 << 16, &mut stream));
        if ngrams.is_ok() {
            io::copy(&mut stream, &mut io::sink())?; // whatever stands after the end is part of the digest, too
        }
        Ok(ngrams.map(|ngrams| (ngrams, stream.hasher.finalize().into())))
    };
    let read = tokio::task::spawn_blocking(read).await.map_err(|_| PrepareError::ThreadLost)?;
    let failed = |reason| PrepareError::Cleaning { file: file.to_owned(), reason };
    read.map_err(|error| failed(error.to_string()))?.map_err(failed)
}

/// Hashes what is read.
struct Hashed<R> {
    stream: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let num_bytes = self.stream.read(buffer)?;
        self.hasher.update(&buffer[..num_bytes]);
        Ok(num_bytes)
    }
}
