//! What Polo's programs say on standard error: lines for people, or JSON for machines with `POLO_LOG_FORMAT=json`.
//!
//! A line of JSON says of which run, generation, rank and step it is. Which of the program's inner workings are told of is
//! said by `POLO_LOG`, in the words of `tracing_subscriber::EnvFilter`; only warnings are if it is not set. Nothing here
//! may write to standard output, which is for data. Start reading at [`begin`].

mod json;
mod place;

use std::{fmt::Display, io::Write, sync::OnceLock};

use tracing_subscriber::EnvFilter;

pub use place::{at_step, in_generation, in_run};

use self::json::Line;

static PROGRAM: OnceLock<&str> = OnceLock::new();
/// The format of all that is said.
static FORMAT: OnceLock<Format> = OnceLock::new();

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// Makes `program` speak as its environment wants. Called once, before anything is said.
pub fn begin(program: &'static str) {
    PROGRAM.get_or_init(|| program);
    let wanted = std::env::var("POLO_LOG_FORMAT").unwrap_or_default();
    let format = *FORMAT.get_or_init(|| if wanted == "json" { Format::Json } else { Format::Text });
    let filter = EnvFilter::try_from_env("POLO_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match format {
        Format::Json => lines.event_format(json::Events).init(),
        Format::Text => lines.init(),
    }
    if !["", "text", "json"].contains(&wanted.as_str()) {
        tracing::warn!("POLO_LOG_FORMAT is {wanted:?}, which is neither text nor json; it is taken for text");
    }
}

/// Says what happens.
pub fn say(line: impl Display) {
    write("INFO", &line, &line);
}

/// Says why the program ends without having done what it was asked to.
pub fn fail(error: impl Display) {
    write("ERROR", &error, &format_args!("error: {error}"));
}

/// In one piece: worker processes write to the same terminal, and `eprintln!` would let lines mix.
fn write(level: &'static str, message: &dyn Display, text: &dyn Display) {
    let line = match FORMAT.get() {
        Some(Format::Json) => {
            Line::new(level, PROGRAM.get().copied().unwrap_or_default()).with_message(message.to_string()).to_string()
        }
        _ => text.to_string(),
    };
    // Nobody may be listening any more, which is no reason to end a run.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
