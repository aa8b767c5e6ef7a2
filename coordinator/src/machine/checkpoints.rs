//! Which checkpoints exist, and which are being put together from the workers' parts.

use std::collections::BTreeMap;

use polo_recipe::ids::Step;

use super::{Action, CheckpointDraft, CheckpointPart, Notice, State, WorkerId};

/// Parts that have come in for one step. Parts of different generations go together: a step's state does not depend on
/// who computed it.
#[derive(Debug, Clone, Default)]
struct Parts {
    chunks: BTreeMap<u32, [u8; 32]>,
    trained: Vec<(String, String, u64)>,
}

/// Stored checkpoints and drafts.
#[derive(Debug, Clone, Default)]
pub struct Checkpoints {
    /// Ascending.
    stored: Vec<Step>,
    drafts: BTreeMap<Step, Parts>,
}

impl Checkpoints {
    pub(super) fn new(mut stored: Vec<Step>) -> Self {
        stored.sort_unstable();
        Self { stored, drafts: BTreeMap::new() }
    }

    pub(super) fn newest(&self) -> Option<Step> {
        self.stored.last().copied()
    }

    pub(super) fn contains(&self, step: Step) -> bool {
        self.stored.contains(&step)
    }

    /// Stops using a checkpoint; false if it was not in use.
    pub(super) fn skip(&mut self, step: Step) -> bool {
        let used = self.contains(step);
        self.stored.retain(|s| *s != step);
        used
    }

    fn add(&mut self, step: Step) {
        if !self.contains(step) {
            self.stored.push(step);
            self.stored.sort_unstable();
        }
    }

    /// Adds a part. `Err` names a chunk that two workers see differently.
    fn merge(&mut self, part: CheckpointPart, num_chunks: usize) -> Result<Option<CheckpointDraft>, u32> {
        let parts = self.drafts.entry(part.step).or_default();
        for (chunk, digest) in part.chunks {
            if *parts.chunks.entry(chunk).or_insert(digest) != digest {
                return Err(chunk);
            }
        }
        parts.trained = part.trained;
        if parts.chunks.len() < num_chunks {
            return Ok(None);
        }
        let parts = self.drafts.remove(&part.step).unwrap_or_default();
        self.drafts.retain(|step, _| *step > part.step);
        let chunks = parts.chunks.into_values().collect();
        let protected = self.drafts.values().flat_map(|parts| parts.chunks.values().copied()).collect();
        Ok(Some(CheckpointDraft { step: part.step, chunks, trained: parts.trained, protected }))
    }
}

impl State {
    pub(super) fn checkpoint_part(&mut self, worker: &WorkerId, part: CheckpointPart) -> Vec<Action> {
        let step = part.step;
        match self.checkpoints.merge(part, self.settings.num_chunks) {
            Ok(None) => Vec::new(),
            Ok(Some(draft)) => vec![Action::StoreCheckpoint(draft)],
            Err(chunk) => {
                let problem = format!("worker {worker} holds other bits of chunk {chunk} than another worker");
                self.checkpoints.drafts.remove(&step);
                vec![Action::Announce(Notice::CheckpointFailed(step, problem))]
            }
        }
    }

    pub(super) fn checkpoint_stored(&mut self, step: Step, result: Result<(), String>) -> Vec<Action> {
        match result {
            Ok(()) => {
                self.checkpoints.add(step);
                let mut actions = vec![Action::Announce(Notice::CheckpointStored(step))];
                actions.extend(self.consider_ending());
                actions
            }
            Err(error) => self.checkpoint_failed(step, error),
        }
    }
}
