//! What tests and demonstrations need around a store: real S3 servers, an honest one and one that lies, and small
//! corpora.

mod corpus;
mod rclone;
mod seaweedfs;
mod server;

pub use crate::address::{forget_memory, register_memory};
pub use corpus::put_corpus;
pub use rclone::Rclone;
pub use seaweedfs::SeaweedFs;
pub use server::{Server, settings};
