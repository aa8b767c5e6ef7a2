//! A worker that is frozen and thawed again is missed for no longer than needed, and changes nothing about the result.
#![allow(missing_docs)]

mod harness;

use std::time::Instant;

use harness::{
    Lab, Shape, drawn_seed,
    process::{Running, step_of},
};
use rand::seq::IndexedRandom;
use rustix::process::Signal;

const SHAPE: Shape = Shape { num_steps: 240, hidden_size: 96 };

fn wait_for_step_of(run: &mut Running, num_workers: usize) {
    let worked = format!(" {num_workers} workers ");
    run.wait_for(&worked, |line| step_of(line).is_some() && line.contains(&worked));
}

#[test]
fn a_frozen_worker_is_counted_out_and_joins_again_when_it_thaws() {
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let undisturbed = lab.digest_of("undisturbed", 1);
    let mut run = lab.start("frozen", 3, &["--set", "workers.heartbeat_timeout_ms=2000"]);
    wait_for_step_of(&mut run, 3);
    let victim = *run.workers().choose(&mut lab.rng).expect("three workers");
    let name = run.name_of(victim).to_owned();
    run.signal_worker(victim, Signal::STOP);
    let frozen = Instant::now();
    let lost = format!("lost worker {name}: silent for ");
    run.wait_for(&lost, |line| line.starts_with(&lost));
    wait_for_step_of(&mut run, 2);
    println!("the others' next step came after {} ms", frozen.elapsed().as_millis());
    run.signal_worker(victim, Signal::CONT);
    let joined = format!("worker {name} joined");
    run.wait_for("its return", |line| line == joined);
    wait_for_step_of(&mut run, 3);
    let ended = run.finish();
    assert_eq!(lab.completed(&ended), undisturbed);
    assert_eq!(ended.json()["num_incidents"], 1, "{}", ended.talk.join("\n"));
    let has_exited = |line: &&String| line.starts_with(&format!("worker {name} exited: ")) && !line.ends_with(": 0");
    assert_eq!(ended.talk.iter().find(has_exited), None, "it is the same process");
}
