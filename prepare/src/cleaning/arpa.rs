//! n-gram models with back-off, as KenLM's `lmplz` and SRILM write them in ARPA's format (`ngram-format(5)` of SRILM).

use std::{
    collections::HashMap,
    hash::BuildHasherDefault,
    io::{self, BufRead},
};

use twox_hash::XxHash3_64;

use super::{duplicates::AsItIs, units::mixed};

/// What KenLM takes for the log10 probability of a word unknown to a model without `<unk>`.
const MISSING_UNK_LOG10: f32 = -100.0;
/// What KenLM's binary files begin with.
const KENLM_BINARY: &[u8] = b"mmap lm http://kheafield.com/code";
/// Longest line that is read: far more than any n-gram has.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// A word of the model, by the hash of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word(u64);

const BEGIN: &str = "<s>";
const END: &str = "</s>";
const UNKNOWN: &str = "<unk>";

impl Word {
    fn spelt(text: &str) -> Self {
        Self(XxHash3_64::oneshot(text.as_bytes()))
    }
}

#[derive(Debug, Clone, Copy)]
struct Weights {
    log10_probability: f32,
    log10_backoff: f32,
}

/// The n-grams of one length, by the hash of their words.
type Ngrams = HashMap<u64, Weights, BuildHasherDefault<AsItIs>>;

/// An n-gram model. It takes up to 40 bytes for each n-gram (and half as much again while it is read), which is about the
/// size of the unpacked file.
#[derive(Debug)]
pub struct NgramModel {
    /// Those of one word first.
    orders: Vec<Ngrams>,
}

/// A row of words that is scored: log10 of its probability, with its end, and the number of words, the end one of them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Log10 of the probability.
    pub log10_probability: f64,
    /// Words.
    pub num_words: u64,
}

impl Score {
    /// Perplexity for each word, 10^(-log10 probability / words); nothing where there are no words.
    pub fn perplexity(&self) -> Option<f64> {
        (self.num_words > 0).then(|| 10f64.powf(-self.log10_probability / self.num_words as f64))
    }

    /// Adds another row's.
    pub fn add(&mut self, other: Self) {
        self.log10_probability += other.log10_probability;
        self.num_words += other.num_words;
    }
}

/// The hash of an n-gram, word by word from its last to its first, so that those of all that end alike come by the way.
fn with_word_before(ngram: u64, word: Word) -> u64 {
    mixed(ngram ^ word.0.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The hashes of the last one, two, ... up to `most` of `words`.
fn suffixes(words: &[Word], most: usize) -> Vec<u64> {
    let hash = |ngram: &mut u64, word: &Word| {
        *ngram = with_word_before(*ngram, *word);
        Some(*ngram)
    };
    words.iter().rev().take(most).scan(0, hash).collect()
}

impl NgramModel {
    /// Reads a model; what is wrong with it comes with the line.
    pub fn read(stream: impl BufRead) -> Result<Self, String> {
        let mut lines = Lines { stream, line: vec![], number: 0 };
        let counts = lines.counts()?;
        let mut orders = vec![];
        for (order, count) in (1..).zip(&counts) {
            lines.heading(&format!("\\{order}-grams:"))?;
            orders.push(lines.ngrams(order, *count)?);
        }
        lines.heading("\\end\\")?;
        let mut model = Self { orders };
        for word in [BEGIN, END] {
            if !model.has(Word::spelt(word)) {
                return Err(format!("the model has no {word}; make it of lines of text, as lmplz does"));
            }
        }
        let unknown = Weights { log10_probability: MISSING_UNK_LOG10, log10_backoff: 0.0 };
        let key = with_word_before(0, Word::spelt(UNKNOWN));
        model.orders[0].entry(key).or_insert(unknown);
        Ok(model)
    }

    /// Words of its longest n-grams.
    pub fn order(&self) -> usize {
        self.orders.len()
    }

    /// Number of n-grams of all lengths.
    pub fn num_ngrams(&self) -> usize {
        self.orders.iter().map(HashMap::len).sum()
    }

    /// The word that is spelt so, or the unknown word.
    pub fn word(&self, text: &str) -> Word {
        let is_mark = [BEGIN, END, UNKNOWN].contains(&text); // in a text these are no marks
        Some(Word::spelt(text)).filter(|word| !is_mark && self.has(*word)).unwrap_or(Word::spelt(UNKNOWN))
    }

    fn has(&self, word: Word) -> bool {
        self.orders[0].contains_key(&with_word_before(0, word))
    }

    /// Scores `words` as a sentence, from its beginning to its end.
    pub fn score(&self, words: impl Iterator<Item = Word>) -> Score {
        let mut history = vec![Word::spelt(BEGIN)];
        let mut context = suffixes(&history, self.order() - 1);
        let mut score = Score::default();
        for word in words.chain([Word::spelt(END)]) {
            if history.len() >= self.order() {
                history.remove(0);
            }
            history.push(word);
            let ngrams = suffixes(&history, self.order());
            score.add(Score { log10_probability: self.log10_probability(&ngrams, &context), num_words: 1 });
            context = ngrams;
            context.truncate(self.order() - 1);
        }
        score
    }

    /// That of the last word of `ngrams` after `context`, both by length: of the longest n-gram that the model has, with the
    /// back-off weights of all longer contexts (Katz 1987).
    fn log10_probability(&self, ngrams: &[u64], context: &[u64]) -> f64 {
        let found = self.orders.iter().zip(ngrams).enumerate().rev();
        let longest = found.filter_map(|(num_before, (order, key))| Some((num_before, order.get(key)?))).next();
        let Some((num_before, weights)) = longest else { return f64::from(MISSING_UNK_LOG10) };
        let longer = self.orders.iter().zip(context).skip(num_before);
        let backoff: f64 = longer.filter_map(|(order, key)| Some(f64::from(order.get(key)?.log10_backoff))).sum();
        f64::from(weights.log10_probability) + backoff
    }
}

/// The lines of a file, with their numbers.
struct Lines<R> {
    stream: R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    fn wrong(&self, reason: impl std::fmt::Display) -> String {
        format!("line {}: {reason}", self.number)
    }

    /// The next line without its end; an error at the file's end.
    fn next(&mut self) -> Result<&str, String> {
        self.number += 1;
        self.line.clear();
        let read = io::Read::take(&mut self.stream, MAX_LINE_BYTES).read_until(b'\n', &mut self.line);
        match read {
            Ok(0) => return Err(self.wrong("the file ends before \\end\\; fetch or make it again")),
            Ok(_) if self.line.ends_with(b"\n") || (self.line.len() as u64) < MAX_LINE_BYTES => {}
            Ok(_) => return Err(self.wrong("more than a megabyte: not a model in ARPA's format")),
            Err(error) => return Err(self.wrong(format!("cannot be read: {error}; fetch or make the file again"))),
        }
        if self.line.starts_with(KENLM_BINARY) {
            return Err("a binary of KenLM's build_binary; give the ARPA file that it was made from".to_owned());
        }
        let number = self.number;
        let line = str::from_utf8(&self.line).map_err(|_| format!("line {number}: not UTF-8"))?;
        Ok(line.trim_end_matches(['\n', '\r']))
    }

    /// The numbers of n-grams that the head tells, by length.
    fn counts(&mut self) -> Result<Vec<u64>, String> {
        while self.next()?.trim() != "\\data\\" {} // anything may stand before it
        let mut counts = vec![];
        loop {
            let line = self.next()?.trim().to_owned();
            if line.is_empty() && !counts.is_empty() {
                return Ok(counts);
            }
            let count = line.strip_prefix("ngram ").and_then(|rest| rest.split_once('='));
            let order = format!("{}", counts.len() + 1);
            match count.map(|(length, count)| (length.trim() == order, count.trim().parse())) {
                Some((true, Ok(count))) => counts.push(count),
                _ => return Err(self.wrong(format!("'ngram {order}=...' should stand here, and not '{line}'"))),
            }
        }
    }

    /// Passes by blank lines and one that says `heading`.
    fn heading(&mut self, heading: &str) -> Result<(), String> {
        loop {
            let line = self.next()?.trim().to_owned();
            if line == heading {
                return Ok(());
            }
            if !line.is_empty() {
                return Err(self.wrong(format!("'{heading}' should stand here, and not '{line}'")));
            }
        }
    }

    fn ngrams(&mut self, order: usize, count: u64) -> Result<Ngrams, String> {
        let mut ngrams = Ngrams::default();
        for _ in 0..count {
            let parsed = ngram(self.next()?, order);
            let (key, weights) = parsed.map_err(|reason| self.wrong(reason))?;
            if ngrams.insert(key, weights).is_some() {
                return Err(self.wrong("the n-gram stands there twice"));
            }
        }
        Ok(ngrams)
    }
}

/// A line of the log10 probability, the words and, where longer n-grams begin so, the log10 of the back-off weight.
fn ngram(line: &str, order: usize) -> Result<(u64, Weights), String> {
    let fields: Vec<&str> = line.split([' ', '\t']).filter(|field| !field.is_empty()).collect();
    let number = |text: &str| text.parse().ok().filter(|number: &f32| number.is_finite());
    let weights = match fields.len().checked_sub(order) {
        Some(1) => number(fields[0]).map(|log10_probability| Weights { log10_probability, log10_backoff: 0.0 }),
        Some(2) => number(fields[0])
            .zip(number(fields[order + 1]))
            .map(|(log10_probability, log10_backoff)| Weights { log10_probability, log10_backoff }),
        _ => None,
    };
    let Some(weights) = weights.filter(|weights| weights.log10_probability <= 0.0) else {
        return Err(format!("not a log10 probability, {order} words and perhaps a back-off weight: '{line}'"));
    };
    let spelt = |text: &&str| Word::spelt(if *text == "<UNK>" { UNKNOWN } else { text });
    let words: Vec<Word> = fields[1..=order].iter().map(spelt).collect();
    Ok((suffixes(&words, order)[order - 1], weights))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a back-off weight for `<s> a`, which begins no trigram but one.
    const TINY: &str = "made by hand\n\n\\data\\\nngram 1=5\nngram 2=3\nngram 3=1\n\n\\1-grams:\n-1.5\t<unk>\n-99\t<s>\t-0.1\n\
                        -0.7\t</s>\n-0.5\ta\t-0.2\n-0.6\tb\t-0.3\n\n\\2-grams:\n-0.25\t<s> a\t-0.05\n-0.4\ta b\t-0.15\n\
                        -0.35\tb </s>\n\n\\3-grams:\n-0.125\t<s> a b\n\n\\end\\\n";

    fn read(text: &str) -> Result<NgramModel, String> {
        NgramModel::read(text.as_bytes())
    }

    fn score(model: &NgramModel, text: &str) -> Score {
        model.score(text.split(' ').filter(|word| !word.is_empty()).map(|word| model.word(word)))
    }

    #[test]
    fn probabilities_are_those_worked_out_by_hand() {
        let model = read(TINY).expect("a good model");
        assert_eq!((model.order(), model.num_ngrams()), (3, 9));
        for (text, expected) in [
            // a | <s>; b | <s> a; </s> | a b = back-off of "a b", </s> | b
            ("a b", vec![-0.25, -0.125, -0.15 - 0.35]),
            // b | <s> = back-off of "<s>", b; a | <s> b = of "b" ("<s> b" is none), a; </s> | b a = of "a", </s>
            ("b a", vec![-0.1 - 0.6, -0.3 - 0.5, -0.2 - 0.7]),
            // unknown | <s>; a | <s> unknown: neither context has a weight; </s> | unknown a
            ("x a", vec![-0.1 - 1.5, -0.5, -0.2 - 0.7]),
            // what looks like a mark is an unknown word
            ("<s>", vec![-0.1 - 1.5, -0.7]),
            // a | <s>; a | <s> a = back-off of "<s> a" and of "a", a; </s> | a a
            ("a a", vec![-0.25, -0.05 - 0.2 - 0.5, -0.2 - 0.7]),
            ("", vec![-0.1 - 0.7]),
        ] {
            let found = score(&model, text);
            let log10_probability: f64 = expected.iter().sum();
            assert!((found.log10_probability - log10_probability).abs() < 1e-6, "{text}: {found:?}");
            assert_eq!(found.num_words, expected.len() as u64, "{text}");
            let perplexity = 10f64.powf(-log10_probability / expected.len() as f64);
            assert!((found.perplexity().expect("words") - perplexity).abs() < 1e-5 * perplexity, "{text}");
        }
        assert_eq!(Score::default().perplexity(), None);
    }

    #[test]
    fn a_model_without_an_unknown_word_gives_it_what_kenlm_does() {
        let model = read(&TINY.replace("-1.5\t<unk>\n", "").replace("ngram 1=5", "ngram 1=4")).expect("a good model");
        assert!((score(&model, "x").log10_probability - (-0.1 - 100.0 - 0.7)).abs() < 1e-4);
        assert!(
            (score(&read(&TINY.replace("<unk>", "<UNK>")).expect("good"), "x").log10_probability + 2.3).abs() < 1e-6
        );
    }

    #[test]
    fn other_line_ends_and_spaces_are_read_too() {
        let model = read(&TINY.replace('\n', "\r\n").replace('\t', " ")).expect("a good model");
        assert_eq!(score(&model, "a b"), score(&read(TINY).expect("good"), "a b"));
    }

    #[test]
    fn what_is_no_model_is_told_with_its_line() {
        let cut = &TINY[..TINY.len() - 7];
        for (text, expected) in [
            ("", "line 1: the file ends before \\end\\"),
            (cut, "line 22: the file ends before \\end\\"),
            (&TINY.replace("ngram 2=3", "ngram 3=3"), "line 5: 'ngram 2=...' should stand here, and not 'ngram 3=3'"),
            (&TINY.replace("ngram 1=5", "ngram 1=6"), "line 14: not a log10 probability, 1 words"),
            (
                &TINY.replace("ngram 1=5", "ngram 1=4"),
                "line 13: '\\2-grams:' should stand here, and not '-0.6\tb\t-0.3'",
            ),
            (&TINY.replace("-0.4\ta b", "-0.4\ta b c d"), "line 17: not a log10 probability, 2 words"),
            (&TINY.replace("-0.4\ta b", "nan\ta b"), "line 17: not a log10 probability"),
            (&TINY.replace("-0.4\ta b", "0.4\ta b"), "line 17: not a log10 probability"),
            (&TINY.replace("-0.4\ta b", "-0.4\t<s> a"), "line 17: the n-gram stands there twice"),
            (&TINY.replace("</s>", "c"), "the model has no </s>"),
            ("mmap lm http://kheafield.com/code format version 5\n\0", "a binary of KenLM's build_binary"),
        ] {
            let error = read(text).expect_err("no model");
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
