//! Workers that train nothing.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream};
use polo_proto::v1::{
    self, SessionRequest, coordination_client::CoordinationClient, session_request::Message as Up,
    session_response::Message as Down,
};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Endpoint};

use crate::{
    Failure,
    served::{Lab, processor_seconds},
};

/// Sessions that are opened at the same time.
const MOST_OPENING: usize = 64;

/// What a worker was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// It belongs to the run, and sends a heartbeat every so many milliseconds.
    Welcome(u64),
    /// It has a place in a generation.
    Generation(u64),
    /// A generation is to be dropped.
    Abort(u64),
    /// It is out of the run, though it did nothing to deserve it.
    Lost(String),
}

struct Heard {
    worker: usize,
    at: Instant,
    word: Word,
}

/// Workers in this process.
pub struct Fleet {
    /// By number; whoever was killed is gone.
    workers: HashMap<usize, JoinHandle<()>>,
    /// Numbers of those who will be killed, with what listens at their data address: a dead process refuses.
    condemned: Vec<(usize, JoinHandle<()>)>,
    heard: mpsc::UnboundedReceiver<Heard>,
    /// The newest generation of each worker.
    generations: HashMap<usize, u64>,
    heard_at: Instant,
    heartbeat_interval_ms: u64,
    started: (Instant, f64),
}

impl Fleet {
    /// Opens so many sessions. The first `num_condemned` workers can be killed.
    pub async fn join(address: &str, lab: &Lab, num_workers: usize, num_condemned: usize) -> Result<Self, Failure> {
        let started = (Instant::now(), processor_seconds(std::process::id())?);
        let (to_fleet, heard) = mpsc::unbounded_channel();
        let (everybodys, _) = data_plane().await?;
        let (mut addresses, mut condemned) = (vec![everybodys; num_workers], Vec::new());
        for (number, its_address) in addresses.iter_mut().enumerate().take(num_condemned) {
            let (address, listening) = data_plane().await?;
            *its_address = address;
            condemned.push((number, listening));
        }
        let openings = addresses.into_iter().enumerate().map(|(number, data_address)| {
            let hello = lab.hello(format!("fake-{number:05}"), number as u64 + 1, data_address);
            let to_fleet = to_fleet.clone();
            async move {
                let session = open(address, hello).await?;
                Ok::<_, Failure>((number, tokio::spawn(attend(number, session, to_fleet))))
            }
        });
        let workers = stream::iter(openings).buffer_unordered(MOST_OPENING).try_collect().await?;
        let heard_at = Instant::now();
        let generations = HashMap::new();
        Ok(Self { workers, condemned, heard, generations, heard_at, heartbeat_interval_ms: 0, started })
    }

    /// Waits until every worker has the same generation, newer than `after`.
    pub async fn wait_for_generation(&mut self, after: u64, limit: Duration) -> Result<u64, Failure> {
        let until = Instant::now() + limit;
        loop {
            let newest = self.generations.values().copied().max().unwrap_or(0);
            let num_there = self.generations.values().filter(|g| **g == newest).count();
            if newest > after && num_there == self.workers.len() {
                return Ok(newest);
            }
            self.hear(until).await.map_err(|e| format!("generation {newest}: {num_there} have it: {e}"))?;
        }
    }

    /// When each worker was told that, earliest first, once all have been.
    pub async fn wait_for_all(&mut self, word: &Word, limit: Duration) -> Result<Vec<Instant>, Failure> {
        let until = Instant::now() + limit;
        let mut told = Vec::with_capacity(self.workers.len());
        while told.len() < self.workers.len() {
            let heard = self.hear(until).await.map_err(|e| format!("{word:?}: {} heard it: {e}", told.len()))?;
            if heard.word == *word {
                told.push(heard.at);
            }
        }
        Ok(told)
    }

    async fn hear(&mut self, until: Instant) -> Result<Heard, Failure> {
        let patience = until.saturating_duration_since(Instant::now());
        let heard = timeout(patience, self.heard.recv()).await.map_err(|_| "nothing more within the limit")?;
        let heard = heard.ok_or("no worker is left")?;
        match &heard.word {
            Word::Welcome(interval_ms) => self.heartbeat_interval_ms = *interval_ms,
            Word::Generation(generation) => {
                self.generations.insert(heard.worker, *generation);
                self.heard_at = heard.at;
            }
            Word::Abort(_) => {}
            Word::Lost(reason) if self.workers.contains_key(&heard.worker) => {
                return Err(format!("worker {} was lost: {reason}", heard.worker).into());
            }
            Word::Lost(_) => {}
        }
        Ok(heard)
    }

    /// Ends a worker as `kill -9` would: nothing listens at its data address, and its session breaks.
    pub fn kill_one(&mut self) -> Result<Instant, Failure> {
        let (number, listening) = self.condemned.pop().ok_or("nobody is left to be killed")?;
        listening.abort();
        let killed_at = Instant::now();
        self.workers.remove(&number).ok_or("it is dead already")?.abort();
        self.generations.remove(&number);
        Ok(killed_at)
    }

    /// When the newest generation reached the worker that it reached last.
    pub fn heard_at(&self) -> Instant {
        self.heard_at
    }

    /// As the coordinator asked for.
    pub fn heartbeat_interval_ms(&self) -> u64 {
        self.heartbeat_interval_ms.max(1)
    }

    /// Share of a core that this process has used since the fleet was made; near the number of its cores, it is this
    /// process that was measured and not the coordinator.
    pub fn core_share(&self) -> f64 {
        let (started, before) = self.started;
        let used = processor_seconds(std::process::id()).unwrap_or(before) - before;
        used / started.elapsed().as_secs_f64()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.workers.values().for_each(JoinHandle::abort);
        self.condemned.iter().for_each(|(_, listening)| listening.abort());
    }
}

/// An address that answers like a live worker's data plane: whoever connects is kept waiting.
async fn data_plane() -> Result<(String, JoinHandle<()>), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let listening = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            kept.push(connection);
        }
    });
    Ok((address, listening))
}

struct Session {
    up: mpsc::Sender<SessionRequest>,
    down: Streaming<v1::SessionResponse>,
}

async fn open(address: &str, hello: v1::Hello) -> Result<Session, Failure> {
    let channel = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).connect().await?;
    let (up, requests) = mpsc::channel(16);
    up.try_send(SessionRequest { message: Some(Up::Hello(hello)) })?;
    let response = CoordinationClient::new(channel).session(ReceiverStream::new(requests)).await?;
    Ok(Session { up, down: response.into_inner() })
}

/// Sends heartbeats and passes on what is heard, until the session ends.
async fn attend(worker: usize, mut session: Session, to_fleet: mpsc::UnboundedSender<Heard>) {
    let mut heartbeat = interval(Duration::from_secs(1));
    let mut generation = 0;
    let tell = |word| {
        let _ = to_fleet.send(Heard { worker, at: Instant::now(), word });
    };
    loop {
        let received = tokio::select! {
            received = session.down.message() => received,
            _ = heartbeat.tick() => {
                let up = Up::Heartbeat(v1::Heartbeat { generation, step: 0, phase: "forward".into(), phase_ms: 0 });
                let _ = session.up.send(SessionRequest { message: Some(up) }).await;
                continue;
            }
        };
        match received.map(|message| message.and_then(|m| m.message)) {
            Ok(Some(Down::Welcome(welcome))) => {
                heartbeat = interval(Duration::from_millis(welcome.heartbeat_interval_ms.max(1)));
                heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
                tell(Word::Welcome(welcome.heartbeat_interval_ms));
            }
            Ok(Some(Down::Generation(start))) => {
                generation = start.generation;
                tell(Word::Generation(generation));
            }
            Ok(Some(Down::Abort(abort))) => tell(Word::Abort(abort.generation)),
            Ok(Some(other)) => return tell(Word::Lost(format!("{other:?}"))),
            Ok(None) => return tell(Word::Lost("the coordinator closed the session".into())),
            Err(status) => return tell(Word::Lost(status.to_string())),
        }
    }
}
