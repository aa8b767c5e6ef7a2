//! What several unit tests need.

use crate::model::Qwen2Config;

/// A model of these sizes; all else is as published Qwen2 models have it.
pub(crate) fn published(
    hidden: usize,
    layers: usize,
    heads: (usize, usize),
    mlp: usize,
    vocab: usize,
    tied: bool,
) -> Qwen2Config {
    Qwen2Config {
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: heads.0,
        num_key_value_heads: heads.1,
        intermediate_size: mlp,
        vocab_size: vocab,
        tie_word_embeddings: tied,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        max_position_embeddings: 131_072,
        initializer_range: 0.02,
    }
}

/// Qwen2-7B.
pub(crate) fn qwen2_7b() -> Qwen2Config {
    published(3584, 28, (28, 4), 18_944, 152_064, false)
}

/// Qwen2-72B.
pub(crate) fn qwen2_72b() -> Qwen2Config {
    published(8192, 80, (64, 8), 29_568, 152_064, false)
}
