//! `polo coordinator`, and what it shares with `polo run`: serving a run and telling people of it.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use clap::Args;
use polo_coordinator::{Network, News, Observers, Opening, Run, StopHandle, Wanted, json, machine::Outcome};
use polo_log::say;
use polo_proto::v1::SourceValidation;
use polo_recipe::{config::Recipe, ids::Step};
use polo_store::{
    Store,
    corpus::{CorpusManifest, ManifestError},
    corpus_files, recipe_file,
};
use polo_transport::{Client, ClientArgs, Guard, ServerArgs, ServerTls};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{error::CliError, progress::Progress};

/// What every way to start a coordinator needs.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The recipe's TOML file
    pub recipe: PathBuf,
    /// Sets a field, such as `batch.slots=4` or `stages.0.steps=60`; may be given several times
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    pub sets: Vec<String>,
    /// Where the coordinator listens; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Answers there, unencrypted and to everybody, whether it serves: for probes such as Kubernetes', which speak no TLS
    #[arg(long, value_name = "ADDRESS")]
    pub health_listen: Option<SocketAddr>,
    /// Takes a store that cannot keep two coordinators apart; make sure that there is never a second one
    #[arg(long)]
    pub unfenced: bool,
    /// Prints a progress line every so many steps
    #[arg(long, default_value_t = 1, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub log_every: u64,
    /// Exits with 3 if a source of `validation.watch` is worse than allowed when the run ends
    #[arg(long)]
    pub fail_on_worse: bool,
    /// Writes curves for TensorBoard into the run's store, every minute, under tensorboard/
    #[arg(long, env = "POLO_TENSORBOARD")]
    pub tensorboard: bool,
    /// Sends traces of steps, generations and checkpoints to an OTLP collector, over gRPC, such as http://HOST:4317
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    #[command(flatten)]
    pub protection: ServerArgs,
}

/// Arguments of `polo coordinator`.
#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Workers that are expected; with so many the run starts without waiting for more
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// What a SIGTERM does: stops the run with a checkpoint, or ends only the coordinator, with exit code 75, so that one
    /// that is started again goes on
    #[arg(long, value_enum, default_value_t)]
    on_sigterm: OnSigterm,
}

/// What a coordinator does about a SIGTERM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnSigterm {
    /// Stops the run at the next step boundary, as Ctrl-C does.
    #[default]
    Stop,
    /// Leaves the run to the next coordinator; workers train on meanwhile.
    Leave,
}

/// A coordinator that is ready to serve.
pub struct Opened {
    /// The run's recipe.
    pub recipe: Recipe,
    /// The run.
    pub run: Run,
    /// Its socket.
    pub listener: TcpListener,
    /// Its certificates, if it speaks TLS.
    pub tls: Option<ServerTls>,
    /// Where the socket really listens.
    pub address: SocketAddr,
    /// What happens.
    pub news: mpsc::UnboundedReceiver<News>,
    /// Who else is told of it.
    pub observers: Observers,
}

/// Opens the run and its socket.
pub async fn open(args: &ServeArgs, expected_workers: usize) -> Result<Opened, CliError> {
    let recipe = recipe_file::load(&args.recipe, &args.sets)?;
    polo_log::in_run(&recipe.run.name);
    let (guard, tls) = (Guard::new(&args.protection, args.listen)?, ServerTls::new(&args.protection)?);
    let (listener, address) = bind(args.listen).await?;
    let probes = match args.health_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let (sender, news) = mpsc::unbounded_channel();
    let opening = Opening {
        expected_workers,
        address,
        unfenced: args.unfenced,
        outside: Arc::new(Network { client: Client::new(as_client(&args.protection)) }),
        guard,
        is_encrypted: tls.is_some(),
    };
    let mut run = Run::open(&recipe, opening, sender).await?;
    for note in run.notes() {
        say(format_args!("note: {note}"));
    }
    let (num_steps, step) = run.num_steps();
    if step == Step(0) {
        check_corpus(&recipe).await?;
    }
    say(format_args!("run {} (recipe {}): step {step} of {num_steps}", recipe.run.name, &recipe.identity()[..12]));
    say(format_args!("coordinator listens on {address}"));
    if let Some((listener, address)) = probes {
        run.answer_probes(listener);
        say(format_args!("probes are answered on {address}"));
    }
    let wanted = Wanted { tensorboard: args.tensorboard, traces_to: args.otlp_endpoint.clone() };
    let (observers, news) = run.observe(&wanted, news);
    Ok(Opened { recipe, run, listener, tls, address, news, observers })
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), CliError> {
    let failed = |source| CliError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// How a coordinator asks another one of its run whether it is there: with the certificate that it shows as a server.
fn as_client(args: &ServerArgs) -> ClientArgs {
    ClientArgs {
        ca: args.client_ca.clone(),
        cert: args.tls_cert.clone(),
        key: args.tls_key.clone(),
        ..Default::default()
    }
}

/// Whether the corpus is the one that was prepared, with the tokenizer that the recipe names.
async fn check_corpus(recipe: &Recipe) -> Result<(), ManifestError> {
    let store = Store::open(&recipe.corpus.url)?;
    let manifest = CorpusManifest::load(&store).await?;
    if let Some(path) = &recipe.corpus.tokenizer {
        corpus_files::check_tokenizer(&manifest, path)?;
    }
    let evaluated = recipe.validation.iter().flat_map(|validation| validation.sources.clone());
    let trained = recipe.stages.iter().flat_map(|stage| stage.weighted_sources()).map(|source| source.name);
    corpus_files::check(&store, &manifest, &trained.chain(evaluated).collect::<Vec<_>>()).await
}

/// `polo coordinator`.
pub async fn run(args: CoordinatorArgs) -> Result<(), CliError> {
    // From here on: what comes while the run is being opened is seen to when it is served.
    let signals = Signals::new(args.on_sigterm)?;
    serve(open(&args.serve, args.workers).await?, &args.serve, signals).await
}

/// Serves a run, whose workers others start, to its end.
pub async fn serve(opened: Opened, args: &ServeArgs, mut signals: Signals) -> Result<(), CliError> {
    let progress = tokio::spawn(Progress::new(args.log_every).follow(opened.news));
    let stop = opened.run.stop_handle();
    let serving = opened.run.serve(opened.listener, opened.tls);
    tokio::pin!(serving);
    let outcome = loop {
        tokio::select! {
            outcome = &mut serving => break outcome?,
            signal = signals.next() => signals.on_signal(signal, &stop).await?,
        }
    };
    opened.observers.finish().await;
    conclude(&opened.recipe, outcome, progress, args.fail_on_worse).await
}

/// Prints the end of a run: the table and the last JSON line, or the error. With `fail_on_worse`, an alarm about a watched
/// source that still stands is an error as well.
pub async fn conclude(
    recipe: &Recipe,
    outcome: Outcome,
    progress: tokio::task::JoinHandle<Progress>,
    fail_on_worse: bool,
) -> Result<(), CliError> {
    let progress = progress.await.unwrap_or_else(|_| Progress::new(1));
    let (ending, step, state_digest) = match outcome {
        Outcome::Completed { step, state_digest } => ("completed", step, state_digest),
        Outcome::Stopped { step, state_digest } => ("stopped", step, state_digest),
        Outcome::Failed { reason } => return Err(CliError::RunFailed(reason)),
    };
    progress.print_table();
    let line = serde_json::json!({
        "run": recipe.run.name,
        "recipe_identity": recipe.identity(),
        "outcome": ending,
        "step": step,
        "num_incidents": progress.num_incidents(),
        "loss": progress.last_loss(),
        "validation": json::validation(progress.validation()),
        "num_alarms": progress.num_alarms(),
        "state_digest": state_digest,
    });
    println!("{line}");
    if fail_on_worse { no_alarm(progress.validation()) } else { Ok(()) }
}

/// An error that names the sources about which an alarm stands.
fn no_alarm(validation: &[SourceValidation]) -> Result<(), CliError> {
    let worse: Vec<_> = validation.iter().filter(|v| v.worse).map(|v| v.source.as_str()).collect();
    if worse.is_empty() { Ok(()) } else { Err(CliError::Worse { sources: worse.join(", ") }) }
}

/// Ctrl-C and SIGTERM: the first asks for a clean stop, unless a SIGTERM means less, and the second ends at once.
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    on_sigterm: OnSigterm,
    num_seen: u32,
}

impl Signals {
    /// Begins to catch them.
    pub fn new(on_sigterm: OnSigterm) -> Result<Self, CliError> {
        let catch = |kind| signal(kind).map_err(CliError::io("cannot catch signals"));
        let (interrupt, terminate) = (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, on_sigterm, num_seen: 0 })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        }
    }

    /// Asks the run to stop, or gives up on it, or leaves it as it is.
    pub async fn on_signal(&mut self, signal: SignalKind, stop: &StopHandle) -> Result<(), CliError> {
        if signal == SignalKind::terminate() && self.on_sigterm == OnSigterm::Leave {
            return Err(CliError::Terminated);
        }
        self.num_seen += 1;
        if self.num_seen > 1 {
            return Err(CliError::Interrupted);
        }
        say("stopping after the step in progress; interrupt again to end at once");
        stop.stop().await;
        Ok(())
    }
}
