//! `polo prepare --join`: a machine that works for a leader.
//!
//! What it works on goes on while its leader is away, for a bounded time, and is offered when the leader is back.

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use polo_proto::v1::{
    self, helper_request::Message as Up, helper_response::Message as Down, preparation_client::PreparationClient,
};
use polo_store::{Digest, Store, corpus::MANIFEST_KEY};
use polo_transport::{Client, Credentials};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, service::interceptor::InterceptedService, transport::Channel};

use super::{
    MAX_DESCRIPTION_BYTES,
    pieces::{Pieces, Work},
    preparation, version, wire,
    work::{Report, Worker, Workshop, joined},
};
use crate::{
    args::{ClusterArgs, CorpusOptions},
    encode::Encoder,
    error::PrepareError,
    journal::{self, Journal},
    tools::Tools,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For the description, which has the tokenizer in it.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(60);
/// Between tries.
const PAUSE: Duration = Duration::from_millis(500);
/// Results of which the leader is told again; more cannot have been under way.
const MAX_RESULTS: usize = 64;
/// How long the leader may take to take a last word.
const FAREWELL: Duration = Duration::from_millis(500);

/// Helps the leader at `url` until there is nothing left to do.
pub async fn run(url: &str, args: &ClusterArgs, jobs: Option<NonZeroUsize>) -> Result<(), PrepareError> {
    let client = Client::new(args.protection.as_client());
    // What is wrong with the files of certificates and tokens is said now, not as a leader that cannot be reached.
    client.prepare(url)?;
    let patience = Patience { url: url.to_owned(), limit: Duration::from_secs(args.join_timeout_s.get()) };
    let leader = Leader { client, patience };
    let description = leader.describe().await?;
    let Prepared { tools, input, output } = Prepared::new(url, &description).await?;
    let num_jobs = jobs.or(std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    eprintln!("helping {url} with {}, {num_jobs} threads", output.url());

    let (report, reports) = mpsc::unbounded_channel();
    let pieces = Pieces::new(&output);
    let num_bytes_read = Arc::new(AtomicU64::new(0));
    let workshop = Workshop { reading: tools.reading(&input, num_bytes_read.clone()), pieces, num_jobs, tools };
    let worker = Worker::start(workshop, report);
    let name = format!("{}-{}", rustix::system::uname().nodename().to_string_lossy(), std::process::id());
    let preparation = description.preparation;
    let num_sources = description.sources.len();
    let mut helper = Helper {
        leader,
        output,
        name,
        preparation,
        num_sources,
        worker,
        num_bytes_read,
        results: VecDeque::new(),
        reports,
    };
    let ended = helper.help().await;
    joined(helper.worker.stop()).await;
    ended
}

/// For how long the leader is looked for.
struct Patience {
    url: String,
    limit: Duration,
}

type Connection = PreparationClient<InterceptedService<Channel, Credentials>>;

struct Leader {
    client: Client,
    patience: Patience,
}

impl Leader {
    async fn connect(&self) -> Result<Connection, String> {
        let (endpoint, credentials) = self.client.prepare(&self.patience.url).map_err(|error| words(&error))?;
        // A leader that falls silent without closing the connection must not be waited for without end.
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).http2_keep_alive_interval(CONNECT_TIMEOUT);
        let channel = self.client.connect(endpoint.keep_alive_timeout(2 * CONNECT_TIMEOUT)).await;
        let channel = channel.map_err(|error| words(&error))?;
        Ok(PreparationClient::with_interceptor(channel, credentials)
            .max_decoding_message_size(MAX_DESCRIPTION_BYTES + (1 << 20)))
    }

    async fn describe(&self) -> Result<v1::DescribeResponse, PrepareError> {
        let since = Instant::now();
        loop {
            let problem = match timeout(DESCRIBE_TIMEOUT, self.try_describe()).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(problem)) => problem,
                Err(_) => format!("no answer within {} s", DESCRIBE_TIMEOUT.as_secs()),
            };
            self.patience.wait(since, &problem).await?;
        }
    }

    /// What the leader says, or what is wrong that may be mended by waiting.
    async fn try_describe(&self) -> Result<Result<v1::DescribeResponse, PrepareError>, String> {
        let status = match self.connect().await?.describe(v1::DescribeRequest {}).await {
            Ok(described) => return Ok(Ok(described.into_inner())),
            Err(status) => status,
        };
        let (url, reason) = (self.patience.url.clone(), status.message().to_owned());
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => Ok(Err(PrepareError::HelperRefused { url, reason })),
            Code::Unimplemented => Err("something else listens there".into()),
            _ => Err(reason),
        }
    }
}

impl Patience {
    /// Waits a moment, or says that it has been long enough.
    async fn wait(&self, since: Instant, problem: &str) -> Result<(), PrepareError> {
        if since.elapsed() + PAUSE > self.limit {
            let (url, problem, for_s) = (self.url.clone(), problem.to_owned(), self.limit.as_secs());
            return Err(PrepareError::NoLeader { url, problem, for_s });
        }
        sleep(PAUSE).await;
        Ok(())
    }
}

/// What the leader's description comes to on this machine.
struct Prepared {
    tools: Arc<Tools>,
    input: Store,
    output: Store,
}

impl Prepared {
    async fn new(url: &str, description: &v1::DescribeResponse) -> Result<Self, PrepareError> {
        let refused = |reason: String| PrepareError::HelperRefused { url: url.to_owned(), reason };
        if description.version != version() {
            let (own, leader) = (version(), &description.version);
            return Err(refused(format!(
                "it is of version {leader}, and this of {own}; run the same program everywhere"
            )));
        }
        let options: CorpusOptions =
            serde_json::from_str(&description.options).map_err(|error| refused(format!("its options: {error}")))?;
        let encoder = Encoder::from_bytes(&format!("of {url}"), description.tokenizer.clone())?;
        let cleaning =
            toml::from_str(&description.cleaning).map_err(|error| refused(format!("its cleaning: {error}")))?;
        let cleaning = (cleaning, description.cleaning.clone());
        let (tools, _) = Tools::new(options, description.sources.clone(), encoder, cleaning).await?;
        let theirs = description.plan.clone().into_iter().collect();
        let differs = journal::differences(&tools.plan(), &theirs);
        if !differs.is_empty() {
            return Err(PrepareError::OtherTools { url: url.to_owned(), differs });
        }
        if preparation(&tools).as_bytes()[..] != description.preparation[..] {
            return Err(refused("its description contradicts itself".to_owned()));
        }
        let (input, output) = (Store::open(&description.input)?, Store::open(&description.output)?);
        if !Journal::is_of(&output, &theirs).await? {
            return Err(PrepareError::NotShared { output: output.url().to_owned() });
        }
        Ok(Self { tools: Arc::new(tools), input, output })
    }
}

/// How a session ended.
enum Gone {
    /// The leader is not there.
    Broken(String),
    /// There is nothing left to do.
    Ended,
    /// It would not help to come back.
    Failed(PrepareError),
}

struct Session {
    up: mpsc::Sender<v1::HelperRequest>,
    down: Streaming<v1::HelperResponse>,
}

struct Helper {
    leader: Leader,
    output: Store,
    name: String,
    preparation: Vec<u8>,
    num_sources: usize,
    worker: Worker,
    num_bytes_read: Arc<AtomicU64>,
    /// Stored, the last of them perhaps without the leader having heard of it.
    results: VecDeque<(Work, Digest)>,
    reports: mpsc::UnboundedReceiver<Report>,
}

impl Helper {
    async fn help(&mut self) -> Result<(), PrepareError> {
        let mut away_since = Instant::now();
        let mut is_away = false;
        loop {
            let gone = match self.open_session().await {
                Ok(session) => {
                    let gone = self.converse(session).await;
                    (away_since, is_away) = (Instant::now(), false);
                    gone
                }
                Err(problem) => Gone::Broken(problem),
            };
            let problem = match gone {
                Gone::Ended => return Ok(()),
                Gone::Failed(error) => return Err(error),
                Gone::Broken(problem) => problem,
            };
            if self.is_over().await.unwrap_or(false) {
                eprintln!("the leader is away, and the corpus is there: nothing is left to do");
                return Ok(());
            }
            if !std::mem::replace(&mut is_away, true) {
                eprintln!("the leader is away: {problem}; trying again");
            }
            self.leader.patience.wait(away_since, &problem).await?;
        }
    }

    /// Whether the leader has come to its end, which a helper that was out of touch did not hear.
    async fn is_over(&self) -> Result<bool, PrepareError> {
        Ok(self.output.exists(MANIFEST_KEY).await? && !Journal::is_open(&self.output).await?)
    }

    async fn open_session(&mut self) -> Result<Session, String> {
        let mut client = self.leader.connect().await?;
        let (up, requests) = mpsc::channel(64);
        let _ = up.try_send(request(Up::Hello(self.hello())));
        let opened = timeout(CONNECT_TIMEOUT, client.session(ReceiverStream::new(requests))).await;
        let opened = opened.map_err(|_| format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))?;
        Ok(Session { up, down: opened.map_err(|status| status.message().to_owned())?.into_inner() })
    }

    fn hello(&mut self) -> v1::HelperHello {
        while let Ok(report) = self.reports.try_recv() {
            let _ = self.reported(report); // failures are forgotten: the lease has lapsed
        }
        let done = self.results.iter().map(|(work, result)| (*work, Some(*result)));
        let held = self
            .worker
            .held()
            .map(|work| (work, None))
            .chain(done)
            .map(|(work, result)| v1::HeldFile { work: wire::bytes(work.0), result: result.map(wire::bytes) });
        let (name, preparation) = (self.name.clone(), self.preparation.clone());
        v1::HelperHello { name, version: version(), preparation, held: held.collect() }
    }

    /// Passes messages both ways until something ends the session.
    async fn converse(&mut self, mut session: Session) -> Gone {
        let mut heartbeat = interval(CONNECT_TIMEOUT);
        loop {
            let message = tokio::select! {
                biased;
                received = session.down.message() => match received {
                    Ok(Some(v1::HelperResponse { message: Some(Down::Welcome(welcome)) })) => {
                        eprintln!("joined {} as {}", self.leader.patience.url, self.name);
                        heartbeat = interval(Duration::from_millis(welcome.heartbeat_interval_ms.max(1)));
                        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
                        continue;
                    }
                    Ok(Some(message)) => match self.hear(message) {
                        Ok(()) => continue,
                        Err(gone) => return self.leave(session, gone).await,
                    },
                    Ok(None) => return Gone::Broken("it closed the session".to_owned()),
                    Err(status) => return Gone::Broken(status.message().to_owned()),
                },
                Some(report) = self.reports.recv() => match self.reported(report) {
                    Ok(message) => message,
                    Err(error) => return Gone::Failed(error),
                },
                _ = heartbeat.tick() => {
                    let num_bytes = self.num_bytes_read.load(std::sync::atomic::Ordering::Relaxed);
                    Up::Heartbeat(v1::HelperHeartbeat { progress: self.worker.progress().wrapping_add(num_bytes) })
                }
            };
            if session.up.send(request(message)).await.is_err() {
                return Gone::Broken("it closed the session".to_owned());
            }
        }
    }

    fn hear(&mut self, message: v1::HelperResponse) -> Result<(), Gone> {
        let url = || self.leader.patience.url.clone();
        let broken = |error: wire::WireError| Gone::Broken(error.to_string());
        match message.message {
            Some(Down::Lease(lease)) => {
                let file = wire::leased(lease, self.num_sources).map_err(broken)?;
                if self.worker.held().next().is_none() {
                    eprintln!("working on {}", file.input.key); // small ones after it are not told of
                }
                self.results.retain(|(work, _)| *work != file.work);
                self.worker.lease(file);
                Ok(())
            }
            Some(Down::Forget(forgotten)) => {
                let work = wire::work(&forgotten.work).map_err(broken)?;
                self.results.retain(|(done, _)| *done != work);
                self.worker.forget(work);
                Ok(())
            }
            Some(Down::Refused(refused)) => {
                Err(Gone::Failed(PrepareError::HelperRefused { url: url(), reason: refused.reason }))
            }
            Some(Down::Ended(ended)) if ended.error.is_empty() => Err(Gone::Ended),
            Some(Down::Ended(ended)) => {
                Err(Gone::Failed(PrepareError::LeaderFailed { url: url(), reason: ended.error }))
            }
            Some(Down::Welcome(_)) => Ok(()),
            None => Err(broken(wire::WireError("an empty response"))),
        }
    }

    fn reported(&mut self, report: Report) -> Result<Up, PrepareError> {
        match report {
            Report::Done(work, result) => {
                self.worker.settle(work);
                self.results.push_back((work, result));
                if self.results.len() > MAX_RESULTS {
                    self.results.pop_front();
                }
                Ok(Up::Done(v1::FileDone { work: wire::bytes(work.0), result: wire::bytes(result) }))
            }
            Report::Failed(work, reason) => {
                self.worker.settle(work);
                eprintln!("a file was not done: {reason}");
                Ok(Up::Failed(v1::FileFailed { work: wire::bytes(work.0), reason }))
            }
            Report::Lost => Err(PrepareError::ThreadLost),
        }
    }

    /// Stops to write, then hangs up: the leader removes what was written.
    async fn leave(&mut self, session: Session, gone: Gone) -> Gone {
        joined(self.worker.stop()).await;
        let Session { up, mut down } = session;
        drop(up);
        let _ = timeout(FAREWELL, async { while let Ok(Some(_)) = down.message().await {} }).await;
        gone
    }
}

fn request(message: Up) -> v1::HelperRequest {
    v1::HelperRequest { message: Some(message) }
}

/// The error and its causes on one line.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    let mut words: Vec<String> = chain.map(ToString::to_string).collect();
    words.dedup();
    words.join(": ")
}
