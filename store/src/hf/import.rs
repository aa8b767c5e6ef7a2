//! Weights of a Hugging Face folder into the flat parameter vector.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use futures::{StreamExt, TryStreamExt};
use polo_recipe::layout::{Layout, TensorSpec};
use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::{Dtype, EMBEDDING, HEAD, INDEX, SINGLE};
use crate::{Store, StoreError};

/// Length of the number that begins a safetensors file, the length of its header.
const PREFIX_BYTES: u64 = 8;
/// Safetensors' own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Elements fetched by one request at most.
const PIECE_ELEMENTS: usize = 8 << 20;
const MAX_PIECES_IN_FLIGHT: usize = 4;

/// A tensor as a file states it.
struct Found {
    file: String,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    /// Bytes of the file.
    bytes: Range<u64>,
}

/// Some elements of a tensor, at most [`PIECE_ELEMENTS`].
struct Piece<'a> {
    file: &'a str,
    dtype: Dtype,
    bytes: Range<u64>,
    num_elements: usize,
}

/// Reads all weights of `folder` into `out`, which has `layout.num_params` elements.
///
/// # Errors
/// Those of [`read_tensors`].
///
/// # Panics
/// When `out` has another length.
pub async fn read_params(folder: &Store, layout: &Layout, out: &mut [f32]) -> Result<(), StoreError> {
    assert_eq!(out.len(), layout.num_params, "the flat vector has the layout's length");
    read_tensors(folder, layout, |_| true, |spec, values| out[spec.range()].copy_from_slice(values)).await
}

/// Reads those tensors of `folder` that are wanted, and hands each to `take`.
///
/// # Errors
/// Every tensor of the layout has to be there and no other; those that are wanted in their shape and as F32, F16 or BF16:
/// the error names the file and the tensor. Only a tied model may carry an `lm_head.weight` that equals its embedding.
pub async fn read_tensors(
    folder: &Store,
    layout: &Layout,
    is_wanted: impl Fn(&TensorSpec) -> bool,
    mut take: impl FnMut(&TensorSpec, &[f32]),
) -> Result<(), StoreError> {
    let mut found = find_tensors(folder).await?;
    let tied_head = if layout.tensor(HEAD).is_none() { found.remove(HEAD) } else { None };
    let mut values = Vec::new();
    for spec in &layout.tensors {
        let tensor = found.remove(&spec.name).ok_or_else(|| {
            StoreError::mismatch(folder.url(), format!("the tensor {} is in no file of the model", spec.name))
        })?;
        if is_wanted(spec) {
            values.resize(spec.numel(), 0.0);
            read_tensor(folder, spec, &tensor, &mut values).await?;
            if let (EMBEDDING, Some(head)) = (spec.name.as_str(), &tied_head) {
                compare_tied(folder, spec, head, &values).await?;
            }
            take(spec, &values);
        }
    }
    match found.first_key_value() {
        None => Ok(()),
        Some((name, tensor)) => Err(mismatch(folder, tensor, name, "the model has no such tensor".into())),
    }
}

async fn read_tensor(folder: &Store, spec: &TensorSpec, tensor: &Found, out: &mut [f32]) -> Result<(), StoreError> {
    let mut pieces = fetched(folder, pieces(folder, spec, tensor)?);
    let mut rest = out;
    while let Some((piece, bytes)) = pieces.try_next().await? {
        let (values, later) = rest.split_at_mut(piece.num_elements);
        piece.dtype.widen(&bytes, values);
        rest = later;
    }
    Ok(())
}

/// Checks that the head that a tied model need not have says the same as its embedding.
async fn compare_tied(folder: &Store, spec: &TensorSpec, head: &Found, embedding: &[f32]) -> Result<(), StoreError> {
    let spec = TensorSpec { name: HEAD.into(), ..spec.clone() };
    let mut pieces = fetched(folder, pieces(folder, &spec, head)?);
    let (mut rest, mut widened) = (embedding, Vec::new());
    while let Some((piece, bytes)) = pieces.try_next().await? {
        let (values, later) = rest.split_at(piece.num_elements);
        widened.resize(piece.num_elements, 0.0);
        piece.dtype.widen(&bytes, &mut widened);
        if values.iter().zip(&widened).any(|(a, b)| a.to_bits() != b.to_bits()) {
            let reason = format!("it differs from {EMBEDDING}, but tie_word_embeddings is true; correct config.json");
            return Err(mismatch(folder, head, HEAD, reason));
        }
        rest = later;
    }
    Ok(())
}

fn pieces<'a>(folder: &Store, spec: &TensorSpec, tensor: &'a Found) -> Result<Vec<Piece<'a>>, StoreError> {
    let refused = |reason| mismatch(folder, tensor, &spec.name, reason);
    let dtype = Dtype::from_file(tensor.dtype)
        .ok_or_else(|| refused(format!("its elements are {:?}; F32, F16 or BF16 is needed", tensor.dtype)))?;
    if tensor.shape != spec.shape {
        return Err(refused(format!("its shape is {:?}, but config.json asks for {:?}", tensor.shape, spec.shape)));
    }
    let piece = |start: usize| {
        let num_elements = PIECE_ELEMENTS.min(spec.numel() - start);
        let first = tensor.bytes.start + (start * dtype.num_bytes()) as u64;
        let bytes = first..first + (num_elements * dtype.num_bytes()) as u64;
        Piece { file: &tensor.file, dtype, bytes, num_elements }
    };
    Ok((0..spec.numel()).step_by(PIECE_ELEMENTS).map(piece).collect())
}

/// The pieces in order, each with its bytes.
fn fetched<'a>(
    folder: &'a Store,
    pieces: Vec<Piece<'a>>,
) -> impl futures::Stream<Item = Result<(Piece<'a>, bytes::Bytes), StoreError>> + Unpin {
    let fetch = move |piece: Piece<'a>| async move {
        let bytes = folder.get_range(piece.file, piece.bytes.clone()).await?;
        Ok((piece, bytes))
    };
    Box::pin(futures::stream::iter(pieces).map(fetch).buffered(MAX_PIECES_IN_FLIGHT))
}

/// All tensors of the folder's files, by name.
async fn find_tensors(folder: &Store) -> Result<BTreeMap<String, Found>, StoreError> {
    let mut found = BTreeMap::new();
    for file in weight_files(folder).await? {
        for (name, tensor) in read_header(folder, &file).await? {
            if found.contains_key(&name) {
                return Err(mismatch(folder, &tensor, &name, "another file has it too".into()));
            }
            found.insert(name, tensor);
        }
    }
    Ok(found)
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

async fn weight_files(folder: &Store) -> Result<BTreeSet<String>, StoreError> {
    if folder.exists(SINGLE).await? {
        return Ok([SINGLE.to_owned()].into());
    }
    let index = match folder.get(INDEX).await {
        Err(e) if e.is_not_found() => {
            return Err(StoreError::mismatch(folder.url(), format!("there is neither {SINGLE} nor {INDEX} in it")));
        }
        other => other?,
    };
    let index: Index =
        serde_json::from_slice(&index).map_err(|e| StoreError::damaged(folder.url_of(INDEX), e.to_string()))?;
    Ok(index.weight_map.into_values().collect())
}

async fn read_header(folder: &Store, file: &str) -> Result<Vec<(String, Found)>, StoreError> {
    let damaged = |reason: String| StoreError::damaged(folder.url_of(file), reason);
    let size = folder.size_bytes(file).await?;
    if size < PREFIX_BYTES {
        return Err(damaged(format!("it has {size} bytes, too few for a safetensors file; fetch it again")));
    }
    let prefix = folder.get_range(file, 0..PREFIX_BYTES).await?;
    let header_bytes = prefix.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
    if header_bytes > MAX_HEADER_BYTES || PREFIX_BYTES + header_bytes > size {
        return Err(damaged(format!("its header should have {header_bytes} bytes, but the file has {size}")));
    }
    let data_start = PREFIX_BYTES + header_bytes;
    let header = folder.get_range(file, PREFIX_BYTES..data_start).await?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|e| damaged(format!("its header: {e}")))?;
    let expected = data_start + header.data_len() as u64;
    if size != expected {
        return Err(damaged(format!("it has {size} bytes instead of {expected}; fetch it again")));
    }
    let found = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (start, end) = info.data_offsets;
        let bytes = data_start + start as u64..data_start + end as u64;
        (name, Found { file: file.to_owned(), dtype: info.dtype, shape: info.shape.clone(), bytes })
    };
    Ok(header.tensors().into_iter().map(found).collect())
}

fn mismatch(folder: &Store, tensor: &Found, name: &str, reason: String) -> StoreError {
    StoreError::mismatch(format!("{}, tensor {name}", folder.url_of(&tensor.file)), reason)
}
