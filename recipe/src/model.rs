//! Qwen2's architecture as Hugging Face's `config.json` states it.

use serde::{Deserialize, Serialize};

/// The keys of a Qwen2 `config.json` that decide its computation, under their Hugging Face names.
///
/// Unknown keys are kept out on purpose by [`Qwen2Config::from_json`], which reads published files: those carry keys
/// (`architectures`, `transformers_version`, ...) that change nothing here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qwen2Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of query heads; `hidden_size` divides by it.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding, padding included.
    pub vocab_size: usize,
    /// Whether the output projection is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Epsilon of every RMSNorm.
    #[serde(default = "default_rms_norm_eps")]
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// Longest sequence the model is meant for, in tokens.
    #[serde(default = "default_max_position_embeddings")]
    pub max_position_embeddings: usize,
    /// Standard deviation of freshly initialised weights.
    #[serde(default = "default_initializer_range")]
    pub initializer_range: f64,
}

fn default_rms_norm_eps() -> f64 {
    1e-6
}
fn default_rope_theta() -> f64 {
    1_000_000.0
}
fn default_max_position_embeddings() -> usize {
    131_072
}
fn default_initializer_range() -> f64 {
    0.02
}

impl Qwen2Config {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Width of all key heads together (and of all value heads).
    pub fn kv_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim()
    }
}
