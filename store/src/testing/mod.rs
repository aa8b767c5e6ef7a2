//! What tests and demonstrations need around a store: a real S3 server, and small corpora.

mod corpus;
mod seaweedfs;

pub use corpus::put_corpus;
pub use seaweedfs::{SeaweedFs, settings};
