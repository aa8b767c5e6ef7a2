//! How long a `kill -9` of one of three workers holds up the other two.
//!
//! Each try is a run of its own: at a random moment one worker is killed, and the time is taken until the survivors'
//! next completed step. From it goes the time of one step, as the survivors' later steps take it. Prints JSON.
//!
//! `cargo run -p polo-cli --example kill_latency -- [TRIES]`

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::time::{Duration, Instant};

use harness::{
    Lab, Shape, drawn_seed,
    process::{Heard, Running, step_of},
};
use rand::{RngExt, seq::IndexedRandom};

const SHAPE: Shape = Shape { num_steps: 4000, hidden_size: 96 };
/// Steps of the survivors over which the time of one is taken.
const NUM_LATER_STEPS: usize = 7;

/// One kill.
struct Try {
    /// From the kill to the survivors' next completed step.
    until_step: Duration,
    /// Median time of a step of two workers.
    step: Duration,
}

impl Try {
    fn lost_ms(&self) -> f64 {
        (self.until_step.as_secs_f64() - self.step.as_secs_f64()) * 1e3
    }
}

fn main() {
    let num_tries = std::env::args().nth(1).map_or(20, |n| n.parse().expect("a number of tries"));
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let tries: Vec<_> = (0..num_tries).map(|number| kill_once(&mut lab, number)).collect();
    let lost = sorted(tries.iter().map(Try::lost_ms));
    let steps = sorted(tries.iter().map(|t| t.step.as_secs_f64() * 1e3));
    let report = serde_json::json!({
        "num_kills": tries.len(),
        "lost_ms": { "median": median(&lost), "least": lost[0], "most": lost[lost.len() - 1], "all": lost },
        "step_ms": { "median": median(&steps) },
    });
    println!("{report:#}");
}

fn kill_once(lab: &mut Lab, number: usize) -> Try {
    let mut run = lab.start(&format!("try-{number}"), 3, &[]);
    run.wait_for_step(5);
    let moment = Instant::now() + Duration::from_micros(lab.rng.random_range(0..300_000));
    while !matches!(run.hear(moment), Heard::Nothing) {}
    let victim = *run.workers().choose(&mut lab.rng).expect("three workers");
    let killed_at = Instant::now();
    run.kill_worker(victim);
    let stepped_at = next_step(&mut run);
    let mut moments = vec![stepped_at];
    moments.extend((0..NUM_LATER_STEPS).map(|_| next_step(&mut run)));
    let steps = sorted(moments.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()));
    let a_try = Try { until_step: stepped_at - killed_at, step: Duration::from_secs_f64(median(&steps)) };
    eprintln!("kill {number}: {:.0} ms and one step", a_try.lost_ms());
    a_try
}

/// When the next step of the two survivors was completed.
fn next_step(run: &mut Running) -> Instant {
    run.wait_for("a step of two workers", |line| step_of(line).is_some() && line.contains(" 2 workers "));
    run.heard_at
}

fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}
