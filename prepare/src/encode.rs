//! The tokenizer: text to ids, one document at a time.

use std::path::Path;

use bytes::Bytes;
use polo_store::Digest;
use tokenizers::Tokenizer;

use crate::{error::PrepareError, fast_path::FastPath};

/// The token that ends each document.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Encodes documents. Shared by all threads.
pub struct Encoder {
    tokenizer: Tokenizer,
    fast_path: Option<FastPath>,
    /// The tokenizer file.
    pub json: Bytes,
    /// Digest of it.
    pub digest: Digest,
    /// Highest id plus one.
    pub vocab_size: u64,
    /// Id of [`END_OF_TEXT`].
    pub eos_id: u32,
}

impl Encoder {
    /// Reads a Hugging Face `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self, PrepareError> {
        let file = path.display().to_string();
        let failed = |error: std::io::Error| PrepareError::Tokenizer { file: file.clone(), reason: error.to_string() };
        Self::from_bytes(&file, std::fs::read(path).map_err(failed)?.into())
    }

    /// Reads the bytes of a `tokenizer.json`; `file` is its name in errors.
    pub fn from_bytes(file: &str, bytes: Bytes) -> Result<Self, PrepareError> {
        let failed = |reason: String| PrepareError::Tokenizer { file: file.to_owned(), reason };
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
        let (fast_path, digest) = (FastPath::of(&bytes), Digest::of(&bytes));
        Ok(Self { tokenizer, fast_path, json: bytes, digest, vocab_size, eos_id })
    }

    /// Appends the ids of `text` and the end-of-text id.
    pub fn encode(&self, text: &str, ids: &mut Vec<i32>) -> Result<(), String> {
        let is_done = self.fast_path.as_ref().is_some_and(|fast_path| fast_path.encode(&self.tokenizer, text, ids));
        if !is_done {
            self.encode_by_library(text, ids)?;
        }
        ids.push(self.eos_id as i32); // fits: see vocab_size
        Ok(())
    }

    /// The token with this id, as the tokenizer's vocabulary has it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    fn encode_by_library(&self, text: &str, ids: &mut Vec<i32>) -> Result<(), String> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| error.to_string())?;
        ids.extend(encoding.get_ids().iter().map(|id| *id as i32));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoder() -> Encoder {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/tokenizer/tokenizer.json");
        Encoder::from_file(&path).expect("run `scripts/setup tokenizer` first")
    }

    fn check(encoder: &Encoder, text: &str) -> bool {
        let (mut fast, mut slow) = (vec![], vec![]);
        let fast_path = encoder.fast_path.as_ref().expect("the tokenizer has the shape");
        let is_done = fast_path.encode(&encoder.tokenizer, text, &mut fast);
        encoder.encode_by_library(text, &mut slow).expect("encoded");
        assert!(!is_done || fast == slow, "{text:?}: {fast:?} instead of {slow:?}");
        is_done
    }

    /// Of every plane that has characters of its own; the others have neither letters nor digits nor spaces.
    #[test]
    fn the_fast_path_is_the_library_on_every_character() {
        let encoder = encoder();
        let all: Vec<char> = (0..0x4_0000).chain(0xe_0000..0xe_1000).filter_map(char::from_u32).collect();
        let text = |chars: &[char]| chars.iter().map(|c| format!("a{c}b {c}1{c}  {c}\n{c}'{c}")).collect::<String>();
        let mut num_fast = 0;
        for chars in all.chunks(64) {
            if check(&encoder, &text(chars)) {
                num_fast += chars.len();
                continue;
            }
            // Where one needs the library, the others are still to be tried.
            num_fast += chars.iter().filter(|c| check(&encoder, &text(&[**c]))).count();
        }
        assert!(num_fast > 250_000, "{num_fast} of {} were fast", all.len());
    }

    #[test]
    fn the_fast_path_is_the_library_on_random_texts() {
        use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
        let seed = rand::rng().random();
        println!("seed {seed}");
        let (encoder, mut rng) = (encoder(), StdRng::seed_from_u64(seed));
        let parts = [
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "\u{a0}",
            "\u{3000}",
            "\u{2028}",
            "a",
            "Word",
            "'s",
            "'LL",
            "'\u{17f}",
            "1",
            "٣",
            "½",
            "é",
            "e\u{301}",
            "हु",
            "न्",
            "人",
            "か\u{3099}",
            "!",
            "...",
            "—",
            "🙂",
            "\u{200d}",
            "\u{0}",
            "<|endoftext|>",
            "<tool_call>",
        ];
        let mut num_fast = 0;
        for _ in 0..20_000 {
            let num_parts = rng.random_range(0..12);
            let text: String = (0..num_parts).filter_map(|_| parts.choose(&mut rng).copied()).collect();
            num_fast += usize::from(check(&encoder, &text));
        }
        assert!(num_fast > 5_000, "{num_fast} were fast");
    }

    #[test]
    fn tokenizers_of_another_shape_go_to_the_library() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/tokenizer/tokenizer.json");
        let json = std::fs::read_to_string(path).expect("run `scripts/setup tokenizer` first");
        assert!(FastPath::of(json.as_bytes()).is_some());
        for (from, to) in [("\"NFC\"", "\"NFKC\""), ("\\\\p{N}|", "\\\\p{N}+|"), ("\"Isolated\"", "\"Removed\"")] {
            assert!(json.contains(from), "{from}");
            assert!(FastPath::of(json.replacen(from, to, 1).as_bytes()).is_none(), "{to}");
        }
    }
}
