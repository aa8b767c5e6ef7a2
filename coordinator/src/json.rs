//! What people may know of a run, as JSON: for `polo status --json` and for the page. Losses that are no numbers are null.

use polo_proto::v1::{
    Evaluation, History, Incident, LedgerEntry, Member, Role, RunPhase, SourceEvaluation, SourceLoss, SourceSamples,
    SourceValidation, Status, StepSummary,
};
use serde_json::{Map, Value, json};

/// How a run stands.
pub fn status(status: &Status) -> Value {
    json!({
        "run": status.run,
        "recipe_identity": status.recipe_identity,
        "phase": phase(status.phase()),
        "waiting_for": status.waiting_for,
        "generation": status.generation,
        "step": status.step,
        "num_steps": status.num_steps,
        "stage": status.stage,
        "goodput": status.goodput,
        "checkpoint_step": status.checkpoint_step,
        "checkpoint_every_steps": status.checkpoint_every_steps,
        "last_step": status.last_step.as_ref().map(step),
        "loss_by_source": losses(&status.source_losses),
        "ledger": status.ledger.iter().map(ledger_entry).collect::<Vec<_>>(),
        "validation": validation(&status.validation),
        "num_alarms": status.num_alarms,
        "members": status.members.iter().map(member).collect::<Vec<_>>(),
        "incidents": status.incidents.iter().map(incident).collect::<Vec<_>>(),
        "totals": status.totals.as_ref().map(|totals| json!({
            "num_steps": totals.num_steps,
            "num_skipped_steps": totals.num_skipped_steps,
            "sent_bytes": totals.sent_bytes,
            "received_bytes": totals.received_bytes,
        })),
        "state_digest": status.state_digest,
        "error": status.error,
    })
}

/// How a run came to where it is.
pub fn history(history: &History) -> Value {
    json!({
        "steps": history.steps.iter().map(step).collect::<Vec<_>>(),
        "validation": history.evaluations.iter().filter_map(source_evaluation).collect::<Vec<_>>(),
    })
}

/// Baseline and last evaluation of each source on held-out samples.
pub fn validation(validation: &[SourceValidation]) -> Value {
    let of_source = |v: &SourceValidation| {
        let (baseline, last) = (v.baseline.as_ref().map(evaluation), v.last.as_ref().map(evaluation));
        (v.source.clone(), json!({ "baseline": baseline, "last": last, "watched": v.watched, "worse": v.worse }))
    };
    validation.iter().map(of_source).collect::<Map<_, _>>().into()
}

fn evaluation(evaluation: &Evaluation) -> Value {
    let Evaluation { step, loss, num_tokens, bits_per_byte } = evaluation;
    json!({ "step": step, "loss": loss, "num_tokens": num_tokens, "bits_per_byte": bits_per_byte })
}

fn source_evaluation(of_source: &SourceEvaluation) -> Option<Value> {
    let mut json = evaluation(of_source.evaluation.as_ref()?);
    json["source"] = of_source.source.as_str().into();
    Some(json)
}

fn step(step: &StepSummary) -> Value {
    json!({
        "step": step.step,
        "stage": step.stage,
        "loss": step.loss,
        "loss_by_source": losses(&step.sources),
        "learning_rate": step.learning_rate,
        "grad_norm": step.grad_norm,
        "tokens_per_second": step.tokens_per_second,
        "mfu": step.mfu,
        "num_workers": step.num_workers,
        "eta_seconds": step.eta_seconds,
        "step_ms": step.step_ms,
        "data_wait_ms": step.data_wait_ms,
        "sent_bytes": step.sent_bytes,
        "received_bytes": step.received_bytes,
        "skipped": step.skipped,
        "samples": step.samples.iter().map(samples).collect::<Map<_, _>>(),
    })
}

fn losses(losses: &[SourceLoss]) -> Value {
    losses.iter().map(|of| (of.source.clone(), json!(of.loss))).collect::<Map<_, _>>().into()
}

fn samples(samples: &SourceSamples) -> (String, Value) {
    (samples.source.clone(), json!({ "start": samples.first_sample, "end": samples.end_sample }))
}

/// The same keys as in the ledger of a checkpoint.
fn ledger_entry(entry: &LedgerEntry) -> Value {
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

/// How often a stage has gone through a source, and will have at its end.
pub fn epochs(entry: &LedgerEntry) -> [f64; 2] {
    [entry.num_trained_tokens, entry.num_planned_tokens].map(|n| n as f64 / entry.num_epoch_tokens.max(1) as f64)
}

fn member(member: &Member) -> Value {
    json!({
        "worker_id": member.worker_id,
        "host": member.host,
        "pid": member.pid,
        "rank": member.rank,
        "step": member.step,
        "phase": member.phase,
        "last_heard_ms_ago": member.last_heard_ms_ago,
        "role": role(member),
        "leaving": member.leaving,
        "slowdown": member.slowdown,
        "compute_ms": member.compute_ms,
    })
}

fn incident(incident: &Incident) -> Value {
    json!({
        "cause": incident.cause,
        "worker_id": incident.worker_id,
        "generation": incident.generation,
        "step": incident.step,
        "recovery_ms": incident.recovery_ms,
        "bill": incident.bill.as_ref().map(|bill| json!({
            "detect_ms": bill.detect_ms,
            "abort_ms": bill.abort_ms,
            "reform_ms": bill.reform_ms,
            "transfer_ms": bill.transfer_ms,
            "redo_ms": bill.redo_ms,
        })),
    })
}

/// What a run is doing, in a word.
pub fn phase(phase: RunPhase) -> &'static str {
    match phase {
        RunPhase::Unspecified => "unknown",
        RunPhase::Waiting => "waiting",
        RunPhase::Training => "training",
        RunPhase::Stopping => "stopping",
        RunPhase::Completed => "completed",
        RunPhase::Stopped => "stopped",
        RunPhase::Failed => "failed",
    }
}

/// What a worker does in the generation that runs.
pub fn role(member: &Member) -> Option<&'static str> {
    match member.role() {
        Role::Unspecified => None,
        Role::Member => Some("member"),
        Role::Spare => Some("spare"),
        Role::Leaving => Some("leaving"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluated(step: u64, loss: f64, bits_per_byte: Option<f64>) -> Option<Evaluation> {
        Some(Evaluation { step, loss, num_tokens: 24, bits_per_byte })
    }

    #[test]
    fn validation_has_baseline_and_last_of_each_source() {
        let en = SourceValidation {
            source: "en".into(),
            baseline: evaluated(0, 2.0, Some(0.5)),
            last: evaluated(20, f64::NAN, None),
            watched: true,
            worse: true,
        };
        let json = validation(&[en]);
        assert_eq!((&json["en"]["baseline"]["loss"], &json["en"]["worse"]), (&json!(2.0), &json!(true)));
        assert_eq!((&json["en"]["last"]["loss"], &json["en"]["last"]["bits_per_byte"]), (&Value::Null, &Value::Null));
    }

    #[test]
    fn a_past_has_steps_and_evaluations() {
        let loss = SourceLoss { source: "ne".into(), loss: 2.5, num_tokens: 8 };
        let evaluation = SourceEvaluation { source: "ne".into(), evaluation: evaluated(0, 4.0, Some(1.5)) };
        let json = history(&History {
            steps: vec![StepSummary { step: 7, sources: vec![loss], mfu: Some(0.25), ..Default::default() }],
            evaluations: vec![evaluation],
        });
        assert_eq!(json["steps"][0]["loss_by_source"], json!({ "ne": 2.5 }));
        assert_eq!(json["steps"][0]["mfu"], 0.25);
        assert_eq!(
            json["validation"],
            json!([{ "source": "ne", "step": 0, "loss": 4.0, "num_tokens": 24, "bits_per_byte": 1.5 }])
        );
    }
}
