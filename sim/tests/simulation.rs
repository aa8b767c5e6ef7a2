//! Thousands of runs under faults drawn from seeds.
//!
//! `POLO_SIM_SEED=n` replays one and prints all that was said; `POLO_SIM_RUNS=n` makes so many with new seeds, 0 for no end.
#![allow(missing_docs)]

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use polo_sim::{
    run::{Report, simulate},
    scenario::Scenario,
};

const NUM_RUNS: u64 = 1000;
/// So often whoever waits is told.
const RUNS_PER_NEWS: u64 = 5000;
/// Failures after which a test has seen enough.
const MOST_FAILURES: usize = 3;

fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}; it has to be a number")))
}

fn describe(scenario: &Scenario, report: &Report) -> String {
    const MOST_NEWS: usize = 200;
    let news: Vec<_> = report.news.iter().take(MOST_NEWS).map(|(ms, news)| format!("{ms:>7} ms  {news}\n")).collect();
    format!("{scenario:?}\n{}{:#?}", news.concat(), report.wrong)
}

/// Simulates seeds from `first` on, `num_runs` of them or without end, on all processors. Returns the failures.
fn simulate_many(first: u64, num_runs: Option<u64>) -> Vec<String> {
    let next = AtomicU64::new(first);
    let end = num_runs.map(|num_runs| first + num_runs);
    let work = || {
        let mut failures = Vec::new();
        while failures.len() < MOST_FAILURES {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if end.is_some_and(|end| seed >= end) {
                break;
            }
            if seed > first && (seed - first).is_multiple_of(RUNS_PER_NEWS) {
                println!("{} runs begun", seed - first);
            }
            let scenario = Scenario::new(seed);
            let report = simulate(&scenario);
            if !report.wrong.is_empty() {
                eprintln!("seed {seed} fails; POLO_SIM_SEED={seed} replays it: {:?}", report.wrong[0]);
                failures.push(describe(&scenario, &report));
            }
        }
        failures
    };
    thread::scope(|scope| {
        let num_threads = thread::available_parallelism().map_or(2, usize::from);
        let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    })
}

#[test]
fn every_run_ends_in_the_undisturbed_state() {
    if let Some(seed) = from_env("POLO_SIM_SEED") {
        let filter = tracing_subscriber::EnvFilter::try_from_env("POLO_LOG").unwrap_or_default();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().init();
        let scenario = Scenario::new(seed);
        let report = simulate(&scenario);
        println!("{}", describe(&scenario, &report));
        assert!(report.wrong.is_empty());
        return;
    }
    // The seeds of `make test` are always the same; more of them are drawn anew each time.
    let (first, num_runs) = match from_env("POLO_SIM_RUNS") {
        Some(0) => (rand::random::<u32>().into(), None),
        Some(num_runs) => (rand::random::<u32>().into(), Some(num_runs)),
        None => (0, Some(NUM_RUNS)),
    };
    println!("seeds from {first} on");
    let started = Instant::now();
    let failures = simulate_many(first, num_runs);
    let asked_for = num_runs.map_or("endless".to_owned(), |num_runs| num_runs.to_string());
    println!("{asked_for} runs: {} failed, {:.0} s", failures.len(), started.elapsed().as_secs_f64());
    assert!(failures.is_empty(), "{}", failures[0]);
}

#[test]
fn a_seed_replays_to_the_same_end() {
    for seed in [1, 2, 3] {
        let [one, other] = [(); 2].map(|()| simulate(&Scenario::new(seed)));
        assert_eq!((one.news, one.elapsed), (other.news, other.elapsed), "seed {seed}");
    }
}
