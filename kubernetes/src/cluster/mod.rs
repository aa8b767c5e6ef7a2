//! The shell over the API server: each request is bounded, and each refusal is put into words that say what to do.

mod apply;
mod connect;
mod delete;
mod error;
mod find;
mod forward;
mod logs;
mod scale;

pub use apply::Change;
pub use connect::{Cluster, ClusterOptions};
pub use delete::Deletion;
pub use error::ClusterError;
pub use forward::Forward;
pub use logs::{LogLine, LogOptions, Logs};
pub use scale::Scaled;
