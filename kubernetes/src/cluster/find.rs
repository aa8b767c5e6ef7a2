//! Finds what there is of a run.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Pod},
};
use kube::{ResourceExt, api::ListParams, core::ApiResource};

use super::{
    connect::Cluster,
    error::{ClusterError, Request},
};
use crate::names::{Component, run_selector};

/// What selects the objects of all runs.
const ALL_RUNS: &str = "app.kubernetes.io/name=polo";

impl Cluster {
    /// The run's ConfigMap.
    pub(super) async fn config_map(&self, run: &str) -> Result<ConfigMap, ClusterError> {
        let object = format!("configmap/{run}");
        let request = Request { verb: "get", resource: "configmaps", object: &object };
        let found = self.ask(request, self.api::<ConfigMap>().get_opt(run)).await?;
        match found.filter(|found| belongs_to(run, found)) {
            Some(found) => Ok(found),
            None => Err(self.no_run(run).await?),
        }
    }

    /// The Job of coordinator or workers.
    pub(super) async fn job(&self, run: &str, component: Component) -> Result<Option<Job>, ClusterError> {
        let name = component.object_name(run);
        let object = format!("job/{name}");
        let request = Request { verb: "get", resource: "jobs.batch", object: &object };
        self.ask(request, self.api::<Job>().get_opt(&name)).await
    }

    /// Pods that a selector of labels has.
    pub(super) async fn pods(&self, selector: &str) -> Result<Vec<Pod>, ClusterError> {
        let request = Request { verb: "list", resource: "pods", object: "pods" };
        let list = ListParams::default().labels(selector);
        Ok(self.ask(request, self.api::<Pod>().list(&list)).await?.items)
    }

    /// The error that there is no such run, with those that there are.
    pub(super) async fn no_run(&self, run: &str) -> Result<ClusterError, ClusterError> {
        let request = Request { verb: "list", resource: "configmaps", object: "configmaps" };
        let found = self.ask(request, self.api::<ConfigMap>().list(&ListParams::default().labels(ALL_RUNS))).await?;
        let there: BTreeSet<_> = found.items.iter().map(|map| map.name_any()).collect();
        let (run, namespace) = (run.to_owned(), self.namespace.clone());
        Ok(ClusterError::NoRun { run, namespace, there: there.into_iter().collect() })
    }
}

/// A kind as roles name it, such as `jobs.batch`.
pub fn qualified(resource: &ApiResource) -> String {
    if resource.group.is_empty() { resource.plural.clone() } else { format!("{}.{}", resource.plural, resource.group) }
}

/// Whether an object has the labels of the run.
pub fn belongs_to(run: &str, object: &impl kube::Resource) -> bool {
    let labels = object.meta().labels.clone().unwrap_or_default();
    run_selector(run)
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .all(|(key, value)| labels.get(key).is_some_and(|label| label == value))
}

/// How a Job has ended, if it has: `completed`, or the reason of its failure.
pub fn ending(job: &Job) -> Option<String> {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|condition| condition.status == "True").find_map(|condition| match &*condition.type_ {
        "Complete" => Some("completed".into()),
        "Failed" => Some(format!("failed: {}", condition.message.as_deref().unwrap_or("no reason is given"))),
        _ => None,
    })
}
