//! How many workers may be evicted at once.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::metadata;
use crate::{names::Component, submission::Submission};

/// Workers that evictions leave the run: as many as it needs to train, but never all of them, since a node that cannot be
/// emptied is worse than a pause.
pub fn kept_workers(min_workers: u32, workers: u32) -> u32 {
    min_workers.min(workers.saturating_sub(1))
}

/// None where there is nothing to keep. Pods of a Job can be counted only by `minAvailable`, and only as a number.
pub fn budget(submission: &Submission) -> Option<PodDisruptionBudget> {
    let (component, run) = (Component::Worker, submission.run());
    let kept = kept_workers(submission.recipe.workers.min_workers as u32, submission.workers);
    if kept == 0 {
        return None;
    }
    let labels = component.labels(run);
    let spec = PodDisruptionBudgetSpec {
        min_available: Some(IntOrString::Int(kept as i32)),
        selector: Some(LabelSelector { match_labels: Some(labels.clone()), match_expressions: None }),
        // One that does not work yet keeps nobody from emptying its node.
        unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
        ..PodDisruptionBudgetSpec::default()
    };
    Some(PodDisruptionBudget {
        metadata: metadata(submission, component.object_name(run), labels),
        spec: Some(spec),
        status: None,
    })
}
