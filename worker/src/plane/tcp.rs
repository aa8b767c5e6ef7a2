//! The plane over TCP: one connection for each pair of ranks, driven by the calling thread alone.
//!
//! Nonblocking sockets and one `poll` carry all messages of a group at once, straight between the caller's memory and
//! the kernel. Sends and receives proceed together, so two ranks that send to each other first cannot block each other.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use polo_recipe::ids::{Generation, Rank};
use rustix::event::{PollFd, PollFlags};

use super::frame::{Frame, HEADER_BYTES};
use super::wake::wait;
use super::{AbortHandle, DataPlane, PlaneError, Transfer};

/// Most slices handed to one `writev`; small messages leave together.
const MAX_GATHERED_SLICES: usize = 64;

/// A [`DataPlane`] over TCP. Dropping it closes the connections, which the peers notice at once.
#[derive(Debug)]
pub struct TcpPlane {
    rank: Rank,
    generation: Generation,
    /// By rank; `None` for this one.
    peers: Vec<Option<Peer>>,
    timeout: Duration,
    abort: AbortHandle,
}

#[derive(Debug)]
struct Peer {
    stream: TcpStream,
    num_sent: u64,
    num_received: u64,
}

impl TcpPlane {
    /// A plane over established nonblocking connections, by rank, with `None` for `rank` itself.
    pub(super) fn new(
        rank: Rank,
        generation: Generation,
        streams: Vec<Option<TcpStream>>,
        timeout: Duration,
        abort: AbortHandle,
    ) -> Self {
        let connect = |stream| Peer { stream, num_sent: 0, num_received: 0 };
        let peers = streams.into_iter().map(|stream| stream.map(connect)).collect();
        Self { rank, generation, peers, timeout, abort }
    }

    /// Sorts a group by peer, in its order. The result has one link for each peer that takes part.
    fn links<'a>(&'a mut self, group: &'a mut [Transfer<'_>]) -> Result<Vec<Link<'a>>, PlaneError> {
        let (rank, world, generation) = (self.rank, self.peers.len(), self.generation);
        let ranks = (0..).map(Rank).zip(&mut self.peers);
        let mut links: Vec<_> = ranks.map(|(rank, peer)| Some(Link::new(rank, peer.as_mut()?))).collect();
        for transfer in group {
            let peer = transfer.peer();
            let link = links.get_mut(peer.index()).and_then(Option::as_mut);
            let link = link.ok_or(PlaneError::NoSuchPeer { rank, world, peer })?;
            match transfer {
                Transfer::Send { bytes, .. } => link.send(rank, generation, bytes),
                Transfer::Recv { bytes, .. } => link.receive(generation, bytes),
            }
        }
        Ok(links.into_iter().flatten().collect())
    }

    /// [`DataPlane::exchange`] on the calling thread.
    fn exchange_blocking(&mut self, group: &mut [Transfer<'_>]) -> Result<(), PlaneError> {
        let (abort, timeout) = (self.abort.clone(), self.timeout);
        let mut links = self.links(group)?;
        let mut last_progress = Instant::now();
        loop {
            if abort.is_aborted() {
                return Err(PlaneError::Aborted);
            }
            links.retain(Link::is_pending);
            if links.is_empty() {
                return Ok(());
            }
            if carry(&mut links, &abort, timeout.saturating_sub(last_progress.elapsed()))? {
                last_progress = Instant::now();
            } else if last_progress.elapsed() >= timeout {
                return Err(timed_out(&links, last_progress.elapsed()));
            }
        }
    }
}

impl DataPlane for TcpPlane {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn world(&self) -> usize {
        self.peers.len()
    }

    fn generation(&self) -> Generation {
        self.generation
    }

    fn exchange<'a>(&'a mut self, group: &'a mut [Transfer<'_>]) -> BoxFuture<'a, Result<(), PlaneError>> {
        // The thread that calls has nothing else to do, so it may block.
        Box::pin(async move { self.exchange_blocking(group) })
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }
}

/// Waits until a link is ready and moves what can be moved. Returns whether anything was.
fn carry(links: &mut [Link<'_>], abort: &AbortHandle, timeout: Duration) -> Result<bool, PlaneError> {
    let mut fds = vec![PollFd::new(abort.signal(), PollFlags::IN)];
    fds.extend(links.iter().map(|link| PollFd::new(link.stream, link.interest())));
    wait(&mut fds, Some(timeout)).map_err(|source| PlaneError::Local { what: "poll its sockets", source })?;
    let ready: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
    let mut moved = false;
    for (link, _) in links.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
        moved |= link.carry()?;
    }
    Ok(moved)
}

fn timed_out(links: &[Link<'_>], waited: Duration) -> PlaneError {
    let (send, receive) =
        links.iter().fold((0, 0), |(s, r), link| (s + link.outgoing.left(), r + link.incoming.left()));
    PlaneError::Timeout {
        waited_ms: waited.as_millis() as u64,
        ranks: links.iter().map(|link| link.rank).collect(),
        what: format!("exchanging messages ({send} bytes left to send, {receive} to receive)"),
    }
}

/// What is left to carry between this rank and a peer.
struct Link<'a> {
    rank: Rank,
    stream: &'a TcpStream,
    num_sent: &'a mut u64,
    num_received: &'a mut u64,
    outgoing: Outgoing<'a>,
    incoming: Incoming<'a>,
}

impl<'a> Link<'a> {
    fn new(rank: Rank, Peer { stream, num_sent, num_received }: &'a mut Peer) -> Self {
        Self { rank, stream, num_sent, num_received, outgoing: Outgoing::default(), incoming: Incoming::default() }
    }

    fn send(&mut self, own: Rank, generation: Generation, bytes: &'a [u8]) {
        let frame = Frame { from: own, generation, sequence: *self.num_sent, len_bytes: bytes.len() as u64 };
        *self.num_sent += 1;
        self.outgoing.parts.push_back(Part::Header(frame.encode()));
        self.outgoing.parts.push_back(Part::Body(bytes));
    }

    fn receive(&mut self, generation: Generation, bytes: &'a mut [u8]) {
        let frame = Frame { from: self.rank, generation, sequence: *self.num_received, len_bytes: bytes.len() as u64 };
        *self.num_received += 1;
        self.incoming.expected.push_back((frame, bytes));
    }

    fn is_pending(&self) -> bool {
        self.outgoing.is_pending() || self.incoming.is_pending()
    }

    fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::OUT, self.outgoing.is_pending());
        flags.set(PollFlags::IN, self.incoming.is_pending());
        flags
    }

    /// Sends and receives what can be without waiting. Returns whether any byte moved.
    fn carry(&mut self) -> Result<bool, PlaneError> {
        let rank = self.rank;
        let lost = |source| PlaneError::PeerLost { rank, source };
        let mut moved = false;
        // What has arrived is taken first: a peer that sent its last message and left is not lost.
        if self.incoming.is_pending() {
            moved |= unless_blocked(self.incoming.read(self.stream)).map_err(lost)?;
            self.incoming.begin_next(rank)?;
        }
        if self.outgoing.is_pending() {
            moved |= unless_blocked(self.outgoing.write(self.stream)).map_err(lost)?;
        }
        Ok(moved)
    }
}

fn unless_blocked(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
        Err(error) => Err(error),
    }
}

enum Part<'a> {
    Header([u8; HEADER_BYTES]),
    Body(&'a [u8]),
}

impl Part<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Header(header) => header,
            Self::Body(body) => body,
        }
    }
}

/// Headers and messages yet to send; of the first of them, `written` bytes are gone.
#[derive(Default)]
struct Outgoing<'a> {
    parts: VecDeque<Part<'a>>,
    written: usize,
}

impl Outgoing<'_> {
    fn is_pending(&self) -> bool {
        !self.parts.is_empty()
    }

    fn left(&self) -> usize {
        self.parts.iter().map(|part| part.bytes().len()).sum::<usize>() - self.written
    }

    fn write(&mut self, mut stream: &TcpStream) -> io::Result<()> {
        let mut skip = self.written;
        let parts = self.parts.iter().take(MAX_GATHERED_SLICES);
        let slices: Vec<_> = parts.map(|part| IoSlice::new(&part.bytes()[mem::take(&mut skip)..])).collect();
        let mut written = self.written + stream.write_vectored(&slices)?;
        while let Some(len) = self.parts.front().map(|part| part.bytes().len()).filter(|len| *len <= written) {
            written -= len;
            self.parts.pop_front();
        }
        self.written = written;
        Ok(())
    }
}

/// Messages yet to receive.
#[derive(Default)]
struct Incoming<'a> {
    /// Messages whose header has not come, and their places.
    expected: VecDeque<(Frame, &'a mut [u8])>,
    /// The part still to come of the message whose header has.
    body: &'a mut [u8],
    header: [u8; HEADER_BYTES],
    header_filled: usize,
}

impl Incoming<'_> {
    fn is_pending(&self) -> bool {
        !self.body.is_empty() || !self.expected.is_empty()
    }

    fn left(&self) -> usize {
        self.body.len() + self.expected.iter().map(|(_, place)| place.len()).sum::<usize>()
    }

    /// Reads on in the message at hand and in the header after it, but never past what is expected.
    fn read(&mut self, mut stream: &TcpStream) -> io::Result<()> {
        let header = if self.expected.is_empty() { &mut [] } else { &mut self.header[self.header_filled..] };
        let num_read = stream.read_vectored(&mut [IoSliceMut::new(self.body), IoSliceMut::new(header)])?;
        if num_read == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the peer closed it"));
        }
        let in_body = num_read.min(self.body.len());
        self.body = &mut mem::take(&mut self.body)[in_body..];
        self.header_filled += num_read - in_body;
        Ok(())
    }

    /// Once the next header is complete, checks it and makes its message the one at hand.
    fn begin_next(&mut self, from: Rank) -> Result<(), PlaneError> {
        if self.header_filled < HEADER_BYTES {
            return Ok(());
        }
        self.header_filled = 0;
        let Some((frame, place)) = self.expected.pop_front() else { return Ok(()) };
        let header = frame.encode();
        if self.header != header {
            let (expected, got) = (Frame::describe(&header), Frame::describe(&self.header));
            return Err(PlaneError::Desynchronised { rank: from, expected, got });
        }
        self.body = place;
        Ok(())
    }
}
