//! What is left of a run that was stopped, killed or damaged is enough to end in the same state, at any world size.
#![allow(missing_docs)]

mod harness;

use std::{fs, path::PathBuf};

use harness::{Lab, Shape, drawn_seed};
use rand::RngExt;

const SHAPE: Shape = Shape { num_steps: 30, hidden_size: 64 };
/// The recipe's checkpoints are so many steps apart.
const CADENCE: u64 = 7;

#[test]
fn stopped_and_resumed_at_another_world_size() {
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let undisturbed = lab.digest_of("undisturbed", 1);
    let mut run = lab.start("stopped", 3, &[]);
    run.wait_for_step(lab.rng.random_range(3..12));
    run.interrupt();
    let stopped = run.finish().json();
    assert_eq!(stopped["outcome"], "stopped");
    assert!(stopped["step"].as_u64().expect("a step") < SHAPE.num_steps);
    let (_, report) = lab.verify("stopped");
    let newest = report["checkpoints"].as_array().and_then(|all| all.last()).expect("a checkpoint");
    assert_eq!((&newest["step"], &newest["state_digest"]), (&stopped["step"], &stopped["state_digest"]), "{report}");

    assert_eq!(lab.digest_of("stopped", 2), undisturbed);
    let again = lab.start("stopped", 1, &[]).finish();
    assert_eq!(lab.completed(&again), undisturbed, "a completed run that is run again");
    assert!(!again.talk.iter().any(|line| line.starts_with("step ")), "nothing is left to do: {:#?}", again.talk);
}

#[test]
fn killed_whole_and_resumed_at_another_world_size() {
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let undisturbed = lab.digest_of("undisturbed", 1);
    for world in [2, 5] {
        let mut run = lab.start("killed", world, &[]);
        let first = if world == 2 { 2 } else { 15 };
        run.wait_for_step(lab.rng.random_range(first..first + 10));
        run.kill_all();
        assert!(!run.finish().status.success());
    }
    assert_eq!(lab.digest_of("killed", 3), undisturbed);
}

/// Leaves a run with checkpoints of the steps 7 and 14, dead at a later step.
fn killed_after_two_checkpoints(lab: &mut Lab, store: &str) {
    let mut run = lab.start(store, 2, &[]);
    let stored = format!("checkpoint of step {} stored", 2 * CADENCE);
    run.wait_for(&stored, |line| line == stored);
    run.kill_all();
    run.finish();
}

/// Changes one byte, anywhere in the file.
fn flip_a_byte(lab: &mut Lab, path: &PathBuf) {
    let mut bytes = fs::read(path).expect("the file");
    let at = lab.rng.random_range(0..bytes.len());
    bytes[at] ^= 1 << lab.rng.random_range(0..8);
    println!("byte {at} of {} is flipped", path.display());
    fs::write(path, bytes).expect("the file");
}

fn manifest(lab: &Lab, store: &str, step: u64) -> PathBuf {
    lab.path(store).join(format!("checkpoints/{step:012}.json"))
}

/// The object of one of the checkpoint's chunks.
fn chunk(lab: &mut Lab, store: &str, step: u64) -> PathBuf {
    let text = fs::read(manifest(lab, store, step)).expect("the manifest");
    let manifest: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let chunks = manifest["manifest"]["chunks"].as_array().expect("a list");
    let chunk = &chunks[lab.rng.random_range(0..chunks.len())];
    lab.path(store).join("chunks").join(chunk["digest"].as_str().expect("a digest"))
}

#[test]
fn a_damaged_checkpoint_is_skipped_for_the_one_before() {
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let undisturbed = lab.digest_of("undisturbed", 1);
    let (old, new) = (CADENCE, 2 * CADENCE);
    for what in ["chunk", "manifest"] {
        killed_after_two_checkpoints(&mut lab, what);
        let path = if what == "chunk" { chunk(&mut lab, what, new) } else { manifest(&lab, what, new) };
        flip_a_byte(&mut lab, &path);
        let ended = lab.start(what, 3, &[]).finish();
        let skipped = format!("checkpoint of step {new} is skipped: ");
        let notice = ended.talk.iter().find(|line| line.starts_with(&skipped)).expect("a notice");
        println!("{notice}");
        assert!(notice.contains(path.file_name().and_then(|name| name.to_str()).expect("UTF-8")), "{notice}");
        let first = ended.talk.iter().find_map(|line| harness::process::step_of(line));
        assert_eq!(first, Some(old + 1), "the first step after the checkpoint before");
        assert_eq!(lab.completed(&ended), undisturbed, "{what}");
    }
}
