//! `polo status`: how a run stands, once or as it goes.

use std::io::Write;

use clap::Args;
use polo_proto::v1::{
    Bill, GetStatusRequest, Incident, LedgerEntry, Member, Role, RunPhase, SourceSamples, Status, WatchStatusRequest,
};
use serde_json::json;

use crate::{
    control::{AddressArgs, Coordinator, refused},
    error::CliError,
    progress::{line, validation_json, validation_line},
};

/// Arguments of `polo status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    address: AddressArgs,
    /// Goes on showing every change until the run ends
    #[arg(long)]
    watch: bool,
    /// Prints JSON, one line for each state
    #[arg(long)]
    json: bool,
}

/// `polo status`.
pub async fn run(args: StatusArgs) -> Result<(), CliError> {
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
    let text = if as_json { to_json(&status).to_string() } else { to_text(&status) };
    writeln!(std::io::stdout(), "{text}").map_err(CliError::io("cannot write to standard output"))
}

fn phase(status: &Status) -> &'static str {
    match status.phase() {
        RunPhase::Unspecified => "unknown",
        RunPhase::Waiting => "waiting",
        RunPhase::Training => "training",
        RunPhase::Stopping => "stopping",
        RunPhase::Completed => "completed",
        RunPhase::Stopped => "stopped",
        RunPhase::Failed => "failed",
    }
}

fn to_text(status: &Status) -> String {
    let mut lines = vec![format!(
        "{} {}: step {} of {}, generation {}, checkpoint {}{}",
        status.run,
        phase(status),
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
    let [trained, planned] = epochs(entry);
    format!(
        "  source {source}: {num_trained_tokens} of {num_planned_tokens} tokens, {trained:.2} of {planned:.2} epochs, samples {first_sample}..{end_sample}"
    )
}

/// How often a stage has gone through a source, and will have.
fn epochs(entry: &LedgerEntry) -> [f64; 2] {
    [entry.num_trained_tokens, entry.num_planned_tokens].map(|n| n as f64 / entry.num_epoch_tokens.max(1) as f64)
}

/// The same keys as in the ledger of a checkpoint.
fn ledger_json(entry: &LedgerEntry) -> serde_json::Value {
    let [trained_epochs, planned_epochs] = epochs(entry);
    json!({
        "stage": entry.stage,
        "source": entry.source,
        "num_planned_tokens": entry.num_planned_tokens,
        "num_trained_tokens": entry.num_trained_tokens,
        "samples": { "start": entry.first_sample, "end": entry.end_sample },
        "num_epoch_tokens": entry.num_epoch_tokens,
        "trained_epochs": trained_epochs,
        "planned_epochs": planned_epochs,
    })
}

/// What a worker does in the generation that runs.
fn role(member: &Member) -> Option<&'static str> {
    match member.role() {
        Role::Unspecified => None,
        Role::Member => Some("member"),
        Role::Spare => Some("spare"),
        Role::Leaving => Some("leaving"),
    }
}

fn member_line(member: &Member) -> String {
    let rank = member.rank.map_or("-".into(), |rank| rank.to_string());
    let mut line = format!(
        "  rank {rank:>3}  {} {} (pid {} on {})  step {}  {}  heard {} ms ago",
        role(member).unwrap_or("waiting"),
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
fn parts(bill: &Bill) -> [(&'static str, Option<u64>); 5] {
    [
        ("detect", bill.detect_ms),
        ("abort", bill.abort_ms),
        ("re-form", bill.reform_ms),
        ("transfer", bill.transfer_ms),
        ("redo", bill.redo_ms),
    ]
}

fn samples_json(samples: &SourceSamples) -> (String, serde_json::Value) {
    (samples.source.clone(), json!({ "start": samples.first_sample, "end": samples.end_sample }))
}

fn to_json(status: &Status) -> serde_json::Value {
    let sources = |step: &polo_proto::v1::StepSummary| -> serde_json::Map<String, serde_json::Value> {
        step.sources.iter().map(|s| (s.source.clone(), json!(s.loss))).collect()
    };
    json!({
        "run": status.run,
        "recipe_identity": status.recipe_identity,
        "phase": phase(status),
        "waiting_for": status.waiting_for,
        "generation": status.generation,
        "step": status.step,
        "num_steps": status.num_steps,
        "stage": status.stage,
        "goodput": status.goodput,
        "checkpoint_step": status.checkpoint_step,
        "last_step": status.last_step.as_ref().map(|step| json!({
            "step": step.step,
            "stage": step.stage,
            "loss": step.loss,
            "loss_by_source": sources(step),
            "learning_rate": step.learning_rate,
            "grad_norm": step.grad_norm,
            "tokens_per_second": step.tokens_per_second,
            "num_workers": step.num_workers,
            "eta_seconds": step.eta_seconds,
            "step_ms": step.step_ms,
            "data_wait_ms": step.data_wait_ms,
            "sent_bytes": step.sent_bytes,
            "received_bytes": step.received_bytes,
            "skipped": step.skipped,
            "samples": step.samples.iter().map(samples_json).collect::<serde_json::Map<_, _>>(),
        })),
        "ledger": status.ledger.iter().map(ledger_json).collect::<Vec<_>>(),
        "validation": validation_json(&status.validation),
        "num_alarms": status.num_alarms,
        "members": status.members.iter().map(|m| json!({
            "worker_id": m.worker_id,
            "host": m.host,
            "pid": m.pid,
            "rank": m.rank,
            "step": m.step,
            "phase": m.phase,
            "last_heard_ms_ago": m.last_heard_ms_ago,
            "role": role(m),
            "leaving": m.leaving,
            "slowdown": m.slowdown,
            "compute_ms": m.compute_ms,
        })).collect::<Vec<_>>(),
        "incidents": status.incidents.iter().map(|i| json!({
            "cause": i.cause,
            "worker_id": i.worker_id,
            "generation": i.generation,
            "step": i.step,
            "recovery_ms": i.recovery_ms,
            "bill": i.bill.as_ref().map(|bill| json!({
                "detect_ms": bill.detect_ms,
                "abort_ms": bill.abort_ms,
                "reform_ms": bill.reform_ms,
                "transfer_ms": bill.transfer_ms,
                "redo_ms": bill.redo_ms,
            })),
        })).collect::<Vec<_>>(),
        "state_digest": status.state_digest,
        "error": status.error,
    })
}
