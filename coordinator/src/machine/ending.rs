//! How a run ends: all members have taken their last step, hold equal states, and the state is stored.

use std::collections::BTreeMap;

use polo_recipe::ids::{Generation, Step};

use super::{Action, Formation, Notice, Outcome, State, Tell, WorkerId};

/// What is known of the end.
#[derive(Debug, Clone, Default)]
pub struct Ending {
    pub(super) stop_requested: bool,
    /// Members of the present generation that took their last step: its number and the digest of their state.
    pub(super) finished: BTreeMap<WorkerId, (Step, String)>,
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

    pub(super) fn finished(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        step: Step,
        state_digest: String,
    ) -> Vec<Action> {
        if generation != self.generation {
            return Vec::new();
        }
        self.ending.finished.insert(worker, (step, state_digest));
        self.consider_ending()
    }

    /// Ends the run when every member of the generation is done and their state is stored.
    pub(super) fn consider_ending(&mut self) -> Vec<Action> {
        let Formation::Running { members } = &self.formation else { return Vec::new() };
        let finished: Option<Vec<_>> = members.iter().map(|w| Some((w, self.ending.finished.get(w)?))).collect();
        let Some((_, (step, state_digest))) = finished.as_ref().and_then(|f| f.first().copied()) else {
            return Vec::new();
        };
        let (step, state_digest) = (*step, state_digest.clone());
        let others = finished.iter().flatten().find(|(_, (s, d))| (*s, d) != (step, &state_digest));
        if let Some((worker, (their_step, digest))) = others {
            let reason = format!(
                "workers end in different states: {} has {state_digest} at step {step}, {worker} has {digest} at step {their_step}",
                members[0]
            );
            return self.end(Outcome::Failed { reason });
        }
        if !self.checkpoints.contains(step) {
            return Vec::new();
        }
        let outcome = if step >= self.settings.num_steps {
            Outcome::Completed { step, state_digest }
        } else {
            Outcome::Stopped { step, state_digest }
        };
        self.end(outcome)
    }

    /// A checkpoint that cannot be stored is retried at the next one, unless the run ends with it.
    pub(super) fn checkpoint_failed(&mut self, step: Step, error: String) -> Vec<Action> {
        let is_last = self.ending.finished.values().any(|(s, _)| *s == step);
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
        actions.push(Action::End(outcome));
        actions
    }
}
