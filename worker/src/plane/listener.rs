//! The worker's door for peers: one socket and one thread for the life of the process, whatever the generation.

use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::handshake::HELLO_BYTES;
use super::lobby::{Caller, Lobby};
use super::wake::{Signal, wait};

/// Most connections that have not said their hello yet; further ones wait in the kernel.
const MAX_SILENT: usize = 256;
/// How long a connection may take for its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How often waiting connections are checked for their age.
const TICK: Duration = Duration::from_secs(1);
/// Pause after a failed accept (out of file descriptors, say), which would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts the connections of peers, refuses those of older generations and of other runs, and keeps those of newer
/// generations until [`form`](super::rendezvous::form) takes them. Dropping it closes the socket.
pub struct Listener {
    address: SocketAddr,
    pub(super) lobby: Arc<Lobby>,
    stop: Arc<Signal>,
    acceptor: Option<JoinHandle<()>>,
}

impl Listener {
    /// Listens on `address` (port 0: any free one) for the workers of `run`, the identity of a run in any form.
    pub fn bind(address: SocketAddr, run: &str) -> io::Result<Self> {
        let socket = TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let lobby = Arc::new(Lobby::new(blake3::hash(run.as_bytes()).into())?);
        let stop = Arc::new(Signal::new()?);
        let acceptor = Acceptor { socket, lobby: lobby.clone(), stop: stop.clone(), silent: Vec::new() };
        let acceptor = thread::Builder::new().name("plane-accept".into()).spawn(move || acceptor.run())?;
        Ok(Self { address, lobby, stop, acceptor: Some(acceptor) })
    }

    /// The address that it listens on, with the port that was chosen.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.raise();
        if let Some(acceptor) = self.acceptor.take() {
            // A panic there has been reported already.
            let _ = acceptor.join();
        }
    }
}

struct Acceptor {
    socket: TcpListener,
    lobby: Arc<Lobby>,
    stop: Arc<Signal>,
    silent: Vec<Silent>,
}

impl Acceptor {
    fn run(mut self) {
        loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept the connections of peers; trying again");
                    let _ = wait(&mut [PollFd::new(&*self.stop, PollFlags::IN)], Some(ACCEPT_PAUSE));
                }
            }
        }
    }

    /// Waits for something to happen and deals with it. `false` when it is time to stop.
    fn turn(&mut self) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(&*self.stop, PollFlags::IN)];
        fds.extend(self.silent.iter().map(|silent| PollFd::new(&silent.stream, PollFlags::IN)));
        if self.silent.len() < MAX_SILENT {
            fds.push(PollFd::new(&self.socket, PollFlags::IN));
        }
        let has_waiting = !self.silent.is_empty() || self.lobby.has_early_callers();
        wait(&mut fds, has_waiting.then_some(TICK))?;
        if !fds[0].revents().is_empty() {
            return Ok(false);
        }
        self.listen();
        self.lobby.expire(Instant::now());
        self.accept().map(|()| true)
    }

    fn accept(&mut self) -> io::Result<()> {
        while self.silent.len() < MAX_SILENT {
            match self.socket.accept() {
                Ok((stream, _)) => self.silent.push(Silent::new(stream)?),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The caller hung up before it was accepted, which is its own affair.
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Hears those who have not said their hello, and passes on those who now have.
    fn listen(&mut self) {
        let now = Instant::now();
        for mut silent in std::mem::take(&mut self.silent) {
            match silent.hear() {
                Ok(true) => self.lobby.receive(Caller { stream: silent.stream, hello: silent.hello, since: now }),
                Ok(false) if now.duration_since(silent.since) < HELLO_TIMEOUT => self.silent.push(silent),
                Ok(false) | Err(_) => {}
            }
        }
    }
}

/// A connection that has not yet said its whole hello.
struct Silent {
    stream: TcpStream,
    since: Instant,
    hello: [u8; HELLO_BYTES],
    filled: usize,
}

impl Silent {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, since: Instant::now(), hello: [0; HELLO_BYTES], filled: 0 })
    }

    /// Reads what there is. `true` when the hello is complete, an error when it never will be.
    fn hear(&mut self) -> io::Result<bool> {
        match self.stream.read(&mut self.hello[self.filled..]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                self.filled += len;
                Ok(self.filled == HELLO_BYTES)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
