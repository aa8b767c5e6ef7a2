//! Hugging Face folders between transformers and Polo, in both directions. Needs `scripts/setup python`.
#![allow(missing_docs)]

mod folders;
mod peer;
mod run;

use std::path::Path;

use peer::{Peer, path};
use polo_recipe::model::Qwen2Config;
use polo_store::{Store, hf};
use polo_worker::model::{Model, ModelOptions};
use serde_json::{Value, json};
use tch::Tensor;

/// Greatest difference of a logit, over the greatest logit.
const TOLERANCE: f64 = 1e-5;
const VOCAB_SIZE: usize = 173;

/// Keys of a small Qwen2.
fn small_config(tied: bool, num_kv_heads: usize) -> Value {
    json!({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": num_kv_heads,
        "intermediate_size": 40, "vocab_size": VOCAB_SIZE, "tie_word_embeddings": tied, "rope_theta": 1e6,
        "max_position_embeddings": 64, "bos_token_id": null, "eos_token_id": null})
}

/// Two sequences of 21 ids.
fn input_ids() -> Vec<Vec<i64>> {
    let id = |row: i64, column: i64| (row * 89 + column * column * 31 + 7) % VOCAB_SIZE as i64;
    (0..2).map(|row| (0..21).map(|column| id(row, column)).collect()).collect()
}

/// The model in a folder, and its flat parameters.
async fn import(folder: &Path) -> (Qwen2Config, hf::Dtype, Vec<f32>) {
    let store = Store::open(path(folder)).expect("a folder");
    let (config, dtype) = hf::import(&store).await.expect("config.json");
    let layout = polo_recipe::layout::Layout::qwen2(&config);
    let mut params = vec![f32::NAN; layout.num_params];
    hf::read_params(&store, &layout, &mut params).await.expect("weights");
    (config, dtype, params)
}

/// Polo's own logits.
fn logits(config: &Qwen2Config, params: &[f32], input_ids: &[Vec<i64>]) -> Vec<f64> {
    let model = Model::new(config, ModelOptions::default()).expect("a model");
    let shape = [input_ids.len() as i64, input_ids[0].len() as i64];
    let ids = Tensor::from_slice(&input_ids.concat()).view(shape);
    let logits = model.logits(&Tensor::from_slice(params), &ids).expect("logits");
    Vec::try_from(logits.reshape(-1).to_kind(tch::Kind::Double)).expect("a vector")
}

fn assert_close(name: &str, found: &[f64], right: &[f64]) {
    assert_eq!(found.len(), right.len(), "{name}");
    let greatest = right.iter().fold(0.0, |greatest: f64, x| greatest.max(x.abs()));
    for (number, (a, b)) in found.iter().zip(right).enumerate() {
        assert!((a - b).abs() <= TOLERANCE * greatest, "{name}: logit {number} is {a}, not {b}");
    }
}
