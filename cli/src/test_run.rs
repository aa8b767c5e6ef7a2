//! A small finished run in memory, for the tests of commands.

use polo_recipe::config::Recipe;
use polo_recipe::ids::Step;
use polo_recipe::layout::Layout;
use polo_store::Store;
use polo_store::checkpoint::{Manifest, put_chunk, put_manifest};
use polo_store::run::put_recipe;
use polo_store::testing::put_corpus;

use crate::stored_run::{Planned, StoredRun};

/// A run of [`recipe`] with checkpoints of steps 2 and 4, and its plan.
pub async fn finished_run(name: &str) -> (StoredRun, Planned) {
    let recipe = recipe(name);
    corpus(&recipe).await;
    put_recipe(&Store::open(&recipe.run.store).expect("open"), &recipe).await.expect("put recipe");
    let run = StoredRun::open(&recipe.run.store).await.expect("open run");
    let planned = run.planned().await.expect("plan");
    for step in [2, 4] {
        put_checkpoint(&run, &planned, step).await;
    }
    (run, planned)
}

/// A recipe whose store and corpus are in memory under `name`: 6 steps of 2 samples of 8 tokens from two sources.
fn recipe(name: &str) -> Recipe {
    let text = format!(
        "[run]\nname = \"{name}\"\nstore = \"memory://{name}-run\"\n\
         [model.qwen2]\nhidden_size = 8\nnum_hidden_layers = 1\nnum_attention_heads = 2\nnum_key_value_heads = 1\n\
         intermediate_size = 12\nvocab_size = 20\n\
         [corpus]\nurl = \"memory://{name}-corpus\"\n\
         [batch]\nseq_len = 8\nsamples_per_step = 2\nslots = 1\n\
         [[stages]]\nname = \"main\"\nsteps = 6\nschedule = {{ kind = \"constant\", peak_learning_rate = 0.1 }}\n\
         sources = [{{ name = \"a\", weight_tokens = 1 }}, {{ name = \"b\", weight_tokens = 1 }}]\n"
    );
    Recipe::from_resolved(&text).expect("a recipe")
}

/// Writes the recipe's corpus: 1000 tokens in each source.
async fn corpus(recipe: &Recipe) {
    let store = Store::open(&recipe.corpus.url).expect("open");
    let ids = vec![vec![(0..1000).map(|n| n % 20).collect()]];
    put_corpus(&store, 20, &[("a", ids.clone()), ("b", ids)]).await;
}

/// Parameter `n` of the made-up state after `step`.
pub fn param(step: u64, n: usize) -> f32 {
    step as f32 + n as f32 / 1024.0
}

/// Writes the checkpoint of a made-up state.
async fn put_checkpoint(run: &StoredRun, planned: &Planned, step: u64) {
    let layout = Layout::qwen2(&run.recipe.model.qwen2);
    let mut digests = Vec::new();
    for chunk in &layout.chunks {
        let params = chunk.range.clone().map(|n| param(step, n));
        let moments = std::iter::repeat_n(0.5, 2 * chunk.range.len());
        let object = params.chain(moments).flat_map(f32::to_le_bytes).collect();
        digests.push(put_chunk(&run.store, object).await.expect("put chunk"));
    }
    let ledger = planned.plan.ledger(Step(step));
    let manifest = Manifest::new(step, run.recipe.identity(), planned.corpus, &layout, &digests, ledger);
    put_manifest(&run.store, &manifest).await.expect("put manifest");
}
