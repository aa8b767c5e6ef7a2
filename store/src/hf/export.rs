//! The flat parameter vector into a Hugging Face folder.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use bytes::Bytes;
use polo_recipe::layout::{Layout, TensorSpec};
use polo_recipe::model::Qwen2Config;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::config::config_json;
use super::{CONFIG, Dtype, INDEX, SINGLE};
use crate::{Store, StoreError};

/// Longest shard that [`export`] is usually asked for.
pub const MAX_SHARD_BYTES: usize = 4 << 30;

/// Writes a model into the empty folder `out`, `config.json` last.
///
/// `params` gives the parameters in a range of the flat vector; it is asked in rising order, a tensor at a time. When
/// all weights take at most `max_shard_bytes` they become one file, else shards with an index. `extra_files` are
/// written beside them, `(name, content)`. A folder that has a model already is refused.
pub async fn export<Params>(
    out: &Store,
    config: &Qwen2Config,
    layout: &Layout,
    params: impl Fn(Range<usize>) -> Params,
    dtype: Dtype,
    max_shard_bytes: usize,
    extra_files: &[(String, Bytes)],
) -> Result<(), StoreError>
where
    Params: Future<Output = Result<Vec<f32>, StoreError>>,
{
    refuse_occupied(out).await?;
    let shards = cut_shards(&layout.tensors, dtype, max_shard_bytes);
    for (number, tensors) in shards.iter().enumerate() {
        let mut contents = Vec::with_capacity(tensors.len());
        for tensor in *tensors {
            contents.push(dtype.narrow(&params(tensor.range()).await?));
        }
        out.put(&shard_name(number, shards.len()), encode(tensors, &contents, dtype)?).await?;
    }
    if shards.len() > 1 {
        out.put(INDEX, index_json(&shards, layout.num_params * dtype.num_bytes()).into()).await?;
    }
    for (name, content) in extra_files {
        out.put(name, content.clone()).await?;
    }
    out.put(CONFIG, config_json(config, dtype).into()).await
}

/// Two models in one folder would be read as a mixture.
async fn refuse_occupied(out: &Store) -> Result<(), StoreError> {
    let is_model = |key: &str| key == CONFIG || key == INDEX || key.ends_with(".safetensors");
    match out.list("").await?.iter().find(|e| is_model(&e.key)) {
        None => Ok(()),
        Some(e) => {
            Err(StoreError::mismatch(out.url(), format!("it holds a model already ({}); name an empty folder", e.key)))
        }
    }
}

/// Runs of tensors of at most `max_shard_bytes` each; a longer tensor has a shard of its own.
fn cut_shards(tensors: &[TensorSpec], dtype: Dtype, max_shard_bytes: usize) -> Vec<&[TensorSpec]> {
    let (mut shards, mut first, mut num_bytes) = (Vec::new(), 0, 0);
    for (n, tensor) in tensors.iter().enumerate() {
        let tensor_bytes = tensor.numel() * dtype.num_bytes();
        if n > first && num_bytes + tensor_bytes > max_shard_bytes {
            shards.push(&tensors[first..n]);
            (first, num_bytes) = (n, 0);
        }
        num_bytes += tensor_bytes;
    }
    shards.push(&tensors[first..]);
    shards
}

fn shard_name(number: usize, num_shards: usize) -> String {
    if num_shards == 1 { SINGLE.to_owned() } else { format!("model-{:05}-of-{num_shards:05}.safetensors", number + 1) }
}

fn encode(tensors: &[TensorSpec], contents: &[Vec<u8>], dtype: Dtype) -> Result<Bytes, StoreError> {
    let failed = |e: safetensors::SafeTensorError| StoreError::mismatch("exported weights", e.to_string());
    let mut views = Vec::with_capacity(tensors.len());
    for (tensor, content) in tensors.iter().zip(contents) {
        let view = TensorView::new(dtype.to_file(), tensor.shape.clone(), content).map_err(failed)?;
        views.push((tensor.name.as_str(), view));
    }
    // Loaders of transformers ask for this entry.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(views, Some(metadata)).map_err(failed)?.into())
}

fn index_json(shards: &[&[TensorSpec]], num_bytes: usize) -> Vec<u8> {
    let place = |(n, tensors): (usize, &&[TensorSpec])| {
        let file = shard_name(n, shards.len());
        tensors.iter().map(|t| (t.name.clone(), file.clone())).collect::<Vec<_>>()
    };
    let weight_map: BTreeMap<_, _> = shards.iter().enumerate().flat_map(place).collect();
    format!("{:#}\n", json!({"metadata": {"total_size": num_bytes}, "weight_map": weight_map})).into_bytes()
}
