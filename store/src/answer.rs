//! What a store's error says: its status, its code, and whether trying again may help.

use std::error::Error;

use object_store::Error as ObjectError;

/// How the library calls the stores that are reached over HTTP.
const REMOTE: [&str; 3] = ["S3", "GCS", "MicrosoftAzure"];

/// So much of an answer that is no XML is worth repeating.
const MAX_WORDS_CHARS: usize = 300;

/// What the library puts before a status.
const STATUS: &str = "Server returned non-2xx status code: ";

/// An error of the object store, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The HTTP status, where the store answered at all.
    pub status: Option<u16>,
    /// The store's name for the error, such as `ExpiredToken`.
    pub code: Option<String>,
    /// The store's own words, on one line.
    pub words: String,
}

impl Answer {
    /// Reads the last error of the chain: the wrappers above it only repeat the path.
    pub(crate) fn of(error: &ObjectError) -> Self {
        let mut innermost: &dyn Error = error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        Self::parse(&innermost.to_string())
    }

    fn parse(text: &str) -> Self {
        let status = text.strip_prefix(STATUS).and_then(|rest| rest.get(..3)?.parse().ok());
        let code = element(text, "Code").map(str::to_owned);
        let words = match (&code, element(text, "Message")) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code.clone(),
            (None, _) => text.strip_prefix(STATUS).unwrap_or(text).chars().take(MAX_WORDS_CHARS).collect(),
        };
        // Azure adds lines of its own to each message.
        let words = words.split_once("RequestId:").map_or(words.as_str(), |(message, _)| message);
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        Self { status, code, words: words.trim_end_matches(['.', ':']).to_owned() }
    }

    /// Whether the store's code is one of `codes`.
    pub(crate) fn is_one_of(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }

    /// Whether the store may answer otherwise when it is asked again: no answer, throttling, or trouble of its own.
    pub(crate) fn is_transient(&self) -> bool {
        match self.status {
            None => !self.words.contains("incorrectly configured region"),
            Some(status) => status >= 500 || matches!(status, 408 | 429),
        }
    }
}

/// Whether `error` came from a store over HTTP and may go away by itself.
pub(crate) fn is_transient(error: &ObjectError) -> bool {
    is_remote(error) && Answer::of(error).is_transient()
}

/// Whether `error` is a remote one that the library has no name for.
pub(crate) fn is_remote(error: &ObjectError) -> bool {
    matches!(error, ObjectError::Generic { store, .. } if REMOTE.contains(store))
}

/// The text of the first XML element `name`: all three clouds answer `<Error><Code>..</Code><Message>..</Message>`.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inside, _) = rest.split_once(&format!("</{name}>"))?;
    Some(inside.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(words: &'static str) -> ObjectError {
        ObjectError::Generic { store: "S3", source: words.into() }
    }

    #[test]
    fn status_code_and_message_are_found() {
        let answer = Answer::parse(
            "Server returned non-2xx status code: 400 Bad Request: <?xml version=\"1.0\"?>\n<Error><Code>ExpiredToken</Code>\
             <Message>The provided token has\n expired.</Message></Error>",
        );
        assert_eq!(answer.status, Some(400));
        assert!(answer.is_one_of(&["ExpiredToken"]) && !answer.is_one_of(&["NoSuchBucket"]));
        assert_eq!(answer.words, "ExpiredToken: The provided token has expired");
        let azure = "<Code>ServerBusy</Code><Message>The server is busy.\nRequestId:1f2e\nTime:2026-01-01</Message>";
        assert_eq!(Answer::parse(azure).words, "ServerBusy: The server is busy");
    }

    #[test]
    fn answers_without_xml_are_repeated_in_part() {
        let long = format!("{STATUS}404 Not Found: {}", "x".repeat(1000));
        let answer = Answer::parse(&long);
        assert_eq!((answer.status, answer.code, answer.words.len()), (Some(404), None, MAX_WORDS_CHARS));
        assert_eq!(Answer::parse("connection reset").words, "connection reset");
    }

    #[test]
    fn silence_throttling_and_trouble_are_transient_and_refusals_are_not() {
        for words in [
            "connection reset",
            "Server returned non-2xx status code: 503 Service Unavailable: ",
            "Server returned non-2xx status code: 429 Too Many Requests: ",
        ] {
            assert!(is_transient(&generic(words)), "{words}");
        }
        for words in [
            "Server returned non-2xx status code: 400 Bad Request: 500",
            "Received redirect without LOCATION, this normally indicates an incorrectly configured region",
        ] {
            assert!(!is_transient(&generic(words)), "{words}");
        }
        assert!(!is_transient(&ObjectError::Generic { store: "LocalFileSystem", source: "disk".into() }));
    }
}
