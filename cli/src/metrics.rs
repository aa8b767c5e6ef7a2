//! `polo metrics`: which metrics a coordinator serves.

use std::io::Write;

use polo_coordinator::catalogue;

use crate::error::CliError;

/// Arguments of `polo metrics`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// `polo metrics`.
pub fn run(args: Args) -> Result<(), CliError> {
    // Names, labels and values are all our own, and nothing is registered twice.
    let metrics = catalogue().unwrap_or_else(|error| unreachable!("{error}"));
    let text = if args.json {
        serde_json::json!(metrics).to_string()
    } else {
        let line = |m: &polo_coordinator::Metric| format!("{:<36} {:<8} {}", m.name, m.kind, m.help);
        metrics.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    writeln!(std::io::stdout(), "{text}").map_err(CliError::io("cannot write to standard output"))
}
