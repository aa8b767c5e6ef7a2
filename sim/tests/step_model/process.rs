//! One process of the model: what it holds, and how it goes from phase to phase.

use polo_recipe::ids::{Generation, Step};
use polo_worker::{
    arrival::Held,
    boundary::{Boundary, Verdict, verdict},
};

use super::{LAST_STEP, Move, Plan};

pub const NUM_CHUNKS: usize = 3;
/// A vector that belongs to no step: half overwritten, or computed from vectors of different steps.
const MIXED: u8 = u8::MAX;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    Absent,
    Crashed,
    /// Has left its generation, and waits for another.
    Idle,
    /// Hears of the last decision, and applies it where that was not done.
    Settle,
    /// Completes parameters.
    Mend,
    /// Computes its slots while chunks come that it is to own.
    Compute,
    /// Collects all pieces of the chunks that it owns.
    Collect,
    /// Collects all owners' norms.
    Norms,
    /// Collects the parameters that others have updated.
    HandOut,
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Message {
    News,
    /// Chunk, version of its parameters, version of its moments.
    Chunks(Vec<(usize, Option<u8>, Option<u8>)>),
    Pieces(Pieces),
    Norms,
    Params(Vec<(usize, u8)>),
}

/// What a rank shows before it sums.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Pieces {
    /// The step whose state its gradients were computed from; none if it has no slots.
    gradient: Option<u8>,
    /// Whether it has heard of a newer generation.
    is_told: bool,
}

/// Vectors are versions: that of step k is k, and arithmetic on versions of one step gives the next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Process {
    pub phase: Phase,
    step: Option<u8>,
    params: [u8; NUM_CHUNKS],
    params_complete: bool,
    moments: [Option<u8>; NUM_CHUNKS],
    summed: [Option<u8>; NUM_CHUNKS],
    has_decision: bool,
    /// Whether it has heard of a newer generation.
    pub is_told: bool,
    /// What it has shown in this step.
    shown: Pieces,
    /// Whether all leave after this step.
    changes_over: bool,
}

type Sent = Vec<(usize, Message)>;

impl Process {
    /// Holds nothing.
    pub fn empty(phase: Phase) -> Self {
        Self {
            phase,
            step: None,
            params: [MIXED; NUM_CHUNKS],
            params_complete: false,
            moments: [None; NUM_CHUNKS],
            summed: [None; NUM_CHUNKS],
            has_decision: false,
            is_told: false,
            shown: Pieces::default(),
            changes_over: false,
        }
    }

    pub fn held(&self) -> Held {
        Held {
            step: self.step.map(|step| Step(step.into())),
            params_complete: self.params_complete,
            has_decision: self.has_decision,
            chunks: self.moments.iter().map(Option::is_some).collect(),
            summed: self.summed.iter().map(Option::is_some).collect(),
        }
    }

    /// Whether all that it shows to others is of the step that it names.
    pub fn is_honest(&self) -> bool {
        let Some(step) = self.step else { return true };
        let is_chunk_right = |chunk: usize| {
            let holds = self.moments[chunk].is_none_or(|version| version == step && self.params[chunk] == step);
            holds && self.summed[chunk].is_none_or(|version| version == step)
        };
        (0..NUM_CHUNKS).all(is_chunk_right) && (!self.params_complete || self.params == [step; NUM_CHUNKS])
    }

    fn clear(&mut self) {
        *self = Self { params: self.params, is_told: self.is_told, ..Self::empty(self.phase) };
    }

    /// Ranks of which it needs a message before it can go on; none if it waits for no rank.
    pub fn awaits(&self, rank: usize, plan: &Plan, num_ranks: usize) -> Option<Vec<usize>> {
        let others = || (0..num_ranks).filter(|other| *other != rank).collect();
        match self.phase {
            Phase::Settle => Some(plan.teller.into_iter().filter(|teller| *teller != rank).collect()),
            Phase::Mend => Some(givers(&plan.mends, rank)),
            Phase::Compute => Some(if self.is_first(plan) { givers(&plan.moves, rank) } else { Vec::new() }),
            Phase::Collect | Phase::Norms => Some(others()),
            Phase::HandOut => {
                let mut from: Vec<_> = (0..NUM_CHUNKS).filter_map(|c| giver(plan, c, rank)).collect();
                from.sort_unstable();
                from.dedup();
                Some(from)
            }
            _ => None,
        }
    }

    /// Whether it is in the first step of its generation.
    fn is_first(&self, plan: &Plan) -> bool {
        self.step.is_none_or(|step| step == plan.step)
    }

    /// Takes part in a new generation.
    pub fn begin(&mut self, rank: usize, plan: &Plan, num_ranks: usize) -> Sent {
        (self.phase, self.is_told) = (Phase::Settle, false);
        let others = (0..num_ranks).filter(|to| *to != rank);
        if plan.teller == Some(rank) { others.map(|to| (to, Message::News)).collect() } else { Vec::new() }
    }

    /// Leaves its generation. What it waited for may have come in part.
    pub fn leave(&mut self, rank: usize, plan: &Plan) {
        if self.phase == Phase::HandOut {
            (0..NUM_CHUNKS).filter(|c| giver(plan, *c, rank).is_some()).for_each(|c| self.params[c] = MIXED);
        }
        self.phase = Phase::Idle;
    }

    /// Uses what it waited for, enters the next phase, and says what it sends at that.
    pub fn advance(&mut self, rank: usize, plan: &Plan, num_ranks: usize, received: &[Message]) -> Sent {
        let others = || (0..num_ranks).filter(|to| *to != rank);
        let to_all = |message: &Message| others().map(|to| (to, message.clone())).collect();
        match self.phase {
            Phase::Settle => {
                self.settle(rank, plan);
                self.phase = Phase::Mend;
                self.give(&plan.mends, rank)
            }
            Phase::Mend => {
                self.install(received);
                if plan.computing.contains(&rank) {
                    (self.step, self.params_complete) = (Some(plan.step), true);
                }
                self.phase = Phase::Compute;
                self.summed = [None; NUM_CHUNKS];
                self.give(&plan.moves, rank)
            }
            Phase::Compute => {
                self.install(received);
                self.step = self.step.or(Some(plan.step));
                if self.step == Some(LAST_STEP) {
                    self.phase = Phase::Done;
                    return Vec::new();
                }
                self.phase = Phase::Collect;
                self.shown = Pieces { gradient: self.gradient(rank, plan), is_told: self.is_told };
                to_all(&Message::Pieces(self.shown))
            }
            Phase::Collect => {
                self.sum(rank, plan, received);
                self.phase = Phase::Norms;
                to_all(&Message::Norms)
            }
            Phase::Norms => {
                let owned: Vec<_> = (0..NUM_CHUNKS).filter(|c| plan.owners[*c].contains(&rank)).collect();
                self.apply(&owned, self.step.unwrap_or(plan.step));
                self.phase = Phase::HandOut;
                self.hand_out(rank, plan, num_ranks)
            }
            Phase::HandOut => {
                self.install(received);
                self.params_complete = true;
                self.phase = match self.changes_over {
                    true => Phase::Idle,
                    false if self.step == Some(LAST_STEP) => Phase::Done,
                    false => Phase::Compute,
                };
                Vec::new()
            }
            Phase::Absent | Phase::Crashed | Phase::Idle | Phase::Done => Vec::new(),
        }
    }

    fn settle(&mut self, rank: usize, plan: &Plan) {
        if plan.is_reloaded {
            self.clear();
            let is_owner = |chunk: usize| plan.owners[chunk].contains(&rank);
            self.moments = std::array::from_fn(|chunk| is_owner(chunk).then_some(plan.step));
            // What is made is made whole; of a checkpoint everybody loads its own chunks.
            self.params =
                std::array::from_fn(|chunk| if plan.step == 0 || is_owner(chunk) { plan.step } else { MIXED });
            (self.step, self.params_complete) = (Some(plan.step), plan.step == 0);
            return;
        }
        if plan.rolling.contains(&rank) {
            let summed: Vec<_> = (0..NUM_CHUNKS).filter(|c| self.summed[*c].is_some()).collect();
            self.apply(&summed, plan.step - 1);
        }
        if self.step != Some(plan.step) {
            self.clear();
        }
    }

    fn give(&self, moves: &[Move], rank: usize) -> Sent {
        let mut receivers: Vec<_> = moves.iter().filter(|m| m.from == rank).map(|m| m.to).collect();
        receivers.sort_unstable();
        receivers.dedup();
        let chunk = |m: &Move| {
            let moments = m.moments.then(|| self.moments[m.chunk].unwrap_or(MIXED));
            (m.chunk, m.params.then_some(self.params[m.chunk]), moments)
        };
        let given = |to: usize| moves.iter().filter(|m| (m.from, m.to) == (rank, to)).map(chunk).collect();
        receivers.into_iter().map(|to| (to, Message::Chunks(given(to)))).collect()
    }

    fn install(&mut self, received: &[Message]) {
        for message in received {
            match message {
                Message::Chunks(chunks) => {
                    for (chunk, params, moments) in chunks {
                        self.params[*chunk] = params.unwrap_or(self.params[*chunk]);
                        self.moments[*chunk] = moments.or(self.moments[*chunk]);
                    }
                }
                Message::Params(params) => params.iter().for_each(|(chunk, version)| self.params[*chunk] = *version),
                _ => {}
            }
        }
    }

    fn gradient(&self, rank: usize, plan: &Plan) -> Option<u8> {
        let has_slots = !self.is_first(plan) || plan.computing.contains(&rank);
        let first = self.params[0];
        has_slots.then(|| if self.params == [first; NUM_CHUNKS] { first } else { MIXED })
    }

    fn sum(&mut self, rank: usize, plan: &Plan, received: &[Message]) {
        let foreign =
            received.iter().filter_map(|m| if let Message::Pieces(pieces) = m { Some(*pieces) } else { None });
        let shown: Vec<_> = foreign.chain([self.shown]).collect();
        let gradients: Vec<_> = shown.iter().filter_map(|pieces| pieces.gradient).collect();
        let sum = if gradients.windows(2).all(|pair| pair[0] == pair[1]) { gradients[0] } else { MIXED };
        let record = |pieces: &Pieces| Boundary {
            newest_order: if pieces.is_told { Generation(2) } else { Generation(1) },
            stop: false,
            checkpoints_wanted: 0,
        };
        let records: Vec<_> = shown.iter().map(record).collect();
        self.changes_over = verdict(Generation(1), &records) == Verdict::ChangeOver;
        let is_held = |chunk: usize| plan.owners[chunk].contains(&rank) && self.moments[chunk].is_some();
        self.summed = std::array::from_fn(|chunk| is_held(chunk).then_some(sum));
    }

    fn apply(&mut self, owned: &[usize], step: u8) {
        for chunk in 0..NUM_CHUNKS {
            self.moments[chunk] = self.moments[chunk].filter(|_| owned.contains(&chunk));
            if let Some(moments) = self.moments[chunk] {
                let is_right = [self.params[chunk], moments] == [step; 2] && self.summed[chunk] == Some(step);
                let version = if is_right { step + 1 } else { MIXED };
                (self.params[chunk], self.moments[chunk]) = (version, Some(version));
            }
        }
        (self.step, self.has_decision) = (Some(step + 1), true);
        self.summed = [None; NUM_CHUNKS];
        self.params_complete = self.moments.iter().all(Option::is_some);
    }

    fn hand_out(&self, rank: usize, plan: &Plan, num_ranks: usize) -> Sent {
        let given = |to: usize| {
            let chunks = (0..NUM_CHUNKS).filter(|chunk| giver(plan, *chunk, to) == Some(rank));
            chunks.map(|chunk| (chunk, self.params[chunk])).collect::<Vec<_>>()
        };
        let all = (0..num_ranks).map(|to| (to, given(to)));
        all.filter(|(_, given)| !given.is_empty()).map(|(to, given)| (to, Message::Params(given))).collect()
    }
}

fn givers(moves: &[Move], to: usize) -> Vec<usize> {
    let mut givers: Vec<_> = moves.iter().filter(|m| m.to == to).map(|m| m.from).collect();
    givers.sort_unstable();
    givers.dedup();
    givers
}

/// Who hands the parameters of a chunk to a rank that does not own it.
fn giver(plan: &Plan, chunk: usize, to: usize) -> Option<usize> {
    let owners = &plan.owners[chunk];
    (!owners.contains(&to)).then(|| owners[(chunk + to) % owners.len()])
}
