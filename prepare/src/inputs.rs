//! Which input objects make up which source, and how each is to be read: pure decisions on a listing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    str::FromStr,
};

use polo_store::Entry;
use serde::{Deserialize, Serialize};

use crate::{error::PrepareError, languages::language, pairs::PairFormat};

/// `NAME=PATTERN[,PATTERN...]`: the objects of one source. In a pattern `*` stands for anything but `/`, `**` for
/// anything; a pattern without them names an object or a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRule {
    /// The source.
    pub name: String,
    /// The patterns.
    pub patterns: Vec<String>,
}

impl FromStr for SourceRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, patterns) = text.split_once('=').ok_or("expected NAME=PATTERN, as in en=english/*.jsonl.gz")?;
        check_name(name)?;
        let patterns: Vec<String> = patterns.split(',').map(str::to_owned).collect();
        if patterns.iter().any(String::is_empty) {
            return Err(format!("source '{name}' has an empty pattern"));
        }
        Ok(Self { name: name.to_owned(), patterns })
    }
}

/// `NAME=TAG`: the language of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLanguage {
    /// The source.
    pub name: String,
    /// Its BCP 47 tag.
    pub language: String,
}

impl FromStr for SourceLanguage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, language)) if !name.is_empty() && !language.is_empty() => {
                Ok(Self { name: name.to_owned(), language: language.to_owned() })
            }
            _ => Err("expected NAME=TAG, as in en=en".to_owned()),
        }
    }
}

/// `NAME=SRC-TGT`: a source of parallel data, and the codes of its two languages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourcePairs {
    /// The source.
    pub name: String,
    /// Code of the first language.
    pub src: String,
    /// Code of the second.
    pub tgt: String,
}

impl FromStr for SourcePairs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(name, codes)| Some((name, codes.split_once('-')?)));
        match parts {
            Some((name, (src, tgt))) if !name.is_empty() && src != tgt && language(src).is_some() => {
                if language(tgt).is_none() {
                    return Err(format!("'{tgt}' is no language that has a name here"));
                }
                Ok(Self { name: name.to_owned(), src: src.to_owned(), tgt: tgt.to_owned() })
            }
            Some((_, (src, _))) if language(src).is_none() => {
                Err(format!("'{src}' is no language that has a name here"))
            }
            _ => Err("expected NAME=SRC-TGT, as in parallel=en-de".to_owned()),
        }
    }
}

/// Source names become folders of the corpus.
fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(allowed) {
        return Err(format!("'{name}' cannot name a source: use letters, digits, '-', '_' and '.'"));
    }
    Ok(())
}

/// How the records of a file lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    Jsonl,
    /// Plain text.
    Text,
    /// Parquet, of which one column is read.
    Parquet,
    /// Pairs of texts in two languages.
    Pairs(PairFormat),
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, possibly of several members.
    Gzip,
    /// Zstandard, possibly of several frames.
    Zstd,
}

/// One object to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Its key in the input store.
    pub key: String,
    /// Its stored size.
    pub num_bytes: u64,
    /// What its records are.
    pub format: Format,
    /// How it is packed.
    pub compression: Compression,
    /// The file with the translations, line by line.
    pub aligned: Option<Box<Input>>,
}

impl Input {
    /// Stored size, with that of the translations.
    pub fn total_bytes(&self) -> u64 {
        self.num_bytes + self.aligned.as_ref().map_or(0, |input| input.num_bytes)
    }
}

/// The objects of one source, in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceInputs {
    /// The source.
    pub name: String,
    /// What it is read from.
    pub inputs: Vec<Input>,
}

/// Assigns the listed objects to sources, in order of name. With rules, objects that match none are left out; without,
/// each top-level folder is a source, and so is each top-level file, under its name up to the first dot. `format`
/// overrides what file names say. Empty objects whose names tell no format are left out: other programs mark folders and
/// finished jobs with such.
pub fn assign(
    entries: &[Entry],
    rules: &[SourceRule],
    pairs: &[SourcePairs],
    format: Option<Format>,
) -> Result<Vec<SourceInputs>, PrepareError> {
    check_given_once(rules.iter().map(|rule| &rule.name), |name| PrepareError::DuplicateSource { name })?;
    let twice = |name| PrepareError::DuplicateFlag { name, flag: "--pairs" };
    check_given_once(pairs.iter().map(|pairs| &pairs.name), twice)?;
    // Sources that match nothing stay in the map, to be told of below.
    let mut sources: BTreeMap<String, Vec<&Entry>> = rules.iter().map(|rule| (rule.name.clone(), vec![])).collect();
    let mut entries: Vec<&Entry> = entries.iter().collect();
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    for entry in entries {
        if entry.num_bytes == 0 && format_by_name(&entry.key).is_err() {
            continue;
        }
        let name = if rules.is_empty() { default_source(&entry.key)? } else { matching_source(&entry.key, rules)? };
        if let Some(name) = name {
            sources.entry(name).or_default().push(entry);
        }
    }
    if let Some(name) = sources.iter().find(|(_, entries)| entries.is_empty()).map(|(name, _)| name.clone()) {
        return Err(PrepareError::NoInputs { name });
    }
    if let Some(unknown) = pairs.iter().find(|pairs| !sources.contains_key(&pairs.name)) {
        return Err(PrepareError::UnknownSource { name: unknown.name.clone(), flag: "--pairs" });
    }
    let inputs_of = |(name, entries): (String, Vec<&Entry>)| {
        let inputs = match pairs.iter().find(|pairs| pairs.name == name) {
            Some(pairs) => pair_inputs(&entries, pairs)?,
            None => entries.iter().map(|entry| input(entry, format)).collect::<Result<_, _>>()?,
        };
        Ok(SourceInputs { name, inputs })
    };
    sources.into_iter().map(inputs_of).collect()
}

/// Refuses a name that comes twice.
pub fn check_given_once<'a>(
    names: impl Iterator<Item = &'a String>,
    error: impl Fn(String) -> PrepareError,
) -> Result<(), PrepareError> {
    let mut seen = BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name)).map_or(Ok(()), |name| Err(error(name.clone())))
}

fn matching_source(key: &str, rules: &[SourceRule]) -> Result<Option<String>, PrepareError> {
    let matches = |rule: &&SourceRule| rule.patterns.iter().any(|pattern| matches_pattern(pattern, key));
    let mut names: Vec<&String> = rules.iter().filter(matches).map(|rule| &rule.name).collect();
    names.dedup();
    match names[..] {
        [] => Ok(None),
        [name] => Ok(Some(name.clone())),
        [first, second, ..] => {
            Err(PrepareError::TwoSources { key: key.to_owned(), first: first.clone(), second: second.clone() })
        }
    }
}

fn default_source(key: &str) -> Result<Option<String>, PrepareError> {
    let name = match key.split_once('/') {
        Some((folder, _)) => folder,
        None => key.split_once('.').map_or(key, |(stem, _)| stem),
    };
    check_name(name).map_err(|reason| PrepareError::SourceName { key: key.to_owned(), reason })?;
    Ok(Some(name.to_owned()))
}

fn input(entry: &Entry, format: Option<Format>) -> Result<Input, PrepareError> {
    let (_, compression) = compression_by_name(&entry.key);
    let (format, compression) = match format {
        Some(format) => (format, compression),
        None => format_by_name(&entry.key)?,
    };
    if format == Format::Parquet && compression != Compression::None {
        return Err(PrepareError::PackedParquet { key: entry.key.clone() });
    }
    Ok(Input { key: entry.key.clone(), num_bytes: entry.num_bytes, format, compression, aligned: None })
}

/// The inputs of a source of pairs: `.tsv` and `.jsonl` files, and of files that end in the languages' codes
/// (`corpus.en.gz`, `corpus.de.gz`) two at a time.
fn pair_inputs(entries: &[&Entry], pairs: &SourcePairs) -> Result<Vec<Input>, PrepareError> {
    let mut inputs = vec![];
    let mut by_stem = HashMap::new();
    for entry in entries {
        by_stem.entry(compression_by_name(&entry.key).0).or_insert(*entry);
    }
    for entry in entries {
        let (stem, compression) = compression_by_name(&entry.key);
        let make = |format, aligned| Input {
            key: entry.key.clone(),
            num_bytes: entry.num_bytes,
            format: Format::Pairs(format),
            compression,
            aligned,
        };
        match stem.rsplit_once('.') {
            Some((_, "tsv")) => inputs.push(make(PairFormat::Tsv, None)),
            Some((_, "jsonl" | "ndjson" | "json")) => inputs.push(make(PairFormat::Jsonl, None)),
            Some((base, code)) if code == pairs.src => {
                let other = partner(&by_stem, base, &pairs.tgt).ok_or_else(|| no_partner(entry, base, &pairs.tgt))?;
                inputs.push(make(PairFormat::Aligned, Some(Box::new(other))));
            }
            Some((base, code)) if code == pairs.tgt => {
                partner(&by_stem, base, &pairs.src).ok_or_else(|| no_partner(entry, base, &pairs.src))?;
            }
            _ => return Err(PrepareError::UnknownPairFormat { key: entry.key.clone() }),
        }
    }
    Ok(inputs)
}

fn partner(by_stem: &HashMap<&str, &Entry>, base: &str, code: &str) -> Option<Input> {
    let Entry { key, num_bytes, .. } = by_stem.get(format!("{base}.{code}").as_str())?;
    let (format, compression) = (Format::Pairs(PairFormat::Aligned), compression_by_name(key).1);
    Some(Input { key: key.clone(), num_bytes: *num_bytes, format, compression, aligned: None })
}

fn no_partner(entry: &Entry, base: &str, code: &str) -> PrepareError {
    PrepareError::NoPartner { key: entry.key.clone(), partner: format!("{base}.{code}") }
}

/// What the end of a name says about packing, and the name without it.
pub fn compression_by_name(key: &str) -> (&str, Compression) {
    match key.rsplit_once('.') {
        Some((stem, "gz")) => (stem, Compression::Gzip),
        Some((stem, "zst")) => (stem, Compression::Zstd),
        _ => (key, Compression::None),
    }
}

/// What the name of an object says about it.
pub fn format_by_name(key: &str) -> Result<(Format, Compression), PrepareError> {
    let (stem, compression) = compression_by_name(key);
    let format = match stem.rsplit_once('.').map(|(_, extension)| extension) {
        Some("jsonl" | "ndjson" | "json") => Format::Jsonl,
        Some("txt" | "text") => Format::Text,
        Some("parquet") => Format::Parquet,
        _ => return Err(PrepareError::UnknownFormat { key: key.to_owned() }),
    };
    Ok((format, compression))
}

fn matches_pattern(pattern: &str, key: &str) -> bool {
    if pattern.contains('*') {
        return glob(pattern.as_bytes(), key.as_bytes());
    }
    let folder = pattern.trim_end_matches('/');
    key.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Takes the pattern piece by piece, with all the places of `key` up to which it may match so far: however many stars there
/// are, that is no more than the product of the two lengths.
fn glob(mut pattern: &[u8], key: &[u8]) -> bool {
    let mut reached = vec![false; key.len() + 1];
    reached[0] = true;
    loop {
        match pattern {
            [] => return reached[key.len()],
            [b'*', b'*', rest @ ..] => {
                (0..key.len()).for_each(|at| reached[at + 1] |= reached[at]);
                pattern = rest;
            }
            [b'*', rest @ ..] => {
                (0..key.len()).for_each(|at| reached[at + 1] |= reached[at] && key[at] != b'/');
                pattern = rest;
            }
            [first, rest @ ..] => {
                (0..key.len()).rev().for_each(|at| reached[at + 1] = reached[at] && key[at] == *first);
                reached[0] = false;
                pattern = rest;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn listing(keys: &[&str]) -> Vec<Entry> {
        keys.iter().map(|key| Entry { key: (*key).to_owned(), num_bytes: 1, modified: UNIX_EPOCH }).collect()
    }

    fn rules(texts: &[&str]) -> Vec<SourceRule> {
        texts.iter().map(|text| text.parse().expect("a good rule")).collect()
    }

    fn keys_by_source(sources: &[SourceInputs]) -> Vec<(&str, Vec<&str>)> {
        let keys = |source: &SourceInputs| -> Vec<String> { source.inputs.iter().map(|i| i.key.clone()).collect() };
        assert!(sources.iter().all(|source| keys(source).is_sorted()));
        sources.iter().map(|s| (s.name.as_str(), s.inputs.iter().map(|i| i.key.as_str()).collect())).collect()
    }

    #[test]
    fn folders_and_top_level_files_are_sources_by_default() {
        let sources =
            assign(&listing(&["zh.jsonl.gz", "en/b.txt", "en/a/c.jsonl.zst"]), &[], &[], None).expect("assigned");
        assert_eq!(
            keys_by_source(&sources),
            [("en", vec!["en/a/c.jsonl.zst", "en/b.txt"]), ("zh", vec!["zh.jsonl.gz"])]
        );
        let packed: Vec<_> =
            sources.iter().flat_map(|s| &s.inputs).map(|input| (input.format, input.compression)).collect();
        assert_eq!(
            packed,
            [(Format::Jsonl, Compression::Zstd), (Format::Text, Compression::None), (Format::Jsonl, Compression::Gzip)]
        );
    }

    #[test]
    fn rules_choose_objects_and_leave_the_rest() {
        let entries = listing(&["a/x.txt", "a/b/y.txt", "c.jsonl", "ab/z.txt", "README"]);
        let sources = assign(&entries, &rules(&["s=a", "t=**/z.txt,c*"]), &[], None).expect("assigned");
        assert_eq!(keys_by_source(&sources), [("s", vec!["a/b/y.txt", "a/x.txt"]), ("t", vec!["ab/z.txt", "c.jsonl"])]);
    }

    #[test]
    fn patterns() {
        for (pattern, key, matches) in [
            ("en", "en/a.txt", true),
            ("en/", "en/a.txt", true),
            ("en", "english/a.txt", false),
            ("en/*.txt", "en/a.txt", true),
            ("en/*.txt", "en/a/b.txt", false),
            ("en/**.txt", "en/a/b.txt", true),
            ("*", "a", true),
            ("*", "a/b", false),
            ("a*c*", "abcd", true),
            ("a*d*", "abc", false),
            ("**/a**/*.txt", "x/y/ab/c/d.txt", true),
            ("**/a**/*.txt", "x/y/b/c/d.txt", false),
            ("**a".repeat(40).as_str(), "a".repeat(120).as_str(), true),
            ("**a".repeat(40).as_str(), "ab".repeat(39).as_str(), false),
        ] {
            assert_eq!(matches_pattern(pattern, key), matches, "{pattern} on {key}");
        }
    }

    #[test]
    fn wrong_inputs_are_named() {
        let entries = listing(&["a/x.txt", "b/y.txt"]);
        let error = |rules_text: &[&str]| assign(&entries, &rules(rules_text), &[], None).expect_err("wrong rules");
        assert!(matches!(error(&["s=nothing"]), PrepareError::NoInputs { name } if name == "s"));
        assert!(matches!(error(&["s=a", "t=**"]), PrepareError::TwoSources { key, .. } if key == "a/x.txt"));
        let unknown = assign(&listing(&["a/x.bin"]), &[], &[], None).expect_err("no format");
        assert!(matches!(unknown, PrepareError::UnknownFormat { .. }));
        assert!(assign(&listing(&["a/x.bin"]), &[], &[], Some(Format::Text)).is_ok());
        let name = assign(&listing(&["a b/x.txt"]), &[], &[], None).expect_err("a bad name");
        assert!(matches!(name, PrepareError::SourceName { .. }));
        assert!(matches!(error(&["s=a", "s=b"]), PrepareError::DuplicateSource { name } if name == "s"));
        let packed = assign(&listing(&["a.parquet.gz"]), &[], &[], None).expect_err("packed");
        assert!(matches!(packed, PrepareError::PackedParquet { .. }));
        for text in ["en", "=x", "a/b=x", "en=", "en=a,,b", ".x=a"] {
            assert!(text.parse::<SourceRule>().is_err(), "{text}");
        }
    }

    #[test]
    fn empty_marks_of_other_programs_are_left_out() {
        let mut entries = listing(&["en/_SUCCESS", "en/a.jsonl", "en/b.jsonl"]);
        entries.iter_mut().take(2).for_each(|entry| entry.num_bytes = 0);
        let sources = assign(&entries, &[], &[], None).expect("assigned");
        assert_eq!(keys_by_source(&sources), [("en", vec!["en/a.jsonl", "en/b.jsonl"])]);
    }

    #[test]
    fn a_hundred_thousand_objects_are_assigned() {
        let keys: Vec<String> =
            (0..100_000).map(|number| format!("cc/{:03}/{number:06}.jsonl.zst", number % 977)).collect();
        let entries = listing(&keys.iter().map(String::as_str).collect::<Vec<_>>());
        let sources = assign(&entries, &rules(&["a=cc/0**/*.jsonl.zst", "b=cc/[1-9],cc/1**,cc/9*"]), &[], None);
        let sources = sources.expect("assigned");
        assert_eq!(sources.iter().map(|source| source.inputs.len()).collect::<Vec<_>>(), [10_300, 10_300]);
    }

    #[test]
    fn a_hundred_thousand_files_find_their_translations() {
        let keys: Vec<String> = (0..50_000).flat_map(|n| ["en", "de"].map(|code| format!("p/{n:05}.{code}"))).collect();
        let sources = pair_sources(&keys.iter().map(String::as_str).collect::<Vec<_>>()).expect("assigned");
        assert_eq!(sources[0].inputs.len(), 50_000);
        let last = sources[0].inputs.last().and_then(|input| input.aligned.as_ref()).expect("a partner");
        assert_eq!(last.key, "p/49999.de");
    }

    fn pair_sources(keys: &[&str]) -> Result<Vec<SourceInputs>, PrepareError> {
        assign(&listing(keys), &[], &["p=en-de".parse().expect("good")], None)
    }

    #[test]
    fn pairs_lie_in_one_file_or_two() {
        let keys = ["p/a.en-de.de.gz", "p/a.en-de.en", "p/b.tsv.zst", "p/c.jsonl", "q.txt"];
        let sources = pair_sources(&keys).expect("assigned");
        let told: Vec<_> = sources[0].inputs.iter().map(|i| (i.key.as_str(), i.format, i.total_bytes())).collect();
        let format = Format::Pairs;
        assert_eq!(
            told,
            [
                ("p/a.en-de.en", format(PairFormat::Aligned), 2),
                ("p/b.tsv.zst", format(PairFormat::Tsv), 1),
                ("p/c.jsonl", format(PairFormat::Jsonl), 1),
            ]
        );
        let aligned = sources[0].inputs[0].aligned.as_deref().expect("a partner");
        assert_eq!((aligned.key.as_str(), aligned.compression), ("p/a.en-de.de.gz", Compression::Gzip));
        assert_eq!(sources[1].inputs[0].format, Format::Text);
    }

    #[test]
    fn wrong_pairs_are_named() {
        for keys in [["p/a.en", "p/b.de"], ["p/a.en", "p/b.tsv"], ["p/a.de", "p/b.tsv"]] {
            assert!(matches!(pair_sources(&keys), Err(PrepareError::NoPartner { .. })), "{keys:?}");
        }
        assert!(matches!(pair_sources(&["p/a.txt"]), Err(PrepareError::UnknownPairFormat { .. })));
        assert!(matches!(pair_sources(&["q/a.txt"]), Err(PrepareError::UnknownSource { .. })));
        for text in ["p", "p=en", "p=en-en", "=en-de", "p=en-xx", "p=xx-en"] {
            assert!(text.parse::<SourcePairs>().is_err(), "{text}");
        }
    }
}
