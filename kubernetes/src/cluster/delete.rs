//! Removes a run's objects from the cluster; its store stays as it is.

use std::time::Duration;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
    core::ApiResource,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    connect::Cluster,
    error::{ClusterError, Request},
    find::qualified,
};
use crate::{
    names::{Component, run_selector},
    render::title,
};

/// Between two looks at whether an object is gone.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How a run is deleted.
#[derive(Debug, Clone, Copy)]
pub struct Deletion {
    /// Waits until everything is gone, for so long at most; without it, the cluster is left to do it.
    pub wait: Option<Duration>,
}

/// An object that is to go.
struct Doomed {
    resource: ApiResource,
    name: String,
}

impl Cluster {
    /// Deletes what there is of the run; `on_delete` hears the kind and name of each.
    ///
    /// Workers go first and the coordinator after them, so that what they hand back is received; what both need to reach each
    /// other and the store goes last.
    pub async fn delete(
        &self,
        run: &str,
        deletion: Deletion,
        mut on_delete: impl FnMut(&str),
    ) -> Result<Vec<String>, ClusterError> {
        let stages = [
            self.found(ApiResource::erase::<Job>(&()), &Component::Worker.selector(run)).await?,
            self.found(ApiResource::erase::<Job>(&()), &Component::Coordinator.selector(run)).await?,
            self.found_beside_jobs(run).await?,
        ];
        if stages.iter().all(Vec::is_empty) {
            return Err(self.no_run(run).await?);
        }
        let deadline = deletion.wait.map(|wait| (wait, Instant::now() + wait));
        let mut deleted = Vec::new();
        for stage in &stages {
            for doomed in stage {
                self.delete_one(doomed, deletion).await?;
                on_delete(&doomed.title());
                deleted.push(doomed.title());
            }
            if let Some((wait, deadline)) = deadline {
                self.wait_until_gone(stage, wait, deadline).await?;
            }
        }
        Ok(deleted)
    }

    async fn found_beside_jobs(&self, run: &str) -> Result<Vec<Doomed>, ClusterError> {
        let kinds = [
            ApiResource::erase::<PodDisruptionBudget>(&()),
            ApiResource::erase::<Service>(&()),
            ApiResource::erase::<NetworkPolicy>(&()),
            ApiResource::erase::<ServiceAccount>(&()),
            // Last: while it is there, the run is found, and what was left over by a failure can be deleted by name.
            ApiResource::erase::<ConfigMap>(&()),
        ];
        let mut found = Vec::new();
        for kind in kinds {
            found.extend(self.found(kind, &run_selector(run)).await?);
        }
        Ok(found)
    }

    async fn found(&self, resource: ApiResource, selector: &str) -> Result<Vec<Doomed>, ClusterError> {
        let name = qualified(&resource);
        let request = Request { verb: "list", resource: &name, object: &name };
        let list = ListParams::default().labels(selector);
        let found = self.ask(request, self.api_of(&resource).list_metadata(&list)).await?;
        Ok(found.into_iter().map(|object| Doomed { resource: resource.clone(), name: object.name_any() }).collect())
    }

    async fn delete_one(&self, doomed: &Doomed, deletion: Deletion) -> Result<(), ClusterError> {
        let (title, resource) = (doomed.title(), qualified(&doomed.resource));
        let request = Request { verb: "delete", resource: &resource, object: &title };
        // In the foreground a Job stays until its pods are gone.
        let params = if deletion.wait.is_some() { DeleteParams::foreground() } else { DeleteParams::background() };
        let api = self.api_of(&doomed.resource);
        self.ask(request, async {
            match api.delete(&doomed.name, &params).await {
                Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                other => other.map(drop),
            }
        })
        .await
    }

    async fn wait_until_gone(&self, stage: &[Doomed], wait: Duration, deadline: Instant) -> Result<(), ClusterError> {
        for doomed in stage {
            let left = deadline.saturating_duration_since(Instant::now());
            if timeout(left, self.is_gone(doomed)).await.is_err() {
                let names = stage.iter().map(Doomed::title).collect();
                return Err(ClusterError::StillThere { names, seconds: wait.as_secs() });
            }
        }
        Ok(())
    }

    /// Ends when it is gone, or cannot be asked for any more, which is then not for this command to mend.
    async fn is_gone(&self, doomed: &Doomed) {
        let api = self.api_of(&doomed.resource);
        while let Ok(Some(_)) = api.get_metadata_opt(&doomed.name).await {
            sleep(LOOK_EVERY).await;
        }
    }
}

impl Doomed {
    fn title(&self) -> String {
        title(&self.resource, &self.name)
    }
}
