//! What a checkpoint consists of, sealed against any change.

use bytes::Bytes;
use polo_recipe::{layout::Layout, plan::LedgerEntry};
use serde::{Deserialize, Serialize};

use crate::Digest;

/// Version of the manifest's form that is written and read here.
const FORMAT: u32 = 2;

/// One chunk of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    /// Digest of its object, and its name.
    pub digest: Digest,
    /// Parameters in it; its object has `12` bytes for each.
    pub num_params: u64,
}

/// The state after `step` steps, as names of chunks, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// Optimizer updates applied.
    pub step: u64,
    /// Identity of the recipe.
    pub recipe: String,
    /// Digest of the corpus.
    pub corpus: Digest,
    /// Length of the flat parameter vector.
    pub num_params: u64,
    /// What is planned of each source in each stage, what of it the workers have counted as trained, and which samples
    /// those are.
    pub ledger: Vec<LedgerEntry>,
    /// [`state_digest`] of this state.
    pub state_digest: Digest,
    /// All chunks in flat order.
    pub chunks: Vec<Chunk>,
}

/// Names a state: BLAKE3 over the step (u64, little-endian), then every chunk's digest in flat order.
pub fn state_digest<'a>(step: u64, chunk_digests: impl IntoIterator<Item = &'a Digest>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&step.to_le_bytes());
    for digest in chunk_digests {
        hasher.update(digest.as_bytes());
    }
    hasher.finalize().into()
}

#[derive(Serialize)]
struct Sealed<'a> {
    digest: Digest,
    manifest: &'a Manifest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Opened {
    digest: Digest,
    manifest: Manifest,
}

impl Manifest {
    /// The manifest of the state whose chunks, cut by `layout`, have `digests` in flat order.
    ///
    /// # Panics
    /// When there is not one digest for each chunk.
    pub fn new(
        step: u64,
        recipe: String,
        corpus: Digest,
        layout: &Layout,
        digests: &[Digest],
        ledger: Vec<LedgerEntry>,
    ) -> Self {
        assert_eq!(layout.chunks.len(), digests.len(), "one digest for each chunk of the layout");
        let chunk = |(spec, digest): (&polo_recipe::layout::ChunkSpec, &Digest)| Chunk {
            digest: *digest,
            num_params: spec.range.len() as u64,
        };
        Self {
            format: FORMAT,
            step,
            recipe,
            corpus,
            num_params: layout.num_params as u64,
            ledger,
            state_digest: state_digest(step, digests),
            chunks: layout.chunks.iter().zip(digests).map(chunk).collect(),
        }
    }

    /// Whether the chunks are cut as `layout` cuts them, so that the state can be loaded into it.
    pub fn fits(&self, layout: &Layout) -> bool {
        let cut = layout.chunks.iter().map(|c| c.range.len() as u64);
        self.num_params == layout.num_params as u64 && self.chunks.iter().map(|c| c.num_params).eq(cut)
    }

    /// The digest of the manifest's own content.
    fn seal(&self) -> Digest {
        Digest::of(&to_json(self))
    }

    /// The stored form.
    pub(super) fn encode(&self) -> Bytes {
        to_json(&Sealed { digest: self.seal(), manifest: self }).into()
    }

    /// Reads the stored form; the error says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let opened: Opened = serde_json::from_slice(bytes).map_err(|e| format!("it is no manifest: {e}"))?;
        let manifest = opened.manifest;
        if manifest.format != FORMAT {
            return Err(format!("its format is {}, but this program reads format {FORMAT}", manifest.format));
        }
        // Comparing the whole text also sees changes that JSON does not care about.
        if opened.digest != manifest.seal() || manifest.encode() != bytes {
            return Err("its content does not have the digest that it states".into());
        }
        manifest.check_sums()?;
        Ok(manifest)
    }

    fn check_sums(&self) -> Result<(), String> {
        let in_chunks: u64 = self.chunks.iter().map(|c| c.num_params).sum();
        if in_chunks != self.num_params {
            return Err(format!("its chunks hold {in_chunks} parameters, but it states {}", self.num_params));
        }
        let digest = state_digest(self.step, self.chunks.iter().map(|c| &c.digest));
        if digest != self.state_digest {
            return Err(format!("its chunks make the state {digest}, but it states {}", self.state_digest));
        }
        Ok(())
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Plain structs with string keys cannot fail to serialise, and memory takes all bytes.
    serde_json::to_vec(value).unwrap_or_else(|e| unreachable!("a manifest serialises: {e}"))
}

#[cfg(test)]
mod tests {
    use polo_fuzz::fuzz;
    use polo_recipe::model::Qwen2Config;

    use super::*;

    fn layout() -> Layout {
        let json = serde_json::json!({
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "intermediate_size": 12, "vocab_size": 20, "tie_word_embeddings": true
        });
        let config: Qwen2Config = serde_json::from_value(json).expect("a config");
        Layout::with_chunk_params(&config, 100)
    }

    fn manifest() -> Manifest {
        let ledger = LedgerEntry {
            stage: "main".into(),
            source: "chinese".into(),
            num_planned_tokens: 6400,
            num_trained_tokens: 64,
            samples: 0..1,
            num_epoch_tokens: 6400,
        };
        let digests: Vec<_> = (0..layout().chunks.len()).map(|n| Digest::of(&n.to_le_bytes())).collect();
        Manifest::new(7, "recipe".into(), Digest::of(b"corpus"), &layout(), &digests, vec![ledger])
    }

    /// Digests keep damage out, so what lies behind them is reached by sealing it anew.
    #[test]
    fn fuzz_manifests() {
        fuzz(env!("CARGO_MANIFEST_DIR"), "manifests", &[manifest().encode().to_vec()], |bytes| {
            let _ = Manifest::decode(bytes);
            let Ok(Opened { mut manifest, .. }) = serde_json::from_slice(bytes) else { return };
            for sealed in [false, true] {
                if sealed {
                    manifest.state_digest = state_digest(manifest.step, manifest.chunks.iter().map(|c| &c.digest));
                }
                if let Ok(again) = Manifest::decode(&manifest.encode()) {
                    assert_eq!(again.encode(), manifest.encode());
                    again.fits(&layout());
                }
            }
        });
    }
}
