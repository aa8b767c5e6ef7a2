//! `polo submit`: a recipe becomes a run on a cluster.

use std::path::PathBuf;

use clap::Args;
use polo_kubernetes::{Account, Submission, TlsSecrets, WorkerSize, render, to_yaml};
use polo_recipe::config::Recipe;
use polo_store::recipe_file;
use serde_json::json;

use super::{ClusterArgs, print, print_json};
use polo_log::say;

use crate::{error::CliError, units};

const EXAMPLES: &str = "\
The run is called as its recipe's run.name says; store, corpus and initial weights have to lie in object storage. Submitting
the same recipe again brings the run's objects up to date. What a run is made of: ARCHITECTURE.md and k8s/ of Polo's source.

Examples:
  # Credentials from a Secret that `kubectl create secret generic` has made
  polo submit recipe.toml --image registry.example/polo:0.1.0 --workers 8 --max-workers 16 --secret s3-credentials \\
    --env AWS_REGION=eu-central-1 --tls-secret polo-coordinator --worker-tls-secret polo-worker

  # Credentials from the cloud's identity of a ServiceAccount
  polo submit recipe.toml --image registry.example/polo:0.1.0 --workers 8 --insecure \\
    --service-account-annotation eks.amazonaws.com/role-arn=arn:aws:iam::123456789012:role/polo

  # GPUs, in a queue of Kueue's
  polo submit recipe.toml --image registry.example/polo:0.1.0 --worker-image registry.example/polo-cuda:0.1.0 \\
    --set run.device=cuda --workers 8 --queue research --insecure

  # What would be applied
  polo submit recipe.toml --image registry.example/polo:0.1.0 --workers 8 --insecure --dry-run > run.yaml";

/// Arguments of `polo submit`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SubmitArgs {
    /// The recipe's TOML file
    recipe: PathBuf,
    /// Sets a field, such as `batch.slots=4` or `run.name=other`; may be given several times
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    sets: Vec<String>,
    /// Image with `polo`
    #[arg(long, env = "POLO_IMAGE", value_name = "IMAGE")]
    image: String,
    /// Image with `polo-worker`, or `polo-worker-cuda` with run.device = "cuda" [default: the same]
    #[arg(long, env = "POLO_WORKER_IMAGE", value_name = "IMAGE")]
    worker_image: Option<String>,
    /// Workers to begin with
    #[arg(long, default_value_t = 1, value_name = "N")]
    workers: u32,
    /// The most workers that `polo scale` may ask for [default: batch.slots]
    #[arg(long, value_name = "N")]
    max_workers: Option<u32>,
    /// Cores of a worker [default: run.threads and one more]
    #[arg(long, value_name = "CORES", value_parser = units::millicores)]
    worker_cpu: Option<u64>,
    /// Memory of a worker, such as 64GiB [default: half as much again as `polo plan` counts, and 4 GiB]
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    worker_memory: Option<u64>,
    /// The most that a worker's cache of token shards takes of its node's disk [default: no bound]
    #[arg(long, value_name = "SIZE", value_parser = units::bytes)]
    cache_size: Option<u64>,
    /// Sets an environment variable of all pods, such as AWS_REGION=eu-central-1 or POLO_LOG=info; may be given several
    /// times. Not for secrets
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// A Secret whose keys become environment variables of all pods, such as AWS_SECRET_ACCESS_KEY; may be given several
    /// times
    #[arg(long = "secret", value_name = "NAME")]
    secrets: Vec<String>,
    /// A Secret with which images are pulled; may be given several times
    #[arg(long = "image-pull-secret", value_name = "NAME")]
    image_pull_secrets: Vec<String>,
    /// A ServiceAccount that is there, as whom pods run [default: one of the run's own, with no rights]
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    /// Annotates the run's own ServiceAccount, which gives its pods an identity in a cloud; may be given several times
    #[arg(long = "service-account-annotation", value_name = "KEY=VALUE", value_parser = pair, conflicts_with = "service_account")]
    annotations: Vec<(String, String)>,
    /// A label that nodes of workers must have; may be given several times
    #[arg(long = "node-selector", value_name = "KEY=VALUE", value_parser = pair)]
    node_selector: Vec<(String, String)>,
    /// Has the workers wait in this LocalQueue of Kueue's, which may start fewer, but at least workers.min_workers
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// A Secret with the coordinator's certificate, for the host RUN-coordinator (tls.crt, tls.key), and with who has signed
    /// all certificates of the run (ca.crt)
    #[arg(long, value_name = "NAME", conflicts_with = "insecure")]
    tls_secret: Option<String>,
    /// A Secret with the certificate that workers show, for the host worker.polo (tls.crt, tls.key)
    #[arg(long, value_name = "NAME", requires = "tls_secret")]
    worker_tls_secret: Option<String>,
    /// A Secret with the tokens that workers and people show instead (worker-token, operator-token)
    #[arg(long, value_name = "NAME", requires = "tls_secret")]
    token_secret: Option<String>,
    /// Runs without TLS and tokens: only NetworkPolicies keep others out
    #[arg(long)]
    insecure: bool,
    /// Takes over fields that others have set
    #[arg(long)]
    force: bool,
    /// Prints the objects as YAML instead; no cluster is needed
    #[arg(long)]
    dry_run: bool,
    /// Prints JSON: what was done to each object, or with --dry-run the objects
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("there is no = in it; write it like NAME=VALUE")?;
    if key.is_empty() { Err("there is no name before =".into()) } else { Ok((key.into(), value.into())) }
}

/// `polo submit`.
pub async fn submit(args: SubmitArgs) -> Result<(), CliError> {
    let mut submission = args.submission()?;
    submission.check()?;
    if args.dry_run {
        return print_objects(&args, &submission);
    }
    let cluster = args.cluster.open().await?;
    submission.namespace = Some(cluster.namespace().into());
    let told = |change: &polo_kubernetes::Change| say(format_args!("{} {}", change.object, change.change));
    let changes = cluster.submit(&submission, args.force, told).await?;
    let (run, namespace) = (submission.run(), cluster.namespace());
    say(format_args!("run {run} is in namespace {namespace}; see how it stands with: polo status --run {run}"));
    match args.json {
        true => print_json(&json!({ "run": run, "namespace": namespace, "objects": changes })),
        false => Ok(()),
    }
}

fn print_objects(args: &SubmitArgs, submission: &Submission) -> Result<(), CliError> {
    let objects = render(submission);
    if args.json {
        let items: Vec<_> = objects.iter().map(|object| &object.value).collect();
        return print_json(&json!({ "apiVersion": "v1", "kind": "List", "items": items }));
    }
    print(&to_yaml(&objects))
}

impl SubmitArgs {
    fn submission(&self) -> Result<Submission, CliError> {
        let mut recipe = recipe_file::load(&self.recipe, &self.sets)?;
        leave_tokenizer_out(&mut recipe);
        let max_workers = self.max_workers.unwrap_or(recipe.batch.slots as u32);
        let size = WorkerSize::of(&recipe, self.workers);
        Ok(Submission {
            namespace: self.cluster.namespace.clone(),
            coordinator_image: self.image.clone(),
            worker_image: self.worker_image.as_ref().unwrap_or(&self.image).clone(),
            image_pull_secrets: self.image_pull_secrets.clone(),
            workers: self.workers,
            max_workers,
            worker: WorkerSize {
                millicores: self.worker_cpu.unwrap_or(size.millicores),
                memory_bytes: self.worker_memory.unwrap_or(size.memory_bytes),
                cache_bytes: self.cache_size,
            },
            env: self.env.iter().cloned().collect(),
            secrets: self.secrets.clone(),
            account: match &self.service_account {
                Some(name) => Account::Existing(name.clone()),
                None => Account::Own { annotations: self.annotations.iter().cloned().collect() },
            },
            node_selector: self.node_selector.iter().cloned().collect(),
            queue: self.queue.clone(),
            tls: self.tls_secret.clone().map(|coordinator| TlsSecrets {
                coordinator,
                worker: self.worker_tls_secret.clone(),
                tokens: self.token_secret.clone(),
            }),
            insecure: self.insecure,
            recipe,
        })
    }
}

/// It is a file of this machine, with which a coordinator only checks how the corpus was prepared.
fn leave_tokenizer_out(recipe: &mut Recipe) {
    if let Some(path) = recipe.corpus.tokenizer.take() {
        say(format_args!(
            "note: nobody checks there that the corpus was prepared with {path}: it is a file of this machine"
        ));
    }
}
