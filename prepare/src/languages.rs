//! Languages by code: their names in English, for the templates of parallel data, and their ISO 639-3 codes, by which
//! language identification names them.

/// A language.
#[derive(Debug, PartialEq, Eq)]
pub struct Language {
    /// ISO 639-1, the first part of a BCP 47 tag.
    pub code: &'static str,
    /// ISO 639-3; of a macrolanguage that of its written standard, as whatlang has it.
    pub iso_639_3: &'static str,
    /// In English.
    pub name: &'static str,
}

/// The language of a BCP 47 tag such as `pt` or `pt-BR`, or of an ISO 639-3 code.
pub fn language(tag: &str) -> Option<&'static Language> {
    let code = tag.split(['-', '_']).next().unwrap_or(tag).to_ascii_lowercase();
    LANGUAGES.iter().find(|language| language.code == code || language.iso_639_3 == code)
}

macro_rules! languages {
    ($($code:literal $iso_639_3:literal $name:literal)*) => {
        /// The languages that are known: those of Marco-LLM, those that language identification tells apart, and some more.
        pub const LANGUAGES: &[Language] = &[$(Language { code: $code, iso_639_3: $iso_639_3, name: $name }),*];
    };
}

languages! {
    "af" "afr" "Afrikaans"
    "am" "amh" "Amharic"
    "ar" "ara" "Arabic"
    "az" "aze" "Azerbaijani"
    "be" "bel" "Belarusian"
    "bg" "bul" "Bulgarian"
    "bn" "ben" "Bengali"
    "ca" "cat" "Catalan"
    "cs" "ces" "Czech"
    "cy" "cym" "Welsh"
    "da" "dan" "Danish"
    "de" "deu" "German"
    "dz" "dzo" "Dzongkha"
    "el" "ell" "Greek"
    "en" "eng" "English"
    "eo" "epo" "Esperanto"
    "es" "spa" "Spanish"
    "et" "est" "Estonian"
    "eu" "eus" "Basque"
    "fa" "pes" "Persian"
    "fi" "fin" "Finnish"
    "fr" "fra" "French"
    "gu" "guj" "Gujarati"
    "he" "heb" "Hebrew"
    "hi" "hin" "Hindi"
    "hr" "hrv" "Croatian"
    "hu" "hun" "Hungarian"
    "hy" "hye" "Armenian"
    "id" "ind" "Indonesian"
    "it" "ita" "Italian"
    "ja" "jpn" "Japanese"
    "jv" "jav" "Javanese"
    "ka" "kat" "Georgian"
    "kk" "kaz" "Kazakh"
    "km" "khm" "Khmer"
    "kn" "kan" "Kannada"
    "ko" "kor" "Korean"
    "la" "lat" "Latin"
    "lt" "lit" "Lithuanian"
    "lv" "lav" "Latvian"
    "mk" "mkd" "Macedonian"
    "ml" "mal" "Malayalam"
    "mr" "mar" "Marathi"
    "ms" "zsm" "Malay"
    "my" "mya" "Burmese"
    "nb" "nob" "Norwegian"
    "ne" "nep" "Nepali"
    "nl" "nld" "Dutch"
    "om" "orm" "Oromo"
    "or" "ori" "Odia"
    "pa" "pan" "Punjabi"
    "pl" "pol" "Polish"
    "pt" "por" "Portuguese"
    "ro" "ron" "Romanian"
    "ru" "rus" "Russian"
    "si" "sin" "Sinhala"
    "sk" "slk" "Slovak"
    "sl" "slv" "Slovenian"
    "sn" "sna" "Shona"
    "sr" "srp" "Serbian"
    "sv" "swe" "Swedish"
    "ta" "tam" "Tamil"
    "te" "tel" "Telugu"
    "th" "tha" "Thai"
    "tk" "tuk" "Turkmen"
    "tl" "tgl" "Tagalog"
    "tr" "tur" "Turkish"
    "uk" "ukr" "Ukrainian"
    "ur" "urd" "Urdu"
    "uz" "uzb" "Uzbek"
    "vi" "vie" "Vietnamese"
    "yi" "yid" "Yiddish"
    "zh" "cmn" "Chinese"
    "zu" "zul" "Zulu"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The languages of Marco-LLM (arXiv 2412.04003).
    const MARCO: &str = "en zh ar de es fr ko ja pt tr bn he id it ms nl pl ru th uk ur vi cs el hu kk ro az ne";

    #[test]
    fn tags_have_names() {
        assert!(MARCO.split(' ').all(|code| language(code).is_some()));
        assert_eq!(MARCO.split(' ').count(), 29);
        let name = |tag| language(tag).map(|language| language.name);
        assert_eq!(name("pt-BR"), Some("Portuguese"));
        assert_eq!(name("zh_Hant"), Some("Chinese"));
        assert_eq!(name("nep"), Some("Nepali"));
        assert_eq!(name("xx"), None);
    }

    #[test]
    fn all_that_identification_knows_is_there() {
        let known = |lang: &whatlang::Lang| LANGUAGES.iter().any(|language| language.iso_639_3 == lang.code());
        let missing: Vec<_> = whatlang::Lang::all().iter().filter(|lang| !known(lang)).collect();
        assert!(missing.iter().all(|lang| matches!(lang.code(), "aka")), "{missing:?}"); // Akan has no tag of its own
    }
}
