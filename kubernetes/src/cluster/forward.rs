//! The way to a coordinator that nothing outside its cluster reaches: through the API server, to its pod.

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt};
use tokio::io::DuplexStream;

use super::{
    connect::Cluster,
    error::{ClusterError, Request},
    find::ending,
};
use crate::{COORDINATOR_PORT, names::Component};

/// A connection to a pod's port.
pub struct Forward {
    /// What is sent and received. The connection lives as long as this does.
    pub stream: DuplexStream,
    /// Why nobody is at its other end, once that is known.
    pub refusal: BoxFuture<'static, ClusterError>,
}

impl Cluster {
    /// A connection to the run's coordinator.
    pub async fn connect_to_coordinator(&self, run: &str) -> Result<Forward, ClusterError> {
        let name = self.coordinator_pod(run).await?.name_any();
        let object = format!("pod/{name}");
        let request = Request { verb: "create", resource: "pods/portforward", object: &object };
        let pods = self.api::<Pod>();
        let mut forwarder = self.ask(request, pods.portforward(&name, &[COORDINATOR_PORT])).await?;
        let why = format!("the connection to {object} broke at once");
        let lost = || ClusterError::NoCoordinator { run: run.into(), why: why.clone() };
        let stream = forwarder.take_stream(COORDINATOR_PORT).ok_or_else(lost)?;
        let problem = forwarder.take_error(COORDINATOR_PORT).ok_or_else(lost)?;
        // What moves the bytes is a task of its own, which ends with the stream.
        let (run, lost) = (run.to_owned(), lost());
        let refusal = problem.map(move |why| match why {
            Some(why) => ClusterError::NoCoordinator { run, why: format!("{object} does not listen yet ({why})") },
            None => lost,
        });
        Ok(Forward { stream, refusal: refusal.boxed() })
    }

    async fn coordinator_pod(&self, run: &str) -> Result<Pod, ClusterError> {
        let pods = self.pods(&Component::Coordinator.selector(run)).await?;
        match choose(pods) {
            Ok(pod) => Ok(pod),
            Err(why) => Err(self.no_coordinator(run, why).await?),
        }
    }

    /// Why there is none: no run, one that has ended, or a pod that does not run yet.
    async fn no_coordinator(&self, run: &str, why: String) -> Result<ClusterError, ClusterError> {
        match self.job(run, Component::Coordinator).await? {
            None => self.no_run(run).await,
            Some(job) => match ending(&job) {
                Some(how) => Ok(ClusterError::Ended { run: run.into(), how }),
                None => Ok(ClusterError::NoCoordinator { run: run.into(), why }),
            },
        }
    }
}

/// The pod that runs and stays; where one is being replaced, that may be the newer of two.
fn choose(pods: Vec<Pod>) -> Result<Pod, String> {
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    let runs = |pod: &&Pod| phase(pod) == "Running" && pod.meta().deletion_timestamp.is_none();
    if let Some(pod) = pods.iter().filter(runs).max_by_key(|pod| pod.creation_timestamp()) {
        return Ok(pod.clone());
    }
    let newest = pods.into_iter().max_by_key(ResourceExt::creation_timestamp);
    Err(match newest {
        None => "it has no pod; look at `kubectl describe` of its Job".into(),
        Some(pod) => format!("pod {} is {}{}", pod.name_any(), phase(&pod).to_lowercase(), reason(&pod)),
    })
}

/// What the cluster says about a pod that does not run: why it is not placed, or why its container waits.
fn reason(pod: &Pod) -> String {
    let Some(status) = &pod.status else { return String::new() };
    let waiting = status.container_statuses.iter().flatten().filter_map(|c| c.state.as_ref()?.waiting.as_ref());
    let waiting = waiting.filter_map(|waiting| waiting.message.clone().or_else(|| waiting.reason.clone()));
    let conditions =
        status.conditions.iter().flatten().filter(|c| c.status == "False").filter_map(|c| c.message.clone());
    waiting.chain(conditions).next().map(|reason| format!(": {reason}")).unwrap_or_default()
}
