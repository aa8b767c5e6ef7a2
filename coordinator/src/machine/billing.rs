//! Opens incidents, and bills them when training goes on.

use super::{Action, Arrival, Bill, Entry, Incident, LossCause, Notice, NowMs, Role, State, WentBack, WorkerId};

impl State {
    /// Notes an interruption that is decided now and was first seen at `sign_ms`. A loss explains what was seen of
    /// the same generation before.
    pub(super) fn note_incident(
        &mut self,
        now: NowMs,
        sign_ms: NowMs,
        worker: Option<WorkerId>,
        cause: LossCause,
    ) -> Action {
        let is_unexplained = |i: &&mut Incident| {
            let is_sign = matches!(i.cause, LossCause::PlaneLost(_) | LossCause::StatesDiffer(..));
            i.recovery_ms.is_none() && i.worker.is_none() && is_sign
        };
        let generation = self.generation;
        let open = self.incidents.iter_mut().rev().take_while(|i| i.generation == generation).find(is_unexplained);
        if let (Some(open), true) = (open, worker.is_some()) {
            let sign_ms = sign_ms.min(open.sign_ms);
            (open.worker, open.cause, open.sign_ms, open.at_ms) = (worker, cause, sign_ms, now);
            open.bill.detect_ms = Some(now - sign_ms);
            return Action::Record(Entry::Incident(open.clone()));
        }
        let incident = Incident {
            number: self.incidents.len() as u32,
            cause,
            worker,
            generation,
            step: self.step,
            sign_ms,
            at_ms: now,
            recovery_ms: None,
            bill: Bill { detect_ms: Some(now - sign_ms), ..Bill::default() },
            went_back: None,
        };
        self.incidents.push(incident.clone());
        Action::Record(Entry::Incident(incident))
    }

    fn open_incidents(&mut self) -> impl Iterator<Item = &mut Incident> {
        self.incidents.iter_mut().filter(|i| i.recovery_ms.is_none())
    }

    pub(super) fn arrived(&mut self, now: NowMs, worker: WorkerId, arrival: Arrival) -> Vec<Action> {
        let is_member = matches!(self.seat_of(&worker), Some((_, Role::Member)));
        if arrival.generation != self.announced || !is_member {
            return Vec::new();
        }
        let mut actions = Vec::new();
        if arrival.is_from_checkpoint && arrival.num_lost_chunks > 0 {
            actions = self.went_back(WentBack { to: arrival.step, num_lost_chunks: arrival.num_lost_chunks });
        }
        self.arrivals.insert(worker, arrival);
        if self.arrivals.len() == self.num_members && self.arrived_ms.is_none() {
            self.bill_arrival(now);
        }
        actions
    }

    fn went_back(&mut self, back: WentBack) -> Vec<Action> {
        let mut is_news = self.arrivals.is_empty();
        for incident in self.open_incidents() {
            is_news |= incident.went_back.is_none();
            incident.went_back = Some(back);
        }
        if is_news { vec![Action::Announce(Notice::WentBack(back))] } else { Vec::new() }
    }

    /// All members have arrived: the slowest decides how long leaving and moving took, and the rest was forming.
    fn bill_arrival(&mut self, now: NowMs) {
        self.arrived_ms = Some(now);
        let slowest = |ms: fn(&Arrival) -> u64| self.arrivals.values().map(ms).max().unwrap_or(0);
        let (abort_ms, transfer_ms) = (slowest(|a| a.abort_ms), slowest(|a| a.transfer_ms));
        for incident in self.open_incidents() {
            let bill = &mut incident.bill;
            let abort_ms = abort_ms.max(bill.abort_ms.unwrap_or(0));
            bill.abort_ms = Some(abort_ms);
            bill.transfer_ms = Some(transfer_ms);
            bill.reform_ms = Some((now - incident.at_ms).saturating_sub(abort_ms + transfer_ms));
        }
    }

    /// A step of the newest generation is done: every interruption is over.
    pub(super) fn close_incidents(&mut self, now: NowMs) -> Vec<Action> {
        let arrived_ms = self.arrived_ms;
        let mut actions = Vec::new();
        // Open ones are the newest, so the search ends soon.
        for incident in self.incidents.iter_mut().rev().take_while(|i| i.recovery_ms.is_none()) {
            incident.recovery_ms = Some(now - incident.sign_ms);
            incident.bill.redo_ms = arrived_ms.map(|at| now - at);
            actions.push(Action::Record(Entry::Incident(incident.clone())));
        }
        actions
    }
}
