//! `polo chaos` as its users run it: faults of many kinds, one digest, and a report of each.
#![allow(missing_docs)]

mod harness;

use std::{fs, path::PathBuf};

use harness::{Lab, Shape, drawn_seed, process};

const SHAPE: Shape = Shape { num_steps: 150, hidden_size: 64 };
const NUM_FAULTS: usize = 12;

/// Where the test's files lie; they stay there if it fails.
fn chaos(lab: &Lab, seed: u64, flags: &[&str]) -> (PathBuf, std::process::Command) {
    let kept = lab.path("kept");
    let mut command = process::polo();
    command.arg("chaos").arg(lab.path("recipe.toml")).arg("--keep").arg(&kept);
    command.args(["--seed", &seed.to_string(), "--set", "workers.heartbeat_timeout_ms=1000"]).args(flags);
    command.env("POLO_CACHE", lab.path("cache"));
    (kept, command)
}

#[test]
fn a_dozen_faults_end_in_the_undisturbed_digest() {
    let seed = drawn_seed();
    let lab = Lab::new(seed, SHAPE);
    let num_faults = NUM_FAULTS.to_string();
    let (kept, mut command) = chaos(&lab, seed, &["--faults", &num_faults, "--calm-ms", "800", "--json"]);
    let output = command.output().expect("polo starts");
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{talk}");
    eprintln!("{talk}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["num_faults"], &report["is_equal"]), (&NUM_FAULTS.into(), &true.into()), "{report}");
    let runs = report["disturbed"].as_array().expect("a list");
    let faults: Vec<_> = runs.iter().flat_map(|run| run["faults"].as_array().expect("a list")).collect();
    assert_eq!(faults.len(), NUM_FAULTS, "{report}");
    for fault in faults {
        let words = fault["fault"].as_str().expect("words");
        assert!(talk.contains(words), "{words} was not said");
    }
    for run in runs {
        assert_eq!(run["state_digest"], report["undisturbed"]["state_digest"]);
    }
    let logs = ["coordinator.log", "w0.log", "store/checkpoints"].map(|name| kept.join("run-1").join(name));
    assert!(logs.iter().all(|path| fs::exists(path).expect("a folder")), "{logs:?}");
}

#[test]
fn workers_that_are_cut_off_come_back_and_change_nothing() {
    let seed = drawn_seed();
    let lab = Lab::new(seed, SHAPE);
    let (_, mut command) =
        chaos(&lab, seed, &["--faults", "4", "--calm-ms", "500", "--kinds", "cut-off-worker", "--json"]);
    let output = command.output().expect("polo starts");
    let talk = String::from_utf8_lossy(&output.stderr);
    eprintln!("{talk}");
    if talk.contains("networks cannot be cut: ") {
        assert!(!output.status.success(), "nothing was tried");
        return;
    }
    assert!(output.status.success(), "{talk}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["num_faults"], &report["is_equal"]), (&4.into(), &true.into()), "{report}");
    assert_eq!(talk.matches("cut off worker w").count(), 4, "{talk}");
}
