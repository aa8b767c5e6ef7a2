//! Simple measures of a text.

use std::collections::HashSet;

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

use super::config::Heuristics;

/// Which limit `text` breaks, if any.
pub fn reason_against(limits: &Heuristics, text: &str) -> Option<&'static str> {
    let counts = Counts::of(text);
    let share = |count: usize| count as f64 / counts.num_not_space.max(1) as f64;
    if limits.min_chars.is_some_and(|fewest| counts.num_chars < fewest) {
        return Some("min_chars");
    }
    if limits.max_chars.is_some_and(|most| counts.num_chars > most) {
        return Some("max_chars");
    }
    if limits.max_punctuation_ratio.is_some_and(|most| share(counts.num_punctuation) > most) {
        return Some("punctuation");
    }
    if limits.max_symbol_ratio.is_some_and(|most| share(counts.num_symbols) > most) {
        return Some("symbols");
    }
    if limits.max_repeated_line_ratio.is_some_and(|most| repeated_line_ratio(text) > most) {
        return Some("repeated_lines");
    }
    None
}

/// Characters by kind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    num_chars: usize,
    num_not_space: usize,
    num_punctuation: usize,
    num_symbols: usize,
}

impl Counts {
    fn of(text: &str) -> Self {
        let mut counts = Self::default();
        for c in text.chars() {
            counts.num_chars += 1;
            if is_spacing(c) {
                continue;
            }
            counts.num_not_space += 1;
            if c.is_ascii_alphanumeric() {
                continue;
            }
            match c.general_category_group() {
                GeneralCategoryGroup::Punctuation => counts.num_punctuation += 1,
                GeneralCategoryGroup::Symbol | GeneralCategoryGroup::Other => counts.num_symbols += 1,
                _ => {}
            }
        }
        counts
    }
}

/// Spaces, invisible characters (they part the words of Khmer, and join or part letters in many scripts), and the marks that
/// part the syllables of Tibetan.
fn is_spacing(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{f0b}' | '\u{f0c}') || c.general_category() == GeneralCategory::Format
}

/// Bytes in lines that stood there before, as a share of those in all lines; blank lines do not count.
fn repeated_line_ratio(text: &str) -> f64 {
    let mut seen = HashSet::new();
    let (mut num_bytes, mut num_repeated) = (0, 0);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        num_bytes += line.len();
        if !seen.insert(line) {
            num_repeated += line.len();
        }
    }
    num_repeated as f64 / num_bytes.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_counted_by_kind() {
        let counts = Counts::of("aé 1,。!+€\u{7}\n");
        assert_eq!(counts, Counts { num_chars: 11, num_not_space: 9, num_punctuation: 3, num_symbols: 3 });
        let khmer = Counts::of("មនុស្ស\u{200b}ទាំងអស់");
        assert_eq!((khmer.num_chars - khmer.num_not_space, khmer.num_symbols), (1, 0), "an invisible space");
        assert_eq!(Counts::of("འགྲོ་བ་མི་རིགས།").num_punctuation, 1, "syllables are parted by marks");
    }

    #[test]
    fn each_limit_has_a_reason() {
        let none = Heuristics::default();
        let text = "abcde!\nabcde!\n+";
        assert_eq!(reason_against(&none, text), None);
        let cases = [
            (Heuristics { min_chars: Some(16), ..none.clone() }, "min_chars"),
            (Heuristics { max_chars: Some(14), ..none.clone() }, "max_chars"),
            (Heuristics { max_punctuation_ratio: Some(0.15), ..none.clone() }, "punctuation"),
            (Heuristics { max_symbol_ratio: Some(0.07), ..none.clone() }, "symbols"),
            (Heuristics { max_repeated_line_ratio: Some(0.46), ..none.clone() }, "repeated_lines"),
        ];
        for (limits, reason) in cases {
            assert_eq!(reason_against(&limits, text), Some(reason));
        }
        let kept = Heuristics {
            min_chars: Some(15),
            max_chars: Some(15),
            max_punctuation_ratio: Some(0.16),
            max_symbol_ratio: Some(0.08),
            max_repeated_line_ratio: Some(0.47),
            ..none
        };
        assert_eq!(reason_against(&kept, text), None);
    }
}
