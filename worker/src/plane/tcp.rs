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

    /// Begins to carry messages, whose order between two ranks is theirs here.
    pub(super) fn begin<'a>(&'a mut self, messages: Vec<Message<'a>>) -> Result<Carrying<'a>, PlaneError> {
        let (rank, world, generation) = (self.rank, self.peers.len(), self.generation);
        let ranks = (0..).map(Rank).zip(&mut self.peers);
        let links = ranks.map(|(rank, peer)| Some(Link::new(rank, peer.as_mut()?))).collect();
        let (timeout, last_progress) = (self.timeout, Instant::now());
        let mut carrying = Carrying { rank, generation, links, timeout, last_progress, abort: self.abort.clone() };
        for message in messages {
            let peer = message.peer();
            let link = carrying.link(peer).ok_or(PlaneError::NoSuchPeer { rank, world, peer })?;
            match message {
                Message::Whole(Transfer::Send { bytes, .. }) => link.send(rank, generation, bytes.len(), bytes),
                Message::Whole(Transfer::Recv { bytes, .. }) => link.receive(generation, bytes.len(), bytes),
                Message::HeaderTo { len_bytes, .. } => link.send(rank, generation, len_bytes, &[]),
                Message::HeaderFrom { len_bytes, .. } => link.receive(generation, len_bytes, &mut []),
            }
        }
        Ok(carrying)
    }

    /// Carries messages to their ends, on the calling thread.
    pub(super) fn carry(&mut self, messages: Vec<Message<'_>>) -> Result<(), PlaneError> {
        self.begin(messages)?.finish()
    }

    /// How long nothing may move.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// What one rank tells another.
#[derive(Debug)]
pub(super) enum Message<'a> {
    /// A header and the bytes that it announces.
    Whole(Transfer<'a>),
    /// The header alone: the bytes take another way.
    HeaderTo { to: Rank, len_bytes: usize },
    /// The header alone of a message whose bytes take another way.
    HeaderFrom { from: Rank, len_bytes: usize },
}

impl Message<'_> {
    fn peer(&self) -> Rank {
        match self {
            Self::Whole(transfer) => transfer.peer(),
            Self::HeaderTo { to, .. } => *to,
            Self::HeaderFrom { from, .. } => *from,
        }
    }
}

/// Messages under way.
pub(super) struct Carrying<'a> {
    rank: Rank,
    generation: Generation,
    /// By rank; `None` for this one.
    links: Vec<Option<Link<'a>>>,
    timeout: Duration,
    last_progress: Instant,
    abort: AbortHandle,
}

impl<'a> Carrying<'a> {
    fn link(&mut self, rank: Rank) -> Option<&mut Link<'a>> {
        self.links.get_mut(rank.index()).and_then(Option::as_mut)
    }

    fn pending(&self) -> impl Iterator<Item = &Link<'a>> {
        self.links.iter().flatten().filter(|link| link.is_pending())
    }

    fn is_done(&self) -> bool {
        self.pending().next().is_none()
    }

    pub(super) fn check_abort(&self) -> Result<(), PlaneError> {
        if self.abort.is_aborted() { Err(PlaneError::Aborted) } else { Ok(()) }
    }

    /// The peers with whom messages are under way.
    pub(super) fn awaited(&self) -> impl Iterator<Item = Rank> {
        self.pending().map(|link| link.rank)
    }

    /// Carries all to their ends.
    pub(super) fn finish(mut self) -> Result<(), PlaneError> {
        loop {
            self.check_abort()?;
            if self.is_done() {
                return Ok(());
            }
            let left = self.timeout.saturating_sub(self.last_progress.elapsed());
            if !self.step(left)? && self.last_progress.elapsed() >= self.timeout {
                return Err(self.timed_out());
            }
        }
    }

    /// Adds an empty message to one of the peers.
    pub(super) fn send_empty(&mut self, to: Rank) {
        let (rank, generation) = (self.rank, self.generation);
        if let Some(link) = self.link(to) {
            link.send(rank, generation, 0, &[]);
        }
    }

    /// Waits until something can be moved, but no longer than `patience`, and moves it. Returns whether anything was.
    pub(super) fn step(&mut self, patience: Duration) -> Result<bool, PlaneError> {
        let moved = carry(&mut self.links, &self.abort, patience)?;
        if moved {
            self.last_progress = Instant::now();
        }
        Ok(moved)
    }

    /// Says for whom it was waited since something last moved.
    fn timed_out(&self) -> PlaneError {
        let (send, receive) =
            self.pending().fold((0, 0), |(s, r), link| (s + link.outgoing.left(), r + link.incoming.left()));
        PlaneError::Timeout {
            waited_ms: self.last_progress.elapsed().as_millis() as u64,
            ranks: self.awaited().collect(),
            what: format!("exchanging messages ({send} bytes left to send, {receive} to receive)"),
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
        let messages = group.iter_mut().map(|transfer| Message::Whole(transfer.reborrow())).collect();
        Box::pin(async move { self.carry(messages) })
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }
}

/// Waits until a link is ready and moves what can be moved. Returns whether anything was.
fn carry(links: &mut [Option<Link<'_>>], abort: &AbortHandle, timeout: Duration) -> Result<bool, PlaneError> {
    let mut pending: Vec<_> = links.iter_mut().flatten().filter(|link| link.is_pending()).collect();
    let mut fds = vec![PollFd::new(abort.signal(), PollFlags::IN)];
    fds.extend(pending.iter().map(|link| PollFd::new(link.stream, link.interest())));
    wait(&mut fds, Some(timeout)).map_err(|source| PlaneError::Local { what: "poll its sockets", source })?;
    let ready: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
    let mut moved = false;
    for (link, _) in pending.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
        moved |= link.carry()?;
    }
    Ok(moved)
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

    /// Announces `len_bytes`, of which `bytes` follow here: all or none.
    fn send(&mut self, own: Rank, generation: Generation, len_bytes: usize, bytes: &'a [u8]) {
        let frame = Frame { from: own, generation, sequence: *self.num_sent, len_bytes: len_bytes as u64 };
        *self.num_sent += 1;
        self.outgoing.parts.push_back(Part::Header(frame.encode()));
        self.outgoing.parts.push_back(Part::Body(bytes));
    }

    /// Expects an announcement of `len_bytes`, of which `bytes` follow here: all or none.
    fn receive(&mut self, generation: Generation, len_bytes: usize, bytes: &'a mut [u8]) {
        let frame = Frame { from: self.rank, generation, sequence: *self.num_received, len_bytes: len_bytes as u64 };
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
