//! `config.json`: reading a published one, writing ours.

use polo_recipe::model::Qwen2Config;
use serde_json::{Map, Value, json};

use super::{CONFIG, Dtype};
use crate::{Store, StoreError};

/// Id of `<|endoftext|>` in Qwen2's vocabulary.
const END_OF_TEXT: usize = 151_643;

/// Keys of `config.json` that decide the computation, see [`Qwen2Config`].
const ARCHITECTURE_KEYS: [&str; 11] = [
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

/// Reads the folder's `config.json`: the architecture, and the type in which its weights are kept.
pub async fn import(folder: &Store) -> Result<(Qwen2Config, Dtype), StoreError> {
    let bytes = folder.get(CONFIG).await?;
    parse_config(&bytes).map_err(|reason| StoreError::mismatch(folder.url_of(CONFIG), reason))
}

/// Reads the text of a `config.json`; the error names the key.
pub fn parse_config(json: &[u8]) -> Result<(Qwen2Config, Dtype), String> {
    let keys: Map<String, Value> = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    refuse_other_computations(&keys)?;
    let dtype = match keys.get("torch_dtype").or(keys.get("dtype")) {
        None | Some(Value::Null) => Dtype::F32,
        Some(name) => {
            let known = name.as_str().and_then(Dtype::from_torch_name);
            known.ok_or_else(|| format!("torch_dtype is {name}; float32, float16 or bfloat16 is needed"))?
        }
    };
    let known = keys.into_iter().filter(|(key, _)| ARCHITECTURE_KEYS.contains(&key.as_str())).collect();
    let config = serde_json::from_value(Value::Object(known)).map_err(|e| e.to_string())?;
    Ok((config, dtype))
}

fn refuse_other_computations(keys: &Map<String, Value>) -> Result<(), String> {
    let refuse_unless = |key: &str, fine: &[Value], need: &str| match keys.get(key) {
        Some(value) if !fine.contains(value) => Err(format!("{key} is {value}; {need}")),
        _ => Ok(()),
    };
    if !keys.contains_key("model_type") {
        return Err("model_type is missing; it has to be \"qwen2\"".into());
    }
    refuse_unless("model_type", &[json!("qwen2")], "only \"qwen2\" can be trained")?;
    refuse_unless("hidden_act", &[json!("silu")], "only \"silu\" can be computed")?;
    refuse_unless("use_sliding_window", &[json!(false), Value::Null], "sliding windows cannot be computed")?;
    refuse_unless("rope_scaling", &[Value::Null], "scaled rotary embeddings cannot be computed")
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
    fn other_computations_are_refused_by_name() {
        let changes = [
            ("model_type", json!("llama")),
            ("hidden_act", json!("gelu")),
            ("use_sliding_window", json!(true)),
            ("rope_scaling", json!({"type": "yarn"})),
            ("torch_dtype", json!("int8")),
            ("hidden_size", json!("wide")),
        ];
        for (key, value) in changes {
            let mut keys = published();
            keys.insert(key.into(), value);
            let error = parse(keys).expect_err(key);
            assert!(error.contains(key) || key == "hidden_size", "{key}: {error}");
        }
        let mut keys = published();
        keys.remove("num_hidden_layers");
        assert!(parse(keys).expect_err("missing").contains("num_hidden_layers"));
    }
}
