//! Where the agent and the trainer meet: the session under a lock, and what one leaves for the other.

use std::sync::{Mutex, MutexGuard, PoisonError};

use polo_proto::v1::session_request::Message;
use polo_recipe::ids::{Generation, Step};
use tokio::{
    sync::{Notify, mpsc::UnboundedSender},
    time::Instant,
};

use crate::{
    boundary::Boundary,
    plane::AbortHandle,
    session::{Effect, Ending, Event, Order, Session},
};

/// What the trainer is doing, for heartbeats and traces.
#[derive(Debug, Clone, Copy)]
pub struct Doing {
    /// The generation that it works for.
    pub generation: Generation,
    /// Step of the state it holds.
    pub step: Step,
    /// In a word or two.
    pub phase: &'static str,
    /// When it began to do that.
    pub since: Instant,
}

impl Doing {
    /// From now on.
    pub fn new(generation: Generation, step: Step, phase: &'static str) -> Self {
        Self { generation, step, phase, since: Instant::now() }
    }
}

struct Inner {
    session: Session,
    plane: Option<(Generation, AbortHandle)>,
    /// When the plane was aborted that the trainer has not left yet.
    aborted: Option<Instant>,
    /// From the last abort until the trainer had left.
    last_abort_ms: u64,
    doing: Doing,
}

impl Inner {
    fn abort_up_to(&mut self, generation: Generation) {
        if let Some((_, plane)) = self.plane.as_ref().filter(|(g, _)| *g <= generation)
            && !plane.is_aborted()
        {
            plane.abort();
            self.aborted = Some(Instant::now());
        }
    }
}

/// The meeting place.
pub struct Desk {
    inner: Mutex<Inner>,
    changed: Notify,
    started: Instant,
    to_agent: UnboundedSender<Effect>,
    outbox: UnboundedSender<Message>,
}

impl Desk {
    /// A desk around a new session. Effects that concern the stream go `to_agent`, the trainer's messages to `outbox`.
    pub fn new(session: Session, to_agent: UnboundedSender<Effect>, outbox: UnboundedSender<Message>) -> Self {
        let doing = Doing::new(Generation(0), Step(0), "joining");
        let inner = Mutex::new(Inner { session, plane: None, aborted: None, last_abort_ms: 0, doing });
        Self { inner, changed: Notify::new(), started: Instant::now(), to_agent, outbox }
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
                Effect::WakeTrainer => self.changed.notify_one(),
                Effect::AbortUpTo(generation) => inner.abort_up_to(generation),
                Effect::SayLeaving | Effect::HangUp(_) | Effect::Attach { .. } | Effect::Exit(_) => {
                    let _ = self.to_agent.send(effect);
                }
            }
        }
    }

    /// Waits for the next generation to take part in. Ends as the session ends, which bounds the wait.
    pub async fn next_order(&self, plane: &AbortHandle) -> Result<Order, Ending> {
        loop {
            if let Some(next) = self.try_next_order(plane) {
                return next;
            }
            // One waits, and a notice that comes before it waits is kept for it.
            self.changed.notified().await;
        }
    }

    fn try_next_order(&self, plane: &AbortHandle) -> Option<Result<Order, Ending>> {
        let mut inner = self.lock();
        if let Some(aborted) = inner.aborted.take() {
            inner.last_abort_ms = aborted.elapsed().as_millis() as u64;
        }
        if let Some(ending) = inner.session.ending() {
            return Some(Err(ending.clone()));
        }
        let order = inner.session.take_order()?;
        inner.plane = Some((order.generation, plane.clone()));
        Some(Ok(order))
    }

    /// What the coordinator should know when a session begins: the newest generation that this worker was told of, the
    /// step of its state if it was in one, and whether it is to leave.
    pub fn standing(&self) -> (Generation, Option<Step>, bool) {
        let inner = self.lock();
        let step = (inner.doing.generation > Generation(0)).then_some(inner.doing.step);
        (inner.session.newest_order(), step, inner.session.is_leaving())
    }

    /// How long it last took from an abort until the trainer had left its generation, in ms.
    pub fn last_abort_ms(&self) -> u64 {
        self.lock().last_abort_ms
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
