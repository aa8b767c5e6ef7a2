//! The coordinator's decisions: `step(state, now, event) -> actions`, with no IO and no clock.
//!
//! [`State::step`] is the one way in. The event is first applied ([`members`], [`checkpoints`], [`ending`]); then
//! [`forming`] looks at the result and decides whether the membership must change.

mod checkpoints;
mod ending;
mod forming;
mod members;
mod types;

use std::collections::BTreeMap;

use polo_recipe::ids::{Generation, Step};

use self::{checkpoints::Checkpoints, ending::Ending};
pub use self::{forming::Hold, members::Member, types::*};

/// Where the run stands between two generations, or in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Formation {
    /// No generation trains; members are awaited.
    Waiting {
        /// Since when.
        since_ms: NowMs,
    },
    /// The next generation's journal entry is on its way.
    Recording {
        /// Who will be in it, in rank order.
        members: Vec<WorkerId>,
    },
    /// A generation was announced.
    Running {
        /// Who is in it, in rank order.
        members: Vec<WorkerId>,
    },
}

/// One interruption, as status shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Incident {
    /// Why.
    pub cause: LossCause,
    /// Who was lost, if anybody.
    pub worker: Option<WorkerId>,
    /// The generation that it ended.
    pub generation: Generation,
    /// The newest step at that time.
    pub step: Step,
    /// When it was decided.
    pub at_ms: NowMs,
    /// Until the next completed step; absent while it lasts.
    pub recovery_ms: Option<NowMs>,
}

/// Everything that the coordinator's decisions depend on.
#[derive(Debug, Clone)]
pub struct State {
    pub(crate) settings: Settings,
    pub(crate) members: BTreeMap<WorkerId, Member>,
    pub(crate) num_joined: u64,
    pub(crate) last_joined_ms: NowMs,
    pub(crate) generation: Generation,
    pub(crate) formation: Formation,
    /// The generation that runs is of no use any more, though it has not been replaced yet.
    pub(crate) broken: bool,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) step: Step,
    pub(crate) incidents: Vec<Incident>,
    pub(crate) ending: Ending,
}

impl State {
    /// A run that nobody has joined yet. `last_generation` is the newest in the journal, `checkpoints` the steps whose
    /// manifests exist.
    pub fn new(settings: Settings, last_generation: Generation, checkpoints: Vec<Step>, now: NowMs) -> Self {
        let checkpoints = Checkpoints::new(checkpoints);
        Self {
            settings,
            members: BTreeMap::new(),
            num_joined: 0,
            last_joined_ms: now,
            generation: last_generation,
            formation: Formation::Waiting { since_ms: now },
            broken: false,
            step: checkpoints.newest().unwrap_or_default(),
            checkpoints,
            incidents: Vec::new(),
            ending: Ending::default(),
        }
    }

    /// Takes one event and returns what must be done about it.
    pub fn step(&mut self, now: NowMs, event: Event) -> Vec<Action> {
        if self.ending.outcome.is_some() {
            return self.turn_away_late_comers(event);
        }
        let mut actions = self.apply(now, event);
        if self.ending.outcome.is_none() {
            actions.extend(self.consider_forming(now));
        }
        actions
    }

    fn apply(&mut self, now: NowMs, event: Event) -> Vec<Action> {
        match event {
            Event::Hello(worker, introduction) => self.hello(now, worker, introduction),
            Event::StreamBroken(worker, incarnation) => self.stream_broken(&worker, incarnation),
            Event::Said(worker, incarnation, said) => self.said(now, worker, incarnation, said),
            Event::Probed(worker, incarnation, alive) => self.probed(now, &worker, incarnation, alive),
            Event::GenerationRecorded(generation, result) => self.recorded(generation, result),
            Event::CheckpointStored(step, result) => self.checkpoint_stored(step, result),
            Event::StopRequested => self.request_stop(),
            Event::CheckpointRequested => self.tell_generation(Tell::Checkpoint),
            Event::Tick => self.lapse_silent_members(now),
        }
    }

    fn said(&mut self, now: NowMs, worker: WorkerId, incarnation: u64, said: Said) -> Vec<Action> {
        let Some(member) = self.member_mut(&worker, incarnation) else { return Vec::new() };
        member.last_heard_ms = now;
        match said {
            Said::Heartbeat { step, phase } => {
                (member.step, member.phase) = (step, phase);
                Vec::new()
            }
            Said::StepDone { generation, step } => self.step_done(now, &worker, generation, step),
            Said::PlaneLost { generation, suspects, reason, timed_out } => {
                self.plane_lost(now, generation, &suspects, reason, timed_out)
            }
            Said::CheckpointPart(part) => self.checkpoint_part(&worker, part),
            Said::CheckpointDamaged { generation, step, problem } => self.damaged(now, generation, step, problem),
            Said::Finished { generation, step, state_digest } => self.finished(worker, generation, step, state_digest),
            Said::Failed { reason, ends_run } => self.worker_failed(now, &worker, reason, ends_run),
        }
    }

    fn step_done(&mut self, now: NowMs, worker: &WorkerId, generation: Generation, step: Step) -> Vec<Action> {
        if let Some(member) = self.members.get_mut(worker) {
            member.step = step;
        }
        self.step = self.step.max(step);
        if generation == self.generation {
            self.members.values_mut().for_each(|m| m.num_silences = 0);
            for incident in self.incidents.iter_mut().filter(|i| i.recovery_ms.is_none()) {
                incident.recovery_ms = Some(now - incident.at_ms);
            }
        }
        Vec::new()
    }

    /// Says the same to every member of the generation that runs.
    pub(crate) fn tell_generation(&self, tell: Tell) -> Vec<Action> {
        let Formation::Running { members } = &self.formation else { return Vec::new() };
        self.tell_all(members, tell)
    }

    pub(crate) fn tell_all<'a>(&self, to: impl IntoIterator<Item = &'a WorkerId>, tell: Tell) -> Vec<Action> {
        let known = to.into_iter().filter_map(|w| self.members.get(w).map(|m| (w, m.introduction.incarnation)));
        known.map(|(worker, incarnation)| Action::Tell(worker.clone(), incarnation, tell.clone())).collect()
    }

    pub(crate) fn member_mut(&mut self, worker: &WorkerId, incarnation: u64) -> Option<&mut Member> {
        self.members.get_mut(worker).filter(|m| m.introduction.incarnation == incarnation)
    }

    /// The generation that runs, or ran last.
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

    /// Interruptions, oldest first.
    pub fn incidents(&self) -> &[Incident] {
        &self.incidents
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

#[cfg(test)]
mod tests;
