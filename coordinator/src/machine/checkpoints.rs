//! Which checkpoints exist, and which are being put together from the workers' parts.

use std::collections::BTreeMap;

use polo_recipe::ids::{Generation, Step};

use super::{Action, CheckpointDraft, CheckpointPart, LossCause, Notice, NowMs, State, WorkerId};

type ChunkDigest = [u8; 32];

/// So many reports of a chunk show who is the odd one out.
const NUM_FOR_MAJORITY: usize = 3;

/// Parts that have come in for one step. Parts of different generations go together: a step's state does not depend on
/// who computed it.
#[derive(Debug, Clone, Default)]
struct Parts {
    /// Stored chunks.
    chunks: BTreeMap<u32, ChunkDigest>,
    /// Who holds what of each chunk.
    held: BTreeMap<u32, Vec<(WorkerId, ChunkDigest)>>,
    trained: Vec<(String, String, u64)>,
    /// Workers disagree, so that no checkpoint is made of this.
    is_spoilt: bool,
}

impl Parts {
    /// Adds a part. Returns a chunk that is seen differently by two workers, and whoever is outvoted.
    fn add(&mut self, worker: &WorkerId, part: CheckpointPart) -> Option<(u32, Option<WorkerId>)> {
        let mut dispute = None;
        for (chunk, digest) in part.chunks.iter().chain(&part.witnessed) {
            let held = self.held.entry(*chunk).or_default();
            held.retain(|(holder, _)| holder != worker);
            held.push((worker.clone(), *digest));
            if held.iter().any(|(_, other)| other != digest) {
                dispute = Some((*chunk, odd_one(held)));
            }
        }
        self.chunks.extend(part.chunks);
        self.trained = part.trained;
        dispute
    }
}

/// Whoever alone differs from all others.
fn odd_one(held: &[(WorkerId, ChunkDigest)]) -> Option<WorkerId> {
    let is_odd = |(_, digest): &&(WorkerId, ChunkDigest)| {
        let mut others = held.iter().filter(|(_, other)| other != digest);
        let first = others.next();
        others.clone().count() + 2 == held.len() && others.all(|(_, other)| first.is_some_and(|(_, f)| f == other))
    };
    held.iter().find(is_odd).filter(|_| held.len() >= NUM_FOR_MAJORITY).map(|(worker, _)| worker.clone())
}

/// Stored checkpoints and drafts.
#[derive(Debug, Clone, Default)]
pub struct Checkpoints {
    /// With the digests of their states, as far as they are known.
    stored: BTreeMap<Step, Option<String>>,
    drafts: BTreeMap<Step, Parts>,
    /// The one whose digest is being read.
    reading: Option<Step>,
}

impl Checkpoints {
    pub(super) fn new(stored: Vec<Step>) -> Self {
        Self { stored: stored.into_iter().map(|step| (step, None)).collect(), ..Self::default() }
    }

    pub(super) fn newest(&self) -> Option<Step> {
        self.stored.last_key_value().map(|(step, _)| *step)
    }

    /// The digest of a stored checkpoint's state, if it is stored and as far as that is known.
    pub(super) fn digest(&self, step: Step) -> Option<Option<String>> {
        self.stored.get(&step).cloned()
    }

    /// The draft of a step if all its chunks are there.
    fn complete(&mut self, step: Step, num_chunks: usize) -> Option<CheckpointDraft> {
        let parts = self.drafts.get(&step).filter(|p| !p.is_spoilt && p.chunks.len() >= num_chunks)?.clone();
        self.drafts.retain(|other, _| *other > step);
        let chunks = parts.chunks.into_values().collect();
        let protected = self.drafts.values().flat_map(|parts| parts.chunks.values().copied()).collect();
        Some(CheckpointDraft { step, chunks, trained: parts.trained, protected })
    }
}

impl State {
    pub(super) fn checkpoint_part(&mut self, now: NowMs, worker: &WorkerId, part: CheckpointPart) -> Vec<Action> {
        let step = part.step;
        let parts = self.checkpoints.drafts.entry(step).or_default();
        if let Some((chunk, odd)) = parts.add(worker, part) {
            return self.states_differ(now, step, chunk, odd);
        }
        let draft = self.checkpoints.complete(step, self.settings.num_chunks);
        draft.map(Action::StoreCheckpoint).into_iter().collect()
    }

    /// Workers hold different bits at a step. Whoever is outvoted leaves; the others store that step again if it is the
    /// last, and otherwise the next one.
    fn states_differ(&mut self, now: NowMs, step: Step, chunk: u32, odd: Option<WorkerId>) -> Vec<Action> {
        let Some(parts) = self.checkpoints.drafts.get_mut(&step) else { return Vec::new() };
        let mut actions = Vec::new();
        if !std::mem::replace(&mut parts.is_spoilt, true) {
            let cause = LossCause::StatesDiffer(step, chunk);
            actions.push(self.note_incident(now, now, None, cause.clone()));
            actions.push(Action::Announce(Notice::Interrupted(None, cause.clone())));
            if odd.is_none() {
                actions.extend(self.checkpoint_failed(step, cause.to_string()));
            }
        }
        if let Some(odd) = odd {
            self.checkpoints.drafts.remove(&step);
            actions.extend(self.lose(now, &odd, LossCause::CorruptCopies { chunk, step }));
        }
        actions
    }

    pub(super) fn checkpoint_stored(&mut self, step: Step, result: Result<String, String>) -> Vec<Action> {
        if self.checkpoints.reading == Some(step) {
            self.checkpoints.reading = None;
        }
        let state_digest = match result {
            Ok(state_digest) => state_digest,
            Err(error) => return self.checkpoint_failed(step, error),
        };
        let mut actions = Vec::new();
        if self.checkpoints.stored.insert(step, Some(state_digest)).is_none() {
            actions.push(Action::Announce(Notice::CheckpointStored(step)));
        }
        actions.extend(self.let_held_back_go(step));
        actions.extend(self.consider_ending());
        actions
    }

    /// Asks for the digest of a checkpoint that another coordinator stored.
    pub(super) fn read_checkpoint(&mut self, step: Step) -> Vec<Action> {
        let is_asked = self.checkpoints.reading.replace(step) == Some(step);
        if is_asked { Vec::new() } else { vec![Action::ReadCheckpoint(step)] }
    }

    pub(super) fn damaged(&mut self, now: NowMs, generation: Generation, step: Step, problem: String) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.checkpoints.stored.remove(&step).is_some() {
            actions.push(Action::Announce(Notice::CheckpointSkipped(step, problem.clone())));
        }
        // The generation before may have told of it already, when this one had been sent to the same checkpoint.
        if generation == self.announced && !self.broken {
            let cause = LossCause::CheckpointDamaged(step, problem.clone());
            actions.push(self.note_incident(now, now, None, cause));
            actions.extend(self.break_generation(format!("checkpoint {step} is damaged: {problem}")));
        }
        actions
    }
}
