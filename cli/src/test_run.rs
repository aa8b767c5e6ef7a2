//! A small finished run in memory, for the tests of commands.

use polo_recipe::config::Recipe;
use polo_recipe::layout::Layout;
use polo_store::checkpoint::{Manifest, put_chunk, put_manifest};
use polo_store::corpus::{CorpusManifest, ShardEntry, Source};
use polo_store::{Digest, Store};

use crate::stored_run::{Planned, StoredRun};

/// A recipe whose store and corpus are in memory under `name`: 6 steps of 2 samples of 8 tokens from two sources.
pub fn recipe(name: &str) -> Recipe {
    let text = format!(
        "[run]\nname = \"{name}\"\nstore = \"memory://{name}-run\"\n\
         [model.qwen2]\nhidden_size = 8\nnum_hidden_layers = 1\nnum_attention_heads = 2\nnum_key_value_heads = 1\n\
         intermediate_size = 12\nvocab_size = 20\n\
         [corpus]\nurl = \"memory://{name}-corpus\"\n\
         [batch]\nseq_len = 8\nsamples_per_step = 2\nslots = 1\n\
         [[stages]]\nname = \"main\"\nsteps = 6\nschedule = {{ kind = \"constant\", peak_learning_rate = 0.1 }}\n\
         sources = [{{ name = \"a\", weight_tokens = 1 }}, {{ name = \"b\", weight_tokens = 1 }}]\n"
    );
    Recipe::resolve(&text, std::iter::empty(), &[], |path| Err(format!("{path} is not wanted"))).expect("a recipe")
}

/// Writes the manifest of the recipe's corpus.
pub async fn corpus(recipe: &Recipe) {
    let shard = |name: &str| ShardEntry {
        bin_key: format!("{name}.bin"),
        idx_key: format!("{name}.idx"),
        num_tokens: 1000,
        num_documents: 3,
        bin_digest: Digest::of(b"bin"),
        idx_digest: Digest::of(b"idx"),
    };
    let source = |name: &str| Source {
        name: name.into(),
        language: None,
        num_tokens: 1000,
        num_documents: 3,
        num_bytes_text: 4000,
        shards: vec![shard(name)],
    };
    let manifest = CorpusManifest {
        format_version: polo_store::corpus::FORMAT_VERSION,
        tokenizer_digest: Digest::of(b"tokenizer"),
        vocab_size: 20,
        eos_id: 0,
        sources: vec![source("a"), source("b")],
    };
    let store = Store::open(&recipe.corpus.url).expect("open");
    store.put(polo_store::corpus::MANIFEST_KEY, manifest.to_json().into()).await.expect("put corpus");
}

/// Parameter `n` of the made-up state after `step`.
pub fn param(step: u64, n: usize) -> f32 {
    step as f32 + n as f32 / 1024.0
}

/// Writes the checkpoint of a made-up state.
pub async fn put_checkpoint(run: &StoredRun, planned: &Planned, step: u64) {
    let layout = Layout::qwen2(&run.recipe.model.qwen2);
    let mut digests = Vec::new();
    for chunk in &layout.chunks {
        let params = chunk.range.clone().map(|n| param(step, n));
        let moments = std::iter::repeat_n(0.5, 2 * chunk.range.len());
        let object = params.chain(moments).flat_map(f32::to_le_bytes).collect();
        digests.push(put_chunk(&run.store, object).await.expect("put chunk"));
    }
    let trained = planned.tokens_until(step);
    let manifest = Manifest::new(step, run.recipe.identity(), planned.corpus, &layout, &digests, trained);
    put_manifest(&run.store, &manifest).await.expect("put manifest");
}
