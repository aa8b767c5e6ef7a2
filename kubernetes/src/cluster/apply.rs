//! Puts a run's objects on the cluster by server-side apply: each field has an owner, and another's is never overwritten
//! unasked.

use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::Value;

use super::{
    connect::Cluster,
    error::{ClusterError, Request, managers},
    find::{belongs_to, ending, qualified},
};
use crate::{
    names::{Component, IDENTITY_ANNOTATION, MANAGER},
    render::{Object, render},
    submission::Submission,
};

/// What applying an object did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// Its kind and name.
    pub object: String,
    /// `created`, `configured` or `unchanged`, as kubectl says it.
    pub change: &'static str,
}

impl Cluster {
    /// Creates the run's objects, or brings those that are there up to date; `on_change` hears of each at once. With
    /// `force`, fields that others have set are taken over.
    pub async fn submit(
        &self,
        submission: &Submission,
        force: bool,
        mut on_change: impl FnMut(&Change),
    ) -> Result<Vec<Change>, ClusterError> {
        let run = submission.run();
        let workers = self.job(run, Component::Worker).await?;
        if let Some(how) = self.job(run, Component::Coordinator).await?.as_ref().and_then(ending) {
            return Err(ClusterError::Ended { run: run.into(), how });
        }
        let mut objects = render(submission);
        let suspended = workers.and_then(|job| job.spec).map(|spec| spec.suspend.unwrap_or_default());
        objects.iter_mut().for_each(|object| keep_suspension(object, suspended));
        let before = self.before(submission, &objects).await?;
        let mut changes = Vec::new();
        for (object, version) in objects.iter().zip(before) {
            let change = self.apply(object, version, force).await?;
            on_change(&change);
            changes.push(change);
        }
        Ok(changes)
    }

    /// The versions of the objects that are there. Nothing is changed unless all of them are this run's.
    async fn before(&self, submission: &Submission, objects: &[Object]) -> Result<Vec<Option<String>>, ClusterError> {
        let mut versions = Vec::new();
        for object in objects {
            let found = self.find(object).await?;
            if let Some(found) = &found {
                check_own(submission, object, found)?;
            }
            versions.push(found.and_then(|found| found.resource_version()));
        }
        Ok(versions)
    }

    async fn find(&self, object: &Object) -> Result<Option<DynamicObject>, ClusterError> {
        let (title, resource) = (object.title(), qualified(&object.resource));
        let request = Request { verb: "get", resource: &resource, object: &title };
        self.ask(request, self.api_of(&object.resource).get_opt(&object.name)).await
    }

    async fn apply(&self, object: &Object, before: Option<String>, force: bool) -> Result<Change, ClusterError> {
        let after = self.patch(object, force).await?.resource_version();
        let change = match before {
            None => "created",
            before if before == after => "unchanged",
            Some(_) => "configured",
        };
        Ok(Change { object: object.title(), change })
    }

    async fn patch(&self, object: &Object, force: bool) -> Result<DynamicObject, ClusterError> {
        let (title, resource) = (object.title(), qualified(&object.resource));
        let request = Request { verb: "patch", resource: &resource, object: &title };
        let api = self.api_of(&object.resource);
        let params = PatchParams { force, ..PatchParams::apply(MANAGER).validation_strict() };
        let patch = Patch::Apply(&object.value);
        self.ask(request, async {
            match api.patch(&object.name, &params, &patch).await {
                Err(kube::Error::Api(status)) if is_with_ourselves(&managers(&status)) => {
                    api.patch(&object.name, &params.force(), &patch).await
                }
                done => done,
            }
        })
        .await
    }
}

/// `polo scale` changes fields under the same name, but not by applying, which is another owner: a conflict with it is
/// between what the user said then and says now.
fn is_with_ourselves(managers: &[String]) -> bool {
    !managers.is_empty() && managers.iter().all(|manager| manager == MANAGER)
}

/// Whether a Job waits is Kueue's to say once it is there.
fn keep_suspension(object: &mut Object, suspended: Option<bool>) {
    if let (Some(suspended), Some(suspend)) = (suspended, object.value.pointer_mut("/spec/suspend")) {
        *suspend = Value::Bool(suspended);
    }
}

fn check_own(submission: &Submission, object: &Object, found: &DynamicObject) -> Result<(), ClusterError> {
    let run = submission.run();
    if !belongs_to(run, found) {
        return Err(ClusterError::Foreign { object: object.title() });
    }
    let ours = submission.recipe.identity();
    match found.annotations().get(IDENTITY_ANNOTATION) {
        Some(found) if *found != ours => {
            Err(ClusterError::OtherRecipe { run: run.into(), found: short(found), ours: short(&ours) })
        }
        _ => Ok(()),
    }
}

fn short(identity: &str) -> String {
    identity.chars().take(12).collect()
}
