//! What a worker knows of its run and decides for itself, with no IO and no clock.
//!
//! The agent feeds in what the coordinator says, the trainer what becomes of its generations; effects come back. What
//! all ranks must decide alike (when to stop, when to change over) is not decided here but from [`Boundary`] records,
//! which every rank of a generation sees in every step.

use std::time::Duration;

use polo_recipe::{
    ids::Generation,
    mistakes::{Mistake, is_back},
};

use crate::boundary::Boundary;

/// Milliseconds of a clock that only goes forward.
pub type NowMs = u64;

/// How long a worker that was asked to leave has for it, unless the recipe says something else.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// A generation that this worker was told to take part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The generation.
    pub generation: Generation,
    /// This worker's rank.
    pub rank: u32,
    /// Data-plane addresses in rank order.
    pub peers: Vec<String>,
    /// What each rank does; members first, then spares, then leaving workers.
    pub roles: Vec<Role>,
    /// Known to the members only.
    pub secret: [u8; 32],
    /// Newest checkpoint of the run, as its step.
    pub checkpoint: Option<u64>,
}

/// What a rank does in a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Has slots and owns chunks.
    Member,
    /// Is handed the parameters of every step, so that it can become a member at once.
    Spare,
    /// Gives its chunks to the members.
    Leaving,
}

impl Order {
    /// What this worker does.
    pub fn role(&self) -> Role {
        self.roles.get(self.rank as usize).copied().unwrap_or(Role::Spare)
    }

    /// Ranks that train.
    pub fn num_members(&self) -> usize {
        self.count(Role::Member)
    }

    /// Ranks that stand by.
    pub fn num_spares(&self) -> usize {
        self.count(Role::Spare)
    }

    fn count(&self, role: Role) -> usize {
        self.roles.iter().filter(|r| **r == role).count()
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A session is open, with the coordinator that took up the run with this entry of the journal.
    Attached {
        /// The entry's number.
        epoch: u64,
    },
    /// The session ended, or could not be opened.
    Detached {
        /// Why, in words.
        problem: String,
    },
    /// Told to take part in a generation.
    Ordered(Order),
    /// Told to drop every generation up to this one.
    Dropped(Generation),
    /// Told to stop at the next boundary.
    Stop,
    /// Told to write a checkpoint at the next boundary.
    Checkpoint,
    /// Counted out; may come back as a new incarnation.
    GivenUp,
    /// Turned away for good.
    Refused(String),
    /// The run has ended well.
    Released,
    /// Somebody (by a signal, say) wants this worker to leave.
    LeaveWanted,
    /// What it held is with others, so that it may leave.
    Drained,
    /// The trainer could not go on.
    Failed(String),
    /// The trainer left this generation.
    Left(Generation),
    /// The trainer has met all ranks of this generation.
    Met(Generation),
    /// Time passed.
    Tick,
}

/// What must be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// There is a new order for the trainer.
    WakeTrainer,
    /// Interrupt the data plane of every generation up to this one.
    AbortUpTo(Generation),
    /// Tell the coordinator that this worker is to leave.
    SayLeaving,
    /// End the session and look for another coordinator; why, in words.
    HangUp(String),
    /// Open a session again, as a new incarnation if `anew`.
    Attach {
        /// Whether the coordinator has counted the present incarnation out.
        anew: bool,
    },
    /// The process ends.
    Exit(Ending),
}

/// How a worker's process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The run ended well.
    Released,
    /// It was asked to leave, and what it held is with others.
    Drained,
    /// It cannot go on; in words for people.
    Failed(String),
}

/// The worker's view of its run.
#[derive(Debug, Clone)]
pub struct Session {
    coordinator: String,
    coordinator_timeout: Duration,
    drain_timeout: Duration,
    /// The newest coordinator that was met; none that took up the run before it is heeded. None: none was met.
    epoch: Option<u64>,
    /// Since when it has been asked to leave.
    leaving: Option<NowMs>,
    /// Since when there is no session, and why.
    detached: Option<(NowMs, String)>,
    /// The newest order.
    order: Option<Order>,
    /// Generations up to this one are not to be trained in any more.
    dropped: Generation,
    /// The newest generation whose ranks the trainer has met.
    met: Generation,
    /// The newest generation that the trainer has taken up.
    taken: Generation,
    stop: bool,
    checkpoints_wanted: u64,
    ending: Option<Ending>,
}

impl Session {
    /// A worker that has no session yet. Without one for `coordinator_timeout`, it gives up; asked to leave, it has
    /// [`DRAIN_TIMEOUT`] for it.
    pub fn new(coordinator: String, coordinator_timeout: Duration, now: NowMs) -> Self {
        Self {
            coordinator,
            coordinator_timeout,
            drain_timeout: DRAIN_TIMEOUT,
            epoch: None,
            leaving: None,
            detached: Some((now, "no session yet".into())),
            order: None,
            dropped: Generation(0),
            met: Generation(0),
            taken: Generation(0),
            stop: false,
            checkpoints_wanted: 0,
            ending: None,
        }
    }

    /// The same, with another time in which to leave.
    pub fn with_drain_timeout(self, drain_timeout: Duration) -> Self {
        Self { drain_timeout, ..self }
    }

    /// Takes one event and returns what must be done about it.
    pub fn on(&mut self, now: NowMs, event: Event) -> Vec<Effect> {
        if self.ending.is_some() {
            return Vec::new();
        }
        match event {
            Event::Attached { epoch } => self.attached(epoch),
            Event::Detached { problem } => self.detached(now, problem),
            Event::Ordered(order) => self.ordered(order),
            Event::Dropped(generation) => self.drop_up_to(generation),
            Event::Stop => self.want_stop(),
            Event::Checkpoint => self.want_checkpoint(),
            Event::GivenUp => self.given_up(),
            Event::Refused(reason) => self.end(Ending::Failed(format!("refused by the coordinator: {reason}"))),
            Event::Released => self.end(Ending::Released),
            Event::LeaveWanted => self.want_to_leave(now),
            Event::Drained => self.end(Ending::Drained),
            Event::Failed(reason) => self.end(Ending::Failed(reason)),
            Event::Left(generation) => self.drop_up_to(generation),
            Event::Met(generation) => {
                self.met = generation;
                Vec::new()
            }
            Event::Tick => self.look_at_clock(now),
        }
    }

    fn attached(&mut self, epoch: u64) -> Vec<Effect> {
        if let Some(newest) = self.epoch.filter(|newest| epoch < *newest) {
            let problem =
                format!("it took up the run with entry {epoch}, and another coordinator did with entry {newest}");
            return vec![Effect::HangUp(problem)];
        }
        self.epoch = Some(epoch);
        self.detached = None;
        Vec::new()
    }

    /// Nobody needs a worker that no coordinator knows.
    fn want_to_leave(&mut self, now: NowMs) -> Vec<Effect> {
        if self.epoch.is_none() {
            return self.end(Ending::Drained);
        }
        self.leaving.get_or_insert(now);
        vec![Effect::SayLeaving]
    }

    fn look_at_clock(&mut self, now: NowMs) -> Vec<Effect> {
        let is_late = |since: NowMs| u128::from(now - since) >= self.drain_timeout.as_millis();
        if self.leaving.is_some_and(is_late) {
            let seconds = self.drain_timeout.as_secs();
            return self.end(Ending::Failed(format!(
                "asked to leave, and {seconds} s later (workers.drain_timeout_s) what it holds is still not with others; \
                 the others must do without it"
            )));
        }
        self.give_up_on_coordinator(now)
    }

    fn detached(&mut self, now: NowMs, problem: String) -> Vec<Effect> {
        let since = self.detached.as_ref().map_or(now, |(since, _)| *since);
        self.detached = Some((since, problem));
        vec![Effect::Attach { anew: false }]
    }

    fn ordered(&mut self, order: Order) -> Vec<Effect> {
        let newest = self.order.as_ref().map_or(Generation(0), |o| o.generation);
        let is_old = order.generation <= newest.max(self.dropped);
        if is_old && !is_back(Mistake::OldGenerationAccepted) {
            return Vec::new();
        }
        if is_old {
            (self.dropped, self.taken) = (Generation(0), Generation(0));
        }
        self.order = Some(order);
        if self.taken > self.met.max(self.dropped) {
            // The others may have left for the newer one without ever coming to this meeting.
            let mut effects = self.drop_up_to(self.taken);
            effects.push(Effect::WakeTrainer);
            return effects;
        }
        vec![Effect::WakeTrainer]
    }

    fn drop_up_to(&mut self, generation: Generation) -> Vec<Effect> {
        self.dropped = self.dropped.max(generation);
        vec![Effect::AbortUpTo(self.dropped)]
    }

    fn want_stop(&mut self) -> Vec<Effect> {
        self.stop = true;
        Vec::new()
    }

    fn want_checkpoint(&mut self) -> Vec<Effect> {
        self.checkpoints_wanted += 1;
        Vec::new()
    }

    /// The weights stay; everything that belonged to the membership goes.
    fn given_up(&mut self) -> Vec<Effect> {
        let mut effects = self.drop_up_to(self.newest_order());
        effects.push(Effect::Attach { anew: true });
        effects
    }

    fn give_up_on_coordinator(&mut self, now: NowMs) -> Vec<Effect> {
        let Some((since, problem)) = &self.detached else { return Vec::new() };
        if u128::from(now - since) < self.coordinator_timeout.as_millis() {
            return Vec::new();
        }
        let (seconds, coordinator) = (self.coordinator_timeout.as_secs(), &self.coordinator);
        let advice = "check that it runs and that the address is right";
        self.end(Ending::Failed(format!(
            "waited {seconds} s for the coordinator at {coordinator}: {problem}; {advice}"
        )))
    }

    fn end(&mut self, ending: Ending) -> Vec<Effect> {
        self.ending = Some(ending.clone());
        vec![Effect::AbortUpTo(Generation(u64::MAX)), Effect::WakeTrainer, Effect::Exit(ending)]
    }

    /// The order that the trainer should take up next, if there is one that it has not taken yet.
    pub fn take_order(&mut self) -> Option<Order> {
        let order = self.order.as_ref().filter(|o| o.generation > self.taken.max(self.dropped))?;
        self.taken = order.generation;
        Some(order.clone())
    }

    /// What this worker contributes to the next boundary record of its generation.
    pub fn boundary(&self) -> Boundary {
        Boundary { newest_order: self.newest_order(), stop: self.stop, checkpoints_wanted: self.checkpoints_wanted }
    }

    /// The newest generation that it was told of, 0 for none.
    pub fn newest_order(&self) -> Generation {
        self.order.as_ref().map_or(self.taken, |o| o.generation)
    }

    /// Whether it was asked to leave.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// How the process ends, once that is known.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::new("host:1".into(), Duration::from_secs(30), 0)
    }

    fn order(generation: u64) -> Order {
        let generation = Generation(generation);
        Order { generation, rank: 0, peers: vec![], roles: vec![], secret: [0; 32], checkpoint: None }
    }

    #[test]
    fn only_newer_orders_count_and_each_is_taken_once() {
        let mut session = session();
        assert_eq!(session.on(0, Event::Ordered(order(2))), [Effect::WakeTrainer]);
        assert_eq!(session.on(0, Event::Ordered(order(1))), []);
        assert_eq!(session.take_order(), Some(order(2)));
        assert_eq!(session.take_order(), None);
    }

    #[test]
    fn an_order_that_was_dropped_before_it_was_taken_is_not_taken() {
        let mut session = session();
        session.on(0, Event::Ordered(order(2)));
        assert_eq!(session.on(0, Event::Dropped(Generation(2))), [Effect::AbortUpTo(Generation(2))]);
        assert_eq!(session.take_order(), None);
        assert_eq!(session.on(0, Event::Ordered(order(2))), [], "nor when it comes late");
    }

    #[test]
    fn a_newer_order_is_shown_at_the_boundary_and_aborts_nothing() {
        let mut session = session();
        session.on(0, Event::Ordered(order(2)));
        session.take_order();
        session.on(0, Event::Met(Generation(2)));
        assert_eq!(session.on(0, Event::Ordered(order(3))), [Effect::WakeTrainer]);
        assert_eq!(session.boundary().newest_order, Generation(3));
    }

    #[test]
    fn a_newer_order_ends_a_meeting_to_which_the_others_may_never_come() {
        let mut session = session();
        session.on(0, Event::Ordered(order(2)));
        session.take_order();
        let effects = session.on(0, Event::Ordered(order(3)));
        assert_eq!(effects, [Effect::AbortUpTo(Generation(2)), Effect::WakeTrainer]);
        assert_eq!(session.take_order(), Some(order(3)));
    }

    #[test]
    fn a_coordinator_that_stays_away_ends_in_a_message_with_what_was_awaited() {
        let mut session = session();
        session.on(10_000, Event::Attached { epoch: 1 });
        session.on(20_000, Event::Detached { problem: "reset".into() });
        assert_eq!(session.on(40_000, Event::Detached { problem: "refused".into() }), [Effect::Attach { anew: false }]);
        assert_eq!(session.on(49_999, Event::Tick), []);
        session.on(50_000, Event::Tick);
        let Some(Ending::Failed(reason)) = session.ending() else { panic!("still waiting") };
        assert!(reason.contains("waited 30 s for the coordinator at host:1: refused"), "{reason}");
    }

    #[test]
    fn a_worker_that_was_counted_out_drops_its_generation_and_comes_back_as_another() {
        let mut session = session();
        session.on(0, Event::Ordered(order(4)));
        session.take_order();
        let effects = session.on(0, Event::GivenUp);
        assert_eq!(effects, [Effect::AbortUpTo(Generation(4)), Effect::Attach { anew: true }]);
    }

    #[test]
    fn a_release_wakes_a_trainer_that_waits() {
        let mut session = session();
        let effects = session.on(0, Event::Released);
        assert!(effects.contains(&Effect::WakeTrainer) && effects.contains(&Effect::Exit(Ending::Released)));
        assert_eq!(session.on(0, Event::Ordered(order(9))), []);
    }

    #[test]
    fn a_worker_that_is_asked_to_leave_says_so_and_leaves_when_it_may() {
        let mut session = session();
        session.on(0, Event::Attached { epoch: 1 });
        assert_eq!(session.on(0, Event::LeaveWanted), [Effect::SayLeaving]);
        assert!(session.is_leaving() && session.ending().is_none());
        session.on(0, Event::Drained);
        assert_eq!(session.ending(), Some(&Ending::Drained));
    }

    #[test]
    fn a_worker_that_no_coordinator_knows_leaves_at_once() {
        let mut session = session();
        session.on(0, Event::LeaveWanted);
        assert_eq!(session.ending(), Some(&Ending::Drained));
    }

    #[test]
    fn a_worker_that_is_not_let_go_in_time_says_so() {
        let mut session = session().with_drain_timeout(Duration::from_secs(5));
        session.on(0, Event::Attached { epoch: 1 });
        session.on(1000, Event::LeaveWanted);
        session.on(4000, Event::LeaveWanted);
        assert_eq!(session.on(5999, Event::Tick), []);
        session.on(6000, Event::Tick);
        let Some(Ending::Failed(reason)) = session.ending() else { panic!("still waiting") };
        assert!(reason.contains("5 s later (workers.drain_timeout_s)"), "{reason}");
    }

    #[test]
    fn a_coordinator_that_was_superseded_is_not_heeded() {
        let mut session = session();
        session.on(0, Event::Attached { epoch: 9 });
        session.on(1000, Event::Detached { problem: "reset".into() });
        let effects = session.on(2000, Event::Attached { epoch: 4 });
        assert!(matches!(&effects[..], [Effect::HangUp(problem)] if problem.contains("entry 4")), "{effects:?}");
        session.on(31_000, Event::Tick);
        assert!(session.ending().is_some(), "it does not count as a session");
    }
}
