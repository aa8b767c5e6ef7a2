//! Which input objects make up which source, and how each is to be read: pure decisions on a listing.

use std::{collections::BTreeMap, str::FromStr};

use polo_store::Entry;

use super::error::PrepareError;

/// `NAME=PATTERN[,PATTERN...]`: the objects of one source. In a pattern `*` stands for anything but `/`, `**` for
/// anything; a pattern without them names an object or a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
/// overrides what file names say.
pub fn assign(
    entries: &[Entry],
    rules: &[SourceRule],
    format: Option<Format>,
) -> Result<Vec<SourceInputs>, PrepareError> {
    // Sources that match nothing stay in the map, to be told of below.
    let mut sources: BTreeMap<String, Vec<Input>> = rules.iter().map(|rule| (rule.name.clone(), vec![])).collect();
    let mut entries: Vec<&Entry> = entries.iter().collect();
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    for entry in entries {
        let name = if rules.is_empty() { default_source(&entry.key)? } else { matching_source(&entry.key, rules)? };
        if let Some(name) = name {
            sources.entry(name).or_default().push(input(entry, format)?);
        }
    }
    if let Some(name) = sources.iter().find(|(_, inputs)| inputs.is_empty()).map(|(name, _)| name.clone()) {
        return Err(PrepareError::NoInputs { name });
    }
    Ok(sources.into_iter().map(|(name, inputs)| SourceInputs { name, inputs }).collect())
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
    let (stem, compression) = match entry.key.rsplit_once('.') {
        Some((stem, "gz")) => (stem, Compression::Gzip),
        Some((stem, "zst")) => (stem, Compression::Zstd),
        _ => (entry.key.as_str(), Compression::None),
    };
    let by_name = || match stem.rsplit_once('.')?.1 {
        "jsonl" | "ndjson" | "json" => Some(Format::Jsonl),
        "txt" | "text" => Some(Format::Text),
        _ => None,
    };
    let format = format.or_else(by_name).ok_or_else(|| PrepareError::UnknownFormat { key: entry.key.clone() })?;
    Ok(Input { key: entry.key.clone(), num_bytes: entry.num_bytes, format, compression })
}

fn matches_pattern(pattern: &str, key: &str) -> bool {
    if pattern.contains('*') {
        return glob(pattern.as_bytes(), key.as_bytes());
    }
    let folder = pattern.trim_end_matches('/');
    key.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn glob(pattern: &[u8], key: &[u8]) -> bool {
    match pattern {
        [] => key.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=key.len()).any(|skip| glob(rest, &key[skip..])),
        [b'*', rest @ ..] => {
            let limit = key.iter().position(|byte| *byte == b'/').unwrap_or(key.len());
            (0..=limit).any(|skip| glob(rest, &key[skip..]))
        }
        [first, rest @ ..] => key.first() == Some(first) && glob(rest, &key[1..]),
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
        let sources = assign(&listing(&["zh.jsonl.gz", "en/b.txt", "en/a/c.jsonl.zst"]), &[], None).expect("assigned");
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
        let sources = assign(&entries, &rules(&["s=a", "t=**/z.txt,c*"]), None).expect("assigned");
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
        ] {
            assert_eq!(matches_pattern(pattern, key), matches, "{pattern} on {key}");
        }
    }

    #[test]
    fn wrong_inputs_are_named() {
        let entries = listing(&["a/x.txt", "b/y.txt"]);
        let error = |rules_text: &[&str]| assign(&entries, &rules(rules_text), None).expect_err("wrong rules");
        assert!(matches!(error(&["s=nothing"]), PrepareError::NoInputs { name } if name == "s"));
        assert!(matches!(error(&["s=a", "t=**"]), PrepareError::TwoSources { key, .. } if key == "a/x.txt"));
        let unknown = assign(&listing(&["a/x.bin"]), &[], None).expect_err("no format");
        assert!(matches!(unknown, PrepareError::UnknownFormat { .. }));
        assert!(assign(&listing(&["a/x.bin"]), &[], Some(Format::Text)).is_ok());
        let name = assign(&listing(&["a b/x.txt"]), &[], None).expect_err("a bad name");
        assert!(matches!(name, PrepareError::SourceName { .. }));
        for text in ["en", "=x", "a/b=x", "en=", "en=a,,b", ".x=a"] {
            assert!(text.parse::<SourceRule>().is_err(), "{text}");
        }
    }
}
