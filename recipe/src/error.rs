//! What can be wrong with a recipe.

use std::fmt;

/// Why a recipe or the plan made of it is refused. Messages name the field and say what would be right.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RecipeError {
    /// The text is not TOML.
    #[error("the recipe is not valid TOML (line {line}): {message}")]
    Syntax {
        /// Line of the text, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A field is unknown, missing, of the wrong type, or has a value that cannot be.
    #[error("recipe field `{field}`{}: {message}", place.as_ref().map(|p| format!(" ({p})")).unwrap_or_default())]
    Field {
        /// Path of the field, such as `stages.0.schedule.floor`.
        field: String,
        /// Where it was set: a line of the file, an environment variable or a `--set`.
        place: Option<String>,
        /// What is wrong and what would be right.
        message: String,
    },
    /// An override does not name a field.
    #[error("{origin}: {message}")]
    Override {
        /// The override as it was given.
        origin: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A Hugging Face `config.json` cannot be used.
    #[error("model configuration: {message}")]
    ModelConfig {
        /// What is wrong and what would be right.
        message: String,
    },
    /// A stage draws from a source which the corpus has not.
    #[error("stage `{stage}` draws from source `{source_name}`, which the corpus has not; it has: {known}")]
    UnknownSource {
        /// The stage's name.
        stage: String,
        /// The source's name.
        source_name: String,
        /// Names of the corpus's sources.
        known: String,
    },
    /// A source is shorter than one sample.
    #[error(
        "source `{source_name}` has {num_tokens} tokens, but one sample{} takes {needed}; add text or lower `batch.seq_len`{}",
        if *num_held_out > 0 { format!(" beside the {num_held_out} that are held out") } else { String::new() },
        if *num_held_out > 0 { " or `validation.samples_per_source`" } else { "" }
    )]
    EmptySource {
        /// The source's name.
        source_name: String,
        /// Tokens it has.
        num_tokens: u64,
        /// Tokens of one sample, `seq_len + 1`, and of those that are held out.
        needed: u64,
        /// Samples of it that are held out of training.
        num_held_out: u64,
    },
    /// Sources have fewer samples than the stages ask of them, as often as they may be gone through.
    #[error(
        "the stages take more than the corpus has: {}; lower their shares, add text, or let them repeat: \
             `corpus.allow_repeats = true`, or a limit above 1 in `corpus.max_epochs`",
        shortages.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    NotEnoughTokens {
        /// The sources that are short, in the order of their first use.
        shortages: Vec<Shortage>,
    },
}

/// A source that is too small for a recipe.
#[derive(Debug, Clone, PartialEq)]
pub struct Shortage {
    /// The source's name.
    pub source_name: String,
    /// Samples it has.
    pub available: u64,
    /// How often each may be trained.
    pub max_epochs: f64,
    /// Samples that all stages together take.
    pub planned: u64,
    /// Tokens of a sample.
    pub seq_len: u64,
}

impl Shortage {
    /// Samples that may be trained of the source.
    pub fn allowed(&self) -> u64 {
        (self.available as f64 * self.max_epochs) as u64
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source_name, available, max_epochs, planned, seq_len } = self;
        let missing = planned.saturating_sub(self.allowed());
        let limit = if *max_epochs == 1.0 { String::new() } else { format!(" for {max_epochs} epochs") };
        write!(
            f,
            "source `{source_name}` has {available} samples{limit}, but the stages take {planned}, \
             which is {missing} samples ({} tokens) too many",
            missing * seq_len
        )
    }
}

impl RecipeError {
    pub(crate) fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Field { field: field.into(), place: None, message: message.into() }
    }
}
