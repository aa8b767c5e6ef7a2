//! Language identification, by whatlang.

use whatlang::Lang;

use super::{SourceKind, config::LanguageStep};
use crate::languages::language;

/// Characters that are looked at: more do not make it surer, and take time.
const MAX_CHARS: usize = 10_000;

/// The languages that documents of a source in `tag` may be found to be in; `None` where that cannot be told.
pub fn accepted(step: &LanguageStep, tag: &str) -> Option<Vec<Lang>> {
    let others = step.accept.get(tag).into_iter().flatten();
    let known: Vec<_> = others.map(String::as_str).chain([tag]).filter_map(lang).collect();
    (!known.is_empty()).then_some(known)
}

/// Whether `text` is in one of `languages`, with at least `min_confidence`.
pub fn is_one_of(text: &str, languages: &[Lang], min_confidence: f64) -> bool {
    let end = text.char_indices().nth(MAX_CHARS).map_or(text.len(), |(at, _)| at);
    let found = whatlang::detect(&text[..end]);
    found.is_some_and(|info| languages.contains(&info.lang()) && info.confidence() >= min_confidence)
}

/// What to tell about sources that cannot be checked.
pub fn notes(step: Option<&LanguageStep>, sources: &[SourceKind]) -> Vec<String> {
    let Some(step) = step else { return vec![] };
    let checked = sources.iter().filter(|source| !source.is_parallel && !step.except.contains(&source.name));
    let note = |source: &SourceKind| match source.language.as_deref() {
        None => {
            Some(format!("source '{}' has no --language, so its documents' languages are not checked", source.name))
        }
        Some(tag) if accepted(step, tag).is_none() => Some(format!(
            "source '{}': language identification does not know '{tag}', so its documents are kept unchecked; name \
             languages to accept in language.accept, or except the source",
            source.name
        )),
        Some(_) => None,
    };
    checked.filter_map(note).collect()
}

fn lang(tag: &str) -> Option<Lang> {
    Lang::from_code(language(tag)?.iso_639_3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_told_apart_or_said_to_be_unknown() {
        let step = LanguageStep::default();
        let german = accepted(&step, "de-AT").expect("known");
        let text = "Alle Menschen sind frei und gleich an Würde und Rechten geboren.";
        assert!(is_one_of(text, &german, 0.0));
        assert!(!is_one_of("All human beings are born free and equal in dignity and rights.", &german, 0.0));
        assert!(!is_one_of(text, &german, 1.1));
        assert!(!is_one_of("12 + 3", &german, 0.0));
        assert_eq!(accepted(&step, "ms"), None);
        let step = LanguageStep { accept: [("ms".to_owned(), vec!["id".to_owned()])].into(), ..step };
        assert_eq!(accepted(&step, "ms"), Some(vec![Lang::Ind]));
    }
}
