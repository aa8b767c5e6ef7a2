//! Opens a run and serves it until it ends.

use std::{collections::HashMap, num::NonZeroUsize, sync::Arc, time::Duration, time::Instant};

use polo_proto::v1::{control_server::ControlServer, coordination_server::CoordinationServer};
use polo_recipe::{
    config::Recipe,
    ids::Step,
    layout::Layout,
    plan::{Plan, PlanNote},
};
use polo_store::{Store, checkpoint, corpus::CorpusManifest, run};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
};
use tokio_stream::wrappers::TcpListenerStream;

use crate::{
    CoordinatorError,
    core::{Core, Facts, Inbound, News},
    journal::Journal,
    machine::{Event, Outcome, Settings, State},
    services::Services,
    status::{Progress, status},
};

/// How long open streams may take to end after the run has.
const FAREWELL: Duration = Duration::from_secs(2);

/// A run that is ready to be served.
pub struct Run {
    core: Core,
    inbound: mpsc::Receiver<Inbound>,
    services: Services,
}

/// Asks a run to stop.
#[derive(Clone)]
pub struct StopHandle(mpsc::Sender<Inbound>);

impl StopHandle {
    /// Asks for a stop at the next step boundary, with a checkpoint.
    pub async fn stop(&self) {
        let _ = self.0.send(Inbound::Event(Event::StopRequested)).await;
    }
}

impl Run {
    /// Reads what the run's store and corpus hold, and checks that they belong to the recipe.
    ///
    /// `expected_workers` is how many are about to be started; the run begins without waiting for more. What happens
    /// is told to `news`.
    pub async fn open(
        recipe: &Recipe,
        expected_workers: usize,
        news: mpsc::UnboundedSender<News>,
    ) -> Result<Self, CoordinatorError> {
        let corpus = CorpusManifest::load(&Store::open(&recipe.corpus.url)?).await?;
        check_vocabulary(recipe, &corpus)?;
        let plan = corpus.plan(recipe)?;
        // Only a recipe that fits its corpus takes the store: one with a mistake in it must not keep the right one out.
        let store = Store::open(&recipe.run.store)?;
        run::put_recipe(&store, recipe).await?;
        let layout = Layout::qwen2(&recipe.model.qwen2);
        let journal = Journal::new(store.clone());
        let steps = checkpoint::list_steps(&store).await?.into_iter().map(Step).collect();
        let settings = settings(recipe, &corpus, &plan, &layout, expected_workers);
        let state = State::new(settings, journal.last_generation().await?, steps, 0);
        let keep = NonZeroUsize::new(recipe.checkpoint.keep).unwrap_or(NonZeroUsize::MIN);
        let facts = Facts {
            run: recipe.run.name.clone(),
            recipe_identity: recipe.identity(),
            corpus: corpus.digest(),
            heartbeat_interval_ms: (recipe.workers.heartbeat_timeout_ms / 5).max(1),
            secret: rand::random(),
            layout,
            plan,
            store,
            keep,
            storing: Default::default(),
        };
        Ok(Self::new(facts, state, journal, news))
    }

    fn new(facts: Facts, state: State, journal: Journal, news: mpsc::UnboundedSender<News>) -> Self {
        let (sender, inbound) = mpsc::channel(1024);
        let progress = Progress::default();
        let first = status(&state, &progress, &facts.plan, &facts.run, &facts.recipe_identity, 0);
        let (status, watched) = watch::channel(first);
        let services = Services { inbound: sender.clone(), status: watched };
        let core = Core {
            facts: Arc::new(facts),
            state,
            journal,
            progress,
            sessions: HashMap::new(),
            inbound: sender,
            status,
            news,
            started: Instant::now(),
        };
        Self { core, inbound, services }
    }

    /// The steps of the whole run, and the step it goes on from.
    pub fn num_steps(&self) -> (Step, Step) {
        (Step(self.core.facts.plan.num_steps()), self.core.state.newest_step())
    }

    /// What the user should know about the plan.
    pub fn notes(&self) -> &[PlanNote] {
        self.core.facts.plan.notes()
    }

    /// A way to ask for a stop.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(self.services.inbound.clone())
    }

    /// Serves workers and people until the run has ended.
    pub async fn serve(mut self, listener: TcpListener) -> Result<Outcome, CoordinatorError> {
        let (shut_down, shutting_down) = oneshot::channel::<()>();
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<CoordinationServer<Services>>().await;
        health.set_serving::<ControlServer<Services>>().await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(polo_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let server = tonic::transport::Server::builder()
            .tcp_nodelay(true)
            .add_service(CoordinationServer::new(self.services.clone()))
            .add_service(ControlServer::new(self.services))
            .add_service(health_service)
            .add_service(reflection().build_v1()?)
            // Clients of some years ago know only this name of it.
            .add_service(reflection().build_v1alpha()?)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
                let _ = shutting_down.await;
            });
        let server = tokio::spawn(server);
        let outcome = self.core.run(self.inbound).await;
        // Dropping the core closes every session and status stream after what was said last.
        drop(self.core);
        let _ = shut_down.send(());
        match tokio::time::timeout(FAREWELL, server).await {
            Ok(Ok(served)) => served?,
            Ok(Err(_)) | Err(_) => tracing::debug!("some streams were still open at the end"),
        }
        Ok(outcome)
    }
}

fn check_vocabulary(recipe: &Recipe, corpus: &CorpusManifest) -> Result<(), CoordinatorError> {
    let (corpus, model) = (corpus.vocab_size, recipe.model.qwen2.vocab_size as u64);
    if corpus <= model {
        return Ok(());
    }
    Err(CoordinatorError::Vocabulary { url: recipe.corpus.url.clone(), corpus, model })
}

fn settings(
    recipe: &Recipe,
    corpus: &CorpusManifest,
    plan: &Plan,
    layout: &Layout,
    expected_workers: usize,
) -> Settings {
    let workers = &recipe.workers;
    Settings {
        recipe_identity: recipe.identity(),
        corpus_digest: corpus.digest().to_string(),
        num_steps: Step(plan.num_steps()),
        num_slots: recipe.batch.slots,
        num_chunks: layout.chunks.len(),
        min_workers: workers.min_workers,
        expected_workers,
        settle_ms: workers.settle_ms,
        wait_timeout_ms: workers.wait_timeout_s * 1000,
        heartbeat_timeout_ms: workers.heartbeat_timeout_ms,
    }
}
