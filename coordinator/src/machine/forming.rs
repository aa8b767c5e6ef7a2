//! When a new generation is formed, and of whom.

use polo_recipe::ids::{Generation, Rank};

use super::{Action, Formation, Notice, NowMs, Outcome, State, Tell, WorkerId, types::count};

/// Why no generation is formed now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// The membership is as it should be.
    Settled,
    /// The journal has not answered yet.
    Journal,
    /// It is not known yet whether some member is alive.
    Probe(Vec<WorkerId>),
    /// Fewer workers than may train.
    TooFew {
        /// Workers that are here.
        present: usize,
        /// Workers that are needed.
        needed: usize,
        /// When the waiting ends in failure.
        until_ms: NowMs,
    },
    /// More workers are expected soon.
    Company {
        /// Workers that are here.
        present: usize,
        /// Workers that are expected.
        expected: usize,
        /// When it goes on without them.
        until_ms: NowMs,
    },
}

impl State {
    pub(super) fn consider_forming(&mut self, now: NowMs) -> Vec<Action> {
        match self.next_membership(now) {
            Ok(members) => self.record(members),
            Err(Hold::TooFew { present, needed, until_ms }) => self.wait(now, present, needed, until_ms),
            Err(_) => Vec::new(),
        }
    }

    /// The members of the generation that should be formed now, in rank order, or why none should.
    pub fn next_membership(&self, now: NowMs) -> Result<Vec<WorkerId>, Hold> {
        if matches!(self.formation, Formation::Recording { .. }) {
            return Err(Hold::Journal);
        }
        let present = self.eligible();
        match &self.formation {
            Formation::Running { members } if !self.broken => self.grown(now, members, &present),
            formation => self.regrouped(now, formation, present),
        }
    }

    /// Workers that can be told of a generation, those of the present one first, no more than there are slots.
    fn eligible(&self) -> Vec<WorkerId> {
        let mut present: Vec<_> = self.members.iter().filter(|(_, m)| m.has_stream).collect();
        present.sort_by_key(|(_, m)| m.joined);
        present.into_iter().map(|(worker, _)| worker.clone()).take(self.settings.num_slots).collect()
    }

    /// A healthy generation changes only to take in new workers, and waits a little so that it takes in several at once.
    fn grown(&self, now: NowMs, members: &[WorkerId], present: &[WorkerId]) -> Result<Vec<WorkerId>, Hold> {
        let is_new = |worker: &&WorkerId| !members.contains(worker);
        let room = self.settings.num_slots - members.len();
        let joiners: Vec<_> = present.iter().filter(is_new).take(room).cloned().collect();
        if joiners.is_empty() || self.is_stopping() || self.step >= self.settings.num_steps {
            return Err(Hold::Settled);
        }
        let grown = [members, &joiners].concat();
        self.in_company(now, grown)
    }

    /// Without a healthy generation, everybody who is there goes on at once; a first start waits for company.
    fn regrouped(&self, now: NowMs, formation: &Formation, present: Vec<WorkerId>) -> Result<Vec<WorkerId>, Hold> {
        let probed: Vec<_> = self.members.iter().filter(|(_, m)| m.is_probed).map(|(w, _)| w.clone()).collect();
        if !probed.is_empty() {
            return Err(Hold::Probe(probed));
        }
        let (present_len, needed) = (present.len(), self.settings.min_workers);
        if present_len < needed {
            let since_ms = if let Formation::Waiting { since_ms } = formation { *since_ms } else { now };
            let until_ms = since_ms + self.settings.wait_timeout_ms;
            return Err(Hold::TooFew { present: present_len, needed, until_ms });
        }
        match formation {
            Formation::Waiting { .. } => self.in_company(now, present),
            _ => Ok(present),
        }
    }

    fn in_company(&self, now: NowMs, members: Vec<WorkerId>) -> Result<Vec<WorkerId>, Hold> {
        let expected = self.settings.expected_workers.min(self.settings.num_slots);
        let until_ms = self.last_joined_ms + self.settings.settle_ms;
        if members.len() < expected && now < until_ms {
            return Err(Hold::Company { present: members.len(), expected, until_ms });
        }
        Ok(members)
    }

    fn record(&mut self, members: Vec<WorkerId>) -> Vec<Action> {
        self.generation = self.generation.next();
        self.formation = Formation::Recording { members: members.clone() };
        self.broken = false;
        vec![Action::RecordGeneration(self.generation, members)]
    }

    fn wait(&mut self, now: NowMs, present: usize, needed: usize, until_ms: NowMs) -> Vec<Action> {
        if now >= until_ms {
            let (seconds, here) = (self.settings.wait_timeout_ms / 1000, count(present, "worker"));
            let advice = "start more workers, or lower workers.min_workers";
            let reason = format!("waited {seconds} s for {needed} workers, {here} came; {advice}");
            return self.end(Outcome::Failed { reason });
        }
        if matches!(self.formation, Formation::Waiting { .. }) {
            return Vec::new();
        }
        self.formation = Formation::Waiting { since_ms: now };
        self.broken = false;
        let seconds = self.settings.wait_timeout_ms / 1000;
        vec![Action::Announce(Notice::Waiting(format!("{needed} workers, {present} here, for {seconds} s at most")))]
    }

    pub(super) fn recorded(&mut self, generation: Generation, result: Result<(), String>) -> Vec<Action> {
        if generation != self.generation {
            return Vec::new();
        }
        if let Err(error) = result {
            let reason = format!("generation {generation} could not be written to the journal: {error}");
            return self.end(Outcome::Failed { reason });
        }
        let Formation::Recording { members } = &self.formation else { return Vec::new() };
        let members = members.clone();
        self.formation = Formation::Running { members: members.clone() };
        if members.iter().any(|w| self.members.get(w).is_none_or(|m| !m.has_stream)) {
            self.broken = true;
            return Vec::new();
        }
        self.announce(members)
    }

    fn announce(&mut self, members: Vec<WorkerId>) -> Vec<Action> {
        self.ending.finished.clear();
        let mut actions = vec![Action::Announce(Notice::Formed(self.generation, members.clone()))];
        actions.extend(members.iter().flat_map(|worker| self.tell_place(worker)));
        actions
    }

    /// Tells a worker of the generation that runs and of its place in it.
    pub(super) fn tell_place(&self, worker: &WorkerId) -> Vec<Action> {
        let Formation::Running { members } = &self.formation else { return Vec::new() };
        let Some(rank) = (0..).map(Rank).zip(members).find(|(_, w)| *w == worker).map(|(rank, _)| rank) else {
            return Vec::new();
        };
        let address = |w: &WorkerId| self.members.get(w).map(|m| (w.clone(), m.introduction.data_address.clone()));
        let Some(peers) = members.iter().map(address).collect() else { return Vec::new() };
        let tell = Tell::Generation { generation: self.generation, rank, peers, checkpoint: self.checkpoints.newest() };
        let mut actions = self.tell_all([worker], tell);
        if self.is_stopping() {
            actions.extend(self.tell_all([worker], Tell::Stop));
        }
        actions
    }
}
