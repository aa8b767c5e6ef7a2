//! Parallel data: pairs of texts in two languages, filtered and put into words.

use serde_json::Value;

use crate::{
    documents::{Document, Found},
    error::{Place, PrepareError},
    languages::Language,
    reason::Rejected,
    templates::{self, Pair},
};

/// Between the pairs of one document.
const PAIR_SEPARATOR: &str = "\n\n";

/// How pairs lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairFormat {
    /// Lines of text, tab, its translation; a third column is their similarity.
    Tsv,
    /// JSON lines with a field for each language code, at the top or in `translation`; `score` is their similarity.
    Jsonl,
    /// Two files whose lines correspond, as Moses has them.
    Aligned,
}

/// Which pairs pass.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PairFilters {
    /// Drop pairs of which one text has more than this many times the characters of the other.
    pub max_length_ratio: Option<f64>,
    /// Drop pairs whose texts are equal.
    pub drop_identical: bool,
    /// Drop pairs with a lower similarity, and those that state none.
    pub min_similarity: Option<f64>,
}

/// How a file of pairs becomes documents.
#[derive(Debug, Clone, PartialEq)]
pub struct Pairs {
    /// How they lie.
    pub format: PairFormat,
    /// The codes of both languages, as fields and files are named.
    pub codes: (String, String),
    /// The languages.
    pub languages: (&'static Language, &'static Language),
    /// Decides templates and directions.
    pub seed: u64,
    /// Whether a pair's direction is drawn too.
    pub either_direction: bool,
    /// Most pairs of a document.
    pub per_document: usize,
    /// Which pairs pass.
    pub filters: PairFilters,
}

/// A pair as it lies in the file.
struct RawPair {
    line: u64,
    source: String,
    target: String,
    similarity: Option<f64>,
}

impl Pairs {
    /// The documents of numbered lines of a file.
    pub fn documents<'a>(&self, key: &str, lines: impl Iterator<Item = (u64, &'a [u8])>) -> Vec<Found> {
        self.grouped(lines.map(|(line, bytes)| {
            let text = utf8(key, line, bytes)?;
            match self.format {
                PairFormat::Jsonl => self.json_pair(key, line, text),
                _ => tsv_pair(key, line, text),
            }
        }))
    }

    /// The documents of lines that come from two files by turns, the first of which is `first_line` there.
    pub fn aligned_documents(&self, key: &str, first_line: u64, lines: &[u8]) -> Vec<Found> {
        let mut lines = lines.split_inclusive(|byte| *byte == b'\n');
        let mut line = first_line;
        let pairs = std::iter::from_fn(move || {
            let (source, target) = (lines.next()?, lines.next()?);
            line += 1;
            Some((line - 1, source, target))
        });
        self.grouped(pairs.map(|(line, source, target)| {
            let (source, target) = (utf8(key, line, source)?, utf8(key, line, target)?);
            Ok(RawPair { line, source: trimmed(source), target: trimmed(target), similarity: None })
        }))
    }

    fn json_pair(&self, key: &str, line: u64, text: &str) -> Result<RawPair, PrepareError> {
        let (key, place) = (key.to_owned(), Place::Line(line));
        let value: Value = serde_json::from_str(text).map_err(|error| PrepareError::InvalidJson {
            key: key.clone(),
            place,
            reason: error.to_string(),
        })?;
        let texts = value.get("translation").unwrap_or(&value);
        let text = |code: &str| texts.get(code).and_then(Value::as_str).map(trimmed);
        let (Some(source), Some(target)) = (text(&self.codes.0), text(&self.codes.1)) else {
            let reason = format!("no pair: not both '{}' and '{}' are strings there", self.codes.0, self.codes.1);
            return Err(PrepareError::NoPair { key, place, reason });
        };
        Ok(RawPair { line, source, target, similarity: value.get("score").and_then(Value::as_f64) })
    }

    /// Filters pairs and joins those that pass to documents; those that do not pass stand where they were.
    fn grouped(&self, pairs: impl Iterator<Item = Result<RawPair, PrepareError>>) -> Vec<Found> {
        let mut found = vec![];
        let mut open: Option<(usize, Place, String)> = None;
        for pair in pairs {
            let (place, text) = match pair.map_err(Rejected::from).and_then(|pair| self.document_of(&pair)) {
                Ok(rendered) => rendered,
                Err(rejected) => {
                    found.push(Err(rejected));
                    continue;
                }
            };
            let (num_pairs, first_place, joined) = match open.take() {
                None => (1, place, text),
                Some((num_pairs, first_place, joined)) => (num_pairs + 1, first_place, joined + PAIR_SEPARATOR + &text),
            };
            if num_pairs == self.per_document {
                found.push(Ok(Document { place: first_place, text: joined }));
            } else {
                open = Some((num_pairs, first_place, joined));
            }
        }
        found.extend(open.map(|(_, place, text)| Ok(Document { place, text })));
        found
    }

    fn document_of(&self, pair: &RawPair) -> Result<(Place, String), Rejected> {
        let place = Place::Line(pair.line);
        if let Some(reason) = self.filters.reason_against(pair) {
            return Err(Rejected::dropped(reason, place, &format!("{}\t{}", pair.source, pair.target)));
        }
        let (source, target) = (self.languages.0.name, self.languages.1.name);
        let given = Pair { src_lang: source, tgt_lang: target, input: &pair.source, output: &pair.target };
        let turned = Pair { src_lang: target, tgt_lang: source, input: &pair.target, output: &pair.source };
        let turn = self.either_direction && templates::is_turned(self.seed, pair.line);
        Ok((place, templates::render(if turn { turned } else { given }, self.seed, pair.line)))
    }
}

impl PairFilters {
    fn reason_against(&self, pair: &RawPair) -> Option<&'static str> {
        if pair.source.is_empty() || pair.target.is_empty() {
            return Some("empty");
        }
        if self.drop_identical && pair.source == pair.target {
            return Some("identical_pair");
        }
        let (a, b) = (pair.source.chars().count() as f64, pair.target.chars().count() as f64);
        if self.max_length_ratio.is_some_and(|most| a.max(b) > most * a.min(b)) {
            return Some("length_ratio");
        }
        let is_similar = |least| pair.similarity.is_some_and(|similarity| similarity >= least);
        if self.min_similarity.is_some_and(|least| !is_similar(least)) {
            return Some("similarity");
        }
        None
    }
}

fn tsv_pair(key: &str, line: u64, text: &str) -> Result<RawPair, PrepareError> {
    let mut columns = text.trim_end_matches(['\r', '\n']).split('\t');
    match (columns.next(), columns.next(), columns.next()) {
        (Some(source), Some(target), third) => {
            let similarity = third.and_then(|column| column.trim().parse().ok());
            Ok(RawPair { line, source: trimmed(source), target: trimmed(target), similarity })
        }
        _ => {
            let reason = "no pair: a line is a text, a tab, and its translation".to_owned();
            Err(PrepareError::NoPair { key: key.to_owned(), place: Place::Line(line), reason })
        }
    }
}

fn trimmed(text: &str) -> String {
    text.trim().to_owned()
}

fn utf8<'a>(key: &str, line: u64, bytes: &'a [u8]) -> Result<&'a str, PrepareError> {
    str::from_utf8(bytes).map_err(|error| PrepareError::NotUtf8 {
        key: key.to_owned(),
        place: Place::Line(line),
        byte: error.valid_up_to() as u64,
    })
}

#[cfg(test)]
impl Pairs {
    /// English and German in tab-separated lines.
    pub fn for_tests() -> Self {
        use crate::languages::language;
        let languages = (language("en").expect("known"), language("de").expect("known"));
        let (format, codes, filters) = (PairFormat::Tsv, ("en".to_owned(), "de".to_owned()), PairFilters::default());
        Self { format, codes, languages, seed: 1, either_direction: false, per_document: 1, filters }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(format: PairFormat) -> Pairs {
        Pairs { format, ..Pairs::for_tests() }
    }

    /// Texts, and reasons in the place of what is dropped.
    fn told(found: Vec<Found>) -> Vec<Result<String, &'static str>> {
        found
            .into_iter()
            .map(|found| found.map(|d| d.text).map_err(|rejected| &*rejected.reason.into_owned().leak()))
            .collect()
    }

    fn lines(text: &str) -> impl Iterator<Item = (u64, &[u8])> {
        (1..).zip(text.as_bytes().split_inclusive(|byte| *byte == b'\n'))
    }

    fn expected(line: u64, input: &str, output: &str) -> Result<String, &'static str> {
        Ok(templates::render(Pair { src_lang: "English", tgt_lang: "German", input, output }, 1, line))
    }

    #[test]
    fn three_ways_to_lie() {
        let both = [expected(1, "one", "eins"), expected(2, "two", "zwei")];
        assert_eq!(told(pairs(PairFormat::Tsv).documents("k", lines("one\teins\ntwo \t zwei\t0.5\r\n"))), both);
        let json = "{\"translation\": {\"de\": \"eins\", \"en\": \"one\"}}\n{\"en\": \"two\", \"de\": \"zwei\"}\n";
        assert_eq!(told(pairs(PairFormat::Jsonl).documents("k", lines(json))), both);
        let found = pairs(PairFormat::Aligned).aligned_documents("k", 1, b"one\neins\ntwo\nzwei");
        assert_eq!(told(found), both);
    }

    #[test]
    fn what_is_no_pair_is_told() {
        let tsv = told(pairs(PairFormat::Tsv).documents("k", lines("one\n\teins\n")));
        assert_eq!(tsv, [Err("no_pair"), Err("empty")]);
        let json = told(pairs(PairFormat::Jsonl).documents("k", lines("{\"en\": \"one\"}\n{\n")));
        assert_eq!(json, [Err("no_pair"), Err("invalid_json")]);
    }

    #[test]
    fn filters() {
        let filters = PairFilters { max_length_ratio: Some(2.0), drop_identical: true, min_similarity: Some(0.5) };
        let pairs = Pairs { filters, ..pairs(PairFormat::Tsv) };
        let text = "same\tsame\t0.9\nab\tabcd\t0.5\nab\tabcde\t0.9\nab\tcd\t0.4\nab\tcd\n";
        let reasons: Vec<_> = told(pairs.documents("k", lines(text))).into_iter().map(Result::err).collect();
        let similarity = Some("similarity");
        assert_eq!(reasons, [Some("identical_pair"), None, Some("length_ratio"), similarity, similarity]);
    }

    #[test]
    fn several_pairs_share_a_document() {
        let pairs = Pairs { per_document: 2, ..pairs(PairFormat::Tsv) };
        let found = told(pairs.documents("k", lines("a\tb\nbad\nc\td\ne\tf\n")));
        let text = |line, input, output| expected(line, input, output).expect("a text");
        let joined = text(1, "a", "b") + "\n\n" + &text(3, "c", "d");
        assert_eq!(found, [Err("no_pair"), Ok(joined), expected(4, "e", "f")]);
    }

    #[test]
    fn directions_can_be_drawn() {
        let pairs = Pairs { either_direction: true, ..pairs(PairFormat::Tsv) };
        let found = told(pairs.documents("k", lines(&"one\teins\n".repeat(200))));
        let num_turned = (1..).zip(found).filter(|(line, found)| *found != expected(*line, "one", "eins")).count();
        assert!((60..140).contains(&num_turned), "{num_turned}");
    }
}
