//! Runs on Kubernetes: `polo submit`, `scale`, `logs` and `delete`, and how other commands find such a run.

mod logs;
mod manage;
mod submit;

use polo_kubernetes::{Cluster, ClusterOptions};

use crate::error::CliError;

pub use logs::{LogsArgs, logs};
pub use manage::{DeleteArgs, ScaleArgs, delete, scale};
pub use submit::{SubmitArgs, submit};

/// Which cluster is meant.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Context of the kubeconfig (KUBECONFIG, or ~/.kube/config) [default: the current one; in a pod, its own cluster]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Namespace of the run [default: the context's]
    #[arg(long, short = 'n', value_name = "NAME")]
    namespace: Option<String>,
}

impl ClusterArgs {
    /// The cluster; nothing is asked of it yet.
    pub async fn open(&self) -> Result<Cluster, CliError> {
        let (context, namespace) = (self.context.clone(), self.namespace.clone());
        Ok(Cluster::open(ClusterOptions { context, namespace }).await?)
    }
}

/// One line of JSON, as all commands print data.
fn print_json(value: &serde_json::Value) -> Result<(), CliError> {
    print(&format!("{value}\n"))
}

fn print(text: &str) -> Result<(), CliError> {
    use std::io::Write;
    std::io::stdout().lock().write_all(text.as_bytes()).map_err(CliError::io("cannot write to standard output"))
}
