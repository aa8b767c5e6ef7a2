//! What a worker knows of its run and decides for itself, with no IO and no clock.
//!
//! The agent feeds in what the coordinator says, the trainer what becomes of its generations; effects come back. What
//! all ranks must decide alike (when to stop, when to change over) is not decided here but from [`Boundary`] records,
//! which every rank of a generation sees in every step.

use std::time::Duration;

use polo_recipe::ids::Generation;

use crate::boundary::Boundary;

/// Milliseconds of a clock that only goes forward.
pub type NowMs = u64;

/// A generation that this worker was told to take part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The generation.
    pub generation: Generation,
    /// This worker's rank.
    pub rank: u32,
    /// Data-plane addresses in rank order.
    pub peers: Vec<String>,
    /// Known to the members only.
    pub secret: [u8; 32],
    /// Newest checkpoint of the run, as its step.
    pub checkpoint: Option<u64>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A session with the coordinator is open.
    Attached,
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
    /// The trainer could not go on.
    Failed(String),
    /// The trainer left this generation.
    Left(Generation),
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
    /// It cannot go on; in words for people.
    Failed(String),
}

/// The worker's view of its run.
#[derive(Debug, Clone)]
pub struct Session {
    coordinator: String,
    coordinator_timeout: Duration,
    /// Since when there is no session, and why.
    detached: Option<(NowMs, String)>,
    /// The newest order.
    order: Option<Order>,
    /// Generations up to this one are not to be trained in any more.
    dropped: Generation,
    /// The newest generation that the trainer has taken up.
    taken: Generation,
    stop: bool,
    checkpoints_wanted: u64,
    ending: Option<Ending>,
}

impl Session {
    /// A worker that has no session yet. Without one for `coordinator_timeout`, it gives up.
    pub fn new(coordinator: String, coordinator_timeout: Duration, now: NowMs) -> Self {
        Self {
            coordinator,
            coordinator_timeout,
            detached: Some((now, "no session yet".into())),
            order: None,
            dropped: Generation(0),
            taken: Generation(0),
            stop: false,
            checkpoints_wanted: 0,
            ending: None,
        }
    }

    /// Takes one event and returns what must be done about it.
    pub fn on(&mut self, now: NowMs, event: Event) -> Vec<Effect> {
        if self.ending.is_some() {
            return Vec::new();
        }
        match event {
            Event::Attached => self.attached(),
            Event::Detached { problem } => self.detached(now, problem),
            Event::Ordered(order) => self.ordered(order),
            Event::Dropped(generation) => self.drop_up_to(generation),
            Event::Stop => self.want_stop(),
            Event::Checkpoint => self.want_checkpoint(),
            Event::GivenUp => self.given_up(),
            Event::Refused(reason) => self.end(Ending::Failed(format!("refused by the coordinator: {reason}"))),
            Event::Released => self.end(Ending::Released),
            Event::Failed(reason) => self.end(Ending::Failed(reason)),
            Event::Left(generation) => self.drop_up_to(generation),
            Event::Tick => self.give_up_on_coordinator(now),
        }
    }

    fn attached(&mut self) -> Vec<Effect> {
        self.detached = None;
        Vec::new()
    }

    fn detached(&mut self, now: NowMs, problem: String) -> Vec<Effect> {
        let since = self.detached.as_ref().map_or(now, |(since, _)| *since);
        self.detached = Some((since, problem));
        vec![Effect::Attach { anew: false }]
    }

    fn ordered(&mut self, order: Order) -> Vec<Effect> {
        let newest = self.order.as_ref().map_or(Generation(0), |o| o.generation);
        if order.generation <= newest.max(self.dropped) {
            return Vec::new();
        }
        self.order = Some(order);
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
        let newest = self.order.as_ref().map_or(self.taken, |o| o.generation);
        let mut effects = self.drop_up_to(newest);
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
        Boundary {
            newest_order: self.order.as_ref().map_or(self.taken, |o| o.generation),
            stop: self.stop,
            checkpoints_wanted: self.checkpoints_wanted,
        }
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
        Order { generation, rank: 0, peers: vec![], secret: [0; 32], checkpoint: None }
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
        assert_eq!(session.on(0, Event::Ordered(order(3))), [Effect::WakeTrainer]);
        assert_eq!(session.boundary().newest_order, Generation(3));
    }

    #[test]
    fn a_coordinator_that_stays_away_ends_in_a_message_with_what_was_awaited() {
        let mut session = session();
        session.on(10_000, Event::Attached);
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
}
