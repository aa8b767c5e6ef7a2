//! The coordinator's decisions: `step(state, now, event) -> actions`, with no IO and no clock.
//!
//! [`State::step`] is the one way in. The event is first applied ([`members`], [`detection`], [`draining`],
//! [`checkpoints`], [`ending`]); then [`forming`] looks at the result and decides whether the membership must change,
//! and [`roster`] who is what in the next one. What an event costs does not grow with the number of workers, unless
//! the membership changes. [`State::next_wake`] says when time alone will change something.

mod actions;
mod billing;
mod checkpoints;
mod detection;
mod draining;
mod ending;
mod events;
mod forming;
mod goodput;
mod incidents;
mod members;
mod pace;
mod restoring;
mod roster;
mod types;
mod validation;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use polo_recipe::ids::{Generation, Rank, Step};

pub use self::{
    actions::*, events::*, forming::Hold, goodput::Goodput, incidents::*, members::Member, restoring::*, types::*,
    validation::*,
};
use self::{checkpoints::Checkpoints, detection::Watch, draining::DrainCheckpoint, ending::Ending, pace::Pace};

/// Where the run stands between two generations, or in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Formation {
    /// No generation trains; members are awaited.
    Waiting {
        /// Since when.
        since_ms: NowMs,
    },
    /// The next generation's journal entry is on its way; whoever trains goes on in the one before.
    Recording {
        /// Who will be in it, in rank order.
        seats: Vec<Seat>,
        /// One of them was lost meanwhile, so that it will not be announced.
        is_spoilt: bool,
    },
    /// A generation was announced.
    Running,
}

/// Everything that the coordinator's decisions depend on.
#[derive(Debug, Clone)]
pub struct State {
    pub(crate) settings: Settings,
    pub(crate) members: BTreeMap<WorkerId, Member>,
    /// Of these, whoever was asked to leave.
    pub(crate) leavers: BTreeSet<WorkerId>,
    pub(crate) num_joined: u64,
    pub(crate) last_joined_ms: NowMs,
    /// The newest number that was given to a generation.
    pub(crate) generation: Generation,
    pub(crate) formation: Formation,
    /// Who is in the generation that was announced last, in rank order; empty before the first one.
    pub(crate) seats: Vec<Seat>,
    /// The same, with the addresses at which they were announced.
    pub(crate) peers: Arc<[Peer]>,
    /// Those of them that are members.
    pub(crate) num_members: usize,
    /// That generation's number, and the one before with its seats: their ranks may still be spoken of.
    pub(crate) announced: Generation,
    pub(crate) before: (Generation, Vec<Seat>),
    /// The generation that runs is of no use any more, though it has not been replaced yet.
    pub(crate) broken: bool,
    /// It is of use, but has to be replaced: a spare of it is gone, or one of its workers was never told of it.
    pub(crate) outdated: bool,
    pub(crate) hold: Hold,
    /// Whether something happened since the membership was looked at.
    pub(crate) unsettled: bool,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) step: Step,
    pub(crate) incidents: Vec<Incident>,
    pub(crate) arrivals: BTreeMap<WorkerId, Arrival>,
    /// When every member of the generation had arrived.
    pub(crate) arrived_ms: Option<NowMs>,
    pub(crate) goodput: Goodput,
    pub(crate) pace: Pace,
    pub(crate) watch: Watch,
    pub(crate) drain_checkpoint: Option<DrainCheckpoint>,
    pub(crate) ending: Ending,
    pub(crate) validations: Validations,
}

impl State {
    /// A run that nobody has joined yet. `last_generation` is the newest in the journal, `checkpoints` the steps whose
    /// manifests exist.
    pub fn new(settings: Settings, last_generation: Generation, checkpoints: Vec<Step>, now: NowMs) -> Self {
        let checkpoints = Checkpoints::new(checkpoints);
        Self {
            validations: Validations::new(settings.validation.clone()),
            settings,
            members: BTreeMap::new(),
            leavers: BTreeSet::new(),
            num_joined: 0,
            last_joined_ms: now,
            generation: last_generation,
            formation: Formation::Waiting { since_ms: now },
            seats: Vec::new(),
            peers: Arc::default(),
            num_members: 0,
            announced: Generation(0),
            before: Default::default(),
            broken: false,
            outdated: false,
            hold: Hold::Settled,
            unsettled: true,
            step: checkpoints.newest().unwrap_or_default(),
            checkpoints,
            incidents: Vec::new(),
            arrivals: BTreeMap::new(),
            arrived_ms: None,
            goodput: Goodput::default(),
            pace: Pace::default(),
            watch: Watch::default(),
            drain_checkpoint: None,
            ending: Ending::default(),
        }
    }

    /// Takes one event and returns what must be done about it.
    pub fn step(&mut self, now: NowMs, event: Event) -> Vec<Action> {
        if self.ending.outcome.is_some() {
            return self.turn_away_late_comers(event);
        }
        if self.ending.decided.is_some() {
            // Whoever comes back now is let go with the others; nothing else matters any more.
            let matters = matches!(event, Event::Recorded(..) | Event::Hello(..));
            return if matters { self.apply(now, event) } else { Vec::new() };
        }
        self.unsettled |= !is_routine(&event);
        let mut actions = self.apply(now, event);
        actions.extend(self.look_at_clock(now));
        if self.ending.outcome.is_none() {
            actions.extend(self.consider_forming(now));
        }
        actions
    }

    /// When the next [`Event::Tick`] is due, unless something else happens before.
    pub fn next_wake(&self) -> Option<NowMs> {
        if self.ending.outcome.is_some() || self.ending.decided.is_some() {
            return None;
        }
        let at_once = self.unsettled.then_some(0);
        [at_once, self.hold.until_ms(), self.watch.next_lapse_ms, self.watch.progress_due_ms(&self.pace)]
            .into_iter()
            .flatten()
            .min()
    }

    fn apply(&mut self, now: NowMs, event: Event) -> Vec<Action> {
        match event {
            Event::Hello(worker, introduction, standing) => self.hello(now, worker, introduction, standing),
            Event::StreamBroken(worker, incarnation) => self.stream_broken(now, &worker, incarnation),
            Event::Said(worker, incarnation, said) => self.said(now, worker, incarnation, said),
            Event::Probed(worker, incarnation, alive) => self.probed(now, &worker, incarnation, alive),
            Event::Recorded(generation, result) => self.recorded(now, generation, result),
            Event::CheckpointStored(step, result) => self.checkpoint_stored(step, result),
            Event::StopRequested => self.request_stop(),
            Event::CheckpointRequested => self.tell_generation(Tell::Checkpoint),
            Event::DrainRequested(worker) => self.ask_to_leave(&worker),
            Event::Tick => Vec::new(),
        }
    }

    fn said(&mut self, now: NowMs, worker: WorkerId, incarnation: u64, said: Said) -> Vec<Action> {
        let timeout_ms = self.settings.heartbeat_timeout_ms;
        let Some(member) = self.member_mut(&worker, incarnation) else { return Vec::new() };
        member.heard(now, timeout_ms);
        match said {
            Said::Heartbeat { step, phase, phase_ms } => {
                (member.step, member.phase, member.phase_ms) = (step, phase, phase_ms);
                Vec::new()
            }
            Said::StepDone(done) => self.step_done(now, &worker, done),
            Said::Arrived(arrival) => self.arrived(now, worker, arrival),
            Said::Leaving => self.ask_to_leave(&worker),
            Said::PlaneLost { generation, suspects, reason, timed_out } => {
                self.plane_lost(now, generation, &suspects, reason, timed_out)
            }
            Said::CopiesDiffer { generation, step, chunk, suspects, is_certain } => {
                self.copies_differ(now, (generation, &suspects), step, chunk, is_certain)
            }
            Said::NumericalTrouble { generation, step, remedy, suspects } => {
                self.not_finite(now, (generation, &suspects), step, remedy)
            }
            Said::CheckpointPart(part) => self.checkpoint_part(now, &worker, part),
            Said::CheckpointDamaged { generation, step, problem } => self.damaged(now, generation, step, problem),
            Said::Validated(evaluation) => self.validated(worker, evaluation),
            Said::Finished { generation, step } => self.finished(worker, generation, step),
            Said::Failed { reason, ends_run } => self.worker_failed(now, &worker, reason, ends_run),
        }
    }

    fn step_done(&mut self, now: NowMs, worker: &WorkerId, done: StepDone) -> Vec<Action> {
        if let Some(member) = self.members.get_mut(worker) {
            member.step = done.step;
        }
        if done.step > self.step {
            self.step = done.step;
            self.goodput.add_step(done.step_ms);
            self.pace.add_step(done.step_ms);
        }
        let mut actions = self.compare_pace(now, worker, &done);
        if done.generation == self.announced && !self.broken && self.watch.is_first_report(now, &done) {
            self.members.values_mut().for_each(|m| m.num_silences = 0);
            actions.extend(self.close_incidents(now));
            actions.extend(self.let_leavers_go());
            actions.extend(self.ask_for_drain_checkpoint());
        }
        actions
    }

    /// Says the same to everybody in the generation that runs.
    pub(crate) fn tell_generation(&self, tell: Tell) -> Vec<Action> {
        self.tell_all(self.seats.iter().map(|s| &s.worker), tell)
    }

    pub(crate) fn tell_all<'a>(&self, to: impl IntoIterator<Item = &'a WorkerId>, tell: Tell) -> Vec<Action> {
        let known = to.into_iter().filter_map(|w| self.members.get(w).map(|m| (w, m.introduction.incarnation)));
        known.map(|(worker, incarnation)| Action::Tell(worker.clone(), incarnation, tell.clone())).collect()
    }

    pub(crate) fn member_mut(&mut self, worker: &WorkerId, incarnation: u64) -> Option<&mut Member> {
        self.members.get_mut(worker).filter(|m| m.introduction.incarnation == incarnation)
    }

    /// Rank and role of a worker in the generation that was announced last.
    pub fn seat_of(&self, worker: &WorkerId) -> Option<(Rank, Role)> {
        let rank = self.members.get(worker)?.rank?;
        self.seats.get(rank.index()).map(|seat| (rank, seat.role))
    }

    /// The workers that had these ranks in a generation, as far as that is still known.
    pub(crate) fn workers_at(&self, generation: Generation, ranks: &[Rank]) -> Vec<WorkerId> {
        let seats = match generation {
            g if g == self.announced => &self.seats,
            g if g == self.before.0 => &self.before.1,
            _ => return Vec::new(),
        };
        ranks.iter().filter_map(|rank| seats.get(rank.index())).map(|seat| seat.worker.clone()).collect()
    }

    /// Whether this worker was asked to leave.
    pub fn is_leaving(&self, worker: &WorkerId) -> bool {
        self.leavers.contains(worker)
    }

    /// The newest generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The newest step that any worker completed.
    pub fn newest_step(&self) -> Step {
        self.step
    }

    /// Members by name.
    pub fn members(&self) -> &BTreeMap<WorkerId, Member> {
        &self.members
    }

    /// Where the run stands.
    pub fn formation(&self) -> &Formation {
        &self.formation
    }

    /// Why the membership is as it is.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Interruptions, oldest first.
    pub fn incidents(&self) -> &[Incident] {
        &self.incidents
    }

    /// How the time was spent.
    pub fn goodput(&self) -> &Goodput {
        &self.goodput
    }

    /// Step of the newest usable checkpoint.
    pub fn newest_checkpoint(&self) -> Option<Step> {
        self.checkpoints.newest()
    }

    /// Whether a stop was asked for.
    pub fn is_stopping(&self) -> bool {
        self.ending.stop_requested
    }

    /// How the run ended, once it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.ending.outcome.as_ref()
    }
}

/// Whether an event by itself is no reason to look at the membership. Whatever it leads to may still be one.
fn is_routine(event: &Event) -> bool {
    match event {
        Event::Tick => true,
        Event::Said(_, _, said) => {
            matches!(said, Said::Heartbeat { .. } | Said::StepDone(_) | Said::Arrived(_) | Said::Validated(_))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
