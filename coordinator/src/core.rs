//! The thin shell around the machine: it feeds events in one at a time and carries out what comes back.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use polo_proto::v1;
use polo_recipe::{
    ids::Step,
    layout::Layout,
    plan::{LedgerEntry, Plan},
};
use polo_store::{Digest, Store, checkpoint};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    clock::Clock,
    journal::Journal,
    machine::{Action, CheckpointDraft, Entry, Event, Notice, NowMs, Outcome, RecordError, State, Tell, WorkerId},
    outside::Outside,
    status::{Progress, history, status},
    wire::Wire,
};

/// How much older than the newest chunk one without a manifest must be to count as left behind by a dead worker.
const UPLOAD_GRACE: Duration = Duration::from_secs(3600);

/// How long a change of the status may wait for others before people who watch are told.
const STATUS_INTERVAL: Duration = Duration::from_millis(20);

/// Who watches at a time: each is sent every change, which costs the time in which workers are heard.
pub(crate) const MAX_WATCHERS: usize = 100;

/// What reaches the core.
pub(crate) enum Inbound {
    /// A session was opened; what its worker is told goes to the sender.
    Opened(WorkerId, u64, mpsc::Sender<Tell>),
    /// A session ended.
    Closed(WorkerId, u64),
    /// A worker's report of a completed step, for people; the machine hears of it as well.
    Report(v1::StepReport),
    /// Somebody wants to know how the run stands.
    Status(oneshot::Sender<v1::Status>),
    /// Somebody wants to know it whenever it changes; nothing if too many do.
    Watch(oneshot::Sender<Option<watch::Receiver<v1::Status>>>),
    /// Somebody wants to know its past.
    History(oneshot::Sender<v1::History>),
    /// Somebody wants a worker to leave; the error says who is there.
    Drain(WorkerId, oneshot::Sender<Result<(), String>>),
    /// For the machine.
    Event(Event),
}

/// What a run tells whoever started it.
#[derive(Debug, Clone)]
pub enum News {
    /// Something happened.
    Notice(Notice),
    /// A step was completed.
    Step(v1::StepSummary),
    /// The run has ended, or had when it was opened; how it stands.
    Ended(Box<v1::Status>),
}

/// Everything about the run that does not change.
pub(crate) struct Facts {
    pub recipe_identity: String,
    pub corpus: Digest,
    pub layout: Layout,
    pub plan: Plan,
    pub store: Store,
    pub keep: std::num::NonZeroUsize,
    pub checkpoint_every_steps: u64,
    /// Held while a manifest is written and old checkpoints are removed: one removal must not meet another.
    pub storing: tokio::sync::Mutex<()>,
    /// The way to others.
    pub outside: Arc<dyn Outside>,
    pub wire: Wire,
}

pub(crate) struct Core {
    pub facts: Arc<Facts>,
    pub state: State,
    pub journal: Journal,
    pub progress: Progress,
    pub sessions: BTreeMap<(WorkerId, u64), mpsc::Sender<Tell>>,
    pub inbound: mpsc::Sender<Inbound>,
    pub status: watch::Sender<v1::Status>,
    pub news: mpsc::UnboundedSender<News>,
    pub clock: Clock,
    /// When the status is next to be told to whoever watches, if something happened since it was told last.
    pub publish_at: Option<Instant>,
}

impl Core {
    /// Handles events until the run ends.
    pub async fn run(&mut self, inbound: mpsc::Receiver<Inbound>) -> Outcome {
        let outcome = self.run_to_end(inbound).await;
        let _ = self.news.send(News::Ended(Box::new(self.current_status())));
        outcome
    }

    async fn run_to_end(&mut self, mut inbound: mpsc::Receiver<Inbound>) -> Outcome {
        if let Some(outcome) = self.state.outcome() {
            return outcome.clone();
        }
        loop {
            let (wake, publish) = (self.next_wake(), self.publish_at);
            let next = tokio::select! {
                biased;
                () = until(publish) => Next::Publish,
                // Every event is also a look at the clock, so this order keeps nothing waiting.
                Some(message) = inbound.recv() => Next::Take(message),
                () = until(wake) => Next::Tick,
                () = until(Some(self.clock.next_beat())) => Next::Beat,
            };
            let superseded = if self.clock.beat(Instant::now()) { self.look_around().await } else { None };
            let ended = superseded.or_else(|| match next {
                Next::Publish => self.publish(),
                Next::Take(message) => self.take(message),
                Next::Tick => self.event(Event::Tick),
                Next::Beat => None,
            });
            if let Some(outcome) = ended {
                self.publish();
                return outcome;
            }
        }
    }

    /// After a time in which this process did not run, another coordinator may have taken up the run: that must be known
    /// before anything is said to workers that may be that one's by now.
    async fn look_around(&mut self) -> Option<Outcome> {
        let confirmed = self.journal.confirm().await;
        // Nobody's silence counts while the store was waited for, either.
        self.clock.beat(Instant::now());
        match confirmed {
            Err(RecordError::Superseded(_)) => self.event(Event::Recorded(self.state.generation(), confirmed)),
            // If the store cannot say it now, it cannot take another coordinator's entry now.
            _ => None,
        }
    }

    /// Lets go of all but the journal.
    pub fn into_journal(self) -> Journal {
        self.journal
    }

    fn take(&mut self, message: Inbound) -> Option<Outcome> {
        match message {
            Inbound::Opened(worker, incarnation, sender) => {
                self.sessions.insert((worker, incarnation), sender);
                None
            }
            Inbound::Closed(worker, incarnation) => {
                self.sessions.remove(&(worker.clone(), incarnation));
                self.event(Event::StreamBroken(worker, incarnation))
            }
            Inbound::Report(report) => {
                self.report(report);
                None
            }
            Inbound::Status(asker) => {
                let _ = asker.send(self.current_status());
                None
            }
            Inbound::History(asker) => {
                let _ = asker.send(history(&self.state, &self.progress));
                None
            }
            Inbound::Watch(asker) if self.status.receiver_count() >= MAX_WATCHERS => {
                let _ = asker.send(None);
                None
            }
            Inbound::Watch(asker) => {
                // Before it is published: nothing is where nobody watches, and the first who does begins with what is.
                let watching = self.status.subscribe();
                self.publish();
                let _ = asker.send(Some(watching));
                None
            }
            Inbound::Drain(worker, asker) => self.drain(worker, asker),
            Inbound::Event(event) => self.event(event),
        }
    }

    fn report(&mut self, report: v1::StepReport) {
        if let Some(summary) = self.progress.take(report, &self.facts.plan) {
            let _ = self.news.send(News::Step(summary));
        }
    }

    fn event(&mut self, event: Event) -> Option<Outcome> {
        let now = self.now();
        for action in self.state.step(now, event) {
            self.act(action);
        }
        self.publish_at.get_or_insert_with(|| Instant::now() + STATUS_INTERVAL);
        self.state.outcome().cloned()
    }

    fn drain(&mut self, worker: WorkerId, asker: oneshot::Sender<Result<(), String>>) -> Option<Outcome> {
        if self.state.members().contains_key(&worker) {
            let _ = asker.send(Ok(()));
            return self.event(Event::DrainRequested(worker));
        }
        let names: Vec<_> = self.state.members().keys().map(|w| w.0.as_str()).collect();
        let there = if names.is_empty() { "there is none".into() } else { format!("there are: {}", names.join(", ")) };
        let _ = asker.send(Err(format!("no worker is called {worker}; {there}")));
        None
    }

    fn next_wake(&self) -> Option<Instant> {
        self.state.next_wake().map(|at| self.clock.instant_of(at))
    }

    fn now(&self) -> NowMs {
        self.clock.now()
    }

    fn current_status(&self) -> v1::Status {
        status(&self.state, &self.progress, &self.facts, self.now())
    }

    /// Tells whoever watches, if more has changed than the time since members were heard. Never ends the run.
    fn publish(&mut self) -> Option<Outcome> {
        self.publish_at = None;
        if self.status.receiver_count() > 0 {
            let new = self.current_status();
            self.status.send_if_modified(|old| {
                let is_new = timeless(old) != timeless(&new);
                *old = new;
                is_new
            });
        }
        None
    }

    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::Tell(worker, incarnation, tell) => self.tell(worker, incarnation, tell),
            Action::Probe(worker, incarnation, address) => {
                let outside = self.facts.outside.clone();
                self.answer_later(async move {
                    let alive = outside.probe(&address).await;
                    Event::Probed(worker, incarnation, alive)
                });
            }
            Action::Record(entry) => {
                let is_awaited = matches!(entry, Entry::Generation { .. } | Entry::Ended(_));
                let generation = self.state.generation();
                let written = self.journal.record(entry);
                self.tell_later(async move {
                    let result = written.await;
                    let is_news = is_awaited || matches!(result, Err(RecordError::Superseded(_)));
                    is_news.then_some(Event::Recorded(generation, result))
                });
            }
            Action::StoreCheckpoint(draft) => {
                let facts = self.facts.clone();
                self.answer_later(async move {
                    let step = draft.step;
                    Event::CheckpointStored(step, store_checkpoint(&facts, draft).await)
                });
            }
            Action::ReadCheckpoint(step) => {
                let facts = self.facts.clone();
                self.answer_later(async move {
                    let manifest = checkpoint::read_manifest(&facts.store, step.0).await;
                    let digest = manifest.map(|m| m.state_digest.to_string()).map_err(|e| e.to_string());
                    Event::CheckpointStored(step, digest)
                });
            }
            Action::Announce(notice) => {
                tracing::info!("{notice}");
                let _ = self.news.send(News::Notice(notice));
            }
            Action::End(_) => {}
        }
    }

    fn tell(&mut self, worker: WorkerId, incarnation: u64, tell: Tell) {
        let key = (worker, incarnation);
        let Some(session) = self.sessions.get(&key) else { return };
        let is_last = tell.is_farewell();
        // A worker that does not read its stream is given up with it; the machine hears of that as a broken stream.
        if session.try_send(tell).is_err() || is_last {
            self.sessions.remove(&key);
        }
    }

    fn answer_later(&self, answer: impl Future<Output = Event> + Send + 'static) {
        self.tell_later(async move { Some(answer.await) });
    }

    fn tell_later(&self, answer: impl Future<Output = Option<Event>> + Send + 'static) {
        let inbound = self.inbound.clone();
        tokio::spawn(async move {
            if let Some(event) = answer.await {
                let _ = inbound.send(Inbound::Event(event)).await;
            }
        });
    }
}

/// What the core does next.
enum Next {
    Publish,
    Take(Inbound),
    Tick,
    /// Only the clock was due.
    Beat,
}

/// Waits until then; for ever if there is no such moment.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn timeless(status: &v1::Status) -> v1::Status {
    let mut status = status.clone();
    status.members.iter_mut().for_each(|member| member.last_heard_ms_ago = 0);
    status
}

/// The plan's ledger, with the tokens that workers have counted.
fn ledger(plan: &Plan, step: Step, trained: &[(String, String, u64)]) -> Vec<LedgerEntry> {
    let counted = |entry: LedgerEntry| {
        let same = trained.iter().find(|(stage, source, _)| *stage == entry.stage && *source == entry.source);
        LedgerEntry { num_trained_tokens: same.map_or(0, |(.., num_tokens)| *num_tokens), ..entry }
    };
    plan.ledger(step).into_iter().map(counted).collect()
}

/// Writes the manifest, then forgets the checkpoints that are no longer wanted.
///
/// A coordinator that has been superseded does no harm by it: the manifest is created once and says what a state's content
/// is, whoever asked for it; and what it would remove is what its successor would, but for chunks of its successor's
/// checkpoints, which are too young to be removed.
async fn store_checkpoint(facts: &Facts, draft: CheckpointDraft) -> Result<String, String> {
    let _alone = facts.storing.lock().await;
    let Step(step) = draft.step;
    let digests: Vec<_> = draft.chunks.into_iter().map(Digest).collect();
    let protected = draft.protected.into_iter().map(Digest).collect();
    let ledger = ledger(&facts.plan, draft.step, &draft.trained);
    let identity = facts.recipe_identity.clone();
    let manifest = checkpoint::Manifest::new(step, identity, facts.corpus, &facts.layout, &digests, ledger);
    checkpoint::put_manifest(&facts.store, &manifest).await.map_err(|e| e.to_string())?;
    if let Err(error) = checkpoint::retain(&facts.store, facts.keep, &protected, UPLOAD_GRACE).await {
        tracing::warn!(%error, "old checkpoints could not be removed; they are left for the next time");
    }
    Ok(manifest.state_digest.to_string())
}
