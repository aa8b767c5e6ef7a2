//! Held-out samples through the programs: the same losses in every world, a baseline, and alarms.
#![allow(missing_docs)]

mod support;

use std::process::Output;

use serde_json::Value;
use support::{World, finish, talk};

const VALIDATION: [&str; 3] =
    ["validation.every_steps=1", "validation.samples_per_source=5", "validation.watch=['en']"];
/// With this the model gets worse.
const TOO_FAST: &str = "stages.0.schedule.peak_learning_rate=30.0";

fn run(world: &World, store: &str, num_workers: &str, more: &[&str]) -> Output {
    let mut command = world.run(&["--workers", num_workers]);
    command.args(VALIDATION.iter().flat_map(|set| ["--set", set])).args(["--set", &format!("run.store={store}")]);
    finish(command.args(more))
}

/// The last line of a run.
fn last_line(output: &Output) -> Value {
    let out = String::from_utf8_lossy(&output.stdout);
    let line = out.lines().last().unwrap_or_else(|| panic!("{}", talk(output)));
    serde_json::from_str(line).expect("JSON")
}

#[test]
fn every_world_finds_the_same_losses_and_the_baseline_is_of_the_first_state() {
    let world = World::new();
    let alone = run(&world, "alone", "1", &[]);
    let expected = &last_line(&alone)["validation"];
    for source in ["en", "ne"] {
        let (baseline, last) = (&expected[source]["baseline"], &expected[source]["last"]);
        assert_eq!(
            (&baseline["step"], &last["step"], &last["num_tokens"]),
            (&0.into(), &3.into(), &40.into()),
            "{expected}"
        );
        let number = |of: &Value, what: &str| of[what].as_f64().unwrap_or_else(|| panic!("{of}"));
        assert!(number(last, "loss") < number(baseline, "loss"), "{expected}");
        assert!(number(last, "bits_per_byte") > 0.0);
    }
    for (store, num_workers, more) in [
        ("two", "2", &[][..]),
        ("gathered", "2", &["--set", "workers.gather=block"]),
        ("all", "2", &["--set", "workers.gather=block", "--set", "model.recompute=true", "--set", "workers.copies=1"]),
    ] {
        assert_eq!(&last_line(&run(&world, store, num_workers, more))["validation"], expected, "{store}");
    }
    let unwatched = finish(world.run(&[]).args(["--set", "run.store=unwatched"]));
    let digest = |output: &Output| last_line(output)["state_digest"].clone();
    assert_ne!(digest(&unwatched), digest(&alone), "what is held out is not trained");
}

#[test]
fn a_watched_source_that_gets_worse_is_told_and_decides_the_exit_code_or_stops_the_run() {
    let world = World::new();
    let told = run(&world, "told", "2", &["--set", TOO_FAST]);
    assert!(told.status.success(), "{}", talk(&told));
    assert!(last_line(&told)["num_alarms"].as_u64() >= Some(1), "{}", last_line(&told));
    let failed = run(&world, "failed", "2", &["--set", TOO_FAST, "--fail-on-worse"]);
    assert_eq!(failed.status.code(), Some(3), "{}", talk(&failed));
    assert!(talk(&failed).contains("worse on held-out samples"), "{}", talk(&failed));
    let stop = ["--set", TOO_FAST, "--set", "validation.on_worse=stop", "--set", "stages.0.steps=9"];
    let stopped = run(&world, "stopped", "2", &stop);
    assert_eq!(last_line(&stopped)["outcome"], "stopped", "{}", talk(&stopped));
    let spared = run(&world, "spared", "2", &["--set", TOO_FAST, "--fail-on-worse", "--set", "validation.watch=[]"]);
    assert!(spared.status.success(), "{}", talk(&spared));
}
