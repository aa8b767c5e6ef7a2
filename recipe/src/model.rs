//! Qwen2's architecture as Hugging Face's `config.json` states it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::RecipeError;

/// The keys of a Qwen2 `config.json` that decide its computation, under their Hugging Face names.
///
/// Unknown keys are kept out on purpose by [`Qwen2Config::from_json`], which reads published files: those carry keys
/// (`architectures`, `transformers_version`, ...) that change nothing here.
#[derive(Debug, Clone, PartialEq, JsonSchema, Serialize, Deserialize)]
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

    /// Reads a Hugging Face `config.json`.
    ///
    /// Keys that ask for a computation which is not done here (another architecture or activation, sliding windows,
    /// scaled rotary embeddings) are refused; absent ones have the defaults of Hugging Face's `Qwen2Config`.
    pub fn from_json(text: &str) -> Result<Self, RecipeError> {
        let mut keys: Map<String, Value> = serde_json::from_str(text).map_err(|e| model_error(e.to_string()))?;
        refuse_other_computations(&keys)?;
        if let Some(theta) = keys.get("rope_parameters").and_then(|rope| rope.get("rope_theta")).cloned() {
            keys.entry("rope_theta").or_insert(theta);
        }
        keys.entry("rope_theta").or_insert(json!(10_000.0));
        keys.entry("max_position_embeddings").or_insert(json!(32_768));
        keys.retain(|key, _| KEYS.contains(&key.as_str()));
        let config: Self = serde_json::from_value(keys.into()).map_err(|e| model_error(e.to_string()))?;
        config.validate()?;
        Ok(config)
    }

    /// Checks that sizes are above zero and fit each other.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (key, size) in sizes {
            check(size > 0, || format!("`{key}` is 0; it has to be at least 1"))?;
        }
        let (hidden, heads, kv_heads) = (self.hidden_size, self.num_attention_heads, self.num_key_value_heads);
        check(hidden.is_multiple_of(heads), || {
            format!("`num_attention_heads` = {heads} has to divide `hidden_size` = {hidden}")
        })?;
        check(self.head_dim().is_multiple_of(2), || {
            format!("heads are {hidden} / {heads} = {} wide; rotary embeddings need an even width", self.head_dim())
        })?;
        check(heads.is_multiple_of(kv_heads), || {
            format!("`num_key_value_heads` = {kv_heads} has to divide `num_attention_heads` = {heads}")
        })?;
        for (key, number) in [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("initializer_range", self.initializer_range),
        ] {
            check(number.is_finite() && number > 0.0, || format!("`{key}` is {number}; it has to be above 0"))?;
        }
        Ok(())
    }
}

/// The keys that [`Qwen2Config::from_json`] takes over.
const KEYS: [&str; 11] = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "max_position_embeddings",
    "initializer_range",
];

fn refuse_other_computations(keys: &Map<String, Value>) -> Result<(), RecipeError> {
    let rope_type = keys.get("rope_parameters").and_then(|rope| rope.get("rope_type"));
    let model_type = keys.get("model_type").unwrap_or(&Value::Null);
    for (key, found, right) in [
        ("model_type", Some(model_type), json!("qwen2")),
        ("hidden_act", keys.get("hidden_act"), json!("silu")),
        ("use_sliding_window", keys.get("use_sliding_window"), json!(false)),
        ("rope_scaling", keys.get("rope_scaling"), Value::Null),
        ("rope_parameters.rope_type", rope_type, json!("default")),
    ] {
        if let Some(found) = found {
            check(*found == right, || format!("`{key}` is {found}, but only {right} is trained here"))?;
        }
    }
    Ok(())
}

fn check(holds: bool, message: impl FnOnce() -> String) -> Result<(), RecipeError> {
    if holds { Ok(()) } else { Err(model_error(message())) }
}

fn model_error(message: String) -> RecipeError {
    RecipeError::ModelConfig { message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Map<String, Value> {
        let text = r#"{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
            "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
            "intermediate_size": 4864, "max_position_embeddings": 131072, "max_window_layers": 24,
            "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": true,
            "torch_dtype": "bfloat16", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}"#;
        serde_json::from_str(text).expect("valid JSON")
    }

    fn read(keys: Map<String, Value>) -> Result<Qwen2Config, RecipeError> {
        Qwen2Config::from_json(&Value::Object(keys).to_string())
    }

    #[test]
    fn a_published_config_is_read_and_its_other_keys_are_ignored() {
        let config = read(published()).expect("a published config");
        assert_eq!((config.hidden_size, config.kv_size(), config.vocab_size), (896, 128, 151_936));
        assert_eq!((config.rms_norm_eps, config.rope_theta, config.tie_word_embeddings), (1e-5, 1e6, true));
    }

    #[test]
    fn the_rotary_base_is_found_where_newer_files_keep_it() {
        let mut keys = published();
        keys.remove("rope_theta");
        assert_eq!(read(keys.clone()).expect("absent").rope_theta, 10_000.0);
        keys.insert("rope_parameters".into(), json!({"rope_theta": 5e5, "rope_type": "default"}));
        assert_eq!(read(keys).expect("nested").rope_theta, 5e5);
    }

    #[test]
    fn what_cannot_be_computed_is_refused_by_name() {
        for (key, value, mention) in [
            ("model_type", json!("llama"), "`model_type` is \"llama\""),
            ("hidden_act", json!("gelu"), "only \"silu\""),
            ("use_sliding_window", json!(true), "`use_sliding_window`"),
            ("rope_scaling", json!({"type": "yarn"}), "`rope_scaling`"),
            ("rope_parameters", json!({"rope_type": "yarn"}), "`rope_parameters.rope_type`"),
            ("hidden_size", json!(895), "`num_attention_heads` = 14 has to divide `hidden_size` = 895"),
            ("hidden_size", json!(14), "even width"),
            ("num_key_value_heads", json!(3), "`num_key_value_heads` = 3"),
            ("vocab_size", json!(0), "`vocab_size` is 0"),
            ("rms_norm_eps", json!(-1.0), "`rms_norm_eps` is -1"),
            ("intermediate_size", json!("wide"), "invalid type"),
        ] {
            let mut keys = published();
            keys.insert(key.into(), value);
            let message = read(keys).expect_err(key).to_string();
            assert!(message.contains(mention), "{message}");
        }
        for (key, mention) in [("hidden_size", "missing field `hidden_size`"), ("model_type", "`model_type` is null")] {
            let mut keys = published();
            keys.remove(key);
            let message = read(keys).expect_err("absent").to_string();
            assert!(message.contains(mention), "{message}");
        }
    }
}
