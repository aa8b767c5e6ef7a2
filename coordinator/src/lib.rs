//! Who trains: membership, generations, checkpoints that exist, and how a run ends.
//!
//! The coordinator calls and the workers answer, but it is off the step path: between two changes of membership the
//! workers train by themselves. It never links libtorch and never touches a parameter. Start reading at
//! [`machine::State::step`], which decides everything; [`Run`] is the IO around it.

mod core;
mod journal;
pub mod machine;
mod probe;
mod serve;
mod services;
mod status;
mod wire;

use polo_recipe::error::RecipeError;
use polo_store::{StoreError, corpus::ManifestError};

pub use self::{
    core::News,
    serve::{Run, StopHandle},
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
    /// The gRPC server.
    #[error("the gRPC server failed: {0}")]
    Server(#[from] tonic::transport::Error),
    /// The gRPC reflection service.
    #[error("the gRPC reflection service cannot start: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}
