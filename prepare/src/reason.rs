//! What is left out of a corpus, and why.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::error::{Place, PrepareError};

/// Characters of a text that are kept to show what was left out.
const EXCERPT_CHARS: usize = 300;

/// Something that does not become a document of the corpus.
#[derive(Debug)]
pub struct Rejected {
    /// Why, as it stands in the manifest.
    pub reason: Cow<'static, str>,
    /// Where it lay; nothing for whole files.
    pub place: Option<Place>,
    /// UTF-8 bytes of its text, where that could be read.
    pub num_bytes_text: u64,
    /// How its text begins, or what is wrong with it.
    pub excerpt: String,
    /// The error it is, unless the user wants it to pass.
    pub fault: Option<Box<PrepareError>>,
}

impl Rejected {
    /// A sound document that cleaning drops.
    pub fn dropped(reason: &'static str, place: Place, text: &str) -> Self {
        let (place, num_bytes_text) = (Some(place), text.len() as u64);
        Self { reason: reason.into(), place, num_bytes_text, excerpt: excerpt(text), fault: None }
    }
}

/// How a text begins.
pub fn excerpt(text: &str) -> String {
    text.chars().take(EXCERPT_CHARS).collect()
}

impl From<PrepareError> for Rejected {
    fn from(fault: PrepareError) -> Self {
        let reason = fault.reason().unwrap_or("fault");
        Self {
            reason: reason.into(),
            place: None,
            num_bytes_text: 0,
            excerpt: fault.to_string(),
            fault: Some(Box::new(fault)),
        }
    }
}

/// One thing left out, to show people what a reason means; a line of a source's samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Why.
    pub reason: String,
    /// The input object.
    pub key: String,
    /// Where in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// How the text begins, or what is wrong with it.
    pub excerpt: String,
}
