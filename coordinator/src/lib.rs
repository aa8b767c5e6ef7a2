//! Who trains: membership, generations, checkpoints that exist, and how a run ends.
//!
//! The coordinator calls and the workers answer, but it is off the step path: between two changes of membership the
//! workers train by themselves. It never links libtorch and never touches a parameter. Start reading at
//! [`machine::State::step`], which decides everything; [`Run`] is the IO around it.

mod admission;
mod clock;
mod core;
#[cfg(test)]
mod fuzz;
mod history;
mod journal;
pub mod json;
pub mod machine;
mod observers;
mod outside;
mod probe;
mod serve;
mod services;
mod status;
mod web;
mod wire;

use polo_recipe::error::RecipeError;
use polo_store::{Digest, Dishonesty, StoreError, corpus::ManifestError};

pub use self::{
    core::News,
    history::History,
    journal::JournalError,
    observers::{Observers, Wanted},
    outside::{Network, Outside},
    serve::{Opening, Run, StopHandle},
    web::{Metric, catalogue},
};

/// Why a run cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The run's store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The corpus.
    #[error(transparent)]
    Corpus(#[from] ManifestError),
    /// The recipe does not fit the corpus.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The corpus has token ids that the model has not.
    #[error(
        "the corpus at {url} was prepared with a tokenizer of {corpus} ids, but `model.qwen2.vocab_size` is {model}; \
         prepare it with the model's tokenizer, or correct the model"
    )]
    Vocabulary {
        /// Address of the corpus.
        url: String,
        /// Ids of its tokenizer.
        corpus: u64,
        /// Ids of the model.
        model: u64,
    },
    /// The run has been trained on another corpus.
    #[error(
        "the run at {run} was trained on the corpus {expected}, but {corpus} holds {found} now; bring that corpus back, or \
         begin a new run with another `run.store`"
    )]
    OtherCorpus {
        /// Address of the run's store.
        run: String,
        /// Address of the corpus.
        corpus: String,
        /// Digest of the corpus that the newest checkpoint names.
        expected: Digest,
        /// Digest of the corpus that is there.
        found: Digest,
    },
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The store cannot keep two coordinators apart.
    #[error(
        "{url} cannot hold a run's journal: {seen}; use a store whose create-only puts hold (S3, GCS, Azure, a local folder), or pass --unfenced and make sure that there is never a second coordinator"
    )]
    DishonestStore {
        /// The run's store.
        url: String,
        /// What it did.
        seen: Dishonesty,
    },
    /// The gRPC server.
    #[error("the gRPC server failed: {0}")]
    Server(#[from] tonic::transport::Error),
    /// The gRPC reflection service.
    #[error("the gRPC reflection service cannot start: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}
