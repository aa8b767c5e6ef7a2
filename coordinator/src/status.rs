//! The run as people see it: the machine's state and the last completed step, as one message.

use std::collections::BTreeMap;

use polo_proto::v1;
use polo_recipe::{
    ids::Step,
    plan::{LedgerEntry, Plan, SourceSamples},
    utilization::Utilization,
};

use crate::{
    core::Facts,
    history::History,
    machine::{Bill, Formation, Hold, Incident, Member, NowMs, Outcome, SourceLoss, Standpoint, State, WorkerId},
    wire,
};

/// What the shell knows of progress beside the machine.
#[derive(Debug, Default)]
pub struct Progress {
    last: Option<v1::StepSummary>,
    /// Smoothed over the last steps, for the ETA.
    mean_step_ms: Option<f64>,
    utilization: Option<Utilization>,
    totals: v1::Totals,
    source_losses: BTreeMap<String, v1::SourceLoss>,
    history: History,
}

impl Progress {
    /// Of a run whose steps can, or cannot, be compared with what devices could do.
    pub fn new(utilization: Option<Utilization>) -> Self {
        Self { utilization, ..Self::default() }
    }

    /// Takes a worker's report of a completed step; a summary if the step is news.
    pub fn take(&mut self, mut report: v1::StepReport, plan: &Plan) -> Option<v1::StepSummary> {
        let newest = self.last.as_ref().map_or(0, |last| last.step);
        if !(newest + 1..=plan.num_steps()).contains(&report.step) {
            return None;
        }
        report.sources.retain(|source| plan.sources().contains(&source.source));
        let this_ms = report.step_ms.max(1) as f64;
        let mean_ms = self.mean_step_ms.map_or(this_ms, |mean| 0.9 * mean + 0.1 * this_ms);
        self.mean_step_ms = Some(mean_ms);
        let mut summary = summary(report, plan, mean_ms);
        summary.mfu = self.utilization.map(|u| u.share(summary.tokens_per_second, summary.num_workers));
        self.add(&summary);
        self.last = Some(summary.clone());
        Some(summary)
    }

    fn add(&mut self, step: &v1::StepSummary) {
        self.totals.num_steps += 1;
        self.totals.num_skipped_steps += u64::from(step.skipped);
        self.totals.sent_bytes += step.sent_bytes;
        self.totals.received_bytes += step.received_bytes;
        self.source_losses.extend(step.sources.iter().map(|loss| (loss.source.clone(), loss.clone())));
        self.history.add(step);
    }
}

/// How the run came to where it is.
pub fn history(state: &State, progress: &Progress) -> v1::History {
    let of_step = |(step, sources): (Step, &'_ [SourceLoss])| {
        let of_source = |loss: &SourceLoss| v1::SourceEvaluation {
            source: loss.source.clone(),
            evaluation: Some(evaluation((step, loss))),
        };
        sources.iter().map(of_source).collect::<Vec<_>>()
    };
    v1::History {
        steps: progress.history.steps().to_vec(),
        evaluations: state.validations().evaluations().flat_map(of_step).collect(),
    }
}

fn summary(report: v1::StepReport, plan: &Plan, mean_ms: f64) -> v1::StepSummary {
    let before = Step(report.step - 1);
    let num_tokens: u64 = report.sources.iter().map(|s| s.num_tokens).sum();
    let steps_left = plan.num_steps().saturating_sub(report.step);
    v1::StepSummary {
        step: report.step,
        stage: plan.stage_at(before).name.to_string(),
        loss: report.loss,
        learning_rate: plan.learning_rate(before),
        grad_norm: report.grad_norm,
        tokens_per_second: num_tokens as f64 * 1000.0 / report.step_ms.max(1) as f64,
        num_workers: report.num_workers,
        eta_seconds: (steps_left as f64 * mean_ms / 1000.0).round() as u64,
        step_ms: report.step_ms,
        data_wait_ms: report.data_wait_ms,
        sent_bytes: report.sent_bytes,
        received_bytes: report.received_bytes,
        skipped: report.skipped,
        sources: report.sources,
        mfu: None,
        samples: plan.step_sources(before).into_iter().map(source_samples).collect(),
    }
}

/// The status now.
pub fn status(state: &State, progress: &Progress, facts: &Facts, now: NowMs) -> v1::Status {
    let plan = &facts.plan;
    let step = state.newest_step();
    let (state_digest, error) = ending(state.outcome());
    v1::Status {
        run: facts.wire.run.clone(),
        recipe_identity: facts.recipe_identity.clone(),
        phase: phase(state).into(),
        waiting_for: waiting_for(state, now),
        generation: state.generation().0,
        step: step.0,
        num_steps: plan.num_steps(),
        stage: plan.stage_at(Step(step.0.min(plan.num_steps().saturating_sub(1)))).name.to_string(),
        last_step: progress.last.clone(),
        members: state.members().iter().map(|(worker, m)| member(state, worker, m, now)).collect(),
        checkpoint_step: state.newest_checkpoint().map(|s| s.0),
        incidents: state.incidents().iter().map(incident).collect(),
        state_digest,
        error,
        goodput: state.goodput().share(now),
        validation: state.validations().standpoints().into_iter().map(source_validation).collect(),
        num_alarms: state.validations().num_alarms() as u32,
        ledger: plan.ledger(step).into_iter().map(ledger_entry).collect(),
        totals: Some(progress.totals),
        source_losses: progress.source_losses.values().cloned().collect(),
        checkpoint_every_steps: facts.checkpoint_every_steps,
    }
}

fn source_samples(SourceSamples { source, samples }: SourceSamples) -> v1::SourceSamples {
    v1::SourceSamples { source, first_sample: samples.start, end_sample: samples.end }
}

fn ledger_entry(entry: LedgerEntry) -> v1::LedgerEntry {
    let LedgerEntry { stage, source, num_planned_tokens, num_trained_tokens, samples, num_epoch_tokens } = entry;
    let (first_sample, end_sample) = (samples.start, samples.end);
    v1::LedgerEntry {
        stage,
        source,
        num_planned_tokens,
        num_trained_tokens,
        first_sample,
        end_sample,
        num_epoch_tokens,
    }
}

fn ending(outcome: Option<&Outcome>) -> (String, String) {
    match outcome {
        Some(Outcome::Completed { state_digest, .. } | Outcome::Stopped { state_digest, .. }) => {
            (state_digest.clone(), String::new())
        }
        Some(Outcome::Failed { reason }) => (String::new(), reason.clone()),
        None => Default::default(),
    }
}

fn phase(state: &State) -> v1::RunPhase {
    match (state.outcome(), state.formation()) {
        (Some(Outcome::Completed { .. }), _) => v1::RunPhase::Completed,
        (Some(Outcome::Stopped { .. }), _) => v1::RunPhase::Stopped,
        (Some(Outcome::Failed { .. }), _) => v1::RunPhase::Failed,
        (None, _) if state.is_stopping() => v1::RunPhase::Stopping,
        (None, Formation::Waiting { .. }) => v1::RunPhase::Waiting,
        (None, _) => v1::RunPhase::Training,
    }
}

fn waiting_for(state: &State, now: NowMs) -> String {
    let seconds = |until_ms: NowMs| until_ms.saturating_sub(now).div_ceil(1000);
    match state.hold() {
        _ if state.outcome().is_some() => String::new(),
        Hold::TooFew { present, needed, until_ms } => {
            format!("{needed} workers, {present} here; gives up in {} s", seconds(*until_ms))
        }
        Hold::Company { present, expected, until_ms } => {
            format!("{expected} workers, {present} here; goes on without the others in {} s", seconds(*until_ms))
        }
        Hold::Probe(workers) => format!("a sign of life of {}", names(workers)),
        Hold::Away(workers) => format!("a session with {}, or its heartbeat to lapse", names(workers)),
        Hold::Drain(workers) => format!("a checkpoint, after which {} may leave", names(workers)),
        Hold::Journal => "the journal to take the next generation".into(),
        Hold::Settled => String::new(),
    }
}

fn names(workers: &[WorkerId]) -> String {
    let names: Vec<_> = workers.iter().map(|w| w.0.as_str()).collect();
    names.join(", ")
}

fn member(state: &State, worker: &WorkerId, member: &Member, now: NowMs) -> v1::Member {
    let seat = state.seat_of(worker);
    let role = seat.map_or(v1::Role::Unspecified, |(_, role)| wire::role(role));
    v1::Member {
        worker_id: worker.0.clone(),
        host: member.introduction.host.clone(),
        pid: member.introduction.pid,
        rank: seat.map(|(rank, _)| rank.0),
        step: member.step.0,
        phase: member.phase.clone(),
        last_heard_ms_ago: now.saturating_sub(member.last_heard_ms),
        role: role.into(),
        leaving: state.is_leaving(worker),
        slowdown: member.slowness.slowdown(),
        compute_ms: member.slowness.mean_compute_ms(),
    }
}

fn incident(incident: &Incident) -> v1::Incident {
    let went_back = incident.went_back.map(|back| format!("; {back}")).unwrap_or_default();
    v1::Incident {
        cause: format!("{}{went_back}", incident.cause),
        worker_id: incident.worker.as_ref().map(|w| w.0.clone()).unwrap_or_default(),
        generation: incident.generation.0,
        step: incident.step.0,
        recovery_ms: incident.recovery_ms,
        bill: Some(bill(&incident.bill)),
    }
}

fn source_validation(standpoint: Standpoint<'_>) -> v1::SourceValidation {
    let Standpoint { baseline, last, is_watched, is_worse } = standpoint;
    v1::SourceValidation {
        source: last.1.source.clone(),
        baseline: Some(evaluation(baseline)),
        last: Some(evaluation(last)),
        watched: is_watched,
        worse: is_worse,
    }
}

fn evaluation((step, of_source): (Step, &SourceLoss)) -> v1::Evaluation {
    let SourceLoss { source: _, loss, num_tokens, bits_per_byte } = of_source;
    v1::Evaluation { step: step.0, loss: *loss, num_tokens: *num_tokens, bits_per_byte: *bits_per_byte }
}

fn bill(bill: &Bill) -> v1::Bill {
    let Bill { detect_ms, abort_ms, reform_ms, transfer_ms, redo_ms } = *bill;
    v1::Bill { detect_ms, abort_ms, reform_ms, transfer_ms, redo_ms }
}
