//! `polo logs`.

use clap::Args;
use polo_kubernetes::{LogLine, LogOptions};
use serde_json::json;

use super::{ClusterArgs, print, print_json};
use polo_log::say;

use crate::error::CliError;

const EXAMPLES: &str = "\
Each line begins with who said it.

Examples:
  polo logs marco-7b --tail 20
  polo logs marco-7b --coordinator --follow
  polo logs marco-7b --worker worker-3";

/// Arguments of `polo logs`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LogsArgs {
    /// The run's name
    run: String,
    /// Only what the coordinator has said
    #[arg(long, conflicts_with = "worker")]
    coordinator: bool,
    /// Only what this worker has said, such as worker-3
    #[arg(long, value_name = "NAME")]
    worker: Option<String>,
    /// Goes on with what is said from now on, until all have ended
    #[arg(long, short)]
    follow: bool,
    /// Only so many last lines of each
    #[arg(long, value_name = "LINES")]
    tail: Option<u32>,
    /// What was said before the last restart
    #[arg(long, conflicts_with = "follow")]
    previous: bool,
    /// Prints JSON, one object for each line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// `polo logs`.
pub async fn logs(args: LogsArgs) -> Result<(), CliError> {
    let cluster = args.cluster.open().await?;
    let options = LogOptions {
        coordinator: args.coordinator,
        worker: args.worker,
        follow: args.follow,
        tail: args.tail,
        previous: args.previous,
    };
    let mut logs = cluster.logs(&args.run, options).await?;
    while let Some(LogLine { who, pod, said }) = logs.next().await {
        match said {
            Err(problem) => say(format_args!("{who} ({pod}): {problem}")),
            Ok(line) if args.json => print_json(&json!({ "who": who, "pod": pod, "line": line }))?,
            Ok(line) => print(&format!("{who}  {line}\n"))?,
        }
    }
    Ok(())
}
