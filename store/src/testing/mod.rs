//! What tests and demonstrations need around a store: real servers, honest ones and one that lies, a relay that does to
//! them what networks do, and small corpora.

mod azurite;
mod corpus;
mod moto;
mod proxy;
mod rclone;
mod seaweedfs;
mod server;

pub use crate::address::{forget_memory, register_memory};
pub use azurite::Azurite;
pub use corpus::put_corpus;
pub use moto::{Moto, TranslatedGcs};
pub use proxy::{Fault, Proxy, Translate};
pub use rclone::Rclone;
pub use seaweedfs::SeaweedFs;
pub use server::{Server, settings};
