//! `polo run`: a coordinator in this process and workers in processes of their own.

use std::path::PathBuf;

use clap::Args;
use polo_recipe::config::Device;

use crate::{
    coordinate::{self, OnSigterm, ServeArgs, Signals},
    error::CliError,
    progress::Progress,
    worker_processes::{Started, WorkerProcesses},
};

/// Arguments of `polo run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    serve: ServeArgs,
    /// Worker processes to start
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    workers: u16,
    /// Starts a new worker for each one that dies
    #[arg(long)]
    respawn: bool,
    /// Writes to this file how long each worker computes, exchanges and waits; Perfetto (ui.perfetto.dev) opens it
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// GPUs of this machine, which workers take in turns, if the recipe has run.device = "cuda"
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    gpus: u16,
    /// The worker's program [default: polo-worker beside this program, or polo-worker-cuda with run.device = "cuda"]
    #[arg(long, value_name = "FILE")]
    worker_program: Option<PathBuf>,
}

/// `polo run`.
pub async fn run(args: RunArgs) -> Result<(), CliError> {
    let opened = coordinate::open(&args.serve, args.workers.into()).await?;
    if opened.run.has_ended() {
        return coordinate::serve(opened, &args.serve, Signals::new(OnSigterm::Stop)?).await;
    }
    let folder = tempfile::tempdir().map_err(CliError::io("cannot make a temporary folder"))?;
    let recipe_path = folder.path().join("recipe.toml");
    std::fs::write(&recipe_path, opened.recipe.to_toml()).map_err(CliError::io("cannot write the resolved recipe"))?;
    let program = args.worker_program.unwrap_or_else(|| beside_this_program(opened.recipe.run.device));
    if let Some(path) = &args.trace {
        // Workers append to it, and what came from an earlier run goes.
        std::fs::write(path, "[\n").map_err(|source| CliError::Trace { path: path.clone(), source })?;
    }
    let scheme = if opened.tls.is_some() { "https" } else { "http" };
    let mut workers = WorkerProcesses::new(Started {
        program,
        recipe: recipe_path,
        respawn: args.respawn,
        trace: args.trace,
        num_gpus: args.gpus,
        coordinator: format!("{scheme}://{}", opened.address),
        token_file: args.serve.protection.worker_token_file.clone(),
    });
    workers.start(args.workers)?;
    let progress = tokio::spawn(Progress::new(args.serve.log_every).follow(opened.news));
    let mut signals = Signals::new(OnSigterm::Stop)?;
    let stop = opened.run.stop_handle();
    let serving = opened.run.serve(opened.listener, opened.tls);
    tokio::pin!(serving);
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = &mut serving => break outcome?,
            signal = signals.next() => signals.on_signal(signal, &stop).await?,
            left = workers.attend(&stop) => left?,
        }
    };
    workers.wait_for_all().await;
    opened.observers.finish().await;
    coordinate::conclude(&opened.recipe, outcome, progress, args.serve.fail_on_worse).await
}

fn beside_this_program(device: Device) -> PathBuf {
    let this = std::env::current_exe().unwrap_or_default();
    this.with_file_name(match device {
        Device::Cpu => "polo-worker",
        Device::Cuda => "polo-worker-cuda",
    })
}
