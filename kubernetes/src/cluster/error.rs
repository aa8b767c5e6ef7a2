//! Why the cluster did not do what was asked of it.

use std::error::Error;

use kube::core::Status;

/// Everything that goes wrong between here and the cluster.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum ClusterError {
    #[error("cannot tell which cluster is meant: {problem}; set KUBECONFIG, or give --context")]
    Config { problem: String },
    #[error("cannot reach the cluster at {server}: {problem}; check the kubeconfig, --context and the network")]
    Unreachable { server: String, problem: String },
    #[error("the cluster at {server} has not answered within {seconds} s; try again")]
    Silent { server: String, seconds: u64 },
    #[error("the cluster at {server} does not know who you are: {problem}; log in again, or choose another --context")]
    Unauthorized { server: String, problem: String },
    #[error(
        "you may not {verb} {resource} in namespace {namespace}: {problem}; ask its owners for a Role with that verb, or choose another --namespace"
    )]
    Forbidden { verb: &'static str, resource: String, namespace: String, problem: String },
    #[error("{object}: the cluster's rules refuse it: {problem}")]
    Refused { object: String, problem: String },
    #[error("{object}: others have set what this would change: {}; to take that over, add --force", conflicts.join(", "))]
    Conflict { object: String, conflicts: Vec<String> },
    #[error(
        "{object} cannot be changed in place ({problem}); delete the run and submit it again: it goes on from its newest checkpoint"
    )]
    Immutable { object: String, problem: String },
    #[error("{object}: {problem}")]
    Failed { object: String, problem: String },
    #[error("{object} is there already and is not of this run; choose another run.name or --namespace")]
    Foreign { object: String },
    #[error(
        "run {run} is there already with another recipe (identity {found}, this one has {ours}); choose another run.name, or delete that one first"
    )]
    OtherRecipe { run: String, found: String, ours: String },
    #[error(
        "run {run} has ended here ({how}); delete it, and submit it again if it should go on from its newest checkpoint"
    )]
    Ended { run: String, how: String },
    #[error("there is no run {run} in namespace {namespace}; {}", runs_there(there))]
    NoRun { run: String, namespace: String, there: Vec<String> },
    #[error("run {run} is there, but its ConfigMap cannot be understood: {problem}; submit it again")]
    Damaged { run: String, problem: String },
    #[error(
        "{wanted} workers are out of bounds: run {run} can have from {least} to {most}; submit it with other --max-workers or workers.min_workers to change that"
    )]
    OutOfBounds { run: String, wanted: u32, least: u32, most: u32 },
    #[error("the coordinator of run {run} cannot be reached: {why}")]
    NoCoordinator { run: String, why: String },
    #[error(
        "not gone after {seconds} s: {}; look at `kubectl describe`, or try again with a longer --timeout-s",
        names.join(", ")
    )]
    StillThere { names: Vec<String>, seconds: u64 },
    #[error("no pod of run {run} {which}")]
    NoPods { run: String, which: String },
}

fn runs_there(there: &[String]) -> String {
    if there.is_empty() { "there are none at all".into() } else { format!("runs there: {}", there.join(", ")) }
}

impl ClusterError {
    pub(super) fn config(problem: impl Error + 'static) -> Self {
        Self::Config { problem: chain(&problem) }
    }
}

/// What was asked for, in the words that roles are written in.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Such as `patch`.
    pub verb: &'static str,
    /// Plural, with its group, such as `jobs.batch`.
    pub resource: &'a str,
    /// Kind and name, or what else is meant.
    pub object: &'a str,
}

impl Request<'_> {
    /// The failure of this request.
    pub fn failed(self, error: kube::Error, namespace: &str, server: &str) -> ClusterError {
        match error {
            kube::Error::Api(status) => self.answered(*status, namespace, server),
            kube::Error::Auth(error) => ClusterError::Unauthorized { server: server.into(), problem: chain(&error) },
            error => ClusterError::Unreachable { server: server.into(), problem: chain(&error) },
        }
    }

    fn answered(self, status: Status, namespace: &str, server: &str) -> ClusterError {
        let object = self.object.to_owned();
        let problem = status.message.clone();
        match (status.code, &*status.reason) {
            (401, _) => ClusterError::Unauthorized { server: server.into(), problem },
            (403, _) if problem.contains(" cannot ") => {
                let (verb, resource) = (self.verb, self.resource.into());
                ClusterError::Forbidden { verb, resource, namespace: namespace.into(), problem }
            }
            // Quotas and admission policies answer with the same code, and say what they want.
            (403, _) => ClusterError::Refused { object, problem },
            (409, _) if !conflicts(&status).is_empty() => {
                ClusterError::Conflict { object, conflicts: conflicts(&status) }
            }
            (422, _) if problem.contains("immutable") => {
                ClusterError::Immutable { object, problem: immutable_fields(&status) }
            }
            _ => ClusterError::Failed { object, problem },
        }
    }
}

/// Who has set what, for each field: `spec.parallelism is kueue's`.
fn conflicts(status: &Status) -> Vec<String> {
    causes(status, "FieldManagerConflict").map(|(manager, field)| format!("{field} is {manager}'s")).collect()
}

/// The managers that a conflict is with.
pub fn managers(status: &Status) -> Vec<String> {
    causes(status, "FieldManagerConflict").map(|(manager, _)| manager).collect()
}

/// The API server says `conflict with "kueue" using batch/v1`, with the field beside it.
fn causes<'a>(status: &'a Status, reason: &'a str) -> impl Iterator<Item = (String, String)> + 'a {
    let causes = status.details.iter().flat_map(|details| &details.causes).filter(move |cause| cause.reason == reason);
    causes.map(|cause| {
        let manager = cause.message.split('"').nth(1).unwrap_or(&cause.message).to_owned();
        (manager, cause.field.trim_start_matches('.').to_owned())
    })
}

/// The API server repeats the whole field in what it says; its name is enough.
fn immutable_fields(status: &Status) -> String {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let mut fields: Vec<_> = causes.map(|cause| cause.field.as_str()).filter(|field| !field.is_empty()).collect();
    fields.dedup();
    if fields.is_empty() { "a field is immutable".into() } else { format!("{} is immutable", fields.join(", ")) }
}

/// What an error says, and what is behind it, without repetition.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut said: Vec<String> = Vec::new();
    for error in std::iter::successors(Some(error), |&error| error.source()) {
        let text = error.to_string();
        if !said.iter().any(|before| before.contains(&text)) {
            said.push(text);
        }
    }
    said.join(": ")
}
