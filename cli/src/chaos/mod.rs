//! `polo chaos`: hurts a run on this machine in every way that it promises to survive, and compares the results.

mod fault;
mod files;
mod network;
mod processes;
mod report;
mod round;
mod scene;
mod watching;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitStatus,
};

use clap::Args;
use polo_recipe::config::Recipe;
use polo_store::{StoreError, recipe_file};
use rand::{SeedableRng, rngs::StdRng};

use self::{
    fault::Kind,
    network::Network,
    processes::Exit,
    report::{Report, RunReport},
    round::Turmoil,
    scene::Setting,
};
use polo_log::say;

use crate::{
    coordinate::{OnSigterm, Signals},
    error::CliError,
};

/// Runs in a row that may end without a single fault.
const MOST_QUIET_RUNS: usize = 3;

const HELP: &str = "\
The recipe is run once undisturbed, with one worker, and then with faults until there were enough of them, as often as
that takes; every run has a store of its own. A fault is one of: kill -9, SIGSTOP or SIGTERM for a worker, a worker cut
off from the network, kill -9 or SIGSTOP for the coordinator, a flipped bit in the newest checkpoint followed by kill -9
for all workers, and a store in which chunks can neither be read nor written.

Networks are cut where user and network namespaces can be made (with `ip`, `unshare` and `nsenter`) and the corpus is a
folder; where they cannot, it says why.

Exits with 0 if all runs end in the same state. A seed repeats the choices, but not the machine's own timing.

Examples:
  polo chaos recipe.toml --workers 3 --set stages.0.steps=60";

/// Arguments of `polo chaos`.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub struct ChaosArgs {
    /// The recipe's TOML file; its run.store is left alone
    recipe: PathBuf,
    /// Sets a field, such as `batch.slots=4` or `stages.0.steps=60`; may be given several times
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    sets: Vec<String>,
    /// Worker processes of the disturbed runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    workers: u16,
    /// Faults in all
    #[arg(long, default_value_t = 20, value_name = "NUMBER")]
    faults: usize,
    /// Decides which faults come and when [default: a new one, which is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Longest time from one fault to the next
    #[arg(long, default_value_t = 1500, value_name = "MS")]
    calm_ms: u64,
    /// Kinds of faults to choose from [default: all]
    #[arg(long, value_delimiter = ',', value_name = "KIND,...")]
    kinds: Vec<Kind>,
    /// Keeps stores and logs in this folder, which is new or empty [default: kept only if something is wrong]
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
    /// Prints JSON instead of text
    #[arg(long)]
    json: bool,
    /// The worker's program [default: polo-worker beside this program]
    #[arg(long, value_name = "FILE")]
    worker_program: Option<PathBuf>,
}

/// Why `polo chaos` fails.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages name the fields
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("cannot start {}: {source}; build it with `cargo build`, or name it with --worker-program", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("networks cannot be cut: {0}; choose other --kinds")]
    NoNetworks(String),
    #[error("no port could be had for the coordinator: {0}")]
    NoPort(io::Error),
    #[error("{} is not empty; name a new folder with --keep", .0.display())]
    NotEmpty(PathBuf),
    #[error("no step for {seconds} s although nothing is broken any more")]
    Standstill { seconds: u64 },
    #[error("the coordinator failed after {} ms ({}) though nothing was done to it", exit.lived.as_millis(), in_words(exit.status))]
    CoordinatorFailed { exit: Exit },
    #[error("a run was not completed; its last line: {line:?}")]
    NotCompleted { line: String },
    #[error(
        "{MOST_QUIET_RUNS} runs in a row ended before the first fault; give the recipe more steps, or lower --calm-ms"
    )]
    TooShort,
    #[error("the state of a run with faults is not that of the undisturbed one")]
    Differs,
    #[error("interrupted; all processes are killed")]
    Interrupted,
    #[error("{error}; logs and stores are in {}; --seed {seed} repeats the choices", folder.display())]
    InFolder { error: Box<Self>, folder: PathBuf, seed: u64 },
}

impl Error {
    /// Wraps an IO error with the place.
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

fn in_words(status: Option<ExitStatus>) -> String {
    status.map_or("how is unknown".into(), |status| status.to_string())
}

/// `polo chaos`.
pub async fn run(args: ChaosArgs) -> Result<(), CliError> {
    let recipe = recipe_file::load(&args.recipe, &args.sets)?;
    let network = match Network::enter(&recipe) {
        Ok(network) => network,
        Err(reason) if args.kinds == [Kind::CutOffWorker] => return Err(Error::NoNetworks(reason).into()),
        Err(reason) => {
            say(format_args!("networks are not cut: {reason}"));
            Network::Loopback
        }
    };
    let mut signals = Signals::new(OnSigterm::Stop)?;
    let temporary = tempfile::tempdir().map_err(CliError::io("cannot make a temporary folder"))?;
    let folder = match &args.keep {
        Some(folder) => made_empty(folder)?,
        None => temporary.path().to_owned(),
    };
    let seed = args.seed.unwrap_or_else(rand::random);
    say(format_args!("seed {seed}"));
    let rng = StdRng::seed_from_u64(seed);
    let attempt = Attempt { args: &args, recipe, network, folder: folder.clone(), rng };
    let outcome = attempt.run(seed, &mut signals).await;
    let Err(error) = outcome else { return Ok(()) };
    // The temporary folder is wanted now; where --keep was given, it is empty and goes.
    if args.keep.is_none() {
        let _ = temporary.keep();
    }
    Err(Error::InFolder { error: Box::new(error), folder, seed }.into())
}

fn made_empty(folder: &Path) -> Result<PathBuf, Error> {
    std::fs::create_dir_all(folder).map_err(Error::at(folder))?;
    let folder = folder.canonicalize().map_err(Error::at(folder))?;
    let is_empty = std::fs::read_dir(&folder).map_err(Error::at(&folder))?.next().is_none();
    if is_empty { Ok(folder) } else { Err(Error::NotEmpty(folder)) }
}

struct Attempt<'a> {
    args: &'a ChaosArgs,
    recipe: Recipe,
    network: Network,
    folder: PathBuf,
    rng: StdRng,
}

impl Attempt<'_> {
    async fn run(mut self, seed: u64, signals: &mut Signals) -> Result<(), Error> {
        say("the undisturbed run, of one worker");
        let undisturbed = self.one_run("undisturbed".into(), 1, 0, signals).await?;
        let (mut disturbed, mut left, mut num_quiet) = (Vec::new(), self.args.faults, 0);
        while left > 0 {
            let name = format!("run-{}", disturbed.len() + 1);
            say(format_args!("{name}, of {} workers; {left} faults to come", self.args.workers));
            let report = self.one_run(name, self.args.workers, left, signals).await?;
            left -= report.injected.len();
            num_quiet = if report.injected.is_empty() { num_quiet + 1 } else { 0 };
            if num_quiet == MOST_QUIET_RUNS {
                return Err(Error::TooShort);
            }
            disturbed.push(report);
        }
        let report = Report { seed, undisturbed, disturbed };
        let text = if self.args.json { format!("{}\n", report.to_json()) } else { report.to_text() };
        io::stdout().write_all(text.as_bytes()).map_err(Error::at(Path::new("standard output")))?;
        if report.is_equal() { Ok(()) } else { Err(Error::Differs) }
    }

    async fn one_run(
        &mut self,
        name: String,
        num_workers: u16,
        num_faults: usize,
        signals: &mut Signals,
    ) -> Result<RunReport, Error> {
        let folder = self.folder.join(name);
        let mut recipe = self.recipe.clone();
        recipe.run.store = folder.join("store").to_string_lossy().into_owned();
        let this = std::env::current_exe().unwrap_or_default();
        let worker_program = self.args.worker_program.clone().unwrap_or_else(|| this.with_file_name("polo-worker"));
        let setting = Setting { recipe, folder, worker_program, num_workers };
        let kinds = if self.args.kinds.is_empty() { &Kind::ALL[..] } else { &self.args.kinds };
        let turmoil = Turmoil { rng: &mut self.rng, kinds, num_faults, calm_ms: self.args.calm_ms };
        round::run(setting, &mut self.network, turmoil, signals).await
    }
}
