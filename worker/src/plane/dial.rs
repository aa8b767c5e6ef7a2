//! Calling one lower rank until it answers: an attempt after the other, none of which blocks.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use polo_recipe::ids::Rank;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use super::handshake::{ANSWER_BYTES, HELLO_BYTES, Hello, Refusal, Secret, read_answer};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// One rank to be called.
pub(super) struct Dial<'a> {
    pub(super) to: Rank,
    address: SocketAddr,
    hello: [u8; HELLO_BYTES],
    secret: &'a Secret,
    phase: Phase,
    pause: Duration,
    /// Since when nothing has listened there.
    unreached_since: Option<Instant>,
    last_failure: Option<String>,
}

enum Phase {
    Resting { until: Instant },
    Connecting(TcpStream),
    Asked { stream: TcpStream, answer: [u8; ANSWER_BYTES], filled: usize },
}

/// What became of an attempt.
pub(super) enum Outcome {
    Pending,
    Connected(TcpStream),
    Refused(Refusal),
}

impl<'a> Dial<'a> {
    pub(super) fn new(address: SocketAddr, hello: &Hello, secret: &'a Secret) -> Self {
        let now = Instant::now();
        Self {
            to: hello.to,
            address,
            hello: hello.encode(secret),
            secret,
            phase: Phase::Resting { until: now },
            pause: FIRST_PAUSE,
            unreached_since: Some(now),
            last_failure: None,
        }
    }

    /// What to wait for before the next [`advance`](Self::advance): a socket or a time.
    pub(super) fn awaits(&self) -> Result<PollFd<'_>, Instant> {
        match &self.phase {
            Phase::Resting { until } => Err(*until),
            Phase::Connecting(stream) => Ok(PollFd::new(stream, PollFlags::OUT)),
            Phase::Asked { stream, .. } => Ok(PollFd::new(stream, PollFlags::IN)),
        }
    }

    /// How long nothing has listened there; zero while the peer is there but has not come to this generation yet.
    pub(super) fn unreached_for(&self, now: Instant) -> Duration {
        self.unreached_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Why there is no connection yet, for people.
    pub(super) fn hindrance(&self) -> String {
        let (to, address) = (self.to, self.address);
        match (&self.phase, &self.last_failure) {
            (Phase::Asked { .. }, _) => format!("rank {to} at {address} has not joined this generation"),
            (_, Some(failure)) => format!("rank {to} at {address}: {failure}"),
            (_, None) => format!("rank {to} at {address} does not answer"),
        }
    }

    /// Goes as far as possible without waiting.
    pub(super) fn advance(&mut self, now: Instant) -> Outcome {
        let advanced = self.try_advance(now);
        self.unreached_since = match self.phase {
            Phase::Asked { .. } => None,
            _ => self.unreached_since.or(Some(now)),
        };
        match advanced {
            Ok(outcome) => outcome,
            Err(error) => {
                self.last_failure = Some(error.to_string());
                self.phase = Phase::Resting { until: now + self.pause };
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                Outcome::Pending
            }
        }
    }

    fn try_advance(&mut self, now: Instant) -> io::Result<Outcome> {
        self.phase = match mem::replace(&mut self.phase, Phase::Resting { until: now }) {
            Phase::Resting { until } if until > now => Phase::Resting { until },
            Phase::Resting { .. } => Phase::Connecting(start_connecting(&self.address)?),
            Phase::Connecting(stream) if !is_connected(&stream)? => Phase::Connecting(stream),
            Phase::Connecting(stream) => {
                greet(&stream, &self.hello)?;
                Phase::Asked { stream, answer: [0; ANSWER_BYTES], filled: 0 }
            }
            Phase::Asked { stream, mut answer, mut filled } => {
                filled += read_some(&stream, &mut answer[filled..])?;
                if filled == ANSWER_BYTES {
                    return self.answered(stream, &answer);
                }
                Phase::Asked { stream, answer, filled }
            }
        };
        Ok(Outcome::Pending)
    }

    fn answered(&self, stream: TcpStream, answer: &[u8; ANSWER_BYTES]) -> io::Result<Outcome> {
        match read_answer(answer, &self.hello, self.secret) {
            Some(Ok(())) => Ok(Outcome::Connected(stream)),
            Some(Err(Refusal::Busy)) => Err(io::Error::other(Refusal::Busy.to_string())),
            Some(Err(refusal)) => Ok(Outcome::Refused(refusal)),
            None => Err(io::Error::other("what answers there is no member of this generation")),
        }
    }
}

fn start_connecting(address: &SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    match connect(&socket, address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}

fn is_connected(stream: &TcpStream) -> io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

/// The hello fits the empty buffer of a new connection, so it goes out whole or the attempt has failed.
fn greet(mut stream: &TcpStream, hello: &[u8; HELLO_BYTES]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let len = stream.write(hello)?;
    if len == hello.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}

fn read_some(mut stream: &TcpStream, place: &mut [u8]) -> io::Result<usize> {
    match stream.read(place) {
        Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "it closed the connection")),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        result => result,
    }
}
