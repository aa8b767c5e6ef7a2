//! The flat order of parameters: tensors lie block by block in one vector, and blocks are cut into chunks.
//!
//! Offsets and chunk ids follow from the model alone, never from the world, so any worker can hold, send, store or
//! check any chunk under the same name.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::model::Qwen2Config;

/// Parameters in a full chunk (4 MiB of fp32); the last chunk of a block may be shorter.
pub const CHUNK_PARAMS: usize = 1 << 20;

/// Number of a chunk, counted through the whole layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChunkId(pub u32);

/// What a fresh tensor is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// Normal numbers with standard deviation `initializer_range`.
    Normal,
    /// All ones (norm weights).
    Ones,
    /// All zeros (biases).
    Zeros,
}

/// One parameter tensor and its place in the flat vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The Hugging Face name.
    pub name: String,
    /// Row-major shape; linear weights are `[out, in]`.
    pub shape: Vec<usize>,
    /// First element in the flat vector.
    pub offset: usize,
    /// Whether weight decay applies (matrices yes, norms and biases no).
    pub decay: bool,
    /// What a fresh one holds.
    pub init: Init,
}

impl TensorSpec {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements of the flat vector that it takes.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.numel()
    }
}

/// A run of tensors that are used together: the embedding, a layer, or the head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockSpec {
    /// Indices into [`Layout::tensors`].
    pub tensors: Range<usize>,
    /// Elements of the flat vector.
    pub range: Range<usize>,
}

/// A piece of a block, the unit of ownership, transfer and storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSpec {
    /// Its number.
    pub id: ChunkId,
    /// The block it belongs to, an index into [`Layout::blocks`].
    pub block: usize,
    /// Elements of the flat vector.
    pub range: Range<usize>,
}

/// Where every parameter of a model lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// All tensors in flat order.
    pub tensors: Vec<TensorSpec>,
    /// Embedding, layers 0.., head: `num_hidden_layers + 2` of them.
    pub blocks: Vec<BlockSpec>,
    /// All chunks in flat order.
    pub chunks: Vec<ChunkSpec>,
    /// Length of the flat vector.
    pub num_params: usize,
}

impl Layout {
    /// The layout of a Qwen2 with chunks of [`CHUNK_PARAMS`].
    pub fn qwen2(config: &Qwen2Config) -> Self {
        Self::with_chunk_params(config, CHUNK_PARAMS)
    }

    /// The layout of a Qwen2 with chunks of `chunk_params` elements.
    pub fn with_chunk_params(config: &Qwen2Config, chunk_params: usize) -> Self {
        let mut builder = Builder::default();
        builder.block(|b| b.matrix("model.embed_tokens.weight".into(), config.vocab_size, config.hidden_size));
        for layer in 0..config.num_hidden_layers {
            builder.block(|b| b.layer(layer, config));
        }
        builder.block(|b| {
            b.vector("model.norm.weight".into(), config.hidden_size, Init::Ones);
            if !config.tie_word_embeddings {
                b.matrix("lm_head.weight".into(), config.vocab_size, config.hidden_size);
            }
        });
        builder.finish(chunk_params)
    }

    /// The tensor of that Hugging Face name.
    pub fn tensor(&self, name: &str) -> Option<&TensorSpec> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// Chunks that lie in `range` of the flat vector, in whole or in part, and those parts.
    pub fn chunks_in(&self, range: &Range<usize>) -> impl Iterator<Item = (&ChunkSpec, Range<usize>)> {
        let Range { start, end } = range.clone();
        let first = self.chunks.partition_point(|chunk| chunk.range.end <= start);
        let met = self.chunks[first..].iter().take_while(move |chunk| chunk.range.start < end);
        met.map(move |chunk| (chunk, chunk.range.start.max(start)..chunk.range.end.min(end)))
    }

    /// The pieces of chunk `id` that lie in one tensor each, with whether weight decay applies to them.
    pub fn decay_segments(&self, id: ChunkId) -> Vec<(Range<usize>, bool)> {
        let chunk = &self.chunks[id.0 as usize];
        let cut = |t: &TensorSpec| t.offset.max(chunk.range.start)..t.range().end.min(chunk.range.end);
        self.tensors[self.blocks[chunk.block].tensors.clone()]
            .iter()
            .map(|t| (cut(t), t.decay))
            .filter(|(range, _)| !range.is_empty())
            .collect()
    }
}

#[derive(Default)]
struct Builder {
    tensors: Vec<TensorSpec>,
    blocks: Vec<BlockSpec>,
    offset: usize,
}

impl Builder {
    fn block(&mut self, fill: impl FnOnce(&mut Self)) {
        let (first_tensor, start) = (self.tensors.len(), self.offset);
        fill(self);
        self.blocks.push(BlockSpec { tensors: first_tensor..self.tensors.len(), range: start..self.offset });
    }

    fn push(&mut self, name: String, shape: Vec<usize>, decay: bool, init: Init) {
        let tensor = TensorSpec { name, shape, offset: self.offset, decay, init };
        self.offset += tensor.numel();
        self.tensors.push(tensor);
    }

    fn matrix(&mut self, name: String, rows: usize, columns: usize) {
        self.push(name, vec![rows, columns], true, Init::Normal);
    }

    fn vector(&mut self, name: String, len: usize, init: Init) {
        self.push(name, vec![len], false, init);
    }

    fn layer(&mut self, layer: usize, c: &Qwen2Config) {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}");
        let (hidden, kv, mlp) = (c.hidden_size, c.kv_size(), c.intermediate_size);
        self.vector(name("input_layernorm.weight"), hidden, Init::Ones);
        for (projection, out) in [("q", hidden), ("k", kv), ("v", kv)] {
            self.matrix(name(&format!("self_attn.{projection}_proj.weight")), out, hidden);
        }
        for (projection, out) in [("q", hidden), ("k", kv), ("v", kv)] {
            self.vector(name(&format!("self_attn.{projection}_proj.bias")), out, Init::Zeros);
        }
        self.matrix(name("self_attn.o_proj.weight"), hidden, hidden);
        self.vector(name("post_attention_layernorm.weight"), hidden, Init::Ones);
        self.matrix(name("mlp.gate_proj.weight"), mlp, hidden);
        self.matrix(name("mlp.up_proj.weight"), mlp, hidden);
        self.matrix(name("mlp.down_proj.weight"), hidden, mlp);
    }

    fn finish(self, chunk_params: usize) -> Layout {
        let pieces = self.blocks.iter().enumerate().flat_map(|(block, spec)| {
            let end = spec.range.end;
            spec.range.clone().step_by(chunk_params).map(move |start| (block, start..(start + chunk_params).min(end)))
        });
        let chunks =
            (0..).zip(pieces).map(|(id, (block, range))| ChunkSpec { id: ChunkId(id), block, range }).collect();
        Layout { tensors: self.tensors, blocks: self.blocks, chunks, num_params: self.offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{published, qwen2_7b, qwen2_72b};

    #[test]
    fn published_sizes_have_their_published_parameter_and_tensor_counts() {
        for (config, params, tensors) in [
            (published(896, 24, (14, 2), 4864, 151_936, true), 494_032_768, 290),
            (published(1536, 28, (12, 2), 8960, 151_936, true), 1_543_714_304, 338),
            (qwen2_7b(), 7_615_616_512, 339),
            (qwen2_72b(), 72_706_203_648, 963),
        ] {
            let layout = Layout::qwen2(&config);
            assert_eq!((layout.num_params, layout.tensors.len()), (params, tensors));
        }
    }

    #[test]
    fn chunks_cover_every_block_without_crossing_one() {
        let layout = Layout::with_chunk_params(&published(64, 2, (4, 2), 96, 300, false), 1000);
        let mut next = 0;
        for (number, chunk) in layout.chunks.iter().enumerate() {
            let block = &layout.blocks[chunk.block].range;
            assert_eq!((chunk.id.0 as usize, chunk.range.start), (number, next));
            assert!(block.start <= chunk.range.start && chunk.range.end <= block.end && chunk.range.len() <= 1000);
            next = chunk.range.end;
        }
        assert_eq!(next, layout.num_params);
    }

    #[test]
    fn decay_segments_tile_their_chunk_and_spare_norms_and_biases() {
        let layout = Layout::with_chunk_params(&published(64, 2, (4, 2), 96, 300, true), 1000);
        for chunk in &layout.chunks {
            let segments = layout.decay_segments(chunk.id);
            assert_eq!(segments.first().map(|s| s.0.start), Some(chunk.range.start));
            assert_eq!(segments.last().map(|s| s.0.end), Some(chunk.range.end));
            assert!(segments.windows(2).all(|w| w[0].0.end == w[1].0.start));
        }
        let undecayed: Vec<_> = layout.tensors.iter().filter(|t| !t.decay).map(|t| t.name.as_str()).collect();
        assert!(
            undecayed
                .iter()
                .all(|n| n.ends_with("norm.weight") || n.ends_with("layernorm.weight") || n.ends_with(".bias"))
        );
    }
}
