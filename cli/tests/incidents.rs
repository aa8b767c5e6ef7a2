//! What an interruption cost, as people are shown it.
#![allow(missing_docs)]

mod harness;

use harness::{
    Lab, SAMPLES_PER_STEP, Shape, drawn_seed,
    process::{self, step_of},
};
use rand::seq::IndexedRandom;
use serde_json::Value;

const PARTS: [&str; 5] = ["detect_ms", "abort_ms", "reform_ms", "transfer_ms", "redo_ms"];

#[test]
fn a_killed_worker_is_billed_and_the_parts_are_the_whole() {
    let mut lab = Lab::new(drawn_seed(), Shape { num_steps: 600, hidden_size: 64 });
    let mut run = lab.start("billed", 3, &[]);
    let listens = "coordinator listens on ";
    let address = run.wait_for("its address", |line| line.starts_with(listens))[listens.len()..].to_owned();
    run.wait_for_step(5);
    let victim = *run.workers().choose(&mut lab.rng).expect("three workers");
    let name = run.name_of(victim).to_owned();
    run.kill_worker(victim);
    run.wait_for("a step of two workers", |line| step_of(line).is_some() && line.contains(" 2 workers "));
    let asked = process::polo().args(["status", "--json", "--address", &address]).output().expect("polo starts");
    let status: Value = serde_json::from_slice(&asked.stdout).expect("JSON");
    run.kill_all();
    let incident = &status["incidents"][0];
    println!("{incident}, goodput {}", status["goodput"]);
    assert_eq!((&incident["worker_id"], &incident["cause"]), (&name.into(), &"its process is gone".into()), "{status}");
    let parts = PARTS.map(|part| incident["bill"][part].as_u64().unwrap_or_else(|| panic!("no {part}: {status}")));
    assert_eq!(Some(parts.iter().sum()), incident["recovery_ms"].as_u64(), "{status}");
    assert!(status["goodput"].as_f64().is_some_and(|share| share > 0.0 && share <= 1.0), "{status}");
    let roles: Vec<_> = status["members"].as_array().expect("a list").iter().map(|m| &m["role"]).collect();
    assert_eq!(roles, ["member", "member"], "{status}");
    assert_ledger_is_whole(&status);
}

/// Each sample of each step is in the ledger once, whatever was redone.
fn assert_ledger_is_whole(status: &Value) {
    let num_samples = |samples: &Value| {
        let bound = |name: &str| samples[name].as_u64().unwrap_or_else(|| panic!("no {name}: {status}"));
        bound("end") - bound("start")
    };
    let ledger = status["ledger"].as_array().expect("a list");
    let trained: u64 = ledger.iter().map(|entry| num_samples(&entry["samples"])).sum();
    assert_eq!(Some(trained), status["step"].as_u64().map(|step| step * SAMPLES_PER_STEP), "{status}");
    let last = status["last_step"]["samples"].as_object().expect("sources");
    assert_eq!(last.values().map(num_samples).sum::<u64>(), SAMPLES_PER_STEP, "{status}");
}
