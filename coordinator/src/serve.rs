//! Opens a run and serves it until it ends.

use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Duration};

use polo_proto::v1::{control_server::ControlServer, coordination_server::CoordinationServer};
use polo_recipe::{
    config::Recipe,
    ids::Step,
    layout::Layout,
    plan::{Plan, PlanNote},
    utilization::Utilization,
};
use polo_store::{Store, checkpoint, corpus::CorpusManifest, run};
use polo_transport::{Guard, ServerTls, accept, guarded};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_stream::Stream;
use tonic::{service::Routes, transport::server::Connected};
use tonic_health::{
    ServingStatus,
    pb::health_server::{Health, HealthServer},
};

use crate::{
    CoordinatorError,
    admission::need,
    clock::Clock,
    core::{Core, Facts, Inbound, News},
    journal::{self, Fencing, Holder, Journal, JournalError},
    machine::{Event, Outcome, Restored, Settings, State},
    observers::{Observers, Wanted, observe},
    outside::Outside,
    services::Services,
    status::{Progress, status},
    web,
    wire::Wire,
};

/// Requests of one connection at a time.
const MAX_STREAMS_PER_CONNECTION: u32 = 64;
/// Of one request.
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Of one message: the largest is a checkpoint's part with the digests of all chunks of a 72B model, of some 3 MB.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// How long open streams may take to end after the run has.
const FAREWELL: Duration = Duration::from_secs(2);

/// A run that is ready to be served.
pub struct Run {
    core: Core,
    inbound: mpsc::Receiver<Inbound>,
    services: Services,
    guard: Guard,
    health_listener: Option<TcpListener>,
}

/// How a run is opened.
#[derive(Clone)]
pub struct Opening {
    /// Workers that are about to be started; the run begins without waiting for more.
    pub expected_workers: usize,
    /// Where this coordinator listens.
    pub address: SocketAddr,
    /// Whether a store is taken whose create-only puts do not hold, so that two coordinators could act at once.
    pub unfenced: bool,
    /// The way to others.
    pub outside: Arc<dyn Outside>,
    /// Who may use the run.
    pub guard: Guard,
    /// Whether connections are encrypted.
    pub is_encrypted: bool,
}

/// Asks a run to stop.
#[derive(Clone)]
pub struct StopHandle(mpsc::Sender<Inbound>);

impl StopHandle {
    /// Asks for a stop at the next step boundary, with a checkpoint.
    pub async fn stop(&self) {
        let _ = self.0.send(Inbound::Event(Event::StopRequested)).await;
    }

    /// Whether the run has ended, though those who listened to it may still be told so.
    pub fn has_ended(&self) -> bool {
        self.0.is_closed()
    }
}

impl Run {
    /// Reads what the run's store and corpus hold, and checks that they belong to the recipe.
    ///
    /// A run that another coordinator has left is taken up where it was; one that another one holds is refused. What
    /// happens is told to `news`.
    pub async fn open(
        recipe: &Recipe,
        opening: Opening,
        news: mpsc::UnboundedSender<News>,
    ) -> Result<Self, CoordinatorError> {
        let corpus = CorpusManifest::load(&Store::open(&recipe.corpus.url)?).await?;
        check_vocabulary(recipe, &corpus)?;
        let plan = corpus.plan(recipe)?;
        // Only a recipe that fits its corpus takes the store: one with a mistake in it must not keep the right one out.
        let store = Store::open(&recipe.run.store)?;
        run::put_recipe(&store, recipe).await?;
        let layout = Layout::qwen2(&recipe.model.qwen2);
        let (journal, mut restored) = take_up(&store, recipe, &opening).await?;
        restored.checkpoints = checkpoint::list_steps(&store).await?.into_iter().map(Step).collect();
        check_same_corpus(&store, &restored.checkpoints, recipe, &corpus).await?;
        let settings = settings(recipe, &corpus, &plan, &layout, opening.expected_workers);
        let (state, first) = State::restore(settings, restored, 0);
        let keep = NonZeroUsize::new(recipe.checkpoint.keep).unwrap_or(NonZeroUsize::MIN);
        let facts = Facts {
            recipe_identity: recipe.identity(),
            corpus: corpus.digest(),
            outside: opening.outside,
            wire: Wire {
                run: recipe.run.name.clone(),
                heartbeat_interval_ms: (recipe.workers.heartbeat_timeout_ms / 5).max(1),
                epoch: journal.epoch,
                secret: rand::random(),
                roster: Default::default(),
            },
            layout,
            plan,
            store,
            keep,
            checkpoint_every_steps: recipe.checkpoint.every_steps,
            storing: Default::default(),
        };
        let mut run = Self::new(facts, state, journal, Progress::new(Utilization::of(recipe)), news, opening.guard);
        first.into_iter().for_each(|action| run.core.act(action));
        Ok(run)
    }

    fn new(
        facts: Facts,
        state: State,
        journal: Journal,
        progress: Progress,
        news: mpsc::UnboundedSender<News>,
        guard: Guard,
    ) -> Self {
        let (sender, inbound) = mpsc::channel(1024);
        let first = status(&state, &progress, &facts, 0);
        let (status, _) = watch::channel(first);
        let facts = Arc::new(facts);
        let services = Services { inbound: sender.clone(), facts: facts.clone() };
        let core = Core {
            facts,
            state,
            journal,
            progress,
            sessions: BTreeMap::new(),
            inbound: sender,
            status,
            news,
            clock: Clock::start(Instant::now()),
            publish_at: None,
        };
        Self { core, inbound, services, guard, health_listener: None }
    }

    /// Answers here as well whether it serves, and nothing else: unencrypted and to everybody, as kubelets' probes want it.
    pub fn answer_probes(&mut self, listener: TcpListener) {
        self.health_listener = Some(listener);
    }

    /// Has others follow the run's news, which go on to the receiver that is returned.
    pub fn observe(
        &self,
        wanted: &Wanted,
        news: mpsc::UnboundedReceiver<News>,
    ) -> (Observers, mpsc::UnboundedReceiver<News>) {
        let facts = &self.core.facts;
        observe(wanted, &facts.wire.run, facts.store.clone(), news)
    }

    /// The steps of the whole run, and the step it goes on from.
    pub fn num_steps(&self) -> (Step, Step) {
        (Step(self.core.facts.plan.num_steps()), self.core.state.newest_step())
    }

    /// Whether it had been completed before: it needs no workers, and serving it ends at once.
    pub fn has_ended(&self) -> bool {
        self.core.state.outcome().is_some()
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
    pub async fn serve(self, listener: TcpListener, tls: Option<ServerTls>) -> Result<Outcome, CoordinatorError> {
        self.serve_incoming(accept(listener, tls)).await
    }

    /// As [`Run::serve`], on connections of any kind.
    pub async fn serve_incoming<S>(
        mut self,
        incoming: impl Stream<Item = std::io::Result<S>> + Send + 'static,
    ) -> Result<Outcome, CoordinatorError>
    where
        S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let (shut_down, shutting_down) = oneshot::channel::<()>();
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<CoordinationServer<Services>>().await;
        health.set_serving::<ControlServer<Services>>().await;
        // By which another coordinator of the same run learns that this one is there.
        let identity = self.core.facts.recipe_identity.clone();
        health.set_service_status(&identity, ServingStatus::Serving).await;
        let probes = self.health_listener.take().map(|listener| {
            let router = bounded_server().add_service(health_service.clone());
            tokio::spawn(router.serve_with_incoming(accept(listener, None)))
        });
        let server = bounded_server()
            .accept_http1(true)
            .add_routes(routes(self.services, health_service, self.guard)?)
            .serve_with_incoming_shutdown(incoming, async {
                let _ = shutting_down.await;
            });
        let server = tokio::spawn(server);
        let outcome = self.core.run(self.inbound).await;
        probes.inspect(|probes| probes.abort());
        health.set_service_status(&identity, ServingStatus::NotServing).await;
        // Dropping the core closes every session and status stream after what was said last.
        let journal = self.core.into_journal();
        let _ = shut_down.send(());
        journal.close().await;
        match tokio::time::timeout(FAREWELL, server).await {
            Ok(Ok(served)) => served?,
            Ok(Err(_)) | Err(_) => tracing::debug!("some streams were still open at the end"),
        }
        Ok(outcome)
    }
}

fn bounded_server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
}

/// All that is served, each to whom it is for.
fn routes(
    services: Services,
    health: HealthServer<impl Health>,
    guard: Guard,
) -> Result<Routes, tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(polo_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let coordination = CoordinationServer::new(services.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let services = Routes::from(web::router(services.clone()))
        .add_service(coordination)
        .add_service(ControlServer::new(services))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        // Clients of some years ago know only this name of it.
        .add_service(reflection().build_v1alpha()?);
    Ok(guarded(services, guard, need))
}

/// Makes this coordinator the one that holds the run.
async fn take_up(store: &Store, recipe: &Recipe, opening: &Opening) -> Result<(Journal, Restored), CoordinatorError> {
    let fencing = match (store.find_dishonesty().await?, opening.unfenced) {
        (None, _) => Fencing::CreateOnly,
        (Some(seen), true) => {
            tracing::warn!("{} cannot fence: {seen}; a second coordinator of this run could act as well", store.url());
            Fencing::None
        }
        (Some(seen), false) => return Err(CoordinatorError::DishonestStore { url: store.url().into(), seen }),
    };
    let past = journal::read(store).await?;
    let own = Holder::here(opening.address, opening.is_encrypted);
    if let Some(holder) = &past.holder
        && journal::is_alive(holder, &recipe.identity(), &own, &*opening.outside).await
    {
        let (url, address) = (store.url().into(), holder.address.clone());
        return Err(JournalError::Held { url, holder: holder.to_string(), address }.into());
    }
    let journal = Journal::take_up(store.clone(), &past, own, fencing).await?;
    Ok((journal, past.restored))
}

fn check_vocabulary(recipe: &Recipe, corpus: &CorpusManifest) -> Result<(), CoordinatorError> {
    let (corpus, model) = (corpus.vocab_size, recipe.model.qwen2.vocab_size as u64);
    if corpus <= model {
        return Ok(());
    }
    Err(CoordinatorError::Vocabulary { url: recipe.corpus.url.clone(), corpus, model })
}

/// A run goes on with the corpus that it began with. The newest checkpoint that can be read tells which.
async fn check_same_corpus(
    store: &Store,
    checkpoints: &[Step],
    recipe: &Recipe,
    corpus: &CorpusManifest,
) -> Result<(), CoordinatorError> {
    for step in checkpoints.iter().rev() {
        let Ok(manifest) = checkpoint::read_manifest(store, step.0).await else { continue };
        let (expected, found) = (manifest.corpus, corpus.digest());
        if expected == found {
            return Ok(());
        }
        let (run, corpus) = (store.url().to_owned(), recipe.corpus.url.clone());
        return Err(CoordinatorError::OtherCorpus { run, corpus, expected, found });
    }
    Ok(())
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
        max_members: workers.max_workers.unwrap_or(recipe.batch.slots).min(recipe.batch.slots),
        num_chunks: layout.chunks.len(),
        min_workers: workers.min_workers,
        expected_workers,
        settle_ms: workers.settle_ms,
        wait_timeout_ms: workers.wait_timeout_s * 1000,
        heartbeat_timeout_ms: workers.heartbeat_timeout_ms,
        evict_stragglers: workers.evict_stragglers,
        validation: recipe.validation.clone(),
    }
}
