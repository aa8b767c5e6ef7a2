//! `polo-worker`: one worker process of a run.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use polo_proto::v1;
use polo_recipe::{
    config::{self, Recipe},
    error::RecipeError,
    footprint::Problem,
    layout::{CHUNK_PARAMS, Layout},
};
use polo_store::{Cache, CacheError, Store, StoreError, checkpoint, recipe_file};
use polo_transport::{Client, ClientArgs, TransportError, with_scheme};
use polo_worker::{
    agent::{Agent, over_network},
    checkpointer::Checkpointer,
    corpus::{Corpus, CorpusError},
    desk::Desk,
    flat::{
        self,
        home::{self, HomeError},
    },
    model::{Model, ModelError, ModelOptions, determinism::CUBLAS_WORKSPACE},
    optimizer::AdamW,
    plane::{
        Listener,
        nccl::{self, NcclError},
        rendezvous::Timeouts,
    },
    pool::Pool,
    session::{Ending, Event, Session},
    state::{Moments, TrainState},
    step::Setting,
    streams::{Stream, StreamError},
    torch::TorchArithmetic,
    trace::Trace,
    trainer::{PlaneNetwork, Trainer},
};
use tch::Device;
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::timeout,
};

/// How long a coordinator is looked for whose run has come to its last step.
const AFTER_THE_END: Duration = Duration::from_secs(5);

/// How long the torch thread may take to end.
const TORCH_FAREWELL: Duration = Duration::from_secs(2);

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
    /// The GPU that this worker computes on, of those that nvidia-smi lists, if the recipe wants one.
    #[arg(long, env = "POLO_GPU", value_name = "INDEX", default_value_t = 0)]
    gpu: usize,
    /// Keeps token shards between runs; shared by the workers of a machine.
    #[arg(long, env = "POLO_CACHE", default_value_os_t = default_cache())]
    cache: PathBuf,
    /// The most that is kept there, in bytes; what is in use stays, and is what a worker needs at least [default: no bound]
    #[arg(long, env = "POLO_CACHE_BYTES", value_name = "BYTES", default_value_t = u64::MAX, hide_default_value = true)]
    cache_bytes: u64,
    /// Appends to this file how long each step computes, exchanges and waits; Perfetto (ui.perfetto.dev) opens it. Workers
    /// of one machine may share it.
    #[arg(long, env = "POLO_TRACE", value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Exit code of a worker that has handed back what it holds because of a SIGTERM, where 0 would mean that nobody has to
    /// take its place, as to Kubernetes
    #[arg(long, value_name = "CODE", default_value_t = 0)]
    sigterm_exit_code: u8,
    /// Ends when standard input is closed: ties the worker to the process that started it.
    #[arg(long)]
    while_stdin_open: bool,
    #[command(flatten)]
    protection: ClientArgs,
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
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Nccl(#[from] NcclError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("cannot listen on {address} for other workers: {source}; choose another --listen")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("cannot write a trace to {}: {source}; choose another --trace", path.display())]
    Trace { path: PathBuf, source: std::io::Error },
    #[error("the system gives no threads: {0}")]
    Threads(std::io::Error),
    #[error("the system lets no signals be caught: {0}")]
    Signals(std::io::Error),
    #[error("{0}")]
    Run(String),
}

/// The whole program.
pub fn main() -> ExitCode {
    fix_cublas_workspace();
    let args = Args::parse();
    polo_log::begin("polo-worker");
    if args.while_stdin_open {
        std::thread::spawn(end_with_stdin);
    }
    // Whoever started this worker beside its coordinator hears from that one why the session ended.
    let speaker = args.while_stdin_open.then(|| format!("worker {}", args.id));
    match (run(args), speaker) {
        (Ok(exit_code), _) => return ExitCode::from(exit_code),
        (Err(WorkerError::Run(_)), Some(_)) => {}
        (Err(error), None) => polo_log::fail(error),
        (Err(error), Some(speaker)) => polo_log::say(format_args!("{speaker}: {error}")),
    }
    ExitCode::FAILURE
}

/// Sets what cuBLAS reads when CUDA is first used, unless whoever started this worker has.
fn fix_cublas_workspace() {
    let (name, value) = CUBLAS_WORKSPACE;
    if std::env::var_os(name).is_none() {
        // SAFETY: nothing but this thread runs yet.
        unsafe { std::env::set_var(name, value) };
    }
}

/// Ends the process when nobody holds the other end of its standard input any more.
fn end_with_stdin() {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    polo_log::fail("the process that started this worker is gone");
    std::process::exit(1);
}

/// Whether a SIGTERM has come, and what that makes of the exit code.
struct Sigterm {
    exit_code: u8,
    has_come: AtomicBool,
}

impl Sigterm {
    /// What a worker exits with that has ended well.
    fn exit_code(&self, ending: &Ending) -> u8 {
        let was_sent_away = matches!(ending, Ending::Drained) && self.has_come.load(Ordering::Relaxed);
        if was_sent_away { self.exit_code } else { 0 }
    }
}

fn run(args: Args) -> Result<u8, WorkerError> {
    let recipe = recipe_file::load(&args.recipe, &args.sets)?;
    polo_log::in_run(&recipe.run.name);
    settle(&recipe, args.gpu)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(WorkerError::Threads)?;
    let sigterm = Arc::new(Sigterm { exit_code: args.sigterm_exit_code, has_come: AtomicBool::new(false) });
    let ending = runtime.block_on(work_until_asked_to_leave(args, recipe, sigterm.clone()))?;
    // Whatever is still in flight belongs to a run that has ended.
    runtime.shutdown_background();
    match ending {
        Ending::Released | Ending::Drained => Ok(sigterm.exit_code(&ending)),
        Ending::Failed(reason) => Err(WorkerError::Run(reason)),
    }
}

/// Works; asked to leave before there is anything to hand back, it just leaves.
async fn work_until_asked_to_leave(args: Args, recipe: Recipe, sigterm: Arc<Sigterm>) -> Result<Ending, WorkerError> {
    let mut terminations = signal(SignalKind::terminate()).map_err(WorkerError::Signals)?;
    let corpus_store = Store::open(&recipe.corpus.url)?;
    let cache = Cache::open(&args.cache, args.cache_bytes)?;
    let opening = Corpus::open(corpus_store, cache, recipe.model.qwen2.vocab_size);
    tokio::select! {
        corpus = opening => {
            let corpus = Arc::new(corpus?);
            work_unless_completed(args, recipe, corpus, terminations, sigterm).await
        }
        _ = terminations.recv() => {
            sigterm.has_come.store(true, Ordering::Relaxed);
            Ok(Ending::Drained)
        }
    }
}

/// Works for as long as there is a coordinator. One that is not there may have gone with the run's end.
async fn work_unless_completed(
    args: Args,
    recipe: Recipe,
    corpus: Arc<Corpus>,
    terminations: Signal,
    sigterm: Arc<Sigterm>,
) -> Result<Ending, WorkerError> {
    let coordinator_timeout = match is_completed(&recipe, &corpus).await? {
        // It may be there all the same, if all died before the end was written down.
        true => AFTER_THE_END,
        false => Duration::from_secs(recipe.workers.coordinator_timeout_s),
    };
    let ending = work(args, recipe.clone(), corpus.clone(), terminations, sigterm, coordinator_timeout).await?;
    let has_failed = matches!(ending, Ending::Failed(_));
    if !has_failed || !is_completed(&recipe, &corpus).await.unwrap_or(false) {
        return Ok(ending);
    }
    polo_log::say(format_args!("the run in {} has been completed; there is nothing left to do", recipe.run.store));
    Ok(Ending::Released)
}

/// Whether the state after the run's last step is in its store.
async fn is_completed(recipe: &Recipe, corpus: &Corpus) -> Result<bool, WorkerError> {
    let last = corpus.manifest().plan(recipe)?.num_steps();
    match checkpoint::read_manifest(&Store::open(&recipe.run.store)?, last).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_damage() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The first wish to leave is the session's to fulfil; whoever asks again does not want to wait.
async fn pass_on_wishes_to_leave(mut terminations: Signal, sigterm: Arc<Sigterm>, desk: Arc<Desk>) {
    terminations.recv().await;
    sigterm.has_come.store(true, Ordering::Relaxed);
    desk.handle(Event::LeaveWanted);
    terminations.recv().await;
    polo_log::fail("asked twice to leave; what this worker holds was not handed back");
    std::process::exit(1);
}

async fn work(
    args: Args,
    recipe: Recipe,
    corpus: Arc<Corpus>,
    terminations: Signal,
    sigterm: Arc<Sigterm>,
    coordinator_timeout: Duration,
) -> Result<Ending, WorkerError> {
    let listening = Listener::bind(args.listen, &recipe.identity());
    let listener = listening.map_err(|source| WorkerError::Listen { address: args.listen, source })?;
    let (to_agent, effects) = mpsc::unbounded_channel();
    let (to_outbox, outbox) = mpsc::unbounded_channel();
    let coordinator = with_scheme(&args.coordinator);
    let client = Client::new(args.protection.clone());
    // What is wrong with the files of certificates and tokens is said now, not as a coordinator that cannot be reached.
    client.prepare(&coordinator)?;
    let drain_timeout = Duration::from_secs(recipe.workers.drain_timeout_s);
    let session = Session::new(coordinator.clone(), coordinator_timeout, 0).with_drain_timeout(drain_timeout);
    let desk = Arc::new(Desk::new(session, to_agent, to_outbox));
    tokio::spawn(pass_on_wishes_to_leave(terminations, sigterm.clone(), desk.clone()));
    let agent = Agent {
        hello: hello(&args, &recipe, &corpus, &listener),
        coordinator,
        connect: over_network(client.clone()),
        client,
        connect_timeout: Duration::from_secs(recipe.workers.connect_timeout_s),
        desk: desk.clone(),
        effects,
        outbox,
        repeated: Vec::new(),
    };
    let trainer = trainer(&recipe, corpus, desk, listener, open_trace(&args)?)?;
    let (runtime, num_threads) = (Handle::current(), recipe.run.threads);
    let torch = std::thread::Builder::new().name("torch".into()).spawn(move || {
        // Holds for the thread that calls it.
        tch::set_num_threads(num_threads as i32);
        runtime.block_on(trainer().run())
    });
    let torch = torch.map_err(WorkerError::Threads)?;
    let ending = agent.run().await;
    // The session has woken the torch thread and aborted its plane, so it ends by itself, unless it is stuck; a panic
    // there is passed on.
    match timeout(TORCH_FAREWELL, tokio::task::spawn_blocking(move || torch.join())).await {
        Ok(Ok(Ok(_))) => Ok(ending),
        Ok(Ok(Err(panic))) => std::panic::resume_unwind(panic),
        Ok(Err(error)) => Err(WorkerError::Run(error.to_string())),
        Err(_) => leave_without_torch(&ending, &sigterm),
    }
}

/// Ends the process at once: a thread that does not come back cannot be ended otherwise.
fn leave_without_torch(ending: &Ending, sigterm: &Sigterm) -> ! {
    let seconds = TORCH_FAREWELL.as_secs();
    polo_log::fail(format_args!("the torch thread did not end within {seconds} s, and is left where it is"));
    if let Ending::Failed(reason) = ending {
        polo_log::fail(reason);
        std::process::exit(1);
    }
    std::process::exit(sigterm.exit_code(ending).into());
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
        ..Default::default()
    }
}

fn open_trace(args: &Args) -> Result<Trace, WorkerError> {
    let Some(path) = &args.trace else { return Ok(Trace::default()) };
    Trace::open(path, &args.id).map_err(|source| WorkerError::Trace { path: path.clone(), source })
}

fn model_options(recipe: &Recipe, corpus: &Corpus) -> ModelOptions {
    let document_end = recipe.batch.document_mask.then(|| i64::from(corpus.manifest().eos_id));
    let compute_dtype = recipe.model.compute_dtype;
    ModelOptions { recompute: recipe.model.recompute, document_end, compute_dtype, device: flat::device() }
}

/// Decides where vectors live, before there are any.
fn settle(recipe: &Recipe, gpu: usize) -> Result<(), HomeError> {
    home::settle(match recipe.run.device {
        config::Device::Cpu => Device::Cpu,
        config::Device::Cuda => Device::Cuda(gpu),
    })
}

/// What the torch thread makes its trainer with: tensors stay on the thread where they were made.
fn trainer(
    recipe: &Recipe,
    corpus: Arc<Corpus>,
    desk: Arc<Desk>,
    listener: Listener,
    trace: Trace,
) -> Result<impl FnOnce() -> Trainer + Send + 'static, WorkerError> {
    let device = flat::device();
    let plan = Arc::new(corpus.manifest().plan(recipe)?);
    let source_numbers = plan.sources().iter().map(|name| corpus.source_number(name)).collect::<Result<_, _>>()?;
    let validation_numbers = plan.validation_sets().iter().map(|set| corpus.source_number(&set.source));
    let validation_numbers = validation_numbers.collect::<Result<Vec<_>, _>>()?;
    let bytes_per_token = validation_numbers.iter().map(|number| {
        let source = &corpus.manifest().sources[*number];
        source.num_bytes_text as f64 / source.num_tokens as f64
    });
    let bytes_per_token = bytes_per_token.collect();
    let layout = Arc::new(Layout::qwen2(&recipe.model.qwen2));
    let arithmetic = TorchArithmetic {
        model: Model::new(&recipe.model.qwen2, model_options(recipe, &corpus))?,
        layout: layout.clone(),
        plan: plan.clone(),
        problem: Problem::of(recipe),
        batch: recipe.batch.clone(),
        adamw: adamw(recipe),
        corpus,
        source_numbers,
        validation_numbers,
        runtime: Handle::current(),
        initial_weights: recipe.model.init.clone(),
        stage: recipe.workers.offload_moments.then(|| Moments::zeros(CHUNK_PARAMS)),
        seed: recipe.run.seed,
        trace: trace.clone(),
        loader: None,
    };
    let nccl = match device {
        Device::Cuda(gpu) => Some((nccl::load(gpu)?, Stream::from_pool(device)?)),
        _ => None,
    };
    let network = PlaneNetwork { listener, timeouts: timeouts(recipe), runtime: Handle::current(), nccl };
    let checkpointer = Checkpointer { store: Store::open(&recipe.run.store)?, desk: desk.clone(), in_flight: None };
    let setting = Setting {
        batch: recipe.batch.clone(),
        max_grad_norm: recipe.optimizer.max_grad_norm,
        on_non_finite: recipe.optimizer.on_non_finite,
        reduction: recipe.run.reduction,
        copies: recipe.workers.copies,
        bytes_per_token,
        layout,
        plan,
        desk,
        trace,
    };
    let offloads_moments = recipe.workers.offload_moments;
    let (checkpoint_every_steps, gather) = (recipe.checkpoint.every_steps, recipe.workers.gather);
    Ok(move || Trainer {
        state: TrainState { offloads_moments, ..TrainState::empty(&setting.layout, &setting.plan, gather) },
        setting: Arc::new(setting),
        pool: Pool::default(),
        arithmetic: Box::new(arithmetic),
        network: Arc::new(network),
        checkpointer,
        checkpoint_every_steps,
    })
}

fn adamw(recipe: &Recipe) -> AdamW {
    let [beta1, beta2] = recipe.optimizer.betas;
    let (eps, weight_decay) = (recipe.optimizer.eps, recipe.optimizer.weight_decay);
    AdamW { learning_rate: 0.0, beta1, beta2, eps, weight_decay }
}

fn timeouts(recipe: &Recipe) -> Timeouts {
    Timeouts {
        connect: Duration::from_secs(recipe.workers.connect_timeout_s),
        form: Duration::from_secs(recipe.workers.wait_timeout_s),
        exchange: Duration::from_secs(recipe.workers.exchange_timeout_s),
    }
}
