//! The leader's shell: events go into the machine one by one, and what it decides is done here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use polo_proto::v1::{self, helper_response::Message, preparation_server::PreparationServer};
use polo_store::Store;
use polo_transport::{Guard, Need, Role, ServerTls, accept, guarded};
use prost::Message as _;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tonic::service::Routes;

use super::{
    FileInPlan, MAX_DESCRIPTION_BYTES, MAX_WAIT_FOR_HELPERS, PROGRESS_TIMEOUT,
    leases::{Action, Awaited, Event, HelperId, Leases, News, Overview, Said, Settings, Worker as Holder},
    pieces::Pieces,
    preparation,
    service::Service,
    version, wire,
    work::{LeasedFile, Report, Worker, Workshop, joined},
};
use crate::{
    args::ClusterArgs,
    error::PrepareError,
    progress::{LINE_EVERY, Screen},
    reading::{Supply, Way},
    tools::Tools,
};

/// How long helpers may take to hang up once they have been told of the end.
const FAREWELL: Duration = Duration::from_secs(10);
/// Of one helper.
const MAX_STREAMS_PER_CONNECTION: u32 = 64;
/// Heartbeats that fit into the time after which a silent helper is given up.
const HEARTBEATS: u64 = 5;

/// What a leader leads.
pub struct Opening {
    /// What makes documents of text.
    pub tools: Arc<Tools>,
    /// All files, in input order.
    pub files: Arc<Vec<FileInPlan>>,
    /// Which of them need nothing any more.
    pub past: Vec<bool>,
    /// Which of them have results.
    pub done: BTreeSet<usize>,
    /// Where raw text lies.
    pub input: Store,
    /// Where the corpus goes.
    pub output: Store,
    /// Where results lie.
    pub pieces: Pieces,
    /// Threads of this machine.
    pub num_jobs: usize,
    /// Where people are told things.
    pub screen: Screen,
}

/// What the core hears.
pub enum Inbound {
    /// Of the machine's events.
    Event(Event),
    /// A helper's session, and the way to it.
    Opened(HelperId, mpsc::Sender<v1::HelperResponse>),
    /// [`Supply::early`].
    Soon(usize, oneshot::Sender<Option<Way>>),
    /// [`Supply::turn`].
    Turn(usize, oneshot::Sender<Way>),
    /// The preparation has failed, and nothing is waited for any more.
    Stop,
    /// The preparation has ended; with what went wrong.
    End(Option<String>),
}

/// Leads helpers.
pub struct Leader {
    inbound: mpsc::Sender<Inbound>,
    core: JoinHandle<()>,
    screen: Screen,
}

/// Files as the machine has them.
struct LedSupply {
    inbound: mpsc::Sender<Inbound>,
    screen: Screen,
}

impl Leader {
    /// Begins to serve helpers. To be called in a runtime.
    pub fn start(door: Door, args: &ClusterArgs, opening: Opening) -> Result<Self, PrepareError> {
        let (inbound, events) = mpsc::channel(1024);
        let silence_timeout_ms = args.helper_timeout_s.get().saturating_mul(1000);
        let settings = Settings {
            version: version(),
            preparation: preparation(&opening.tools),
            min_helpers: args.min_helpers,
            max_wait_ms: MAX_WAIT_FOR_HELPERS.as_millis() as u64,
            silence_timeout_ms,
            progress_timeout_ms: PROGRESS_TIMEOUT.as_millis() as u64,
            max_ahead_bytes: args.max_ahead_bytes,
        };
        let numbers = opening.files.iter().enumerate().map(|(number, file)| (file.work, number)).collect();
        let service = Service::new(inbound.clone(), description(&opening)?, numbers);
        let num_bytes = opening.files.iter().map(|file| file.input.total_bytes()).collect();
        let leases = Leases::new(settings, num_bytes, &opening.past, &opening.done, 0);
        let screen = opening.screen.clone();
        let (own_report, own_reports) = mpsc::unbounded_channel();
        let core = Core {
            leases,
            opening,
            sessions: BTreeMap::new(),
            heartbeat_interval_ms: (silence_timeout_ms / HEARTBEATS).max(1),
            own: None,
            own_report,
            own_reports,
            start: Instant::now(),
            soon: None,
            turn: None,
            is_stopped: false,
        };
        let core = tokio::spawn(serve(core, events, door, service));
        Ok(Self { inbound, core, screen })
    }

    /// Which files are read here, and which come from helpers.
    pub fn supply(&self) -> Arc<dyn Supply> {
        Arc::new(LedSupply { inbound: self.inbound.clone(), screen: self.screen.clone() })
    }

    /// Tells helpers that the preparation has ended, with what went wrong, and waits (not without bound) until none of them
    /// writes any more.
    pub async fn end(self, error: Option<String>) {
        let _ = self.inbound.send(Inbound::End(error)).await;
        let _ = self.core.await;
    }
}

impl LedSupply {
    fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Inbound) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.inbound.blocking_send(question(answer)).ok()?;
        answered.blocking_recv().ok()
    }
}

impl Supply for LedSupply {
    fn early(&self, file: usize) -> Option<Way> {
        self.ask(|answer| Inbound::Soon(file, answer)).flatten()
    }

    fn turn(&self, file: usize) -> Way {
        self.ask(|answer| Inbound::Turn(file, answer)).unwrap_or(Way::Stop)
    }

    fn stop(&self) {
        let _ = self.inbound.blocking_send(Inbound::Stop);
    }

    fn tell(&self, words: String) {
        self.screen.say(&words);
    }
}

fn description(opening: &Opening) -> Result<v1::DescribeResponse, PrepareError> {
    let tools = &opening.tools;
    let description = v1::DescribeResponse {
        version: version(),
        preparation: wire::bytes(preparation(tools)),
        input: opening.input.url().to_owned(),
        output: opening.output.url().to_owned(),
        options: serde_json::to_string(&tools.options).unwrap_or_default(), // plain fields: it cannot fail
        sources: tools.sources.clone(),
        plan: tools.plan().into_iter().collect(),
        cleaning: tools.cleaning_text.clone(),
        tokenizer: tools.encoder.json.clone(),
    };
    match description.encoded_len() {
        num_bytes if num_bytes > MAX_DESCRIPTION_BYTES => {
            Err(PrepareError::DescriptionTooLarge { num_bytes, max_bytes: MAX_DESCRIPTION_BYTES })
        }
        _ => Ok(description),
    }
}

/// Where helpers come in, and who is let in.
pub struct Door {
    /// The socket.
    pub listener: TcpListener,
    /// Its certificate, if it speaks TLS.
    pub tls: Option<ServerTls>,
    /// Who is admitted.
    pub guard: Guard,
}

async fn serve(core: Core, events: mpsc::Receiver<Inbound>, door: Door, service: Service) {
    let (shut_down, shutting_down) = oneshot::channel::<()>();
    let screen = core.opening.screen.clone();
    let services = guarded(Routes::new(PreparationServer::new(service)), door.guard, |_| Need::Role(Role::Worker));
    let server = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .add_routes(services)
        .serve_with_incoming_shutdown(accept(door.listener, door.tls), async {
            let _ = shutting_down.await;
        });
    let server = tokio::spawn(async move {
        if let Err(error) = server.await {
            screen.say(&format!("helpers are not served any more: {error}"));
        }
    });
    core.run(events).await;
    let _ = shut_down.send(());
    let _ = timeout(Duration::from_secs(1), server).await;
}

struct Core {
    leases: Leases,
    opening: Opening,
    sessions: BTreeMap<HelperId, mpsc::Sender<v1::HelperResponse>>,
    heartbeat_interval_ms: u64,
    /// The threads that work here while the leader waits, and what they have to say.
    own: Option<Worker>,
    own_report: mpsc::UnboundedSender<Report>,
    own_reports: mpsc::UnboundedReceiver<Report>,
    start: Instant,
    soon: Option<oneshot::Sender<Option<Way>>>,
    turn: Option<oneshot::Sender<Way>>,
    is_stopped: bool,
}

impl Core {
    async fn run(mut self, mut events: mpsc::Receiver<Inbound>) {
        let mut line = interval(LINE_EVERY);
        line.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let error = loop {
            let wake = self.leases.next_wake().map(|wake_ms| self.start + Duration::from_millis(wake_ms));
            tokio::select! {
                biased; // what was said comes before the thought that nothing was
                inbound = events.recv() => match inbound {
                    Some(Inbound::End(error)) => break error,
                    Some(inbound) => self.hear(inbound),
                    None => break None,
                },
                Some(report) = self.own_reports.recv() => self.own_reported(report),
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => self.step(Event::Tick),
                _ = line.tick() => self.say_what_is_awaited(),
            }
        };
        self.end(error, events).await;
    }

    fn hear(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Event(event) => {
                if let Event::StreamBroken(id) = &event {
                    self.sessions.remove(id);
                }
                self.step(event);
            }
            Inbound::Opened(id, session) => drop(self.sessions.insert(id, session)),
            Inbound::Soon(..) | Inbound::Turn(..) if self.is_stopped => {}
            Inbound::Soon(file, answer) => {
                self.soon = Some(answer);
                self.step(Event::Soon(file));
            }
            Inbound::Turn(file, answer) => {
                self.turn = Some(answer);
                self.step(Event::Turn(file));
            }
            Inbound::Stop => {
                self.is_stopped = true;
                (self.soon, self.turn) = (None, None); // whoever waits hears of it so
            }
            Inbound::End(_) => {}
        }
    }

    fn own_reported(&mut self, report: Report) {
        let (work, is_done) = match report {
            Report::Done(work, result) => (work, Ok(result)),
            Report::Failed(work, reason) => (work, Err(reason)),
            Report::Lost => {
                let held: Vec<_> = self.own.take().iter().flat_map(Worker::held).collect();
                let lost = |work| Report::Failed(work, "its threads ended".to_owned());
                return held.into_iter().for_each(|work| self.own_reported(lost(work)));
            }
        };
        if let Some(own) = &mut self.own {
            own.settle(work);
        }
        let Some(file) = self.opening.files.iter().position(|file| file.work == work) else { return };
        self.step(Event::OwnSaid(match is_done {
            Ok(result) => Said::Done(file, result),
            Err(reason) => Said::Failed(file, reason),
        }));
    }

    fn step(&mut self, event: Event) {
        let now_ms = self.start.elapsed().as_millis() as u64;
        for action in self.leases.step(now_ms, event) {
            self.act(action);
        }
        self.opening.screen.set_helpers(self.overview_in_words());
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Welcome(id) => {
                let heartbeat_interval_ms = self.heartbeat_interval_ms;
                self.tell(id, Message::Welcome(v1::HelperWelcome { heartbeat_interval_ms }));
            }
            Action::Dismiss(id, why) => {
                if why.is_final() {
                    self.tell(id, Message::Refused(v1::HelperRefused { reason: why.to_string() }));
                }
                self.sessions.remove(&id);
            }
            Action::Lease(Holder::Helper(id), file) => {
                let FileInPlan { work, source, input, .. } = &self.opening.files[file];
                let lease = wire::lease(*work, *source, input);
                self.tell(id, Message::Lease(lease));
            }
            Action::Lease(Holder::Own, file) => self.work_on(file),
            Action::Forget(id, file) => {
                let work = wire::bytes(self.opening.files[file].work.0);
                self.tell(id, Message::Forget(v1::FileForgotten { work }));
            }
            Action::TakeEarly(_, way) => drop(self.soon.take().map(|answer| answer.send(way))),
            Action::Take(_, way) => drop(self.turn.take().map(|answer| answer.send(way))),
            Action::Discard(file) => {
                let (pieces, work) = (self.opening.pieces.clone(), self.opening.files[file].work);
                // At the end everything is removed anyway.
                tokio::spawn(async move { drop(pieces.remove_unread(work).await) });
            }
            Action::News(news) => self.opening.screen.say(&self.in_words(&news)),
        }
    }

    /// A helper that does not take its messages is as good as gone; its stream ends, and that will be heard.
    fn tell(&mut self, id: HelperId, message: Message) {
        let told = self.sessions.get(&id).map(|session| session.try_send(wire::response(message)));
        if !matches!(told, Some(Ok(()))) {
            self.sessions.remove(&id);
        }
    }

    fn work_on(&mut self, file: usize) {
        let FileInPlan { work, source, input, .. } = self.opening.files[file].clone();
        let Opening { tools, input: store, pieces, num_jobs, .. } = &self.opening;
        let own = self.own.get_or_insert_with(|| {
            let reading = tools.reading(store, Arc::new(AtomicU64::new(0)));
            let workshop = Workshop { tools: tools.clone(), reading, pieces: pieces.clone(), num_jobs: *num_jobs };
            Worker::start(workshop, self.own_report.clone())
        });
        own.lease(LeasedFile { work, source, input });
    }

    fn key(&self, file: usize) -> &str {
        &self.opening.files[file].input.key
    }

    fn in_words(&self, news: &News) -> String {
        match news {
            News::Joined { name, num_helpers } => format!("helper {name} has joined; helpers now: {num_helpers}"),
            News::Leased { name, file } => format!("helper {name} works on {}", self.key(*file)),
            News::Left { name, why, files } => {
                let why = why.as_ref().map_or("its connection ended".to_owned(), ToString::to_string);
                format!("helper {name} is gone ({why}); others get its files: {}", files.len())
            }
            News::Refused { name, why } => format!("helper {name} may not take part: {why}"),
            News::Failed { name, file, reason } => format!("{} was not done by {name}: {reason}", self.key(*file)),
            News::BegunWithout { num_helpers, min_helpers } => {
                format!("beginning with {num_helpers} helpers; {min_helpers} were awaited")
            }
        }
    }

    fn overview_in_words(&self) -> String {
        let Overview { num_helpers, num_leased, num_done, .. } = self.leases.overview();
        format!("{num_helpers} helpers, {num_leased} files in work, {num_done} done ahead{}", self.awaited_in_words())
    }

    fn awaited_in_words(&self) -> String {
        match self.leases.overview().awaited {
            None => String::new(),
            Some(Awaited::Helpers { min_helpers }) => format!("; waiting for {min_helpers} helpers"),
            Some(Awaited::File { file, name }) => format!("; waiting for {}, in work at {name}", self.key(file)),
        }
    }

    /// Where there is a terminal, it is seen all the time.
    fn say_what_is_awaited(&self) {
        if self.opening.screen.is_hidden() && self.leases.overview().awaited.is_some() {
            self.opening.screen.say(&self.overview_in_words());
        }
    }

    /// Helpers hang up when they have stopped to write.
    async fn end(mut self, error: Option<String>, mut events: mpsc::Receiver<Inbound>) {
        let ended = wire::response(Message::Ended(v1::PreparationEnded { error: error.unwrap_or_default() }));
        let mut open: BTreeSet<HelperId> = self.sessions.keys().copied().collect();
        for session in std::mem::take(&mut self.sessions).into_values() {
            let _ = session.try_send(ended.clone());
        }
        let own = self.own.as_mut().and_then(Worker::stop);
        let farewell = async {
            while !open.is_empty()
                && let Some(inbound) = events.recv().await
            {
                match inbound {
                    Inbound::Event(Event::StreamBroken(id)) => drop(open.remove(&id)),
                    Inbound::Opened(_, session) => drop(session.try_send(ended.clone())),
                    _ => {}
                }
            }
        };
        let _ = timeout(FAREWELL, farewell).await;
        events.close();
        while events.recv().await.is_some() {}
        joined(own).await;
    }
}
