//! `polo status`: how a run stands, once or as it goes.

use std::io::{IsTerminal, Write};

use clap::Args;
use polo_coordinator::json;
use polo_proto::v1::{Bill, GetStatusRequest, Incident, LedgerEntry, Member, Status, WatchStatusRequest};

use crate::{
    control::{AddressArgs, Coordinator, refused},
    error::CliError,
    progress::{line, validation_line},
    watch,
};

/// Arguments of `polo status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    address: AddressArgs,
    /// Goes on showing how the run stands until it ends: on one screen in a terminal, line by line elsewhere
    #[arg(long)]
    watch: bool,
    /// Prints JSON, one line for each state
    #[arg(long)]
    json: bool,
}

/// `polo status`.
pub async fn run(args: StatusArgs) -> Result<(), CliError> {
    if args.watch && !args.json && std::io::stdout().is_terminal() {
        return print(watch::run(&args.address).await?, false);
    }
    let Coordinator { mut client, place } = args.address.connect().await?;
    if !args.watch {
        let response = client.get_status(GetStatusRequest {}).await.map_err(refused(&place))?;
        return print(response.into_inner().status.unwrap_or_default(), args.json);
    }
    let stream = client.watch_status(WatchStatusRequest {}).await.map_err(refused(&place))?;
    let mut stream = stream.into_inner();
    let lost = |status: tonic::Status| CliError::Lost { address: place.clone(), problem: status.message().into() };
    while let Some(response) = stream.message().await.map_err(lost)? {
        print(response.status.unwrap_or_default(), args.json)?;
    }
    Ok(())
}

fn print(status: Status, as_json: bool) -> Result<(), CliError> {
    let text = if as_json { json::status(&status).to_string() } else { to_text(&status) };
    writeln!(std::io::stdout(), "{text}").map_err(CliError::io("cannot write to standard output"))
}

fn to_text(status: &Status) -> String {
    let mut lines = vec![format!(
        "{} {}: step {} of {}, generation {}, checkpoint {}{}",
        status.run,
        json::phase(status.phase()),
        status.step,
        status.num_steps,
        status.generation,
        status.checkpoint_step.map_or("none".into(), |step| step.to_string()),
        status.goodput.map(|share| format!(", goodput {:.1} %", share * 100.0)).unwrap_or_default()
    )];
    if !status.waiting_for.is_empty() {
        lines.push(format!("  waiting for {}", status.waiting_for));
    }
    lines.extend(status.last_step.iter().map(|step| format!("  {}", line(step))));
    lines.extend(status.ledger.iter().filter(|entry| entry.stage == status.stage).map(ledger_line));
    lines.extend(status.validation.iter().map(|v| format!("  {}", validation_line(v))));
    lines.extend(status.members.iter().map(member_line));
    lines.extend(status.incidents.iter().map(incident_line));
    if !status.error.is_empty() {
        lines.push(format!("  error: {}", status.error));
    }
    if !status.state_digest.is_empty() {
        lines.push(format!("  state digest {}", status.state_digest));
    }
    lines.join("\n")
}

/// What of a source is trained in its stage, and which of its samples, counted over the whole run.
fn ledger_line(entry: &LedgerEntry) -> String {
    let LedgerEntry { source, num_planned_tokens, num_trained_tokens, first_sample, end_sample, .. } = entry;
    let [trained, planned] = json::epochs(entry);
    format!(
        "  source {source}: {num_trained_tokens} of {num_planned_tokens} tokens, {trained:.2} of {planned:.2} epochs, samples {first_sample}..{end_sample}"
    )
}

fn member_line(member: &Member) -> String {
    let rank = member.rank.map_or("-".into(), |rank| rank.to_string());
    let mut line = format!(
        "  rank {rank:>3}  {} {} (pid {} on {})  step {}  {}  heard {} ms ago",
        json::role(member).unwrap_or("waiting"),
        member.worker_id,
        member.pid,
        member.host,
        member.step,
        member.phase,
        member.last_heard_ms_ago
    );
    if member.leaving {
        line += "  asked to leave";
    }
    if let Some(slowdown) = member.slowdown {
        line += &format!("  {slowdown:.1} times as slow as the others");
    }
    line
}

fn incident_line(incident: &Incident) -> String {
    let who = if incident.worker_id.is_empty() { "-" } else { &incident.worker_id };
    let recovery = incident.recovery_ms.map_or("not over".into(), |ms| format!("next step after {ms} ms"));
    let parts = incident.bill.as_ref().map(parts).unwrap_or_default();
    let paid: Vec<_> = parts.iter().filter_map(|(name, ms)| ms.map(|ms| format!("{name} {ms}"))).collect();
    let bill = if paid.is_empty() { String::new() } else { format!(" ({})", paid.join(", ")) };
    format!("  incident at step {}: {who}: {}; {recovery}{bill}", incident.step, incident.cause)
}

/// What was paid for, in order, and how much of it in ms.
pub fn parts(bill: &Bill) -> [(&'static str, Option<u64>); 5] {
    [
        ("detect", bill.detect_ms),
        ("abort", bill.abort_ms),
        ("re-form", bill.reform_ms),
        ("transfer", bill.transfer_ms),
        ("redo", bill.redo_ms),
    ]
}
