//! How the objects of a run are called and labelled.

use std::collections::BTreeMap;

/// Who applies: the field manager of server-side apply.
pub const MANAGER: &str = "polo";

/// Object names have to stay names of hosts, at most 63 characters, with `-coordinator` or `-worker-99999` behind them.
pub const MAX_RUN_NAME_CHARS: usize = 63 - "-worker-99999".len();

/// Holds the run's identity, on its ConfigMap.
pub const IDENTITY_ANNOTATION: &str = "polo/recipe-identity";

/// Holds the most workers that `polo scale` may ask for, on the ConfigMap.
pub const MAX_WORKERS_ANNOTATION: &str = "polo/max-workers";

/// The key of a pod's index within its Job, which Kubernetes sets.
pub const INDEX_LABEL: &str = "batch.kubernetes.io/job-completion-index";

const NAME_LABEL: &str = "app.kubernetes.io/name";
const RUN_LABEL: &str = "app.kubernetes.io/instance";
const COMPONENT_LABEL: &str = "app.kubernetes.io/component";

/// Which part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    Coordinator,
    Worker,
}

impl Component {
    /// As labels and names have it; also the name of its container.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Worker => "worker",
        }
    }

    /// The name of its objects.
    pub fn object_name(self, run: &str) -> String {
        format!("{run}-{}", self.as_str())
    }

    /// Labels of its objects and pods, and what selects these.
    pub fn labels(self, run: &str) -> BTreeMap<String, String> {
        let mut labels = run_labels(run);
        labels.insert(COMPONENT_LABEL.into(), self.as_str().into());
        labels
    }

    /// The same as text.
    pub fn selector(self, run: &str) -> String {
        format!("{},{COMPONENT_LABEL}={}", run_selector(run), self.as_str())
    }
}

/// Labels of everything that belongs to a run.
pub fn run_labels(run: &str) -> BTreeMap<String, String> {
    [(NAME_LABEL, "polo"), (RUN_LABEL, run)].map(|(key, value)| (key.into(), value.into())).into()
}

/// What selects everything that belongs to a run.
pub fn run_selector(run: &str) -> String {
    format!("{NAME_LABEL}=polo,{RUN_LABEL}={run}")
}

/// The coordinator's name in the cluster's network, within its namespace: what its certificate has to be for.
pub fn coordinator_host(run: &str) -> String {
    Component::Coordinator.object_name(run)
}

/// How a worker is called, by its index.
pub fn worker_id(index: &str) -> String {
    format!("worker-{index}")
}
