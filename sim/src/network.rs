//! How ranks meet over the simulated network, by the same rules as over TCP: older planes are refused, and nothing waits
//! without a bound.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt, LocalBoxFuture, join, try_join_all};
use polo_recipe::ids::{Generation, Rank};
use polo_worker::{
    plane::{AbortHandle, DataPlane, Lane, PlaneError, Refusal},
    rig::Network,
    session::Order,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use turmoil::net::{TcpListener, TcpStream};

use crate::{oracle::Oracle, plane::SimPlane};

const HELLO_BYTES: usize = 17;
const WELCOME: u8 = 1;
const REFUSED: u8 = 0;
const RETRY: Duration = Duration::from_millis(50);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// What a partition swallows is never sent again here, as TCP would: an answer that does not come is asked for anew.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than any run may take: whoever waits in vain for others to meet is not helped by time.
const FORM_TIMEOUT: Duration = Duration::from_secs(300);
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A generation's plane.
type PlaneId = (Generation, u8);

#[derive(Default)]
struct Lobby {
    newest: PlaneId,
    waiting: BTreeMap<(PlaneId, Rank), TcpStream>,
}

impl Lobby {
    fn lets_in(&self, plane: PlaneId) -> bool {
        plane >= self.newest
    }
}

/// One worker's door and its way to others.
#[derive(Clone)]
pub struct SimNetwork {
    door: Arc<Door>,
    oracle: Arc<Oracle>,
}

#[derive(Default)]
struct Door {
    lobby: Mutex<Lobby>,
    arrivals: Notify,
}

impl Door {
    fn lobby(&self) -> MutexGuard<'_, Lobby> {
        self.lobby.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn id(generation: Generation, lane: Lane) -> PlaneId {
    (generation, lane as u8)
}

impl SimNetwork {
    /// A door that nobody has come to.
    pub fn new(oracle: Arc<Oracle>) -> Self {
        Self { door: Arc::default(), oracle }
    }

    /// Takes callers in for as long as the process lives.
    pub async fn listen(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(self.clone().receive(stream));
        }
    }

    async fn receive(self, mut stream: TcpStream) {
        let mut hello = [0; HELLO_BYTES];
        // Whoever only probes says nothing, and is kept for as long as it likes.
        if stream.read_exact(&mut hello).await.is_err() {
            return;
        }
        let generation = Generation(u64::from_le_bytes(std::array::from_fn(|i| hello[i])));
        let from = Rank(u32::from_le_bytes(std::array::from_fn(|i| hello[9 + i])));
        if !self.door.lobby().lets_in((generation, hello[8])) {
            let _ = stream.write_all(&[REFUSED]).await;
            return;
        }
        self.door.lobby().waiting.insert(((generation, hello[8]), from), stream);
        self.door.arrivals.notify_waiters();
    }

    /// From now on, callers of older planes are sent away.
    fn open(&self, plane: PlaneId) -> Result<(), PlaneError> {
        let mut lobby = self.door.lobby();
        let (newest, _) = lobby.newest;
        if plane <= lobby.newest {
            return Err(PlaneError::OldGeneration { generation: plane.0, newest });
        }
        lobby.newest = plane;
        lobby.waiting.retain(|(of, _), _| *of >= plane);
        Ok(())
    }

    async fn called_by(&self, plane: PlaneId, from: Rank) -> io::Result<TcpStream> {
        let mut stream = loop {
            let arrived = self.door.arrivals.notified();
            if let Some(stream) = self.door.lobby().waiting.remove(&(plane, from)) {
                break stream;
            }
            arrived.await;
        };
        stream.write_all(&[WELCOME]).await?;
        Ok(stream)
    }

    async fn form_all(&self, order: &Order, lane: Lane) -> Result<Vec<Option<TcpStream>>, PlaneError> {
        let plane = id(order.generation, lane);
        self.open(plane)?;
        let own = Rank(order.rank);
        let streams = (0..).map(Rank).zip(&order.peers).map(|(rank, address)| async move {
            let lost = |source| PlaneError::PeerLost { rank, source };
            if rank == own {
                return Ok(None);
            }
            if rank > own {
                return self.called_by(plane, rank).await.map(Some).map_err(lost);
            }
            call(plane, own, address).await.map(Some).map_err(|uncalled| uncalled.blame(rank, plane.0))
        });
        try_join_all(streams).await
    }
}

/// Why a call came to nothing.
enum Uncalled {
    /// Nothing listened there for too long.
    Unreached(Duration),
    /// It is past that plane.
    Refused,
}

impl Uncalled {
    fn blame(self, rank: Rank, generation: Generation) -> PlaneError {
        match self {
            Self::Unreached(waited) => {
                let waited_ms = waited.as_millis() as u64;
                PlaneError::Timeout { waited_ms, ranks: vec![rank], what: "calling it".into() }
            }
            Self::Refused => PlaneError::Refused { rank, generation, reason: Refusal::OldGeneration },
        }
    }
}

async fn call(plane: PlaneId, own: Rank, address: &str) -> Result<TcpStream, Uncalled> {
    let mut reached = Instant::now();
    loop {
        if let Ok(Ok(mut stream)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            let hello = [&plane.0.0.to_le_bytes()[..], &[plane.1], &own.0.to_le_bytes(), &[0; 4]].concat();
            let answer = async {
                stream.write_all(&hello).await?;
                stream.read_u8().await
            };
            match timeout(ANSWER_TIMEOUT, answer).await {
                Ok(Ok(WELCOME)) => return Ok(stream),
                Ok(Ok(_)) => return Err(Uncalled::Refused),
                Ok(Err(_)) | Err(_) => reached = Instant::now(),
            }
        }
        if reached.elapsed() >= CONNECT_TIMEOUT {
            return Err(Uncalled::Unreached(reached.elapsed()));
        }
        sleep(RETRY).await;
    }
}

impl Network for SimNetwork {
    fn form<'a>(
        &'a self,
        order: &'a Order,
        lane: Lane,
        abort: &'a AbortHandle,
    ) -> BoxFuture<'a, Result<Box<dyn DataPlane>, PlaneError>> {
        async move {
            self.oracle.check_members(order.generation, &order.peers);
            if lane == Lane::Steps && id(order.generation, lane) <= self.door.lobby().newest {
                self.oracle.note(format!("rank {} takes up generation {} again", order.rank, order.generation));
            }
            let formed = tokio::select! {
                biased;
                () = abort.aborted() => Err(PlaneError::Aborted),
                formed = timeout(FORM_TIMEOUT, self.form_all(order, lane)) => formed.unwrap_or_else(|_| {
                    let (waited_ms, what) = (FORM_TIMEOUT.as_millis() as u64, "forming the plane".into());
                    Err(PlaneError::Timeout { waited_ms, ranks: Vec::new(), what })
                }),
            };
            let (rank, generation) = (Rank(order.rank), order.generation);
            let plane = SimPlane::new(rank, generation, formed?, EXCHANGE_TIMEOUT, abort.clone());
            Ok(Box::new(plane) as Box<dyn DataPlane>)
        }
        .boxed()
    }

    fn together<'a>(&'a self, main: LocalBoxFuture<'a, ()>, side: BoxFuture<'a, ()>) -> LocalBoxFuture<'a, ()> {
        join(main, side).map(drop).boxed_local()
    }
}
