//! From a submission to the objects of a run, as pure functions: what each of them is for is said where it is made.

mod coordinator;
mod disruption;
mod network;
mod pod;
mod protection;
mod worker;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ConfigMap, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Resource, core::ApiResource};
use serde::Serialize;
use serde_json::Value;

pub use disruption::kept_workers;

use crate::{
    names::{IDENTITY_ANNOTATION, MAX_WORKERS_ANNOTATION, run_labels},
    submission::{Account, Submission},
};

/// The ConfigMap's key of the resolved recipe.
pub const RECIPE_KEY: &str = "recipe.toml";

/// The ConfigMap's key of the number of workers that the coordinator expects.
pub const WORKERS_KEY: &str = "workers";

/// An object, ready to be applied or printed.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its kind, and the path to it.
    pub resource: ApiResource,
    /// Its name.
    pub name: String,
    /// All of it.
    pub value: Value,
    yaml: String,
}

impl Object {
    fn of<K: Resource<DynamicType = ()> + Serialize>(object: K) -> Self {
        // Structs of strings, numbers and maps with string keys, written into memory: nothing can fail.
        let value = serde_json::to_value(&object).unwrap_or_else(|error| unreachable!("{error}"));
        let yaml = serde_saphyr::to_string(&object).unwrap_or_else(|error| unreachable!("{error}"));
        let name = object.meta().name.clone().unwrap_or_default();
        Self { resource: ApiResource::erase::<K>(&()), name, value, yaml }
    }

    /// Its kind and name.
    pub fn title(&self) -> String {
        title(&self.resource, &self.name)
    }
}

/// Kind and name as kubectl writes them, such as `job/example-worker`.
pub fn title(resource: &ApiResource, name: &str) -> String {
    format!("{}/{name}", resource.kind.to_lowercase())
}

/// The objects of a run, in the order in which they are applied.
pub fn render(submission: &Submission) -> Vec<Object> {
    let mut objects = Vec::new();
    if let Account::Own { annotations } = &submission.account {
        objects.push(Object::of(service_account(submission, annotations)));
    }
    objects.push(Object::of(config_map(submission)));
    objects.extend(network::policies(submission).map(Object::of));
    objects.push(Object::of(network::service(submission)));
    objects.extend(disruption::budget(submission).map(Object::of));
    objects.push(Object::of(coordinator::job(submission)));
    objects.push(Object::of(worker::job(submission)));
    objects
}

/// One document for each object.
pub fn to_yaml(objects: &[Object]) -> String {
    objects.iter().map(|object| format!("---\n{}", object.yaml)).collect()
}

/// Name, namespace and labels.
fn metadata(submission: &Submission, name: String, labels: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: submission.namespace.clone(),
        labels: Some(labels),
        ..ObjectMeta::default()
    }
}

/// As whom the pods run. No role is bound to it, and no token is put into pods: they have no business with the cluster.
fn service_account(submission: &Submission, annotations: &BTreeMap<String, String>) -> ServiceAccount {
    let mut metadata = metadata(submission, submission.run().into(), run_labels(submission.run()));
    metadata.annotations = Some(annotations.clone()).filter(|annotations| !annotations.is_empty());
    ServiceAccount { metadata, automount_service_account_token: Some(false), ..ServiceAccount::default() }
}

/// The recipe, and what may change while the run goes on: pods that start later see what it has become.
fn config_map(submission: &Submission) -> ConfigMap {
    let recipe = &submission.recipe;
    let mut metadata = metadata(submission, submission.run().into(), run_labels(submission.run()));
    let annotations =
        [(IDENTITY_ANNOTATION, recipe.identity()), (MAX_WORKERS_ANNOTATION, submission.max_workers.to_string())];
    metadata.annotations = Some(annotations.map(|(key, value)| (key.into(), value)).into());
    let data = [(RECIPE_KEY, recipe.to_toml()), (WORKERS_KEY, submission.workers.to_string())];
    let data = data.map(|(key, value)| (key.into(), value)).into();
    ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }
}
