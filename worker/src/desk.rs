//! Where the agent and the trainer meet: the session under a lock, and what one leaves for the other.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use polo_proto::v1::session_request::Message;
use polo_recipe::ids::{Generation, Step};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    boundary::Boundary,
    plane::AbortHandle,
    session::{Effect, Ending, Event, Order, Session},
};

/// What the trainer is doing, for heartbeats and traces.
#[derive(Debug, Clone, Copy, Default)]
pub struct Doing {
    /// The generation that it works for.
    pub generation: Generation,
    /// Step of the state it holds.
    pub step: Step,
    /// In a word or two.
    pub phase: &'static str,
}

struct Inner {
    session: Session,
    plane: Option<(Generation, AbortHandle)>,
    doing: Doing,
}

/// The meeting place.
pub struct Desk {
    inner: Mutex<Inner>,
    changed: Condvar,
    started: Instant,
    to_agent: UnboundedSender<Effect>,
    outbox: UnboundedSender<Message>,
}

impl Desk {
    /// A desk around a new session. Effects that concern the stream go `to_agent`, the trainer's messages to `outbox`.
    pub fn new(session: Session, to_agent: UnboundedSender<Effect>, outbox: UnboundedSender<Message>) -> Self {
        let doing = Doing { phase: "joining", ..Doing::default() };
        let inner = Mutex::new(Inner { session, plane: None, doing });
        Self { inner, changed: Condvar::new(), started: Instant::now(), to_agent, outbox }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The session is changed by one call at a time and is whole between them, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Feeds an event into the session and carries out what comes back.
    pub fn handle(&self, event: Event) {
        let now = self.started.elapsed().as_millis() as u64;
        let mut inner = self.lock();
        for effect in inner.session.on(now, event) {
            match effect {
                Effect::WakeTrainer => self.changed.notify_all(),
                Effect::AbortUpTo(generation) => {
                    if let Some((_, plane)) = inner.plane.as_ref().filter(|(g, _)| *g <= generation) {
                        plane.abort();
                    }
                }
                Effect::Attach { .. } | Effect::Exit(_) => {
                    let _ = self.to_agent.send(effect);
                }
            }
        }
    }

    /// Waits for the next generation to take part in. Ends as the session ends, which bounds the wait.
    pub fn next_order(&self, plane: &AbortHandle) -> Result<Order, Ending> {
        let mut inner = self.lock();
        loop {
            if let Some(ending) = inner.session.ending() {
                return Err(ending.clone());
            }
            if let Some(order) = inner.session.take_order() {
                inner.plane = Some((order.generation, plane.clone()));
                return Ok(order);
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What this worker contributes to the next boundary record.
    pub fn boundary(&self) -> Boundary {
        self.lock().session.boundary()
    }

    /// Leaves a message for the coordinator.
    pub fn send(&self, message: Message) {
        let _ = self.outbox.send(message);
    }

    /// Notes what the trainer is doing.
    pub fn set_doing(&self, doing: Doing) {
        // The workers of a machine may write to one terminal, so the line says whose it is.
        let pid = std::process::id();
        tracing::trace!(pid, generation = doing.generation.0, step = doing.step.0, phase = doing.phase, "phase");
        self.lock().doing = doing;
    }

    /// What the trainer is doing.
    pub fn doing(&self) -> Doing {
        self.lock().doing
    }
}
