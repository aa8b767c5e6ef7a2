//! Which cluster is meant, and how one request is made of it.

use std::time::Duration;

use kube::{
    Api, Client, Config, Resource,
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, DynamicObject, NamespaceResourceScope},
};
use tokio::time::timeout;

use super::error::{ClusterError, Request};

/// For a connection, and for the answer to a request.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Which cluster and namespace are meant, where it is not what the kubeconfig has chosen.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// A context of the kubeconfig (`KUBECONFIG`, or `~/.kube/config`).
    pub context: Option<String>,
    /// A namespace.
    pub namespace: Option<String>,
}

/// A namespace of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    pub(super) client: Client,
    pub(super) namespace: String,
    server: String,
}

impl Cluster {
    /// The cluster that the options mean; in a pod without a kubeconfig, the one that it runs in. Nothing is contacted yet.
    pub async fn open(options: ClusterOptions) -> Result<Self, ClusterError> {
        let mut config = config(options.context).await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let server = config.cluster_url.to_string();
        let namespace = options.namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(ClusterError::config)?;
        Ok(Self { client, namespace, server })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(super) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(super) fn api_of(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, resource)
    }

    /// Makes a request, within a bounded time; what comes of it is told about `request`.
    pub(super) async fn ask<T>(
        &self,
        request: Request<'_>,
        answer: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ClusterError> {
        match timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(request.failed(error, &self.namespace, &self.server)),
            Err(_) => Err(ClusterError::Silent { server: self.server.clone(), seconds: ANSWER_TIMEOUT.as_secs() }),
        }
    }
}

/// A kubeconfig that is there is meant, whatever is wrong with it; only without one is this a pod.
async fn config(context: Option<String>) -> Result<Config, ClusterError> {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    match Kubeconfig::read() {
        Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(ClusterError::config),
        Err(problem) if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() => Err(ClusterError::config(problem)),
        Err(_) => Config::incluster().map_err(ClusterError::config),
    }
}
