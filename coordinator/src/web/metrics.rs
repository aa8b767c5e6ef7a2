//! The state of a run as Prometheus scrapes it, made anew from the status each time.
//!
//! Names and units follow <https://prometheus.io/docs/practices/naming/>. What is not known is left out.

use std::collections::HashMap;

use polo_proto::v1::{Bill, Incident, Member, RunPhase, Status};
use prometheus::{CounterVec, GaugeVec, Opts, Registry, TextEncoder, core::Collector, proto::MetricFamily};

use crate::json;

/// Of the text format.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// The values of a metric's labels, and its own.
type Samples<const N: usize> = Vec<([String; N], f64)>;

const PHASES: [RunPhase; 6] = [
    RunPhase::Waiting,
    RunPhase::Training,
    RunPhase::Stopping,
    RunPhase::Completed,
    RunPhase::Stopped,
    RunPhase::Failed,
];

/// All metrics of a run, in Prometheus' text format.
pub fn text(status: &Status) -> prometheus::Result<String> {
    TextEncoder::new().encode_to_string(&families(status)?)
}

/// All metrics of a run.
pub fn families(status: &Status) -> prometheus::Result<Vec<MetricFamily>> {
    let metrics = Metrics::of_run(&status.run)?;
    metrics.add_run(status)?;
    metrics.add_last_step(status)?;
    metrics.add_totals(status)?;
    metrics.add_workers(&status.members)?;
    metrics.add_incidents(&status.incidents)?;
    metrics.add_ledger(status)?;
    metrics.add_validation(status)?;
    Ok(metrics.0.gather())
}

struct Metrics(Registry);

impl Metrics {
    fn of_run(run: &str) -> prometheus::Result<Self> {
        Ok(Self(Registry::new_custom(None, Some(HashMap::from([("run".into(), run.into())])))?))
    }

    fn add_run(&self, status: &Status) -> prometheus::Result<()> {
        let info = [status.recipe_identity.clone(), env!("CARGO_PKG_VERSION").into()];
        self.gauges(
            "polo_run_info",
            "Which recipe and which Polo.",
            ["recipe_identity", "version"],
            vec![(info, 1.0)],
        )?;
        let phases = PHASES.map(|phase| ([json::phase(phase).into()], flag(status.phase() == phase)));
        self.gauges("polo_run_phase", "What the run is doing: 1 for one of the phases.", ["phase"], phases.into())?;
        self.gauge(
            "polo_waiting",
            "Whether something is waited for; the status says what.",
            !status.waiting_for.is_empty(),
        )?;
        self.gauge("polo_generation", "Number of the membership, which only grows.", status.generation as f64)?;
        self.gauge("polo_step", "Completed steps.", status.step as f64)?;
        self.gauge("polo_planned_steps", "Steps of the whole run.", status.num_steps as f64)?;
        self.gauge("polo_checkpoint_step", "Step of the newest checkpoint.", status.checkpoint_step.map(|s| s as f64))?;
        let every = status.checkpoint_every_steps as f64;
        self.gauge("polo_checkpoint_every_steps", "Steps from one checkpoint to the next.", every)?;
        self.gauge("polo_goodput_ratio", "Share of the time that went into steps that were kept.", status.goodput)
    }

    fn add_last_step(&self, status: &Status) -> prometheus::Result<()> {
        let Some(step) = &status.last_step else { return Ok(()) };
        self.gauge("polo_loss", "Mean loss per token of the last step, natural logarithm.", step.loss)?;
        let losses = status.source_losses.iter().map(|s| ([s.source.clone()], s.loss)).collect();
        self.gauges("polo_source_loss", "The same of each source, where it was in a step last.", ["source"], losses)?;
        self.gauge("polo_learning_rate", "Learning rate of the last step.", step.learning_rate)?;
        self.gauge("polo_grad_norm", "Norm of the last step's gradient, before clipping.", step.grad_norm)?;
        self.gauge("polo_tokens_per_second", "Trained tokens per second in the last step.", step.tokens_per_second)?;
        self.gauge("polo_step_duration_seconds", "How long the last step took.", seconds(step.step_ms))?;
        self.gauge("polo_data_wait_seconds", "How long it waited for samples.", seconds(step.data_wait_ms))?;
        self.gauge("polo_mfu_ratio", "Model FLOPs utilization of the last step.", step.mfu)?;
        self.gauge("polo_eta_seconds", "Time until the last step at the pace of late.", step.eta_seconds as f64)
    }

    fn add_totals(&self, status: &Status) -> prometheus::Result<()> {
        let totals = status.totals.unwrap_or_default();
        let skipped = "Steps that changed nothing because their numbers were not finite.";
        self.counter("polo_skipped_steps_total", skipped, totals.num_skipped_steps as f64)?;
        self.counter(
            "polo_sent_bytes_total",
            "Sent for the steps by the worker that reports.",
            totals.sent_bytes as f64,
        )?;
        self.counter("polo_received_bytes_total", "Received by it likewise.", totals.received_bytes as f64)
    }

    fn add_workers(&self, members: &[Member]) -> prometheus::Result<()> {
        let roles = ["member", "spare", "leaving", "waiting"];
        let count = |role: &str| members.iter().filter(|member| role_of(member) == role).count() as f64;
        let counts = roles.map(|role| ([role.into()], count(role))).into();
        self.gauges("polo_members", "Workers with a session, by what they do.", ["role"], counts)?;
        let of_each = |value: fn(&Member) -> Option<f64>| -> Samples<1> {
            members.iter().filter_map(|member| Some(([member.worker_id.clone()], value(member)?))).collect()
        };
        let add = |name, help, value| self.gauges(name, help, ["worker"], of_each(value));
        add("polo_worker_step", "Step of the state that the worker holds.", |m| Some(m.step as f64))?;
        add("polo_worker_compute_seconds", "Its mean time for the slots of a step.", |m| m.compute_ms.map(seconds))?;
        add("polo_worker_last_heard_seconds", "Since its last sign of life.", |m| Some(seconds(m.last_heard_ms_ago)))?;
        add("polo_worker_slowdown_ratio", "Of one that is slow: its time to the median.", |m| m.slowdown)
    }

    fn add_incidents(&self, incidents: &[Incident]) -> prometheus::Result<()> {
        self.counter("polo_incidents_total", "Interruptions of the run.", incidents.len() as f64)?;
        let recovery_ms = incidents.iter().filter_map(|incident| incident.recovery_ms).sum();
        let help = "From their first signs until the next completed steps.";
        self.counter("polo_incident_recovery_seconds_total", help, seconds(recovery_ms))?;
        let bill = |part: fn(&Bill) -> Option<u64>| {
            seconds(incidents.iter().filter_map(|incident| incident.bill.as_ref().and_then(part)).sum())
        };
        let costs = vec![
            (["detect".into()], bill(|b| b.detect_ms)),
            (["abort".into()], bill(|b| b.abort_ms)),
            (["reform".into()], bill(|b| b.reform_ms)),
            (["transfer".into()], bill(|b| b.transfer_ms)),
            (["redo".into()], bill(|b| b.redo_ms)),
        ];
        self.counters("polo_incident_cost_seconds_total", "What that time went into.", ["part"], costs)
    }

    fn add_ledger(&self, status: &Status) -> prometheus::Result<()> {
        let labels = ["stage", "source"];
        let of = |value: fn(&polo_proto::v1::LedgerEntry) -> u64| -> Samples<2> {
            status.ledger.iter().map(|e| ([e.stage.clone(), e.source.clone()], value(e) as f64)).collect()
        };
        self.counters("polo_trained_tokens_total", "Trained tokens.", labels, of(|e| e.num_trained_tokens))?;
        self.gauges("polo_planned_tokens", "Tokens that the whole stage trains.", labels, of(|e| e.num_planned_tokens))
    }

    fn add_validation(&self, status: &Status) -> prometheus::Result<()> {
        type Validation = polo_proto::v1::SourceValidation;
        let of = |value: fn(&Validation) -> Option<f64>| -> Samples<1> {
            status.validation.iter().filter_map(|v| Some(([v.source.clone()], value(v)?))).collect()
        };
        let add = |name, help, value| self.gauges(name, help, ["source"], of(value));
        let last = "Mean loss per token on held-out samples, natural logarithm, at the newest evaluation.";
        add("polo_validation_loss", last, |v| Some(v.last?.loss))?;
        add("polo_validation_baseline_loss", "The same at the earliest.", |v| Some(v.baseline?.loss))?;
        add("polo_validation_bits_per_byte", "The same per byte of text, in bits.", |v| v.last?.bits_per_byte)?;
        add("polo_validation_worse", "Whether a watched source is worse than allowed.", |v| {
            v.watched.then_some(flag(v.worse))
        })?;
        let help = "How often a watched source has become worse than allowed.";
        self.counter("polo_validation_alarms_total", help, f64::from(status.num_alarms))
    }

    fn gauge(&self, name: &str, help: &str, value: impl Into<Known>) -> prometheus::Result<()> {
        self.gauges(name, help, [], value.into().0.map(|value| ([], value)).into_iter().collect())
    }

    fn gauges<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; N],
        samples: Samples<N>,
    ) -> prometheus::Result<()> {
        let family = GaugeVec::new(Opts::new(name, help), &labels)?;
        for (values, value) in samples {
            family.get_metric_with_label_values(&values)?.set(value);
        }
        self.add(family)
    }

    fn counter(&self, name: &str, help: &str, value: f64) -> prometheus::Result<()> {
        self.counters(name, help, [], vec![([], value)])
    }

    fn counters<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; N],
        samples: Samples<N>,
    ) -> prometheus::Result<()> {
        let family = CounterVec::new(Opts::new(name, help), &labels)?;
        for (values, value) in samples {
            family.get_metric_with_label_values(&values)?.inc_by(value);
        }
        self.add(family)
    }

    fn add(&self, family: impl Collector + 'static) -> prometheus::Result<()> {
        self.0.register(Box::new(family))
    }
}

/// A value, if it is known.
struct Known(Option<f64>);

impl From<f64> for Known {
    fn from(value: f64) -> Self {
        Self(Some(value))
    }
}

impl From<Option<f64>> for Known {
    fn from(value: Option<f64>) -> Self {
        Self(value)
    }
}

impl From<bool> for Known {
    fn from(value: bool) -> Self {
        Self(Some(flag(value)))
    }
}

fn flag(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn role_of(member: &Member) -> &'static str {
    json::role(member).unwrap_or("waiting")
}
