//! worker

pub mod corpus;
pub mod loader;
pub mod shard_cache;
