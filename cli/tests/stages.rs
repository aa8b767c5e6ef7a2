//! A stage that resets the optimizer's state is, to the bit, a run of its own from the weights before it.
#![allow(missing_docs)]

mod support;

use polo_store::{Digest, Store, checkpoint::read_manifest};
use support::{World, finish, talk};

const STEPS: u64 = 3;

fn stage(name: &str, source: &str, optimizer_state: &str) -> String {
    let schedule = "schedule = { kind = 'linear', peak_learning_rate = 1e-2 }";
    let groups = format!("groups = [{{ name = 'all', share = 1, sources = ['{source}'] }}]");
    format!("{{ name = '{name}', steps = {STEPS}, optimizer_state = '{optimizer_state}', {schedule}, {groups} }}")
}

/// Trains these stages into `store`, and returns the digests of its chunks after the last step.
async fn trained(world: &World, store: &str, num_workers: &str, stages: &[String], more: &[&str]) -> Vec<Digest> {
    let sets =
        [format!("stages=[{}]", stages.join(", ")), format!("run.store={store}"), "checkpoint.every_steps=3".into()];
    let mut command = world.run(&["--workers", num_workers]);
    command.args(sets.iter().flat_map(|set| ["--set", set])).args(more);
    let output = finish(&mut command);
    assert!(output.status.success(), "{}", talk(&output));
    let store = Store::open(&world.text(store)).expect("a store");
    let manifest = read_manifest(&store, STEPS * stages.len() as u64).await.expect("a manifest");
    manifest.chunks.iter().map(|chunk| chunk.digest).collect()
}

#[tokio::test]
async fn a_stage_that_begins_anew_is_a_run_from_the_weights_before_it() {
    let world = World::new();
    let stages = |state: &str| [stage("first", "en", "carry"), stage("second", "ne", state)];
    let reset = trained(&world, "reset", "2", &stages("reset"), &[]).await;
    let step = STEPS.to_string();
    let exported = finish(&mut world.polo(&["export", "--store", "reset", "--step", &step, "--to", "weights"]));
    assert!(exported.status.success(), "{}", talk(&exported));

    let from_weights = ["--set", "model.init=weights"];
    let alone = trained(&world, "alone", "1", &stages("carry")[1..], &from_weights).await;
    assert_eq!(reset, alone);
    let carried = trained(&world, "carried", "1", &stages("carry"), &[]).await;
    assert_ne!(reset, carried);
}
