//! Which metrics there are, for the reference and for whoever writes dashboards: those of a run in which everything is known.

use polo_proto::v1::{
    Bill, Evaluation, Incident, LedgerEntry, Member, SourceLoss, SourceValidation, Status, StepSummary,
};
use prometheus::proto::{MetricFamily, MetricType};
use serde::Serialize;

use super::metrics;

/// A metric.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// `gauge` or `counter`.
    pub kind: &'static str,
    /// Names of its labels, beside that of the run.
    pub labels: Vec<String>,
    /// What it says.
    pub help: String,
}

/// All metrics, by name.
pub fn catalogue() -> prometheus::Result<Vec<Metric>> {
    Ok(metrics::families(&everything())?.iter().map(described).collect())
}

fn described(family: &MetricFamily) -> Metric {
    let labels = family.get_metric().iter().flat_map(|metric| metric.get_label());
    let names = labels.map(|label| label.name().to_owned()).filter(|name| name != "run");
    let mut labels: Vec<_> = names.collect();
    labels.sort();
    labels.dedup();
    Metric {
        name: family.name().into(),
        kind: if family.get_field_type() == MetricType::COUNTER { "counter" } else { "gauge" },
        labels,
        help: family.help().into(),
    }
}

/// A status that leaves nothing out.
fn everything() -> Status {
    let part = Some(0);
    let bill = Bill { detect_ms: part, abort_ms: part, reform_ms: part, transfer_ms: part, redo_ms: part };
    let evaluation = Some(Evaluation { bits_per_byte: Some(0.0), ..Default::default() });
    Status {
        checkpoint_step: Some(0),
        goodput: Some(1.0),
        last_step: Some(StepSummary { mfu: Some(0.0), ..Default::default() }),
        source_losses: vec![SourceLoss::default()],
        members: vec![Member { compute_ms: Some(0), slowdown: Some(1.0), ..Default::default() }],
        incidents: vec![Incident { bill: Some(bill), ..Default::default() }],
        ledger: vec![LedgerEntry::default()],
        validation: vec![SourceValidation {
            baseline: evaluation,
            last: evaluation,
            watched: true,
            ..Default::default()
        }],
        ..Default::default()
    }
}
