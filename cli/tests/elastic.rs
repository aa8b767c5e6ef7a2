//! The promise, with real processes: the state after the last step is the same to the bit, whatever happens to workers.
//!
//! Every run of these tests draws a new seed, which decides data, weights, victims and moments. `POLO_TEST_SEED`
//! repeats its choices.
#![allow(missing_docs)]

mod harness;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use harness::{
    Lab, Shape, drawn_seed,
    process::{Heard, LIMIT, Running, step_of, traced},
};
use rand::{RngExt, seq::IndexedRandom};

#[test]
fn any_number_of_workers_ends_in_one_state() {
    let mut lab = Lab::new(drawn_seed(), Shape { num_steps: 24, hidden_size: 32 });
    let digests = [1, 2, 3, 5].map(|world| lab.digest_of(&format!("world-{world}"), world));
    assert!(digests.iter().all(|digest| *digest == digests[0]), "1, 2, 3 and 5 workers: {digests:?}");
}

/// Kills at random moments: the time between two is drawn uniformly.
const NUM_RANDOM_KILLS: usize = 20;
const LONGEST_PEACE_MS: u64 = 1500;

#[test]
fn random_kills_change_nothing() {
    let mut lab = Lab::new(drawn_seed(), Shape { num_steps: 360, hidden_size: 128 });
    let undisturbed = lab.digest_of("undisturbed", 1);
    let mut killed_while = BTreeMap::new();
    let mut num_kills = 0;
    while num_kills < NUM_RANDOM_KILLS {
        let (store, world) = (format!("killed-after-{num_kills}"), lab.rng.random_range(3..=5));
        let gather = ["workers.gather=step", "workers.gather=block"].choose(&mut lab.rng).expect("two");
        let mut run = lab.start(&store, world, &["--respawn", "--set", gather]);
        run.wait_for_step(1);
        kill_at_random(&mut lab, &mut run);
        let ended = run.finish();
        assert_eq!(lab.completed(&ended), undisturbed, "{} kills, {world} workers", ended.killed_while.len());
        num_kills += ended.killed_while.len();
        for phase in ended.killed_while {
            *killed_while.entry(phase).or_insert(0) += 1;
        }
        assert_all_planned_tokens_are_trained(&lab, &store);
    }
    println!("{num_kills} kills at random, while their victims were at: {killed_while:?}");
}

/// Kills workers until the run is over.
fn kill_at_random(lab: &mut Lab, run: &mut Running) {
    let next_moment = |lab: &mut Lab| Instant::now() + Duration::from_millis(lab.rng.random_range(0..LONGEST_PEACE_MS));
    let mut moment = next_moment(lab);
    loop {
        match run.hear(moment) {
            Heard::End => return,
            Heard::Line(_) => {}
            Heard::Nothing => {
                if let Some(victim) = run.workers().choose(&mut lab.rng) {
                    run.kill_worker(*victim);
                }
                moment = next_moment(lab);
            }
        }
    }
}

fn assert_all_planned_tokens_are_trained(lab: &Lab, store: &str) {
    let (is_content, report) = lab.verify(store);
    assert!(is_content, "{report}");
    let tokens = report["tokens"].as_array().expect("a list");
    assert_eq!(tokens.len(), 4, "two stages of two sources: {report}");
    for of_source in tokens {
        let trained = of_source["num_trained_tokens"].as_u64().expect("a number");
        assert_eq!(Some(trained), of_source["num_planned_tokens"].as_u64(), "{of_source}");
        assert!(trained > 0, "{of_source}");
    }
}

/// Phases that are too short, or too rare, to be hit at random every time.
const AIMED_PHASES: [&str; 6] =
    ["update", "snapshot", "exchange", "meeting the other ranks", "moving state", "storing the last state"];

/// A run may end before a phase comes round again.
const MOST_AIMED_RUNS: usize = 12;

#[test]
fn kills_aimed_at_each_phase_change_nothing() {
    let mut lab = Lab::new(drawn_seed(), Shape { num_steps: 120, hidden_size: 96 });
    let undisturbed = lab.digest_of("undisturbed", 1);
    let mut targets: Vec<_> = AIMED_PHASES.iter().rev().flat_map(|phase| [*phase; 2]).collect();
    let mut hit = Vec::new();
    for number in 0.. {
        if targets.is_empty() {
            break;
        }
        assert!(number < MOST_AIMED_RUNS, "no worker came to the phases {targets:?}");
        let store = format!("aimed-{number}");
        let mut run = lab.start(&store, 3, &["--respawn"]);
        kill_at_phases(&mut run, &mut targets);
        let ended = run.finish();
        assert_eq!(lab.completed(&ended), undisturbed);
        assert_all_planned_tokens_are_trained(&lab, &store);
        hit.extend(ended.killed_while);
    }
    println!("kills aimed at {AIMED_PHASES:?}, twice each, hit {hit:?}");
}

/// Phases of a change of membership, which a kill brings about; a step need not come between.
const FORMING_PHASES: [&str; 2] = ["meeting the other ranks", "moving state"];

/// Kills the first worker that begins the phase on top of `targets`. Before a phase of training, it waits for a step.
fn kill_at_phases(run: &mut Running, targets: &mut Vec<&str>) {
    let mut has_stepped = false;
    loop {
        let line = match run.hear(Instant::now() + LIMIT) {
            Heard::End => return,
            Heard::Nothing => continue,
            Heard::Line(line) => line,
        };
        has_stepped |= step_of(&line).is_some();
        let Some((pid, phase)) = traced(&line) else { continue };
        let is_time = has_stepped || FORMING_PHASES.contains(&phase);
        if is_time && targets.last() == Some(&phase) && run.workers().contains(&pid) {
            run.kill_worker(pid);
            targets.pop();
            has_stepped = false;
        }
    }
}

#[test]
fn survivors_of_a_kill_go_on() {
    let mut lab = Lab::new(drawn_seed(), Shape { num_steps: 24, hidden_size: 64 });
    let undisturbed = lab.digest_of("undisturbed", 2);
    let mut run = lab.start("killed", 3, &[]);
    run.wait_for_step(lab.rng.random_range(2..8));
    let victim = *run.workers().choose(&mut lab.rng).expect("three workers");
    let killed_at = Instant::now();
    run.kill_worker(victim);
    run.wait_for("a step of two workers", |line| step_of(line).is_some() && line.contains(" 2 workers "));
    println!("{:?} from kill -9 to the survivors' next step", run.heard_at - killed_at);
    let ended = run.finish();
    assert_eq!(lab.completed(&ended), undisturbed);
    assert_eq!(ended.json()["num_incidents"], 1);
}
