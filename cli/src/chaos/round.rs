//! One run of the recipe from its first step to its last, with faults in between.

use std::time::Duration;

use polo_proto::v1::Status;
use rand::{RngExt, rngs::StdRng};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    Error,
    fault::{Fault, Kind},
    network::Network,
    processes::free_address,
    report::{Injected, RunReport},
    scene::{Meaning, Scene, Setting},
    watching::follow,
};
use polo_log::say;

use crate::coordinate::Signals;

/// A run that takes no step for so long, although nothing is broken any more, has failed.
const LONGEST_STANDSTILL: Duration = Duration::from_secs(60);
/// How long workers may take to leave after the run has ended.
const FAREWELL: Duration = Duration::from_secs(5);

/// How a run is disturbed.
pub struct Turmoil<'a> {
    /// Where its choices come from.
    pub rng: &'a mut StdRng,
    /// Kinds of faults to choose from.
    pub kinds: &'a [Kind],
    /// Faults to bring about, if the run lasts as long.
    pub num_faults: usize,
    /// Longest time from one fault to the next.
    pub calm_ms: u64,
}

/// A run that goes on.
struct Round<'a> {
    turmoil: Turmoil<'a>,
    scene: Scene<'a>,
    status: watch::Receiver<Status>,
    following: JoinHandle<()>,
    began: Instant,
    /// When the next fault comes; none before the first step.
    next_fault: Option<Instant>,
    injected: Vec<Injected>,
    last_step: u64,
    has_stepped_since_store_broke: bool,
    /// When something happened that a standstill is counted from.
    stirred: Instant,
}

/// Runs the recipe to its end.
pub async fn run(
    setting: Setting,
    network: &mut Network,
    turmoil: Turmoil<'_>,
    signals: &mut Signals,
) -> Result<RunReport, Error> {
    let address = free_address(network.coordinator_ip(), turmoil.rng)?;
    let scene = Scene::start(setting, network, address)?;
    let (sender, status) = watch::channel(Status::default());
    let now = Instant::now();
    let mut round = Round {
        following: tokio::spawn(follow(scene.url(), sender)),
        turmoil,
        scene,
        status,
        began: now,
        next_fault: None,
        injected: Vec::new(),
        last_step: 0,
        has_stepped_since_store_broke: true,
        stirred: now,
    };
    let line = round.until_it_ends(signals).await?;
    round.conclude(&line).await
}

impl Round<'_> {
    async fn until_it_ends(&mut self, signals: &mut Signals) -> Result<String, Error> {
        loop {
            let moments = [Some(self.stirred + LONGEST_STANDSTILL), self.next_fault, self.scene.next_mend()];
            let Some(moment) = moments.into_iter().flatten().min() else { continue };
            tokio::select! {
                biased;
                _ = signals.next() => return Err(Error::Interrupted),
                exit = self.scene.processes.next_exit() => {
                    let may_give_up = !self.scene.is_store_whole() || !self.has_stepped_since_store_broke;
                    match self.scene.on_exit(exit, may_give_up) {
                        Meaning::GoesOn => {}
                        Meaning::RunEnded(line) => return Ok(line),
                        Meaning::CoordinatorFailed(exit) => return Err(self.failed(Error::CoordinatorFailed { exit })),
                    }
                }
                Ok(()) = self.status.changed() => self.take_status(),
                () = tokio::time::sleep_until(moment) => self.act(Instant::now()).await?,
            }
        }
    }

    /// Notes a step. The count may fall when a checkpoint is gone back to; only a rise is a new step.
    fn take_status(&mut self) {
        let step = self.status.borrow_and_update().step;
        let is_new_step = step > self.last_step;
        self.last_step = step;
        if !is_new_step {
            return;
        }
        let now = Instant::now();
        self.stirred = now;
        self.has_stepped_since_store_broke |= self.scene.is_store_whole();
        for injected in self.injected.iter_mut().filter(|injected| injected.next_step_ms.is_none()) {
            injected.next_step_ms = Some((now - injected.at).as_millis() as u64);
        }
        if self.next_fault.is_none() && self.injected.is_empty() && self.turmoil.num_faults > 0 {
            self.plan_next_fault(now);
        }
    }

    fn plan_next_fault(&mut self, now: Instant) {
        let is_enough = self.injected.len() >= self.turmoil.num_faults;
        let calm = Duration::from_millis(self.turmoil.rng.random_range(0..=self.turmoil.calm_ms));
        self.next_fault = (!is_enough).then_some(now + calm);
    }

    /// Does whatever it is time for.
    async fn act(&mut self, now: Instant) -> Result<(), Error> {
        if self.scene.mend(now).await? {
            self.stirred = now;
        }
        if self.next_fault.is_some_and(|at| at <= now) {
            self.inflict(now).await?;
            self.plan_next_fault(now);
        }
        // What is broken now is mended within seconds, and then the time runs anew.
        if now >= self.stirred + LONGEST_STANDSTILL && self.scene.next_mend().is_none() {
            return Err(self.failed(Error::Standstill { seconds: LONGEST_STANDSTILL.as_secs() }));
        }
        Ok(())
    }

    async fn inflict(&mut self, now: Instant) -> Result<(), Error> {
        let Some(fault) = Fault::draw(self.turmoil.rng, self.turmoil.kinds, &self.scene.situation()) else {
            return Ok(());
        };
        let (at_ms, step) = ((now - self.began).as_millis() as u64, self.last_step);
        say(format_args!("{:>8.3} s  step {step:>5}  {fault}", at_ms as f64 / 1000.0));
        if !self.scene.inflict(&fault).await? {
            return Ok(());
        }
        self.has_stepped_since_store_broke &= self.scene.is_store_whole();
        self.stirred = now;
        self.injected.push(Injected { fault, at: now, at_ms, step, next_step_ms: None });
        Ok(())
    }

    /// Says what can be known of a run that did not go on.
    fn failed(&self, error: Error) -> Error {
        say(format_args!("the last status: {:?}", *self.status.borrow()));
        self.scene.processes.last_words().iter().for_each(say);
        error
    }

    async fn conclude(mut self, line: &str) -> Result<RunReport, Error> {
        let ended_after = self.began.elapsed();
        let everybody_leaves = async {
            while self.scene.processes.names().next().is_some() {
                self.scene.processes.next_exit().await;
            }
        };
        // Frozen ones do not; they are killed with the rest.
        let _ = timeout(FAREWELL, everybody_leaves).await;
        let status = self.status.borrow().clone();
        RunReport::new(line, &status, ended_after, std::mem::take(&mut self.injected)).ok_or_else(|| {
            let line = line.to_owned();
            self.failed(Error::NotCompleted { line })
        })
    }
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        self.following.abort();
    }
}
