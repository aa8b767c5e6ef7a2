//! When a new generation is formed.

use polo_recipe::ids::{Generation, Rank};

use super::{
    Action, Entry, Formation, Notice, NowMs, Outcome, Peer, RecordError, Role, Seat, State, Tell, WorkerId,
    roster::{Candidate, Roster, roster},
    types::count,
};

/// Why no generation is formed now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// The membership is as it should be.
    Settled,
    /// The journal has not answered yet.
    Journal,
    /// It is not known yet whether some member is alive.
    Probe(Vec<WorkerId>),
    /// These have no session at present, so they cannot be told of a generation.
    Away(Vec<WorkerId>),
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
    /// Workers that were asked to leave are needed until a checkpoint is stored.
    Drain(Vec<WorkerId>),
}

impl Hold {
    /// When it ends by itself.
    pub(super) fn until_ms(&self) -> Option<NowMs> {
        match self {
            Self::TooFew { until_ms, .. } | Self::Company { until_ms, .. } => Some(*until_ms),
            _ => None,
        }
    }
}

impl State {
    pub(super) fn consider_forming(&mut self, now: NowMs) -> Vec<Action> {
        if !self.unsettled && self.hold.until_ms().is_none_or(|until| now < until) {
            return Vec::new();
        }
        let mut actions = self.let_idle_leavers_go();
        self.unsettled = false;
        match self.next_seats(now) {
            Ok(seats) => actions.extend(self.record(now, seats)),
            Err(hold) => {
                actions.extend(self.wait(now, &hold));
                self.hold = hold;
            }
        }
        actions
    }

    /// The seats of the generation that should be formed now, or why none should.
    fn next_seats(&self, now: NowMs) -> Result<Vec<Seat>, Hold> {
        match &self.formation {
            Formation::Recording { .. } => Err(Hold::Journal),
            Formation::Running if !self.broken => self.changed(now),
            Formation::Running => self.regrouped(now, None),
            Formation::Waiting { since_ms } => self.regrouped(now, Some(*since_ms)),
        }
    }

    /// Everybody who can be told of a generation.
    fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(worker, member): (&WorkerId, &super::Member)| Candidate {
            worker: worker.clone(),
            seat: self.seat_of(worker),
            joined: member.joined,
            is_leaving: self.is_leaving(worker),
            is_slow: member.is_slow,
        };
        self.members.iter().filter(|(_, m)| m.has_stream).map(candidate).collect()
    }

    fn roster(&self) -> Roster {
        roster(self.candidates(), self.settings.min_workers, self.settings.max_members)
    }

    /// A healthy generation trains on until its workers change over. It is replaced for newcomers, which wait a little so
    /// that several come at once, and to let workers leave.
    fn changed(&self, now: NowMs) -> Result<Vec<Seat>, Hold> {
        // Near its end a run takes nobody in. But a generation of which somebody is gone may be one that is being met.
        let is_ending = self.is_stopping() || self.step >= self.settings.num_steps;
        if is_ending && !self.outdated {
            return Err(Hold::Settled);
        }
        let away = self.names_of(|m| m.rank.is_some() && !m.has_stream);
        if !away.is_empty() {
            return Err(Hold::Away(away));
        }
        let Roster { seats, is_held_back } = self.roster();
        let leaves = |s: &Seat| s.role == Role::Leaving && !matches!(self.seat_of(&s.worker), Some((_, Role::Leaving)));
        if self.outdated || seats.iter().any(leaves) {
            return Ok(seats);
        }
        if seats.iter().any(|s| self.seat_of(&s.worker).is_none()) {
            return self.in_company(now, seats);
        }
        if is_held_back {
            return Err(Hold::Drain(self.leavers.iter().cloned().collect()));
        }
        Err(Hold::Settled)
    }

    /// Without a healthy generation, everybody who is there goes on at once; whoever has been waiting waits for company.
    fn regrouped(&self, now: NowMs, waiting_since_ms: Option<NowMs>) -> Result<Vec<Seat>, Hold> {
        let probed = self.names_of(|m| m.is_probed);
        if !probed.is_empty() {
            return Err(Hold::Probe(probed));
        }
        let away = self.names_of(|m| m.is_expected_back);
        if !away.is_empty() {
            return Err(Hold::Away(away));
        }
        let Roster { seats, .. } = self.roster();
        let present = seats.iter().filter(|s| s.role != Role::Leaving).count();
        let needed = self.settings.min_workers;
        if present < needed {
            let until_ms = waiting_since_ms.unwrap_or(now) + self.settings.wait_timeout_ms;
            return Err(Hold::TooFew { present, needed, until_ms });
        }
        if waiting_since_ms.is_some() { self.in_company(now, seats) } else { Ok(seats) }
    }

    fn names_of(&self, is_meant: impl Fn(&super::Member) -> bool) -> Vec<WorkerId> {
        self.members.iter().filter(|(_, m)| is_meant(m)).map(|(w, _)| w.clone()).collect()
    }

    fn in_company(&self, now: NowMs, seats: Vec<Seat>) -> Result<Vec<Seat>, Hold> {
        let expected = self.settings.expected_workers;
        let until_ms = self.last_joined_ms + self.settings.settle_ms;
        if seats.len() < expected && now < until_ms {
            return Err(Hold::Company { present: seats.len(), expected, until_ms });
        }
        Ok(seats)
    }

    fn record(&mut self, now: NowMs, seats: Vec<Seat>) -> Vec<Action> {
        self.generation = self.generation.next();
        let introduced = |s: &Seat| Some((s.worker.clone(), self.members.get(&s.worker)?.introduction.clone(), s.role));
        let entry = Entry::Generation {
            generation: self.generation,
            members: seats.iter().filter_map(introduced).collect(),
            step: self.step,
            goodput: self.goodput.at(now),
        };
        self.formation = Formation::Recording { seats, is_spoilt: false };
        self.hold = Hold::Journal;
        vec![Action::Record(entry)]
    }

    /// Carries out what a hold means.
    fn wait(&mut self, now: NowMs, hold: &Hold) -> Vec<Action> {
        match hold {
            Hold::Drain(_) => self.hold_leavers_back(),
            Hold::TooFew { present, needed, until_ms } => self.wait_for_more(now, *present, *needed, *until_ms),
            _ => Vec::new(),
        }
    }

    fn wait_for_more(&mut self, now: NowMs, present: usize, needed: usize, until_ms: NowMs) -> Vec<Action> {
        let seconds = self.settings.wait_timeout_ms / 1000;
        if now >= until_ms {
            let here = count(present, "worker");
            let advice = "start more workers, or lower workers.min_workers";
            let reason = format!("waited {seconds} s for {needed} workers, {here} came; {advice}");
            return self.end(Outcome::Failed { reason });
        }
        if matches!(self.formation, Formation::Waiting { .. }) {
            return Vec::new();
        }
        self.formation = Formation::Waiting { since_ms: now };
        self.broken = false;
        self.sit_down(Vec::new());
        // Nobody trains, so whoever was asked to leave may go.
        let mut actions = self.let_idle_leavers_go();
        actions.push(Action::Announce(Notice::Waiting(format!(
            "{needed} workers, {present} here, for {seconds} s at most"
        ))));
        actions
    }

    pub(super) fn recorded(
        &mut self,
        now: NowMs,
        generation: Generation,
        result: Result<(), RecordError>,
    ) -> Vec<Action> {
        if let Err(RecordError::Superseded(by)) = result {
            return self.give_way(by);
        }
        if let Some(outcome) = self.ending.decided.take() {
            // If it could not be written, the run has ended all the same.
            return self.end(outcome);
        }
        if generation != self.generation {
            return Vec::new();
        }
        if let Err(error) = result {
            let reason = format!("generation {generation} could not be written to the journal: {error}");
            return self.end(Outcome::Failed { reason });
        }
        let Formation::Recording { seats, is_spoilt } = &self.formation else { return Vec::new() };
        let (seats, is_spoilt) = (seats.clone(), *is_spoilt);
        self.formation = Formation::Running;
        if is_spoilt {
            // Before the first generation there is none to go on with.
            self.broken |= self.seats.is_empty();
            // The one that goes on may have finished while the entry was written.
            return self.consider_ending();
        }
        self.goodput.begin(now);
        self.announce(now, seats)
    }

    fn announce(&mut self, now: NowMs, seats: Vec<Seat>) -> Vec<Action> {
        self.ending.finished.clear();
        self.arrivals.clear();
        self.arrived_ms = None;
        // Whoever trains changes over at a step boundary; after a break, nothing is known of how long it takes.
        if self.broken {
            self.watch.expect_no_step()
        } else {
            self.watch.expect_step_later(now)
        }
        (self.broken, self.outdated) = (false, false);
        let mut actions = vec![Action::Announce(Notice::Formed(self.generation, seats.clone()))];
        self.before = (self.announced, std::mem::take(&mut self.seats));
        self.announced = self.generation;
        self.sit_down(seats);
        self.note_peers();
        actions.extend((0..self.seats.len() as u32).flat_map(|rank| self.tell_seat(Rank(rank))));
        actions
    }

    fn sit_down(&mut self, seats: Vec<Seat>) {
        self.members.values_mut().for_each(|m| m.rank = None);
        for (rank, seat) in (0..).map(Rank).zip(&seats) {
            if let Some(member) = self.members.get_mut(&seat.worker) {
                member.rank = Some(rank);
            }
        }
        self.num_members = seats.iter().filter(|s| s.role == Role::Member).count();
        self.seats = seats;
    }

    /// Fixes where the generation's workers are reached: a worker that is told again must be told the same.
    pub(super) fn note_peers(&mut self) {
        let peer = |seat: &Seat| {
            let member = self.members.get(&seat.worker);
            let data_address = member.map(|m| m.introduction.data_address.clone()).unwrap_or_default();
            Peer { worker: seat.worker.clone(), data_address, role: seat.role }
        };
        self.peers = self.seats.iter().map(peer).collect();
    }

    /// Tells a worker of the generation that runs and of its place in it.
    pub(super) fn tell_place(&self, worker: &WorkerId) -> Vec<Action> {
        let Some((rank, _)) = self.seat_of(worker) else { return Vec::new() };
        self.tell_seat(rank)
    }

    fn tell_seat(&self, rank: Rank) -> Vec<Action> {
        let checkpoint = self.checkpoints.newest();
        let tell = Tell::Generation { generation: self.announced, rank, peers: self.peers.clone(), checkpoint };
        let worker = &self.seats[rank.index()].worker;
        let mut actions = self.tell_all([worker], tell);
        if self.is_stopping() {
            actions.extend(self.tell_all([worker], Tell::Stop));
        }
        actions
    }
}
