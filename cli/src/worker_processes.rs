//! The worker processes that `polo run` starts, and starts again.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use polo_coordinator::StopHandle;
use polo_log::say;
use tokio::{
    process::{Child, Command},
    signal::unix::SignalKind,
};

use crate::error::CliError;

/// A worker that lives for less than this did not get as far as training.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// After so many short lives of one worker in a row, nothing is gained by another.
const MOST_SHORT_LIVES: u32 = 3;
/// The signal that no process can catch.
const SIGKILL: i32 = 9;
/// How long workers may take to leave after the run has ended.
const FAREWELL: Duration = Duration::from_secs(5);

/// How workers are started.
pub struct Started {
    /// The worker's program.
    pub program: PathBuf,
    /// The resolved recipe.
    pub recipe: PathBuf,
    /// Whether another one is started for each that dies.
    pub respawn: bool,
    /// Where workers write down how long things take.
    pub trace: Option<PathBuf>,
    /// GPUs that they take in turns.
    pub num_gpus: u16,
    /// The coordinator's address, as URL.
    pub coordinator: String,
    /// The token that they show it.
    pub token_file: Option<PathBuf>,
}

/// Worker processes; they are killed when this is dropped.
pub struct WorkerProcesses {
    how: Started,
    lives: FuturesUnordered<tokio::task::JoinHandle<(u16, Option<ExitStatus>)>>,
    /// By worker, when it was started last, and its short lives in a row before that.
    started: HashMap<u16, (Instant, u32)>,
}

impl WorkerProcesses {
    /// None yet.
    pub fn new(how: Started) -> Self {
        let (lives, started) = Default::default();
        Self { how, lives, started }
    }

    /// Starts workers w0, w1, ...
    pub fn start(&mut self, num_workers: u16) -> Result<(), CliError> {
        (0..num_workers).try_for_each(|number| self.spawn(number, 0))
    }

    fn spawn(&mut self, number: u16, num_short_lives: u32) -> Result<(), CliError> {
        let Started { program, recipe, trace, num_gpus, coordinator, token_file, .. } = &self.how;
        let id = format!("w{number}");
        let mut command = Command::new(program);
        command.arg(recipe).arg("--id").arg(&id).arg("--gpu").arg((number % num_gpus).to_string());
        command.arg("--coordinator").arg(coordinator);
        command.args(token_file.iter().flat_map(|file| [OsStr::new("--token-file"), file.as_os_str()]));
        command.args(["--listen", "127.0.0.1:0", "--while-stdin-open"]);
        command.args(trace.iter().flat_map(|file| [OsStr::new("--trace"), file.as_os_str()]));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
        // Ctrl-C in the terminal is for this process alone, which passes it on as a clean stop.
        command.process_group(0);
        let spawned = command.spawn();
        let mut child = spawned.map_err(|source| CliError::Spawn { program: program.clone(), source })?;
        say(format_args!("worker {id} started (pid {})", child.id().unwrap_or_default()));
        self.started.insert(number, (Instant::now(), num_short_lives));
        self.lives.push(tokio::spawn(async move { (number, live(&mut child).await) }));
        Ok(())
    }

    /// Waits for the next worker to exit, and does what is to be done about it. An error if nobody is left.
    pub async fn attend(&mut self, run: &StopHandle) -> Result<(), CliError> {
        if self.lives.is_empty() && run.has_ended() {
            // Nobody is needed any more, and how the run has ended is about to be known.
            return std::future::pending().await;
        }
        let Some(Ok((number, status))) = self.lives.next().await else { return Err(CliError::NoWorkersLeft) };
        let id = format!("w{number}");
        let words = status.map_or("unknown".to_string(), |status| status.to_string());
        say(format_args!("worker {id} exited: {words}"));
        // One that leaves with success was asked to, or is not needed any more.
        let has_left_well = status.is_some_and(|status| status.success());
        if self.how.respawn && !has_left_well && !run.has_ended() {
            let (started, num_short_lives) = self.started.get(&number).copied().unwrap_or((Instant::now(), 0));
            let num_short_lives = match started.elapsed() < SHORT_LIFE {
                true if was_killed(status) => num_short_lives,
                true => num_short_lives + 1,
                false => 0,
            };
            if num_short_lives < MOST_SHORT_LIVES {
                return self.spawn(number, num_short_lives);
            }
            let seconds = SHORT_LIFE.as_secs();
            say(format_args!(
                "worker {id} is not started again: it exited {num_short_lives} times in a row within {seconds} s of its start"
            ));
        }
        if self.lives.is_empty() && !run.has_ended() { Err(CliError::NoWorkersLeft) } else { Ok(()) }
    }

    /// Waits, not for long, until all workers have left.
    pub async fn wait_for_all(mut self) {
        let all = async { while self.lives.next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, all).await.is_err() {
            say(format_args!("some workers did not leave within {} s and are killed", FAREWELL.as_secs()));
        }
    }
}

impl Drop for WorkerProcesses {
    fn drop(&mut self) {
        for life in &self.lives {
            life.abort();
        }
    }
}

/// Whether somebody killed it, which says nothing about how another would fare.
fn was_killed(status: Option<ExitStatus>) -> bool {
    let signal = status.and_then(|status| status.signal());
    [SignalKind::terminate().as_raw_value(), SIGKILL].contains(&signal.unwrap_or_default())
}

/// Waits for the process to exit; its standard input stays open as long as this lives.
async fn live(child: &mut Child) -> Option<ExitStatus> {
    let stdin = child.stdin.take();
    let status = child.wait().await.ok();
    drop(stdin);
    status
}
