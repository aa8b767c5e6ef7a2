//! Byte-level BPE of Qwen's shape without what only the library's callers need: offsets, the pieces' texts, alignments.
//!
//! `tokenizers` carries for each byte of a text where it came from, and each piece as a string. Ids alone need none of it:
//! here a text is cut with the tokenizer's own pattern, and each piece's ids are looked up among those met before; a new
//! piece goes through the library's BPE. Where a tokenizer or a text is of another shape, the library does it all.

use std::{cell::RefCell, collections::HashMap};

use regex::Regex;
use serde_json::{Value, json};
use tokenizers::{Model, ModelWrapper, Tokenizer};
use unicode_normalization::{IsNormalized, is_nfc_quick};

/// The pattern of Qwen2's and Qwen3's tokenizers.
const PATTERN: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same, for a matcher without look-ahead: `\s+(?!\S)` leaves the last space to the word that follows, which
/// [`FastPath::end_of_piece`] does.
const PATTERN_WITHOUT_LOOK_AHEAD: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
/// Pieces that a thread remembers; some ten megabytes.
const MAX_CACHED_PIECES: usize = 1 << 17;
/// Longer pieces are rare and not worth remembering.
const MAX_CACHED_BYTES: usize = 64;

/// Ids of texts, for a tokenizer of Qwen's shape.
pub struct FastPath {
    pattern: Regex,
    /// Tokens that are found in a text before it is cut; a text that has one goes to the library.
    added_tokens: Vec<String>,
    byte_chars: [char; 256],
}

/// Ids of pieces of text.
type PieceIds = HashMap<Box<[u8]>, Box<[u32]>>;

thread_local! {
    /// Of one tokenizer: a process prepares with one.
    static CACHE: RefCell<PieceIds> = RefCell::default();
}

impl FastPath {
    /// The fast path for the tokenizer of which `json` is the `tokenizer.json`, if it has Qwen's shape.
    pub fn of(json: &[u8]) -> Option<Self> {
        let shape: Shape = serde_json::from_slice(json).ok()?;
        if !shape.is_qwens() {
            return None;
        }
        let added = shape.added_tokens.iter().filter(|token| token["special"] != json!(true));
        let added_tokens = added.map(|token| token["content"].as_str().map(str::to_owned)).collect::<Option<_>>()?;
        let pattern = Regex::new(PATTERN_WITHOUT_LOOK_AHEAD).ok()?;
        Some(Self { pattern, added_tokens, byte_chars: byte_chars() })
    }

    /// Appends the ids of `text`; false, with nothing appended, where the library is to do it.
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str, ids: &mut Vec<i32>) -> bool {
        let ModelWrapper::BPE(model) = tokenizer.get_model() else { return false };
        if is_nfc_quick(text.chars()) != IsNormalized::Yes || self.added_tokens.iter().any(|token| text.contains(token))
        {
            return false;
        }
        let (start, mut at) = (ids.len(), 0);
        CACHE.with_borrow_mut(|cache| {
            while at < text.len() {
                let end = self.end_of_piece(text, at);
                let piece = &text.as_bytes()[at..end];
                at = end;
                if let Some(known) = cache.get(piece) {
                    ids.extend(known.iter().map(|id| *id as i32)); // fits: the encoder checks the vocabulary
                    continue;
                }
                let piece_chars: String = piece.iter().map(|byte| self.byte_chars[usize::from(*byte)]).collect();
                let Ok(tokens) = model.tokenize(&piece_chars) else {
                    ids.truncate(start);
                    return false;
                };
                let new: Box<[u32]> = tokens.iter().map(|token| token.id).collect();
                ids.extend(new.iter().map(|id| *id as i32));
                if piece.len() <= MAX_CACHED_BYTES {
                    if cache.len() >= MAX_CACHED_PIECES {
                        cache.clear();
                    }
                    cache.insert(piece.into(), new);
                }
            }
            true
        })
    }

    /// Where the piece that begins at `at` ends.
    fn end_of_piece(&self, text: &str, at: usize) -> usize {
        // Every character begins a match of some branch, so there is one right here.
        let Some(end) = self.pattern.find_at(text, at).map(|found| found.end()) else { return text.len() };
        let piece = &text[at..end];
        let Some(last) = piece.chars().next_back().filter(|c| c.is_whitespace()) else { return end };
        let is_space = !matches!(last, '\r' | '\n') && piece.chars().all(char::is_whitespace);
        let without_last = end - last.len_utf8();
        if is_space && end < text.len() && without_last > at { without_last } else { end }
    }
}

/// What decides how a `tokenizer.json` cuts texts: all of it but vocabulary and merges, which are large.
#[derive(serde::Deserialize)]
struct Shape {
    normalizer: Value,
    pre_tokenizer: Value,
    added_tokens: Vec<Value>,
    model: ModelShape,
}

#[derive(Default, serde::Deserialize)]
#[serde(default)]
struct ModelShape {
    r#type: Value,
    dropout: Value,
    unk_token: Value,
    continuing_subword_prefix: Value,
    end_of_word_suffix: Value,
    byte_fallback: Value,
    ignore_merges: Value,
}

impl Shape {
    fn is_qwens(&self) -> bool {
        let is_off = |value: &Value| value.is_null() || *value == json!("") || *value == json!(false);
        let steps = self.pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let [split, bytes] = steps else { return false };
        let model = &self.model;
        let options = [&model.dropout, &model.unk_token, &model.continuing_subword_prefix, &model.end_of_word_suffix];
        self.normalizer["type"] == "NFC"
            && self.pre_tokenizer["type"] == "Sequence"
            && split["type"] == "Split"
            && split["pattern"] == json!({ "Regex": PATTERN })
            && split["behavior"] == "Isolated"
            && is_off(&split["invert"])
            && bytes["type"] == "ByteLevel"
            && is_off(&bytes["add_prefix_space"])
            && bytes["use_regex"] == json!(false)
            && model.r#type == "BPE"
            && options.into_iter().chain([&model.byte_fallback, &model.ignore_merges]).all(is_off)
    }
}

/// Which character stands for a byte in byte-level BPE: printable ones for themselves, the others from U+0100 on (GPT-2's
/// `bytes_to_unicode`).
fn byte_chars() -> [char; 256] {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = byte as u8; // from 0 to 255
        if is_printable(byte) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).unwrap_or_default()
    })
}
