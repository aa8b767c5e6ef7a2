//! `config.json`: reading a published one, writing ours.

use polo_recipe::model::Qwen2Config;
use serde_json::{Map, Value, json};

use super::{CONFIG, Dtype};
use crate::{Store, StoreError};

/// Id of `<|endoftext|>` in Qwen2's vocabulary.
const END_OF_TEXT: usize = 151_643;

/// Reads the folder's `config.json`: the architecture, and the type in which its weights are kept.
pub async fn import(folder: &Store) -> Result<(Qwen2Config, Dtype), StoreError> {
    let bytes = folder.get(CONFIG).await?;
    parse_config(&bytes).map_err(|reason| StoreError::mismatch(folder.url_of(CONFIG), reason))
}

/// Reads the text of a `config.json`; the error names the key.
pub fn parse_config(json: &[u8]) -> Result<(Qwen2Config, Dtype), String> {
    let text = std::str::from_utf8(json).map_err(|e| e.to_string())?;
    let config = Qwen2Config::from_json(text).map_err(|e| e.to_string())?;
    let keys: Map<String, Value> = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let dtype = match keys.get("torch_dtype").or(keys.get("dtype")) {
        None | Some(Value::Null) => Dtype::F32,
        Some(name) => {
            let known = name.as_str().and_then(Dtype::from_torch_name);
            known.ok_or_else(|| format!("`torch_dtype` is {name}; float32, float16 or bfloat16 is needed"))?
        }
    };
    Ok((config, dtype))
}

/// The `config.json` of an exported model.
pub(super) fn config_json(config: &Qwen2Config, dtype: Dtype) -> Vec<u8> {
    let mut keys = json!({
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "torch_dtype": dtype.torch_name(),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": true,
        "use_sliding_window": false,
    });
    // Small vocabularies of experiments have no such token.
    if config.vocab_size > END_OF_TEXT {
        keys["bos_token_id"] = json!(END_OF_TEXT);
        keys["eos_token_id"] = json!(END_OF_TEXT);
    }
    if let (Value::Object(keys), Ok(Value::Object(architecture))) = (&mut keys, serde_json::to_value(config)) {
        keys.extend(architecture);
    }
    format!("{keys:#}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Map<String, Value> {
        let text = r#"{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
            "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
            "intermediate_size": 4864, "max_position_embeddings": 131072, "max_window_layers": 24,
            "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": true,
            "torch_dtype": "bfloat16", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}"#;
        serde_json::from_str(text).expect("json")
    }

    fn parse(keys: Map<String, Value>) -> Result<(Qwen2Config, Dtype), String> {
        parse_config(Value::Object(keys).to_string().as_bytes())
    }

    #[test]
    fn a_published_config_is_read_and_written_back() {
        let (config, dtype) = parse(published()).expect("parses");
        assert_eq!((config.hidden_size, config.vocab_size, config.tie_word_embeddings), (896, 151_936, true));
        assert_eq!(dtype, Dtype::Bf16);
        let written: Map<String, Value> = serde_json::from_slice(&config_json(&config, dtype)).expect("json");
        for (key, value) in published().iter().filter(|(key, _)| !key.contains("window_layers")) {
            assert!(key == "sliding_window" || written.get(key) == Some(value), "{key} is {:?}", written.get(key));
        }
        assert_eq!(parse(written), Ok((config, dtype)));
    }

    #[test]
    fn unknown_element_types_and_architectures_are_refused_by_name() {
        for (key, value) in [("torch_dtype", json!("int8")), ("model_type", json!("llama"))] {
            let mut keys = published();
            keys.insert(key.into(), value);
            let error = parse(keys).expect_err(key);
            assert!(error.contains(key), "{key}: {error}");
        }
    }
}
