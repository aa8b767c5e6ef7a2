//! Forming the plane of a generation: every rank calls all lower ones and is called by all higher ones.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use polo_recipe::ids::{Generation, Rank};
use rustix::event::{PollFd, PollFlags};

use super::dial::{Dial, Outcome};
use super::handshake::{Hello, Secret};
use super::lobby::Doors;
use super::tcp::TcpPlane;
use super::wake::wait;
use super::{AbortHandle, Lane, Listener, PlaneError};

/// What a worker must know of a generation to take part in its plane.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The generation; newer than any that this worker has formed.
    pub generation: Generation,
    /// This worker's rank.
    pub rank: Rank,
    /// The address of every rank's [`Listener`], in rank order.
    pub peers: Vec<SocketAddr>,
    /// The same for all members, and fresh.
    pub secret: Secret,
    /// Which of the generation's planes, in ascending order.
    pub lane: Lane,
}

/// How long a worker waits for its peers.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a peer's process to be reached.
    pub connect: Duration,
    /// For all peers to meet: they come when they reach a step boundary.
    pub form: Duration,
    /// For any byte to move in an exchange.
    pub exchange: Duration,
}

/// Connects to all peers of a generation.
///
/// Peers may come early or late, and in any order; those that cannot be reached yet are called again. Ends with
/// [`PlaneError::Timeout`] when `timeouts.form` has passed or a peer's process was out of reach for `timeouts.connect`, with [`PlaneError::Refused`] when a peer belongs elsewhere,
/// and at once when `abort` is used, which also aborts the plane later. A generation can be tried only once.
pub fn form(
    listener: &Listener,
    membership: &Membership,
    timeouts: &Timeouts,
    abort: &AbortHandle,
) -> Result<TcpPlane, PlaneError> {
    let Membership { generation, rank, peers, secret, lane } = membership;
    let (generation, rank, world) = (*generation, *rank, peers.len());
    if rank.index() >= world {
        return Err(PlaneError::NoSuchPeer { rank, world, peer: rank });
    }
    let (run, lane) = (listener.lobby.run(), *lane as u8);
    let dial = |(to, address): (Rank, &SocketAddr)| {
        Dial::new(*address, &Hello { run, generation, lane, from: rank, to }, secret)
    };
    let mut meeting = Meeting {
        generation,
        doors: listener.lobby.open(membership)?,
        dials: (0..).map(Rank).zip(&peers[..rank.index()]).map(dial).collect(),
        streams: (0..world).map(|_| None).collect(),
        rank,
    };
    let started = Instant::now();
    while !meeting.is_complete() {
        if abort.is_aborted() {
            return Err(PlaneError::Aborted);
        }
        let left = meeting.patience(timeouts, started);
        if left.is_zero() {
            return Err(meeting.timed_out(started.elapsed()));
        }
        meeting.wait(left, abort)?;
        meeting.advance()?;
    }
    let streams = meeting.streams;
    Ok(TcpPlane::new(rank, generation, streams, timeouts.exchange, abort.clone()))
}

/// The members as they come together.
struct Meeting<'a> {
    generation: Generation,
    rank: Rank,
    doors: Doors<'a>,
    /// The lower ranks that have not answered.
    dials: Vec<Dial<'a>>,
    /// The connections so far, by rank.
    streams: Vec<Option<TcpStream>>,
}

impl Meeting<'_> {
    fn is_complete(&self) -> bool {
        self.streams.iter().flatten().count() + 1 == self.streams.len()
    }

    /// How much longer it may take until something happens.
    fn patience(&self, timeouts: &Timeouts, started: Instant) -> Duration {
        let now = Instant::now();
        let unreached = self.dials.iter().map(|dial| dial.unreached_for(now)).max().unwrap_or_default();
        let left = timeouts.form.saturating_sub(now.saturating_duration_since(started));
        if unreached.is_zero() { left } else { left.min(timeouts.connect.saturating_sub(unreached)) }
    }

    /// Takes all steps that need no waiting.
    fn advance(&mut self) -> Result<(), PlaneError> {
        for (rank, stream) in self.doors.arrivals() {
            // One that calls again has lost its first connection.
            self.streams[rank.index()] = Some(stream);
        }
        let now = Instant::now();
        for dial in &mut self.dials {
            match dial.advance(now) {
                Outcome::Pending => {}
                Outcome::Connected(stream) => self.streams[dial.to.index()] = Some(stream),
                Outcome::Refused(reason) => {
                    return Err(PlaneError::Refused { rank: dial.to, generation: self.generation, reason });
                }
            }
        }
        self.dials.retain(|dial| self.streams[dial.to.index()].is_none());
        Ok(())
    }

    /// Waits until some step can be taken.
    fn wait(&self, mut timeout: Duration, abort: &AbortHandle) -> Result<(), PlaneError> {
        let mut fds = vec![PollFd::new(abort.signal(), PollFlags::IN), PollFd::new(self.doors.signal(), PollFlags::IN)];
        let now = Instant::now();
        for dial in &self.dials {
            match dial.awaits() {
                Ok(fd) => fds.push(fd),
                Err(until) => timeout = timeout.min(until.saturating_duration_since(now)),
            }
        }
        wait(&mut fds, Some(timeout)).map_err(|source| PlaneError::Local { what: "poll its sockets", source })
    }

    fn timed_out(&self, waited: Duration) -> PlaneError {
        let is_missing = |rank: &Rank| *rank != self.rank && self.streams[rank.index()].is_none();
        let ranks: Vec<_> = (0..self.streams.len() as u32).map(Rank).filter(is_missing).collect();
        let mut what = format!("forming generation {}", self.generation);
        for dial in &self.dials {
            what.push_str(&format!("; {}", dial.hindrance()));
        }
        if ranks.iter().any(|rank| *rank > self.rank) {
            what.push_str("; higher ranks have not called");
        }
        PlaneError::Timeout { waited_ms: waited.as_millis() as u64, ranks, what }
    }
}
