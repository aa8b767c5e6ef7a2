//! `polo scale` and `polo delete`.

use std::time::Duration;

use clap::Args;
use polo_kubernetes::Deletion;
use serde_json::json;

use super::{ClusterArgs, print_json};
use polo_log::say;

use crate::error::CliError;

const SCALE_EXAMPLES: &str = "\
More workers join at a step boundary. Fewer: those with the highest numbers hand back what they hold, and leave.

Examples:
  polo scale marco-7b 16
  polo scale marco-7b 4 --namespace research --json";

/// Arguments of `polo scale`.
#[derive(Debug, Args)]
#[command(after_help = SCALE_EXAMPLES)]
pub struct ScaleArgs {
    /// The run's name
    run: String,
    /// How many workers it should have, from workers.min_workers to --max-workers of `polo submit`
    workers: u32,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// `polo scale`.
pub async fn scale(args: ScaleArgs) -> Result<(), CliError> {
    let cluster = args.cluster.open().await?;
    let scaled = cluster.scale(&args.run, args.workers).await?;
    say(format_args!("run {}: {} workers, of {} before", args.run, scaled.to, scaled.from));
    if args.json { print_json(&json!({ "run": args.run, "from": scaled.from, "to": scaled.to })) } else { Ok(()) }
}

const DELETE_EXAMPLES: &str = "\
Checkpoints and journal stay in the run's store: submitted again, it goes on from its newest checkpoint. For a checkpoint of
this moment, stop it first.

Examples:
  polo stop --run marco-7b && polo delete marco-7b
  polo delete marco-7b --no-wait";

/// Arguments of `polo delete`.
#[derive(Debug, Args)]
#[command(after_help = DELETE_EXAMPLES)]
pub struct DeleteArgs {
    /// The run's name
    run: String,
    /// Does not wait until everything is gone
    #[arg(long)]
    no_wait: bool,
    /// How long is waited at most
    #[arg(long, default_value_t = 180, value_name = "SECONDS", conflicts_with = "no_wait")]
    timeout_s: u64,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// `polo delete`.
pub async fn delete(args: DeleteArgs) -> Result<(), CliError> {
    let cluster = args.cluster.open().await?;
    let wait = (!args.no_wait).then(|| Duration::from_secs(args.timeout_s));
    let deleted = cluster.delete(&args.run, Deletion { wait }, |object| say(format_args!("{object} deleted"))).await?;
    if args.json { print_json(&json!({ "run": args.run, "objects": deleted })) } else { Ok(()) }
}
