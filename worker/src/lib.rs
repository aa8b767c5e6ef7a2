//! worker

pub mod corpus;
pub mod loader;
pub mod plane;
pub mod shard_cache;
pub mod reduce;
