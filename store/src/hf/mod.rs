//! Hugging Face model folders: `config.json` beside `model.safetensors`, or beside shards and their index.
//!
//! The weights' form is safetensors' (<https://huggingface.co/docs/safetensors>). Only 16 and 32 bit floats are taken.
//! Widening to fp32 is exact and narrowing rounds to nearest even, so an imported tensor exported in its own type has
//! the same bytes again.

mod config;
mod dtype;
mod export;
mod import;

pub use config::{import, parse_config};
pub use dtype::Dtype;
pub use export::{MAX_SHARD_BYTES, export};
pub use import::{read_params, read_tensors};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";
