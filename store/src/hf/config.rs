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
        let keys = json!({"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 896, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151_936,
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "bos_token_id": 151_643, "eos_token_id": 151_643, "use_sliding_window": false});
        keys.as_object().expect("an object").clone()
    }

    fn parse(keys: Map<String, Value>) -> Result<(Qwen2Config, Dtype), String> {
        parse_config(Value::Object(keys).to_string().as_bytes())
    }

    #[test]
    fn a_published_config_is_read_and_written_back() {
        let (config, dtype) = parse(published()).expect("parses");
        assert_eq!((config.hidden_size, dtype), (896, Dtype::Bf16));
        let written: Map<String, Value> = serde_json::from_slice(&config_json(&config, dtype)).expect("json");
        for (key, value) in published() {
            assert_eq!(written.get(&key), Some(&value), "{key}");
        }
        assert_eq!(parse(written), Ok((config, dtype)));
    }

    #[test]
    fn element_types_have_two_names_and_unknown_ones_are_refused() {
        let mut keys = published();
        keys.remove("torch_dtype");
        assert_eq!(parse(keys.clone()).expect("none").1, Dtype::F32);
        keys.insert("dtype".into(), json!("float16"));
        assert_eq!(parse(keys.clone()).expect("the newer name").1, Dtype::F16);
        keys.insert("dtype".into(), json!("int8"));
        assert!(parse(keys).expect_err("int8").contains("`torch_dtype` is \"int8\""));
    }
}
