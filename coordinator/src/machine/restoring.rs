//! What the journal keeps, and how a coordinator that comes back takes up the run from it.

use std::fmt;

use polo_recipe::{
    ids::{Generation, Rank, Step},
    mistakes::{Mistake, is_back},
};
use serde::{Deserialize, Serialize};

use super::{
    Action, Evaluation, Formation, Goodput, Incident, Introduction, Member, NowMs, Outcome, Role, Seat, Settings,
    State, WorkerId,
};

/// How much longer than a heartbeat may take a worker has, to find a coordinator that was away.
const RETURN_GRACE_MS: NowMs = 3000;

/// Something that the journal keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// A generation that may be announced once this is written.
    Generation {
        /// The generation.
        generation: Generation,
        /// Who is in it, in rank order.
        members: Vec<(WorkerId, Introduction, Role)>,
        /// The newest step when it was formed.
        step: Step,
        /// How the time has been spent so far.
        goodput: Goodput,
    },
    /// An interruption: once when it is decided, and again, with the same number, when it is over.
    Incident(Incident),
    /// The losses of a state on held-out samples.
    Validated(Evaluation),
    /// The run's end.
    Ended(Outcome),
}

/// Why an entry is not in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordError {
    /// Another coordinator has taken over the run; who, in words.
    Superseded(String),
    /// The store would not take it.
    Failed(String),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superseded(by) => write!(f, "{by} has taken over the run"),
            Self::Failed(problem) => f.write_str(problem),
        }
    }
}

/// The run as a journal left it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Restored {
    /// The newest generation.
    pub generation: Generation,
    /// Who was in it, in rank order.
    pub members: Vec<(WorkerId, Introduction, Role)>,
    /// A step that has been completed; there may be newer ones.
    pub step: Step,
    /// Steps of the checkpoints that exist.
    pub checkpoints: Vec<Step>,
    /// Interruptions, oldest first.
    pub incidents: Vec<Incident>,
    /// Evaluations on held-out samples.
    #[serde(default)]
    pub evaluations: Vec<Evaluation>,
    /// How the time had been spent.
    pub goodput: Goodput,
    /// How the run ended, if it did.
    pub ended: Option<Outcome>,
}

impl Restored {
    /// Takes the journal's next entry into account.
    pub fn replay(&mut self, entry: Entry) {
        match entry {
            Entry::Generation { generation, members, step, goodput } => {
                (self.generation, self.members) = (generation, members);
                (self.step, self.goodput) = (self.step.max(step), goodput);
                self.ended = None;
            }
            Entry::Incident(incident) => match self.incidents.iter_mut().find(|i| i.number == incident.number) {
                Some(known) => *known = incident,
                None => self.incidents.push(incident),
            },
            Entry::Validated(evaluation) => self.evaluations.push(evaluation),
            Entry::Ended(outcome) => {
                self.members.clear();
                self.ended = Some(outcome);
            }
        }
    }
}

impl State {
    /// A run that another coordinator, or this one before it was restarted, has served. Its members are expected back,
    /// and each is looked for at once.
    pub fn restore(settings: Settings, restored: Restored, now: NowMs) -> (Self, Vec<Action>) {
        let Restored { mut generation, members, step, checkpoints, incidents, evaluations, goodput, ended } = restored;
        if is_back(Mistake::GenerationReused) {
            generation = Generation(generation.0.saturating_sub(1));
        }
        let mut state = Self::new(settings, generation, checkpoints, now);
        state.step = state.step.max(step);
        state.goodput = goodput;
        state.incidents = incidents;
        for evaluation in evaluations {
            // What it raised was told when it came.
            state.validations.add(evaluation);
        }
        let open = state.incidents.iter_mut().filter(|i| i.recovery_ms.is_none());
        open.for_each(|incident| (incident.sign_ms, incident.at_ms) = (now, now));
        if let Some(Outcome::Completed { step, .. }) = &ended
            && state.checkpoints.digest(*step).is_some()
        {
            // Its workers were let go, and none need to come.
            state.ending.outcome = ended;
            return (state, Vec::new());
        }
        if members.is_empty() {
            return (state, Vec::new());
        }
        (state.formation, state.announced) = (Formation::Running, generation);
        state.goodput.begin(now);
        let mut actions = Vec::new();
        for (rank, (worker, introduction, role)) in (0..).map(Rank).zip(members) {
            let Introduction { incarnation, data_address, .. } = &introduction;
            actions.push(Action::Probe(worker.clone(), *incarnation, data_address.clone()));
            state.seats.push(Seat { worker: worker.clone(), role });
            state.num_members += usize::from(role == Role::Member);
            state.expect_back(now, rank, worker, introduction);
        }
        state.note_peers();
        (state, actions)
    }

    fn expect_back(&mut self, now: NowMs, rank: Rank, worker: WorkerId, introduction: Introduction) {
        self.num_joined += 1;
        let patience_ms = self.settings.heartbeat_timeout_ms + RETURN_GRACE_MS;
        let member = Member {
            rank: Some(rank),
            has_stream: false,
            is_probed: true,
            is_expected_back: true,
            phase: "expected back".into(),
            ..Member::new(introduction, self.num_joined, now, patience_ms)
        };
        self.watch.expect_by(member.lapses_at_ms);
        self.members.insert(worker, member);
    }
}
