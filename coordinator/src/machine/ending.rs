//! How a run ends: all members have taken their last step, and its state is stored.

use std::collections::BTreeMap;

use polo_recipe::ids::{Generation, Step};

use super::{Action, Entry, Formation, Notice, Outcome, Role, State, Tell, WorkerId};

/// What is known of the end.
#[derive(Debug, Clone, Default)]
pub struct Ending {
    pub(super) stop_requested: bool,
    /// Members of the present generation that took their last step: its number.
    pub(super) finished: BTreeMap<WorkerId, Step>,
    /// A good end that is being written to the journal. Nobody is let go before it is there: a coordinator that comes
    /// after this one must find workers, or know that it needs none.
    pub(super) decided: Option<Outcome>,
    pub(super) outcome: Option<Outcome>,
}

impl State {
    pub(super) fn request_stop(&mut self) -> Vec<Action> {
        if self.ending.stop_requested {
            return Vec::new();
        }
        self.ending.stop_requested = true;
        if matches!(self.formation, Formation::Waiting { .. }) && self.members.is_empty() {
            let reason = "stopped before any worker had joined".into();
            return self.end(Outcome::Failed { reason });
        }
        let mut actions = vec![Action::Announce(Notice::Stopping)];
        actions.extend(self.tell_generation(Tell::Stop));
        actions
    }

    pub(super) fn finished(&mut self, worker: WorkerId, generation: Generation, step: Step) -> Vec<Action> {
        if generation != self.announced || self.broken {
            return Vec::new();
        }
        self.watch.expect_no_step();
        self.ending.finished.insert(worker, step);
        self.consider_ending()
    }

    /// Ends the run when every member of the generation is done and their state is stored.
    pub(super) fn consider_ending(&mut self) -> Vec<Action> {
        if !matches!(self.formation, Formation::Running) || self.broken || self.ending.decided.is_some() {
            return Vec::new();
        }
        let members = self.seats.iter().filter(|s| s.role == Role::Member).map(|s| &s.worker);
        let finished: Option<Vec<_>> = members.map(|w| Some((w, *self.ending.finished.get(w)?))).collect();
        let Some((first, step)) = finished.as_ref().and_then(|f| f.first().copied()) else { return Vec::new() };
        if let Some((worker, other)) = finished.iter().flatten().find(|(_, s)| *s != step) {
            let reason = format!("workers end at different steps: {first} at {step}, {worker} at {other}");
            return self.end(Outcome::Failed { reason });
        }
        match self.checkpoints.digest(step) {
            Some(Some(state_digest)) => {
                let outcome = self.outcome_at(step, state_digest);
                self.ending.decided = Some(outcome.clone());
                vec![Action::Record(Entry::Ended(outcome))]
            }
            Some(None) => self.read_checkpoint(step),
            None => Vec::new(),
        }
    }

    fn outcome_at(&self, step: Step, state_digest: String) -> Outcome {
        if step >= self.settings.num_steps {
            Outcome::Completed { step, state_digest }
        } else {
            Outcome::Stopped { step, state_digest }
        }
    }

    /// A checkpoint that cannot be stored is retried at the next one, unless the run ends with it.
    pub(super) fn checkpoint_failed(&mut self, step: Step, error: String) -> Vec<Action> {
        let is_last = self.ending.finished.values().any(|s| *s == step);
        let mut actions = vec![Action::Announce(Notice::CheckpointFailed(step, error.clone()))];
        if is_last {
            let reason = format!("the last checkpoint, of step {step}, could not be stored: {error}");
            actions.extend(self.end(Outcome::Failed { reason }));
        }
        actions
    }

    pub(super) fn end(&mut self, outcome: Outcome) -> Vec<Action> {
        let farewell = match &outcome {
            Outcome::Failed { reason } => Tell::Refused(format!("the run failed: {reason}")),
            _ => Tell::Release,
        };
        self.ending.outcome = Some(outcome.clone());
        let mut actions = self.tell_all(self.members.keys(), farewell);
        if matches!(outcome, Outcome::Failed { .. }) {
            actions.push(Action::Record(Entry::Ended(outcome.clone())));
        }
        actions.push(Action::End(outcome));
        actions
    }

    /// Another coordinator holds the run. Workers are told nothing: they train on, and go over to that one.
    pub(super) fn give_way(&mut self, by: String) -> Vec<Action> {
        let reason = format!(
            "another coordinator has taken over the run: {by}; the workers go on with that one, and this one only ends"
        );
        let outcome = Outcome::Failed { reason };
        self.ending.outcome = Some(outcome.clone());
        vec![Action::End(outcome)]
    }
}
