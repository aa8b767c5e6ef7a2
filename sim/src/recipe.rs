//! The run that is simulated: a recipe and a corpus of a size that costs nothing.

use polo_recipe::config::{OptimizerState, Recipe};
use polo_store::{
    Digest,
    corpus::{CorpusManifest, FORMAT_VERSION, ShardEntry, Source},
};

use crate::scenario::Scenario;

/// The recipe of a scenario, whose store and corpus are `memory://` stores named after `name`.
pub fn recipe(scenario: &Scenario, name: &str) -> Recipe {
    let Scenario { seed, num_slots, copies, checkpoint_every_steps, max_workers, .. } = scenario;
    let samples_per_step = num_slots * 2;
    let text = format!(
        r#"
        [run]
        name = "sim"
        store = "memory://{name}/run"
        seed = {seed}
        [model.qwen2]
        hidden_size = 4
        num_hidden_layers = 4
        num_attention_heads = 2
        num_key_value_heads = 1
        intermediate_size = 4
        vocab_size = 8
        tie_word_embeddings = true
        [corpus]
        url = "memory://{name}/corpus"
        allow_repeats = true
        [batch]
        seq_len = 4
        samples_per_step = {samples_per_step}
        slots = {num_slots}
        [checkpoint]
        every_steps = {checkpoint_every_steps}
        keep = 2
        [workers]
        min_workers = 1
        max_workers = {max_workers}
        copies = {copies}
        wait_timeout_s = 300
        settle_ms = 200
        heartbeat_timeout_ms = 2000
        connect_timeout_s = 2
        exchange_timeout_s = 10
        coordinator_timeout_s = 120
        {}
        {}
        "#,
        validation(scenario),
        stages(scenario),
    );
    let mut recipe = Recipe::resolve(&text, std::iter::empty(), &[], |_| Err("no files here".into()))
        .unwrap_or_else(|error| panic!("the simulated recipe: {error}"));
    recipe.workers.gather = scenario.gather;
    recipe
}

fn validation(scenario: &Scenario) -> String {
    let section = |every: u64| format!("[validation]\nevery_steps = {every}\nsamples_per_source = 5");
    scenario.validated_every_steps.map(section).unwrap_or_default()
}

fn stages(scenario: &Scenario) -> String {
    let stage = |name: &str, num_steps: u64, state: OptimizerState| {
        let state = if state == OptimizerState::Reset { "reset" } else { "carry" };
        format!(
            r#"
        [[stages]]
        name = "{name}"
        steps = {num_steps}
        optimizer_state = "{state}"
        schedule = {{ kind = "constant", peak_learning_rate = 1e-2 }}
        sources = [{{ name = "a", weight_tokens = 3 }}, {{ name = "b", weight_tokens = 2 }}]
        "#
        )
    };
    match scenario.second_stage {
        None => stage("only", scenario.num_steps, OptimizerState::Carry),
        Some((at, state)) => {
            stage("first", at, OptimizerState::Carry) + &stage("second", scenario.num_steps - at, state)
        }
    }
}

/// A corpus that is never read, only counted.
pub fn corpus() -> CorpusManifest {
    let digest = Digest::of(b"never read");
    let shard = |name: &str| ShardEntry {
        bin_key: format!("{name}.bin"),
        idx_key: format!("{name}.idx"),
        num_tokens: 4001,
        num_documents: 10,
        bin_digest: digest,
        idx_digest: digest,
    };
    let source = |name: &str| Source {
        name: name.into(),
        language: None,
        num_tokens: 4001,
        num_documents: 10,
        num_bytes_text: 0,
        intake: None,
        shards: vec![shard(name)],
    };
    CorpusManifest {
        format_version: FORMAT_VERSION,
        tokenizer_digest: digest,
        vocab_size: 8,
        eos_id: 0,
        sources: vec![source("a"), source("b")],
    }
}
