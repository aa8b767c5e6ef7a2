//! The tokenizer: text to ids, one document at a time.

use std::path::Path;

use polo_store::Digest;
use tokenizers::Tokenizer;

use super::{documents::Batch, error::PrepareError};

/// The token that ends each document.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Encodes documents. Shared by all threads.
pub struct Encoder {
    tokenizer: Tokenizer,
    /// Digest of the tokenizer file.
    pub digest: Digest,
    /// Highest id plus one.
    pub vocab_size: u64,
    /// Id of [`END_OF_TEXT`].
    pub eos_id: u32,
}

/// The documents of a batch as ids.
#[derive(Debug, Default)]
pub struct Encoded {
    /// Ids of all documents one after another, each document ended by the end-of-text id.
    pub ids: Vec<i32>,
    /// Tokens of each document.
    pub lengths: Vec<usize>,
    /// UTF-8 bytes of the text.
    pub num_bytes_text: u64,
    /// Documents left out because they are empty.
    pub num_empty: u64,
    /// What was found wrong, in order; those documents are left out.
    pub faults: Vec<PrepareError>,
}

impl Encoder {
    /// Reads a Hugging Face `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self, PrepareError> {
        let failed = |reason: String| PrepareError::Tokenizer { file: path.display().to_string(), reason };
        let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| failed(error.to_string()))?;
        tokenizer.with_truncation(None).map_err(|error| failed(error.to_string()))?;
        tokenizer.with_padding(None);
        // A document that merely mentions <|endoftext|> must not end there: text is text, never control.
        tokenizer.set_encode_special_tokens(true);
        let eos_id = tokenizer.token_to_id(END_OF_TEXT).ok_or_else(|| {
            failed(format!("it has no {END_OF_TEXT} token, which ends each document; use a Qwen tokenizer.json"))
        })?;
        let vocab_size = tokenizer.get_vocab(true).values().max().map_or(0, |id| u64::from(*id) + 1);
        if vocab_size > i32::MAX as u64 {
            return Err(failed(format!("its ids up to {vocab_size} do not fit shards of 32-bit ids")));
        }
        Ok(Self { tokenizer, digest: Digest::of(&bytes), vocab_size, eos_id })
    }

    /// Encodes the documents of `batch`.
    pub fn encode(&self, batch: &Batch) -> Encoded {
        let mut encoded = Encoded::default();
        for document in batch.documents() {
            let result = document.and_then(|document| {
                let key = || batch.key.clone();
                let ids = self.ids(&document.text).map_err(|reason| PrepareError::Encode {
                    key: key(),
                    line: document.line,
                    reason,
                })?;
                Ok((ids, document.text.len() as u64))
            });
            match result {
                Ok((ids, _)) if ids.is_empty() => encoded.num_empty += 1,
                Ok((ids, num_bytes_text)) => encoded.push(&ids, self.eos_id, num_bytes_text),
                Err(fault) => encoded.faults.push(fault),
            }
        }
        encoded
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, String> {
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }
}

impl Encoded {
    fn push(&mut self, ids: &[u32], eos_id: u32, num_bytes_text: u64) {
        self.ids.extend(ids.iter().chain([&eos_id]).map(|id| *id as i32)); // fits: checked against vocab_size
        self.lengths.push(ids.len() + 1);
        self.num_bytes_text += num_bytes_text;
    }
}
