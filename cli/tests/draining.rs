//! Workers that are asked to leave hand back what they hold, exit with success, and change nothing about the result.
#![allow(missing_docs)]

mod harness;

use harness::{
    Lab, Shape, drawn_seed,
    process::{self, Running, step_of},
};
use rand::seq::IndexedRandom;

const SHAPE: Shape = Shape { num_steps: 90, hidden_size: 96 };

/// Waits until that worker has exited, and returns how.
fn exit_of(run: &mut Running, name: &str) -> String {
    let exited = format!("worker {name} exited: ");
    let line = run.wait_for("the exit of a worker that was asked to leave", |line| line.starts_with(&exited));
    line[exited.len()..].to_owned()
}

#[test]
fn a_worker_that_gets_sigterm_leaves_with_success_and_without_an_incident() {
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let undisturbed = lab.digest_of("undisturbed", 1);
    let mut run = lab.start("terminated", 3, &["--respawn"]);
    run.wait_for_step(3);
    let victim = *run.workers().choose(&mut lab.rng).expect("three workers");
    let name = run.name_of(victim).to_owned();
    run.terminate_worker(victim);
    assert_eq!(exit_of(&mut run, &name), "exit status: 0");
    run.wait_for("a step of two workers", |line| step_of(line).is_some() && line.contains(" 2 workers "));
    let ended = run.finish();
    assert_eq!(lab.completed(&ended), undisturbed);
    assert_eq!(ended.json()["num_incidents"], 0, "{}", ended.talk.join("\n"));
}

#[test]
fn the_command_drains_a_worker_by_name_and_says_which_names_there_are() {
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let mut run = lab.start("drained", 2, &[]);
    let listens = "coordinator listens on ";
    let address = run.wait_for("its address", |line| line.starts_with(listens))[listens.len()..].to_owned();
    run.wait_for_step(3);
    let drain =
        |name: &str| process::polo().args(["drain", name, "--address", &address]).output().expect("polo starts");
    let refused = drain("nobody");
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && words.contains("no worker is called nobody; there are: w0, w1"), "{words}");
    assert!(drain("w1").status.success());
    assert_eq!(exit_of(&mut run, "w1"), "exit status: 0");
    lab.completed(&run.finish());
}
