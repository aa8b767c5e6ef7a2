//! Workers that were asked to leave: they hand back what they hold, and go without an incident.

use polo_recipe::ids::{Generation, Step};

use super::{Action, Formation, Notice, Role, State, Tell, WorkerId};

/// A checkpoint that lets go members without whom too few would remain to hold the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainCheckpoint {
    /// One of this step or a later one will do.
    pub(super) from: Step,
    /// The generation that was told to write it.
    pub(super) told: Option<Generation>,
}

impl State {
    pub(super) fn ask_to_leave(&mut self, worker: &WorkerId) -> Vec<Action> {
        if !self.members.contains_key(worker) || !self.leavers.insert(worker.clone()) {
            return Vec::new();
        }
        self.unsettled = true;
        vec![Action::Announce(Notice::Leaving(worker.clone()))]
    }

    /// Lets go whoever was asked to leave and holds nothing that others may need.
    pub(super) fn let_idle_leavers_go(&mut self) -> Vec<Action> {
        let idle: Vec<_> = self.leavers.iter().filter(|w| !self.may_hold_chunks(w)).cloned().collect();
        idle.iter().flat_map(|worker| self.let_go(worker)).collect()
    }

    fn may_hold_chunks(&self, worker: &WorkerId) -> bool {
        let holds_now = matches!(self.seat_of(worker), Some((_, Role::Member | Role::Leaving)));
        match &self.formation {
            Formation::Waiting { .. } => false,
            Formation::Running => holds_now,
            Formation::Recording { seats, .. } => {
                holds_now || seats.iter().any(|s| s.worker == *worker && s.role == Role::Member)
            }
        }
    }

    /// Once a generation has made a step, what its leaving workers held is with others.
    pub(super) fn let_leavers_go(&mut self) -> Vec<Action> {
        let is_done = |w: &&WorkerId| matches!(self.seat_of(w), Some((_, Role::Leaving)));
        let done: Vec<_> = self.leavers.iter().filter(is_done).cloned().collect();
        done.iter().flat_map(|worker| self.let_go(worker)).collect()
    }

    fn let_go(&mut self, worker: &WorkerId) -> Vec<Action> {
        let mut actions = self.tell_all([worker], Tell::Drained);
        self.remove(worker);
        actions.push(Action::Announce(Notice::Drained(worker.clone())));
        actions
    }

    /// Too few would remain: the state has to be stored before anybody goes.
    pub(super) fn hold_leavers_back(&mut self) -> Vec<Action> {
        let from = self.step;
        self.drain_checkpoint.get_or_insert(DrainCheckpoint { from, told: None });
        self.ask_for_drain_checkpoint()
    }

    /// Members heed a wish for a checkpoint once they train, so it is told when their generation has made a step.
    pub(super) fn ask_for_drain_checkpoint(&mut self) -> Vec<Action> {
        let (announced, has_stepped) = (self.announced, self.watch.has_stepped_in(self.announced));
        let Some(wish) = self.drain_checkpoint.as_mut() else { return Vec::new() };
        if wish.told == Some(announced) || !has_stepped {
            return Vec::new();
        }
        wish.told = Some(announced);
        self.tell_generation(Tell::Checkpoint)
    }

    /// A checkpoint is stored; if it is the one that was awaited, whoever was asked to leave goes.
    pub(super) fn let_held_back_go(&mut self, stored: Step) -> Vec<Action> {
        if self.drain_checkpoint.is_none_or(|wish| stored < wish.from) {
            return Vec::new();
        }
        self.drain_checkpoint = None;
        let leavers: Vec<_> = self.leavers.iter().cloned().collect();
        let mut actions: Vec<_> = leavers.iter().flat_map(|worker| self.let_go(worker)).collect();
        let reason = "the state is stored, and too few workers remain after those that were asked to leave";
        actions.extend(self.break_generation(reason.into()));
        actions
    }
}
