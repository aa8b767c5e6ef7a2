//! Where Polo's bytes live: object stores, digests, checkpoints, Hugging Face folders, token shards.
//!
//! This crate never decides what to train or who does it, never waits without a bound, and never hands out bytes whose
//! digest it was given without checking it. Start reading at [`Store`].

mod address;
mod answer;
mod cache;
mod cache_plan;
pub mod checkpoint;
pub mod corpus;
pub mod corpus_files;
mod create_only;
mod digest;
mod error;
mod hedge;
pub mod hf;
mod honesty;
pub mod indexed;
mod object;
pub mod recipe_file;
mod remote;
pub mod run;
#[cfg(feature = "testing")]
pub mod testing;

pub use cache::{Cache, CacheError, Cached};
pub use digest::{Digest, ParseDigestError};
pub use error::StoreError;
pub use honesty::Dishonesty;
pub use object::{Entry, Store};
