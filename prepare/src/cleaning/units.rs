//! A text as a row of hashed words, for comparisons that do not see case, punctuation and spacing.

use std::collections::HashSet;

use twox_hash::XxHash3_64;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// Odd, so that multiplying by it loses nothing (the golden ratio's 64 bits).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hashes of a text's words in lower case. In scripts without spaces each character is a word, with
/// the marks that belong to it.
#[derive(Debug, Default)]
pub struct Units(Vec<u64>);

impl Units {
    /// The words of `text`.
    pub fn of(text: &str) -> Self {
        let (mut hashes, mut word, mut is_whole) = (vec![], String::new(), false);
        for c in text.chars() {
            if is_separator(c) {
                close(&mut word, &mut hashes);
            } else if !is_word_by_itself(c) {
                if is_whole {
                    close(&mut word, &mut hashes);
                }
                word.extend(c.to_lowercase());
            } else {
                if c.general_category_group() != GeneralCategoryGroup::Mark {
                    close(&mut word, &mut hashes);
                }
                word.push(c);
            }
            is_whole = is_word_by_itself(c);
        }
        close(&mut word, &mut hashes);
        Self(hashes)
    }

    /// Number of words.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Hashes of all runs of `n` words; none if there are fewer.
    pub fn ngrams(&self, n: usize) -> impl Iterator<Item = u64> {
        // Polynomial, rolled on: the word that leaves has been multiplied n - 1 times.
        let leaving = MULTIPLIER.wrapping_pow(n as u32 - 1);
        let mut sum = 0u64;
        (0..self.0.len()).filter_map(move |at| {
            if at >= n {
                sum = sum.wrapping_sub(self.0[at - n].wrapping_mul(leaving));
            }
            sum = sum.wrapping_mul(MULTIPLIER).wrapping_add(self.0[at]);
            (at + 1 >= n).then(|| mixed(sum))
        })
    }

    /// N-grams that occurred before, as a share of all; 0 where there are none.
    pub fn repeated_ratio(&self, n: usize) -> f64 {
        let mut seen = HashSet::new();
        let (mut num_ngrams, mut num_repeated) = (0u64, 0u64);
        for ngram in self.ngrams(n) {
            num_ngrams += 1;
            num_repeated += u64::from(!seen.insert(ngram));
        }
        num_repeated as f64 / num_ngrams.max(1) as f64
    }
}

/// Spreads a number's bits over all of them (the finaliser of SplitMix64).
pub fn mixed(number: u64) -> u64 {
    let z = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn close(word: &mut String, hashes: &mut Vec<u64>) {
    if !word.is_empty() {
        hashes.push(XxHash3_64::oneshot(word.as_bytes()));
        word.clear();
    }
}

fn is_separator(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_alphanumeric();
    }
    use GeneralCategoryGroup::{Other, Punctuation, Separator, Symbol};
    matches!(c.general_category_group(), Punctuation | Separator | Symbol | Other)
}

/// Han, kana, Thai, Lao, Burmese, Khmer. Tibetan has a mark after each syllable.
fn is_word_by_itself(c: char) -> bool {
    matches!(u32::from(c),
        0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3040..=0x30ff | 0x31f0..=0x31ff | 0x3400..=0x9fff
        | 0xf900..=0xfaff | 0x20000..=0x3ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_do_not_see_case_punctuation_and_spacing() {
        assert_eq!(Units::of("The cat, the  CAT!\n").0, Units::of("the CAT the cat").0);
        assert_eq!(Units::of("हुन् व्यक्ति।").len(), 2);
        assert_eq!(Units::of("人人生而自由。").len(), 6);
        assert_eq!(Units::of("འགྲོ་བ་མི་རིགས།").len(), 4);
        assert_eq!(Units::of("มนุษย์ทั้ง").len(), 6, "four of ten characters are marks");
        assert_eq!(Units::of("人a").0, [Units::of("人").0, Units::of("a").0].concat());
        assert_eq!(Units::of("a人").0, [Units::of("a").0, Units::of("人").0].concat());
        assert_eq!(Units::of("Привет, мир").0, Units::of("привет мир").0);
        assert_eq!(Units::of(" .,- ").len(), 0);
    }

    #[test]
    fn ngrams_are_those_of_their_words_alone() {
        let ngrams = |text: &str| Units::of(text).ngrams(3).collect::<Vec<_>>();
        let all = ngrams("a b c d e");
        assert_eq!(all, [ngrams("a b c"), ngrams("b c d"), ngrams("c d e")].concat());
        assert_ne!(ngrams("a b c"), ngrams("c b a"));
        assert!(ngrams("a b").is_empty());
    }

    #[test]
    fn repetition() {
        assert_eq!(Units::of("a b c a b c").repeated_ratio(3), 0.25);
        assert_eq!(Units::of("a b").repeated_ratio(3), 0.0);
    }
}
