//! The coordinator is off the step path: workers train on while it is gone, and one that comes back takes up the run
//! where it is. There is never more than one that acts.
#![allow(missing_docs)]

mod harness;

use std::{
    fs,
    time::{Duration, Instant},
};

use harness::{
    Lab, Shape, drawn_seed,
    process::{self, Ended, Heard, Running, step_of, traced, traced_step},
};
use rustix::process::Signal;

const SHAPE: Shape = Shape { num_steps: 160, hidden_size: 96 };
/// So many steps are awaited from workers that nobody coordinates.
const STEPS_ALONE: u64 = 20;

/// A coordinator and its workers, each a process that can be hurt by itself.
struct Scene {
    store: &'static str,
    coordinator: Running,
    address: String,
    workers: Vec<Running>,
}

impl Scene {
    /// Starts all of them, and waits until they train.
    fn start(lab: &mut Lab, store: &'static str, num_workers: usize) -> Self {
        let mut coordinator = lab.start_coordinator(store, "127.0.0.1:0", &["--workers", &num_workers.to_string()]);
        let address = coordinator.address();
        let workers = (0..num_workers).map(|n| lab.start_worker(store, &format!("w{n}"), &address)).collect();
        let mut scene = Self { store, coordinator, address, workers };
        scene.wait_for_step_of(num_workers);
        scene
    }

    /// Waits until the coordinator tells of a step of so many workers.
    fn wait_for_step_of(&mut self, num_workers: usize) {
        let worked = format!(" {num_workers} workers ");
        self.coordinator.wait_for(&worked, |line| step_of(line).is_some() && line.contains(&worked));
    }

    fn status(&self) -> serde_json::Value {
        let output = process::polo().args(["status", "--json", "--address", &self.address]).output().expect("starts");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The newest step that any worker has told of, once all have told of a later one than `step`.
    fn train_past(&mut self, step: u64) -> u64 {
        self.workers.iter_mut().map(|worker| worker.wait_for_traced_step(step + 1)).max().expect("workers")
    }

    /// Ends the coordinator without a word to anybody.
    fn kill_coordinator(&mut self) {
        self.coordinator.signal(Signal::KILL);
        while !matches!(self.coordinator.hear(Instant::now() + process::LIMIT), Heard::End) {}
    }

    /// A coordinator at the address of the first.
    fn restart_coordinator(&mut self, lab: &mut Lab) {
        self.coordinator = lab.start_coordinator(self.store, &self.address, &[]);
        assert_eq!(self.coordinator.address(), self.address);
    }

    /// Waits for the end of the run. The workers' logs, and how the coordinator ended.
    fn finish(self) -> (Vec<String>, Ended) {
        let ended = self.coordinator.finish();
        let log_of = |worker: Running| {
            let path = worker.log().to_owned();
            let ended = worker.finish();
            assert!(ended.status.success(), "{}:\n{}", path.display(), ended.talk.join("\n"));
            fs::read_to_string(path).expect("a log")
        };
        (self.workers.into_iter().map(log_of).collect(), ended)
    }
}

/// Checks that a worker computed every step after `step` once, all of them in one generation, and returns how many.
fn assert_unbroken(log: &str, step: u64) -> usize {
    let computes = log.lines().filter(|line| matches!(traced(line), Some((_, "compute"))));
    let mut steps: Vec<_> = computes.filter_map(traced_step).filter(|(_, s)| *s > step).collect();
    steps.dedup();
    for pair in steps.windows(2) {
        assert_eq!((pair[0].0, pair[0].1 + 1), pair[1], "generation and step, and the next ones");
    }
    steps.len()
}

#[test]
fn a_killed_coordinator_takes_up_the_run_where_it_is() {
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let undisturbed = lab.digest_of("undisturbed", 1);
    let mut scene = Scene::start(&mut lab, "killed", 3);
    drop(scene.workers.pop());
    scene.wait_for_step_of(2);
    let before = scene.status();
    assert_eq!(before["incidents"][0]["worker_id"], "w2", "{before}");
    scene.kill_coordinator();
    let killed_at = scene.train_past(0);
    scene.train_past(killed_at + STEPS_ALONE);
    scene.restart_coordinator(&mut lab);
    scene.wait_for_step_of(2);

    let after = scene.status();
    assert_eq!(after["generation"], before["generation"], "nobody died, so nothing is formed anew: {after}");
    assert_eq!(after["incidents"].as_array().map(Vec::len), Some(1), "{after}");
    assert_eq!(after["incidents"][0]["worker_id"], "w2", "{after}");
    assert!(after["step"].as_u64() > Some(killed_at + STEPS_ALONE), "{killed_at}: {after}");
    let (logs, ended) = scene.finish();
    assert_eq!(lab.completed(&ended), undisturbed);
    logs.iter().for_each(|log| assert!(assert_unbroken(log, killed_at) > STEPS_ALONE as usize));
}

#[test]
fn a_worker_that_dies_while_the_coordinator_is_away_is_handled_when_it_is_back() {
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let undisturbed = lab.digest_of("undisturbed", 1);
    let mut scene = Scene::start(&mut lab, "orphaned", 3);
    scene.kill_coordinator();
    let killed_at = scene.train_past(0);
    scene.train_past(killed_at + STEPS_ALONE);
    drop(scene.workers.remove(1));
    scene.restart_coordinator(&mut lab);
    scene.coordinator.wait_for("the loss", |line| line == "lost worker w1: its process is gone");
    scene.wait_for_step_of(2);
    let (_, ended) = scene.finish();
    assert_eq!(lab.completed(&ended), undisturbed);
    assert_eq!(ended.json()["num_incidents"], 1, "{}", ended.talk.join("\n"));
}

const ABSENCE: Duration = Duration::from_secs(60);
/// For longer than any test takes.
const ENDLESS: Shape = Shape { num_steps: 1_000_000, hidden_size: 96 };

#[test]
fn a_minute_without_a_coordinator_costs_no_step() {
    let mut lab = Lab::new(drawn_seed(), ENDLESS);
    let mut scene = Scene::start(&mut lab, "minute", 2);
    scene.kill_coordinator();
    let killed_at = scene.train_past(0);
    let back_at = Instant::now() + ABSENCE;
    while Instant::now() < back_at {
        assert!(!matches!(scene.workers[0].hear(back_at), Heard::End), "a worker ended");
    }
    scene.restart_coordinator(&mut lab);
    scene.wait_for_step_of(2);
    assert_eq!(scene.status()["incidents"].as_array().map(Vec::len), Some(0));
    let stop = process::polo().args(["stop", "--address", &scene.address]).status();
    assert!(stop.expect("polo starts").success());
    let (logs, ended) = scene.finish();
    assert_eq!(ended.json()["outcome"], "stopped");
    let num_steps: Vec<_> = logs.iter().map(|log| assert_unbroken(log, killed_at)).collect();
    println!("steps since the coordinator was killed, by worker: {num_steps:?}");
    let (is_content, report) = lab.verify("minute");
    assert!(is_content, "{report}");
}

/// That this coordinator was turned away from the run, and the line that says why.
fn refusal(ended: &Ended) -> &str {
    assert!(!ended.status.success(), "{}", ended.talk.join("\n"));
    ended.talk.iter().find(|line| line.starts_with("error: ")).expect("an error")
}

#[test]
fn a_second_coordinator_is_refused_and_told_who_holds_the_run() {
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let undisturbed = lab.digest_of("undisturbed", 1);
    let scene = Scene::start(&mut lab, "held", 2);
    let second = lab.start_coordinator("held", "127.0.0.1:0", &[]).finish();
    let (error, pid) = (refusal(&second), scene.coordinator.pid());
    let holder = format!("is held by the coordinator at {} (pid {pid} on ", scene.address);
    assert!(error.contains(&holder) && error.contains("stop that coordinator first"), "{error}");
    let (_, ended) = scene.finish();
    assert_eq!(lab.completed(&ended), undisturbed);
    assert_eq!(ended.json()["num_incidents"], 0);
}

#[test]
fn a_frozen_coordinator_finds_itself_superseded_and_harms_nobody() {
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let undisturbed = lab.digest_of("undisturbed", 1);
    let mut scene = Scene::start(&mut lab, "frozen", 2);
    scene.coordinator.signal(Signal::STOP);
    let frozen_at = scene.train_past(0);
    let mut successor = lab.start_coordinator("frozen", "127.0.0.1:0", &[]);
    let address = successor.address();
    scene.coordinator.signal(Signal::CONT);
    let thawed = std::mem::replace(&mut scene.coordinator, successor).finish();
    let (error, pid) = (refusal(&thawed), scene.coordinator.pid());
    let taken_over = format!("another coordinator has taken over the run: the coordinator at {address} (pid {pid} on ");
    assert!(error.contains(&taken_over), "{error}");

    // The workers know one address only, so they come back when a coordinator listens there.
    scene.kill_coordinator();
    scene.restart_coordinator(&mut lab);
    let (logs, ended) = scene.finish();
    assert_eq!(lab.completed(&ended), undisturbed);
    logs.iter().for_each(|log| assert!(assert_unbroken(log, frozen_at) > 0));
}
