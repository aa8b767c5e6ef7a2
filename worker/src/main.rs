//! `polo-worker`: one worker process of a run.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use polo_proto::v1;
use polo_recipe::{config::Recipe, error::RecipeError, layout::Layout};
use polo_store::{Store, StoreError, recipe_file};
use polo_worker::{
    agent::Agent,
    corpus::{Corpus, CorpusError},
    desk::Desk,
    model::{Model, ModelError, ModelOptions},
    optimizer::AdamW,
    plane::Listener,
    session::{Ending, Session},
    step::Setting,
    trainer::Trainer,
};
use tokio::{runtime::Handle, sync::mpsc};
use tracing_subscriber::EnvFilter;

/// One worker of a Polo run: joins its coordinator, trains, and leaves when the run ends.
#[derive(Debug, Parser)]
#[command(name = "polo-worker", version)]
struct Args {
    /// The run's recipe, the same that the coordinator has.
    recipe: PathBuf,
    /// Lays a value over the recipe: section.field=value. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Where the coordinator listens.
    #[arg(long, env = "POLO_COORDINATOR", default_value = "http://127.0.0.1:7070")]
    coordinator: String,
    /// This worker's name, unique within the run.
    #[arg(long, env = "POLO_WORKER_ID")]
    id: String,
    /// Where other workers reach this one's data plane; port 0 takes a free one.
    #[arg(long, env = "POLO_LISTEN", default_value = "0.0.0.0:0")]
    listen: SocketAddr,
    /// Keeps token shards between runs; shared by the workers of a machine.
    #[arg(long, env = "POLO_CACHE", default_value_os_t = default_cache())]
    cache: PathBuf,
    /// Ends when standard input is closed: ties the worker to the process that started it.
    #[arg(long)]
    while_stdin_open: bool,
}

fn default_cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    base.or_else(home).unwrap_or_else(std::env::temp_dir).join("polo/shards")
}

#[derive(Debug, thiserror::Error)]
enum WorkerError {
    #[error(transparent)]
    RecipeFile(#[from] recipe_file::RecipeFileError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("cannot listen on {address} for other workers: {source}; choose another --listen")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the system gives no threads: {0}")]
    Threads(std::io::Error),
    #[error("{0}")]
    Run(String),
}

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("POLO_LOG").unwrap_or_else(|_| EnvFilter::new("warn")))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    if args.while_stdin_open {
        std::thread::spawn(end_with_stdin);
    }
    // Whoever started this worker beside its coordinator hears from that one why the session ended.
    let speaker = args.while_stdin_open.then(|| format!("worker {}", args.id));
    match (run(args), speaker) {
        (Ok(()), _) => return ExitCode::SUCCESS,
        (Err(WorkerError::Run(_)), Some(_)) => {}
        (Err(error), speaker) => eprintln!("{}: {error}", speaker.as_deref().unwrap_or("error")),
    }
    ExitCode::FAILURE
}

/// Ends the process when nobody holds the other end of its standard input any more.
fn end_with_stdin() {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    eprintln!("error: the process that started this worker is gone");
    std::process::exit(1);
}

fn run(args: Args) -> Result<(), WorkerError> {
    let recipe = recipe_file::load(&args.recipe, &args.sets)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(WorkerError::Threads)?;
    let ending = runtime.block_on(work(args, recipe))?;
    // Whatever is still in flight belongs to a run that has ended.
    runtime.shutdown_background();
    match ending {
        Ending::Released => Ok(()),
        Ending::Failed(reason) => Err(WorkerError::Run(reason)),
    }
}

async fn work(args: Args, recipe: Recipe) -> Result<Ending, WorkerError> {
    let listening = Listener::bind(args.listen, &recipe.identity());
    let listener = listening.map_err(|source| WorkerError::Listen { address: args.listen, source })?;
    let corpus_store = Store::open(&recipe.corpus.url)?;
    let corpus = Arc::new(Corpus::open(corpus_store, &args.cache, recipe.model.qwen2.vocab_size).await?);
    let (to_agent, effects) = mpsc::unbounded_channel();
    let (to_outbox, outbox) = mpsc::unbounded_channel();
    let coordinator_timeout = Duration::from_secs(recipe.workers.coordinator_timeout_s);
    let coordinator = with_scheme(&args.coordinator);
    let session = Session::new(coordinator.clone(), coordinator_timeout, 0);
    let desk = Arc::new(Desk::new(session, to_agent, to_outbox));
    let agent = Agent {
        hello: hello(&args, &recipe, &corpus, &listener),
        coordinator,
        connect_timeout: Duration::from_secs(recipe.workers.connect_timeout_s),
        desk: desk.clone(),
        effects,
        outbox,
        repeated: Vec::new(),
    };
    let setting = setting(&recipe, corpus, desk)?;
    let trainer = Trainer::new(&recipe, setting, Store::open(&recipe.run.store)?, listener, Handle::current());
    let torch = std::thread::Builder::new().name("torch".into()).spawn(move || trainer.run());
    let torch = torch.map_err(WorkerError::Threads)?;
    let ending = agent.run().await;
    // The session has woken the torch thread and aborted its plane, so it ends by itself; a panic there is passed on.
    match tokio::task::spawn_blocking(move || torch.join()).await {
        Ok(Ok(_)) => Ok(ending),
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => Err(WorkerError::Run(error.to_string())),
    }
}

fn with_scheme(address: &str) -> String {
    if address.contains("://") { address.into() } else { format!("http://{address}") }
}

fn hello(args: &Args, recipe: &Recipe, corpus: &Corpus, listener: &Listener) -> v1::Hello {
    v1::Hello {
        worker_id: args.id.clone(),
        incarnation: rand::random(),
        recipe_identity: recipe.identity(),
        corpus_digest: corpus.digest().to_string(),
        data_address: listener.local_addr().to_string(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        pid: std::process::id(),
    }
}

fn setting(recipe: &Recipe, corpus: Arc<Corpus>, desk: Arc<Desk>) -> Result<Setting, WorkerError> {
    let plan = corpus.manifest().plan(recipe)?;
    let source_numbers = plan.sources().iter().map(|name| corpus.source_number(name)).collect::<Result<_, _>>()?;
    let [beta1, beta2] = recipe.optimizer.betas;
    let (eps, weight_decay) = (recipe.optimizer.eps, recipe.optimizer.weight_decay);
    Ok(Setting {
        model: Model::new(&recipe.model.qwen2, ModelOptions { recompute: recipe.model.recompute })?,
        layout: Arc::new(Layout::qwen2(&recipe.model.qwen2)),
        plan: Arc::new(plan),
        batch: recipe.batch.clone(),
        adamw: AdamW { learning_rate: 0.0, beta1, beta2, eps, weight_decay },
        max_grad_norm: recipe.optimizer.max_grad_norm,
        corpus,
        source_numbers,
        runtime: Handle::current(),
        desk,
    })
}
