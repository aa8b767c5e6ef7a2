//! What the control plane costs as the number of workers grows.
//!
//! A real coordinator process is pinned to one core and serves workers that train nothing: each has a session of its own,
//! sends heartbeats at the interval it is told, and notes when it hears of a generation or of an abort. For each number
//! of workers one line of JSON says how long the first generation took, what share of the core the coordinator used with
//! heartbeats alone, and how long it took from the death of a worker until every other one was told to drop the
//! generation, and until every other one had the next. If it loses a worker that nobody killed, that is its failure.
//!
//! `cargo build -p polo-cli && cargo run -p polo-coordinator --example fake_workers -- [--num-workers 10,100,1000,2000]
//! [--num-kills 5] [--seconds 10] [--heartbeat-timeout-ms 2000] [--core 0]`
//!
//! Each worker needs one open file here and one in the coordinator: `ulimit -n` must be above the number of workers.

mod fleet;
mod served;

use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;

use fleet::{Fleet, Word};
use served::{Lab, Served};

/// Nothing that is waited for here may take longer.
const LIMIT: Duration = Duration::from_secs(300);
/// Open files of a process beside its workers' sessions.
const SPARE_FILES: u64 = 200;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures the coordinator with workers that train nothing.
#[derive(Debug, Parser)]
struct Args {
    /// Numbers of workers, one measurement each
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1000, 2000])]
    num_workers: Vec<usize>,
    /// Workers that die, one after another
    #[arg(long, default_value_t = 5)]
    num_kills: usize,
    /// Seconds over which the coordinator's use of its core is taken
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The recipe's `workers.heartbeat_timeout_ms`; heartbeats come five times as often
    #[arg(long, default_value_t = 2000)]
    heartbeat_timeout_ms: u64,
    /// The coordinator's core; the workers have the others, where there are any
    #[arg(long, default_value_t = 0)]
    core: usize,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let most = args.num_workers.iter().max().copied().unwrap_or(0);
    check_open_files(most as u64 + SPARE_FILES)?;
    served::leave_core(args.core)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let mut num_failed = 0;
    for &num_workers in &args.num_workers {
        let measured = runtime.block_on(measure(&args, num_workers));
        num_failed += usize::from(measured.is_err());
        println!("{}", measured.unwrap_or_else(|e| json!({ "num_workers": num_workers, "failed": e.to_string() })));
    }
    if num_failed > 0 { Err(format!("{num_failed} measurements failed").into()) } else { Ok(()) }
}

/// A process may raise its own limit up to the hard one, but the shell does it for both processes at once.
fn check_open_files(needed: u64) -> Result<(), Failure> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let mut numbers = line.unwrap_or_default().split_whitespace();
    let (soft, hard) = (numbers.next().unwrap_or("?"), numbers.next().unwrap_or("?"));
    if soft.parse().is_ok_and(|soft: u64| soft < needed) {
        return Err(format!(
            "so many workers need {needed} open files and the limit is {soft}: run `ulimit -n {needed}` first (the hard \
             limit is {hard}; `prlimit --nofile={needed}:{needed} --pid $$` as root raises it for this shell)"
        )
        .into());
    }
    Ok(())
}

async fn measure(args: &Args, num_workers: usize) -> Result<serde_json::Value, Failure> {
    let lab = Lab::new(num_workers, args.heartbeat_timeout_ms).await?;
    let served = Served::start(&lab, num_workers, args.core)?;
    let started = Instant::now();
    let num_kills = args.num_kills.min(num_workers.saturating_sub(1));
    let mut fleet = Fleet::join(&served.address, &lab, num_workers, num_kills).await?;
    let joined = started.elapsed();
    let mut generation = fleet.wait_for_generation(0, LIMIT).await?;
    let formed = started.elapsed();
    let core_share = served.core_share(Duration::from_secs(args.seconds)).await?;
    let (mut abort_ms, mut first_abort_ms, mut next_ms) = (vec![], vec![], vec![]);
    for _ in 0..num_kills {
        let killed_at = fleet.kill_one()?;
        let told = fleet.wait_for_all(&Word::Abort(generation), LIMIT).await?;
        let newest = fleet.wait_for_generation(generation, LIMIT).await?;
        first_abort_ms.push(ms(told[0] - killed_at));
        abort_ms.push(ms(told[told.len() - 1] - killed_at));
        next_ms.push(ms(fleet.heard_at() - killed_at));
        generation = newest;
    }
    let fleet_share = fleet.core_share();
    Ok(json!({
        "num_workers": num_workers,
        "heartbeat_timeout_ms": args.heartbeat_timeout_ms,
        "heartbeats_per_s": rounded(num_workers as f64 * 1e3 / fleet.heartbeat_interval_ms() as f64),
        "joined_s": rounded(joined.as_secs_f64()),
        "first_generation_s": rounded(formed.as_secs_f64()),
        "core_share": rounded(core_share),
        "num_kills": num_kills,
        "abort_first_ms": spread(first_abort_ms),
        "abort_all_ms": spread(abort_ms),
        "next_generation_all_ms": spread(next_ms),
        "coordinator_peak_mib": served.peak_mib()?,
        "this_process_core_share": rounded(fleet_share),
    }))
}

fn ms(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1e3)
}

/// To three digits after the point, which is more than can be told apart.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// Median and range.
fn spread(mut values: Vec<f64>) -> serde_json::Value {
    values.sort_by(f64::total_cmp);
    match values[..] {
        [] => serde_json::Value::Null,
        [least, ..] => json!({ "median": values[values.len() / 2], "least": least, "most": values[values.len() - 1] }),
    }
}
