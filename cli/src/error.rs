//! Why a command failed.

use std::{io, net::SocketAddr, path::PathBuf};

use polo_coordinator::CoordinatorError;
use polo_kubernetes::{ClusterError, SubmissionError, TERMINATED_EXIT_CODE};
use polo_store::{corpus::ManifestError, recipe_file::RecipeFileError};

use crate::{chaos, export, plan, recipe, samples, verify};

/// Everything that ends a command.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Recipe(#[from] RecipeFileError),
    #[error(transparent)]
    RecipeCommand(#[from] recipe::RecipeCommandError),
    #[error(transparent)]
    Plan(#[from] plan::Error),
    #[error(transparent)]
    Prepare(#[from] polo_prepare::PrepareError),
    #[error(transparent)]
    Verify(#[from] verify::Error),
    #[error(transparent)]
    Samples(#[from] samples::Error),
    #[error(transparent)]
    Export(#[from] export::Error),
    #[error(transparent)]
    Chaos(#[from] chaos::Error),
    #[error(transparent)]
    Transport(#[from] polo_transport::TransportError),
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    #[error(transparent)]
    Corpus(#[from] ManifestError),
    #[error(transparent)]
    Submission(#[from] SubmissionError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("cannot listen on {address}: {source}; is another run on that port? choose another with --listen")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot start {}: {source}; build it with `make build`, with FLAVOUR=cuda for GPUs, or name it with --worker-program", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("cannot write a trace to {}: {source}; choose another --trace", path.display())]
    Trace { path: PathBuf, source: io::Error },
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
    #[error("no coordinator at {address}: {problem}; check that the run goes on, and --address")]
    Unreachable { address: String, problem: String },
    #[error("lost the coordinator at {address} before the run had ended ({problem}); look at its last words")]
    Lost { address: String, problem: String },
    #[error("the coordinator at {address} answered: {problem}")]
    Refused { address: String, problem: String },
    #[error("the run failed: {0}")]
    RunFailed(String),
    #[error(
        "worse on held-out samples than `validation.max_worsening` allows: {sources}; the run's checkpoints are there all the same"
    )]
    Worse { sources: String },
    #[error("all workers have exited and the run is not over; their messages are above")]
    NoWorkersLeft,
    #[error("terminated; the run goes on, and a coordinator that is started again takes it up")]
    Terminated,
    #[error("interrupted twice; the run was ended without a checkpoint")]
    Interrupted,
}

impl CliError {
    /// What the command exits with; 2 is clap's, for a command line that makes no sense.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Worse { .. } => 3,
            Self::Terminated => TERMINATED_EXIT_CODE,
            _ => 1,
        }
    }

    /// Wraps an IO error with what was being done.
    pub fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
