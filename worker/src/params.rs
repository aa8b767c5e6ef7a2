//! The parameters that one worker holds: all of them, or those of its own chunks.

use std::{collections::BTreeMap, ops::Range};

use polo_recipe::{
    config::Gather,
    layout::{ChunkId, ChunkSpec, Layout},
};

use crate::flat::Flat;

/// fp32 parameters, by [`Gather`].
#[derive(Debug, Clone, PartialEq)]
pub enum Params {
    /// All, `[num_params]`.
    Whole(Flat),
    /// Those of the chunks whose moments are held.
    Chunks(BTreeMap<ChunkId, Flat>),
}

impl Params {
    /// Zeros, or no chunk yet.
    pub fn empty(gather: Gather, layout: &Layout) -> Self {
        match gather {
            Gather::Step => Self::Whole(Flat::zeros(layout.num_params)),
            Gather::Block => Self::Chunks(BTreeMap::new()),
        }
    }

    /// How those come that are not held.
    pub fn gather(&self) -> Gather {
        match self {
            Self::Whole(_) => Gather::Step,
            Self::Chunks(_) => Gather::Block,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Whole(all) => all.as_slice().len(),
            Self::Chunks(chunks) => chunks.values().map(|chunk| chunk.as_slice().len()).sum(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those of a chunk; none if they are not held.
    pub fn chunk(&self, chunk: &ChunkSpec) -> Option<&[f32]> {
        match self {
            Self::Whole(all) => Some(&all.as_slice()[chunk.range.clone()]),
            Self::Chunks(chunks) => chunks.get(&chunk.id).map(Flat::as_slice),
        }
    }

    /// Those of a chunk, to be changed; zeros if they were not held.
    pub fn chunk_mut(&mut self, chunk: &ChunkSpec) -> &mut [f32] {
        match self {
            Self::Whole(all) => &mut all.as_mut_slice()[chunk.range.clone()],
            Self::Chunks(chunks) => {
                chunks.entry(chunk.id).or_insert_with(|| Flat::zeros(chunk.range.len())).as_mut_slice()
            }
        }
    }

    /// Lets go of chunks that are not to be kept, where chunks are what is held.
    pub fn retain(&mut self, is_kept: impl Fn(ChunkId) -> bool) {
        if let Self::Chunks(chunks) = self {
            chunks.retain(|chunk, _| is_kept(*chunk));
        }
    }

    /// Whether any parameter of `range`, of the flat vector, is held.
    pub fn meets(&self, layout: &Layout, range: &Range<usize>) -> bool {
        layout.chunks_in(range).any(|(chunk, _)| self.chunk(chunk).is_some())
    }

    /// Sets those parameters of `range`, of the flat vector, that are held; `values` has all of them.
    pub fn set(&mut self, layout: &Layout, range: &Range<usize>, values: &[f32]) {
        for (chunk, cut) in layout.chunks_in(range) {
            if self.chunk(chunk).is_some() {
                let place = cut.start - chunk.range.start..cut.end - chunk.range.start;
                let values = &values[cut.start - range.start..cut.end - range.start];
                self.chunk_mut(chunk)[place].copy_from_slice(values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use polo_recipe::model::Qwen2Config;

    use super::*;

    fn layout() -> Layout {
        let json = r#"{"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "intermediate_size": 4, "vocab_size": 8, "tie_word_embeddings": true}"#;
        let config: Qwen2Config = serde_json::from_str(json).expect("a config");
        Layout::with_chunk_params(&config, 10)
    }

    #[test]
    fn values_come_to_the_chunks_that_are_held_and_to_no_others() {
        let layout = layout();
        let values: Vec<f32> = (0..layout.num_params).map(|n| n as f32).collect();
        let mut whole = Params::empty(Gather::Step, &layout);
        whole.set(&layout, &(3..layout.num_params), &values[3..]);
        assert_eq!((whole.chunk(&layout.chunks[0]).map(|c| c[2..4].to_vec())), Some(vec![0.0, 3.0]));
        assert_eq!(whole.len(), layout.num_params);

        let mut held = Params::empty(Gather::Block, &layout);
        held.chunk_mut(&layout.chunks[1]);
        assert!(held.meets(&layout, &(0..11)) && !held.meets(&layout, &(0..10)));
        held.set(&layout, &(0..layout.num_params), &values);
        assert_eq!(held.chunk(&layout.chunks[1]), Some(&values[10..20]));
        assert_eq!((held.chunk(&layout.chunks[0]), held.len()), (None, 10));
        held.retain(|chunk| chunk != ChunkId(1));
        assert!(held.is_empty());
    }
}
