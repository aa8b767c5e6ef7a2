//! What is submitted, and what is refused before anything is applied.

use std::collections::BTreeMap;

use polo_recipe::{
    config::{InitialWeights, Recipe},
    footprint::{Problem, footprint},
};

use crate::names::MAX_RUN_NAME_CHARS;

const GIB: u64 = 1 << 30;

/// A run that is to be put on a cluster.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The resolved recipe. Its `run.name` names all objects.
    pub recipe: Recipe,
    /// The namespace to write into the objects; without one, whoever applies them chooses.
    pub namespace: Option<String>,
    /// Image with `polo`.
    pub coordinator_image: String,
    /// Image with `polo-worker`, or `polo-worker-cuda` where the recipe computes on GPUs.
    pub worker_image: String,
    /// Names of Secrets with which images are pulled.
    pub image_pull_secrets: Vec<String>,
    /// Workers to begin with.
    pub workers: u32,
    /// The most workers that the run may be scaled to.
    pub max_workers: u32,
    /// What a worker is given.
    pub worker: WorkerSize,
    /// Settings of the environment that are no secrets, such as `AWS_REGION`.
    pub env: BTreeMap<String, String>,
    /// Names of Secrets whose keys become environment variables, such as `AWS_SECRET_ACCESS_KEY`.
    pub secrets: Vec<String>,
    /// As whom the pods run.
    pub account: Account,
    /// Labels that nodes of workers must have.
    pub node_selector: BTreeMap<String, String>,
    /// Kueue's queue in which the workers wait for their turn.
    pub queue: Option<String>,
    /// How the control plane is protected.
    pub tls: Option<TlsSecrets>,
    /// Whoever reaches the coordinator's port may read and steer the run.
    pub insecure: bool,
}

/// Names of Secrets with certificates and tokens. Workers and people prove themselves with a certificate or with a token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsSecrets {
    /// `tls.crt` for the host `RUN-coordinator`, `tls.key`, and `ca.crt`, which has signed all certificates of the run.
    pub coordinator: String,
    /// `tls.crt`, for the host `worker.polo`, and `tls.key`.
    pub worker: Option<String>,
    /// `worker-token` and `operator-token`.
    pub tokens: Option<String>,
}

/// What a worker is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerSize {
    /// Thousandths of a core.
    pub millicores: u64,
    /// Memory.
    pub memory_bytes: u64,
    /// The most that the cache of token shards takes of the node's disk; without one, as much as there is.
    pub cache_bytes: Option<u64>,
}

impl WorkerSize {
    /// What a worker of `recipe` needs among `num_workers`: a core for each of its threads and one for what moves beside
    /// them; half as much memory again as is calculated (`polo plan`), and 4 GiB for libtorch.
    pub fn of(recipe: &Recipe, num_workers: u32) -> Self {
        let world = (num_workers as usize).clamp(1, recipe.batch.slots.max(1));
        let held = footprint(&Problem::of(recipe), world).map_or(0, |footprint| footprint.total_after_move_bytes());
        let memory_bytes = (held + held / 2).div_ceil(GIB) * GIB + 4 * GIB;
        Self { millicores: (recipe.run.threads as u64 + 1) * 1000, memory_bytes, cache_bytes: None }
    }
}

/// As whom a run's pods talk to clouds. Nobody is granted anything in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// A ServiceAccount of the run's own, with annotations that name an identity in a cloud.
    Own {
        /// Such as `eks.amazonaws.com/role-arn`.
        annotations: BTreeMap<String, String>,
    },
    /// One that is there already.
    Existing(String),
}

/// Why a submission is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum SubmissionError {
    #[error("run.name is {name:?}, which {problem}; objects are named after it, so set it: --set run.name={proposal}")]
    Name { name: String, problem: &'static str, proposal: String },
    #[error("{field} is {location:?}, which only {reach} can reach; it has to be s3://, gs:// or az://")]
    Local { field: &'static str, location: String, reach: &'static str },
    #[error(
        "others could read and steer the run; give --tls-secret with --worker-tls-secret or --token-secret, or pass --insecure if NetworkPolicies (and whom the namespace is for) are enough to keep them out"
    )]
    Unprotected,
    #[error(
        "with --tls-secret alone the coordinator would know nobody; give --worker-tls-secret, or --token-secret, or both"
    )]
    NoProof,
    #[error("--workers is 0; a run needs at least 1")]
    NoWorkers,
    #[error("--workers is {workers}, which is more than --max-workers {max_workers}")]
    MoreThanMost { workers: u32, max_workers: u32 },
    #[error(
        "--max-workers is {max_workers}, but at most batch.slots = {slots} workers can take part; a step has no more shares"
    )]
    MoreThanSlots { max_workers: u32, slots: usize },
    #[error("--workers is {workers}, but the run does not begin with fewer than workers.min_workers = {min_workers}")]
    TooFew { workers: u32, min_workers: usize },
    #[error("--env {name} has what should be kept secret; put it into a Secret and name that with --secret")]
    SecretInEnv { name: String },
    #[error("--env {name} is set by polo itself; leave it out")]
    OwnEnv { name: String },
    #[error("--env {name:?} is no name of an environment variable")]
    EnvName { name: String },
}

impl Submission {
    /// The run's name.
    pub fn run(&self) -> &str {
        &self.recipe.run.name
    }

    /// Refuses what cannot work, whatever cluster it is put on.
    pub fn check(&self) -> Result<(), SubmissionError> {
        check_name(self.run())?;
        check_reachable("run.store", &self.recipe.run.store)?;
        check_reachable("corpus.url", &self.recipe.corpus.url)?;
        if let InitialWeights::Folder(location) = &self.recipe.model.init {
            check_reachable("model.init", location)?;
        }
        self.check_workers()?;
        self.check_protection()?;
        self.env.keys().try_for_each(|name| check_env(name))
    }

    fn check_protection(&self) -> Result<(), SubmissionError> {
        match &self.tls {
            None if !self.insecure => Err(SubmissionError::Unprotected),
            Some(TlsSecrets { worker: None, tokens: None, .. }) => Err(SubmissionError::NoProof),
            _ => Ok(()),
        }
    }

    fn check_workers(&self) -> Result<(), SubmissionError> {
        let (workers, max_workers) = (self.workers, self.max_workers);
        let (slots, min_workers) = (self.recipe.batch.slots, self.recipe.workers.min_workers);
        if workers == 0 {
            Err(SubmissionError::NoWorkers)
        } else if workers > max_workers {
            Err(SubmissionError::MoreThanMost { workers, max_workers })
        } else if max_workers as usize > slots {
            Err(SubmissionError::MoreThanSlots { max_workers, slots })
        } else if (workers as usize) < min_workers {
            Err(SubmissionError::TooFew { workers, min_workers })
        } else {
            Ok(())
        }
    }
}

/// Names of hosts: what Services and pods of Jobs are called.
fn check_name(name: &str) -> Result<(), SubmissionError> {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let problem = if name.chars().count() > MAX_RUN_NAME_CHARS {
        "has more than 50 characters"
    } else if !name.chars().all(is_inner) {
        "is no DNS label: it may have a-z, 0-9 and - only"
    } else if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        "is no DNS label: it has to begin with a letter from a to z"
    } else if name.ends_with('-') {
        "is no DNS label: it must not end with -"
    } else {
        return Ok(());
    };
    Err(SubmissionError::Name { name: name.into(), problem, proposal: proposal(name) })
}

/// The nearest name that would do.
fn proposal(name: &str) -> String {
    let lower = name.to_ascii_lowercase();
    let letters = lower.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' });
    let text: String = letters.skip_while(|c| !c.is_ascii_lowercase()).take(MAX_RUN_NAME_CHARS).collect();
    let text = text.trim_end_matches('-');
    if text.is_empty() { "run".into() } else { text.into() }
}

fn check_reachable(field: &'static str, location: &str) -> Result<(), SubmissionError> {
    let reach = match location.split_once("://") {
        None | Some(("file", _)) => "this machine",
        Some(("memory", _)) => "one process",
        Some(_) => return Ok(()),
    };
    Err(SubmissionError::Local { field, location: location.into(), reach })
}

/// Set by what is rendered.
pub const OWN_ENV: [&str; 17] = [
    "HOME",
    "POLO_CA",
    "POLO_CACHE",
    "POLO_CACHE_BYTES",
    "POLO_CERT",
    "POLO_CLIENT_CA",
    "POLO_COORDINATOR",
    "POLO_EXPECTED_WORKERS",
    "POLO_KEY",
    "POLO_LISTEN",
    "POLO_OPERATOR_TOKEN_FILE",
    "POLO_TLS_CERT",
    "POLO_TLS_KEY",
    "POLO_TOKEN_FILE",
    "POLO_WORKER_ID",
    "POLO_WORKER_INDEX",
    "POLO_WORKER_TOKEN_FILE",
];

/// Names of variables that hold secrets, or what is kept beside them, end with one of these.
const SECRET_ENDINGS: [&str; 5] = ["SECRET", "KEY", "KEY_ID", "PASSWORD", "TOKEN"];

fn check_env(name: &str) -> Result<(), SubmissionError> {
    let is_name =
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.starts_with(|c: char| c.is_ascii_digit());
    if name.is_empty() || !is_name {
        Err(SubmissionError::EnvName { name: name.into() })
    } else if OWN_ENV.contains(&name) {
        Err(SubmissionError::OwnEnv { name: name.into() })
    } else if SECRET_ENDINGS.iter().any(|ending| name.ends_with(ending)) {
        Err(SubmissionError::SecretInEnv { name: name.into() })
    } else {
        Ok(())
    }
}
