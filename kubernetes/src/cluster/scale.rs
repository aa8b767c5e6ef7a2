//! Changes how many workers a run has.

use k8s_openapi::api::{batch::v1::Job, core::v1::ConfigMap, policy::v1::PodDisruptionBudget};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use polo_recipe::config::Recipe;
use serde_json::{Value, json};

use super::{
    connect::Cluster,
    error::{ClusterError, Request},
    find::ending,
};
use crate::{
    names::{Component, MANAGER, MAX_WORKERS_ANNOTATION},
    render::{RECIPE_KEY, WORKERS_KEY, kept_workers},
};

/// How many workers a run had, and has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Scaled {
    /// Before.
    pub from: u32,
    /// Now.
    pub to: u32,
}

impl Cluster {
    /// Gives the run so many workers. More join at a step boundary; those with the highest indexes hand back what they hold
    /// and leave.
    pub async fn scale(&self, run: &str, workers: u32) -> Result<Scaled, ClusterError> {
        let config_map = self.config_map(run).await?;
        let (least, most) = bounds(run, &config_map)?;
        if !(least..=most).contains(&workers) {
            return Err(ClusterError::OutOfBounds { run: run.into(), wanted: workers, least, most });
        }
        let Some(job) = self.job(run, Component::Worker).await? else { return Err(self.no_run(run).await?) };
        if let Some(how) = ending(&job) {
            return Err(ClusterError::Ended { run: run.into(), how });
        }
        let name = Component::Worker.object_name(run);
        // Both at once: the API server lets completions of an Indexed Job change only together with parallelism.
        let size = json!({ "spec": { "parallelism": workers, "completions": workers } });
        self.merge(&self.api::<Job>(), "jobs.batch", &name, size).await?;
        let expected = json!({ "data": { WORKERS_KEY: workers.to_string() } });
        self.merge(&self.api::<ConfigMap>(), "configmaps", run, expected).await?;
        self.keep_available(&name, kept_workers(least, workers)).await?;
        Ok(Scaled { from: job.spec.and_then(|spec| spec.parallelism).unwrap_or_default() as u32, to: workers })
    }

    /// Adapts the disruption budget, if the run has one.
    async fn keep_available(&self, name: &str, kept: u32) -> Result<(), ClusterError> {
        let budgets = self.api::<PodDisruptionBudget>();
        let resource = "poddisruptionbudgets.policy";
        let request = Request { verb: "get", resource, object: name };
        match self.ask(request, budgets.get_opt(name)).await? {
            Some(_) => self.merge(&budgets, resource, name, json!({ "spec": { "minAvailable": kept } })).await,
            None => Ok(()),
        }
    }

    async fn merge<K>(&self, api: &Api<K>, resource: &str, name: &str, patch: Value) -> Result<(), ClusterError>
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let request = Request { verb: "patch", resource, object: name };
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        self.ask(request, api.patch(name, &params, &Patch::Merge(patch))).await.map(drop)
    }
}

/// The fewest and the most workers that the run may have.
fn bounds(run: &str, config_map: &ConfigMap) -> Result<(u32, u32), ClusterError> {
    let damaged = |problem: String| ClusterError::Damaged { run: run.into(), problem };
    let most = config_map.annotations().get(MAX_WORKERS_ANNOTATION).and_then(|most| most.parse().ok());
    let most = most.ok_or_else(|| damaged(format!("the annotation {MAX_WORKERS_ANNOTATION} has no number")))?;
    let text = config_map.data.as_ref().and_then(|data| data.get(RECIPE_KEY));
    let text = text.ok_or_else(|| damaged(format!("{RECIPE_KEY} is missing")))?;
    let recipe = Recipe::from_resolved(text).map_err(|error| damaged(error.to_string()))?;
    Ok((recipe.workers.min_workers.max(1) as u32, most))
}
