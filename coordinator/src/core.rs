//! The thin shell around the machine: it feeds events in one at a time and carries out what comes back.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use polo_proto::v1;
use polo_recipe::{ids::Step, layout::Layout, plan::Plan};
use polo_store::{Digest, Store, checkpoint};
use tokio::sync::{mpsc, watch};

use crate::{
    journal::Journal,
    machine::{Action, CheckpointDraft, Event, Notice, NowMs, Outcome, State, WorkerId},
    probe::probe,
    services::is_farewell,
    status::{Progress, status},
    wire,
};

/// How much older than the newest chunk one without a manifest must be to count as left behind by a dead worker.
const UPLOAD_GRACE: Duration = Duration::from_secs(3600);

/// What reaches the core.
pub(crate) enum Inbound {
    /// A session was opened; what its worker is told goes to the sender.
    Opened(WorkerId, u64, mpsc::Sender<v1::SessionResponse>),
    /// A session ended.
    Closed(WorkerId, u64),
    /// A worker's report of a completed step, for people; the machine hears of it as well.
    Report(v1::StepReport),
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
}

/// Everything about the run that does not change.
pub(crate) struct Facts {
    pub run: String,
    pub recipe_identity: String,
    pub corpus: Digest,
    pub layout: Layout,
    pub plan: Plan,
    pub store: Store,
    pub keep: std::num::NonZeroUsize,
    /// Held while a manifest is written and old checkpoints are removed: one removal must not meet another.
    pub storing: tokio::sync::Mutex<()>,
    pub heartbeat_interval_ms: u64,
    /// From which the secrets of generations are derived.
    pub secret: [u8; 32],
}

pub(crate) struct Core {
    pub facts: std::sync::Arc<Facts>,
    pub state: State,
    pub journal: Journal,
    pub progress: Progress,
    pub sessions: HashMap<(WorkerId, u64), mpsc::Sender<v1::SessionResponse>>,
    pub inbound: mpsc::Sender<Inbound>,
    pub status: watch::Sender<v1::Status>,
    pub news: mpsc::UnboundedSender<News>,
    pub started: Instant,
}

impl Core {
    /// Handles events until the run ends.
    pub async fn run(&mut self, mut inbound: mpsc::Receiver<Inbound>) -> Outcome {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        loop {
            let ended = tokio::select! {
                Some(message) = inbound.recv() => self.take(message),
                _ = tick.tick() => self.event(Event::Tick),
            };
            if let Some(outcome) = ended {
                return outcome;
            }
        }
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
        self.publish(now);
        self.state.outcome().cloned()
    }

    fn now(&self) -> NowMs {
        self.started.elapsed().as_millis() as NowMs
    }

    /// Keeps the status fresh for whoever asks; whoever watches is told only when more has changed than the time since
    /// members were heard.
    fn publish(&self, now: NowMs) {
        let facts = &self.facts;
        let new = status(&self.state, &self.progress, &facts.plan, &facts.run, &facts.recipe_identity, now);
        self.status.send_if_modified(|old| {
            let is_new = timeless(old) != timeless(&new);
            *old = new;
            is_new
        });
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Tell(worker, incarnation, tell) => self.tell(worker, incarnation, tell),
            Action::Probe(worker, incarnation, address) => self.answer_later(async move {
                let alive = probe(&address).await;
                Event::Probed(worker, incarnation, alive)
            }),
            Action::RecordGeneration(generation, workers) => {
                let journal = self.journal.clone();
                self.answer_later(async move {
                    Event::GenerationRecorded(generation, journal.record(generation, workers).await)
                });
            }
            Action::StoreCheckpoint(draft) => {
                let facts = self.facts.clone();
                self.answer_later(async move {
                    let step = draft.step;
                    Event::CheckpointStored(step, store_checkpoint(&facts, draft).await)
                });
            }
            Action::Announce(notice) => {
                tracing::info!("{notice}");
                let _ = self.news.send(News::Notice(notice));
            }
            Action::End(_) => {}
        }
    }

    fn tell(&mut self, worker: WorkerId, incarnation: u64, tell: crate::machine::Tell) {
        let facts = &self.facts;
        let secret = |generation: polo_recipe::ids::Generation| {
            *blake3::keyed_hash(&facts.secret, &generation.0.to_le_bytes()).as_bytes()
        };
        let response = wire::response(tell, &facts.run, facts.heartbeat_interval_ms, secret);
        let key = (worker, incarnation);
        let Some(session) = self.sessions.get(&key) else { return };
        // A worker that does not read its stream is given up with it; the machine hears of that as a broken stream.
        if is_farewell(&response) | session.try_send(response).is_err() {
            self.sessions.remove(&key);
        }
    }

    fn answer_later(&self, answer: impl Future<Output = Event> + Send + 'static) {
        let inbound = self.inbound.clone();
        tokio::spawn(async move {
            let _ = inbound.send(Inbound::Event(answer.await)).await;
        });
    }
}

fn timeless(status: &v1::Status) -> v1::Status {
    let mut status = status.clone();
    status.members.iter_mut().for_each(|member| member.last_heard_ms_ago = 0);
    status
}

/// Writes the manifest, then forgets the checkpoints that are no longer wanted.
async fn store_checkpoint(facts: &Facts, draft: CheckpointDraft) -> Result<(), String> {
    let _alone = facts.storing.lock().await;
    let Step(step) = draft.step;
    let digests: Vec<_> = draft.chunks.into_iter().map(Digest).collect();
    let protected = draft.protected.into_iter().map(Digest).collect();
    let trained = draft.trained.into_iter();
    let trained =
        trained.map(|(stage, source, num_tokens)| checkpoint::Trained { stage, source, num_tokens }).collect();
    let identity = facts.recipe_identity.clone();
    let manifest = checkpoint::Manifest::new(step, identity, facts.corpus, &facts.layout, &digests, trained);
    checkpoint::put_manifest(&facts.store, &manifest).await.map_err(|e| e.to_string())?;
    if let Err(error) = checkpoint::retain(&facts.store, facts.keep, &protected, UPLOAD_GRACE).await {
        tracing::warn!(%error, "old checkpoints could not be removed; they are left for the next time");
    }
    Ok(())
}
