//! Where callers wait: decides who is let into the generation being formed, who may wait for a later one, and who goes.

use std::io::Write;
use std::mem;
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use polo_recipe::ids::{Generation, Rank};

use super::PlaneError;
use super::handshake::{HELLO_BYTES, Hello, Refusal, proves, welcome};
use super::rendezvous::Membership;
use super::wake::Signal;

/// Most callers that wait for a generation which this worker has not heard of yet.
const MAX_EARLY_CALLERS: usize = 1024;
/// How long one of them may wait; it calls again if it still wants to.
const MAX_EARLY_WAIT: Duration = Duration::from_secs(60);

/// A connection whose hello has been read.
pub(super) struct Caller {
    pub(super) stream: TcpStream,
    pub(super) hello: [u8; HELLO_BYTES],
    pub(super) since: Instant,
}

/// Shared by the acceptor thread, which brings callers, and the thread that forms a plane, which takes them.
pub(super) struct Lobby {
    run: [u8; 32],
    state: Mutex<State>,
    /// Raised whenever a caller was let in.
    pub(super) arrivals: Signal,
}

#[derive(Default)]
struct State {
    /// The newest plane that forming was begun for: its generation and lane.
    newest: Option<(Generation, u8)>,
    /// The membership of `newest` while it is being formed.
    open: Option<Membership>,
    early: Vec<Caller>,
    arrived: Vec<(Rank, TcpStream)>,
}

/// What to do with a caller.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Admit(Rank),
    /// It is ahead of this worker.
    Keep,
    Refuse(Refusal),
}

impl Lobby {
    pub(super) fn new(run: [u8; 32]) -> std::io::Result<Self> {
        Ok(Self { run, state: Mutex::default(), arrivals: Signal::new()? })
    }

    /// The digest of the run that callers must belong to.
    pub(super) fn run(&self) -> [u8; 32] {
        self.run
    }

    /// Lets a caller in, keeps it or sends it away.
    pub(super) fn receive(&self, caller: Caller) {
        self.place(&mut self.state(), caller);
    }

    /// From now until the returned guard is dropped, members of this generation are let in.
    pub(super) fn open(&self, membership: &Membership) -> Result<Doors<'_>, PlaneError> {
        let generation = membership.generation;
        let mut state = self.state();
        let wanted = (generation, membership.lane as u8);
        if let Some((newest, _)) = state.newest.filter(|newest| wanted <= *newest) {
            return Err(PlaneError::OldGeneration { generation, newest });
        }
        state.newest = Some(wanted);
        state.open = Some(membership.clone());
        for caller in mem::take(&mut state.early) {
            self.place(&mut state, caller);
        }
        Ok(Doors(self))
    }

    /// Drops the callers that have waited too long.
    pub(super) fn expire(&self, now: Instant) {
        self.state().early.retain(|caller| now.duration_since(caller.since) < MAX_EARLY_WAIT);
    }

    /// Whether there is anybody who may have to be dropped later.
    pub(super) fn has_early_callers(&self) -> bool {
        !self.state().early.is_empty()
    }

    fn place(&self, state: &mut State, mut caller: Caller) {
        match judge(&caller.hello, &self.run, state) {
            Verdict::Keep => state.early.push(caller),
            Verdict::Refuse(refusal) => {
                // The caller is not wanted, so it does not matter whether it hears so.
                let _ = caller.stream.write(&refusal.answer());
            }
            Verdict::Admit(rank) => {
                let Some(membership) = &state.open else { return };
                let answer = welcome(&caller.hello, &membership.secret);
                // The answer fits the empty buffer of a new connection; where it does not get out, the caller is gone.
                if caller.stream.write(&answer).is_ok_and(|len| len == answer.len()) {
                    state.arrived.push((rank, caller.stream));
                    self.arrivals.raise();
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open lobby; it closes on drop.
pub(super) struct Doors<'a>(&'a Lobby);

impl Doors<'_> {
    /// Those who were let in since the last call. One that calls twice has lost its first connection.
    pub(super) fn arrivals(&self) -> Vec<(Rank, TcpStream)> {
        let mut state = self.0.state();
        self.0.arrivals.clear();
        mem::take(&mut state.arrived)
    }

    pub(super) fn signal(&self) -> &Signal {
        &self.0.arrivals
    }
}

impl Drop for Doors<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open = None;
        state.arrived.clear();
        self.0.arrivals.clear();
    }
}

fn judge(bytes: &[u8; HELLO_BYTES], run: &[u8; 32], state: &State) -> Verdict {
    let Some(hello) = Hello::decode(bytes) else { return Verdict::Refuse(Refusal::Protocol) };
    if hello.run != *run {
        return Verdict::Refuse(Refusal::Run);
    }
    match &state.open {
        Some(membership) if (membership.generation, membership.lane as u8) == (hello.generation, hello.lane) => {
            match admit(bytes, &hello, membership) {
                Ok(rank) => Verdict::Admit(rank),
                Err(refusal) => Verdict::Refuse(refusal),
            }
        }
        _ if state.newest.is_some_and(|newest| (hello.generation, hello.lane) <= newest) => {
            Verdict::Refuse(Refusal::OldGeneration)
        }
        _ if state.early.len() >= MAX_EARLY_CALLERS => Verdict::Refuse(Refusal::Busy),
        _ => Verdict::Keep,
    }
}

/// Ranks are called by the higher ones only.
fn admit(bytes: &[u8; HELLO_BYTES], hello: &Hello, membership: &Membership) -> Result<Rank, Refusal> {
    if !proves(bytes, &membership.secret) {
        return Err(Refusal::Secret);
    }
    let fits = hello.to == membership.rank && hello.from > hello.to && hello.from.index() < membership.peers.len();
    fits.then_some(hello.from).ok_or(Refusal::Rank)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};

    use super::super::Lane;
    use super::super::handshake::{ANSWER_BYTES, Secret, read_answer};
    use super::*;

    const RUN: [u8; 32] = [1; 32];
    const SECRET: Secret = Secret([2; 32]);

    fn membership(generation: u64) -> Membership {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        Membership {
            generation: Generation(generation),
            rank: Rank(1),
            peers: vec![address; 3],
            secret: SECRET,
            lane: Lane::Steps,
        }
    }

    fn forming(generation: u64) -> State {
        State { newest: Some((Generation(generation), 0)), open: Some(membership(generation)), ..State::default() }
    }

    fn verdict(generation: u64, from: u32, to: u32, secret: &Secret, state: &State) -> Verdict {
        let hello = Hello { run: RUN, generation: Generation(generation), lane: 0, from: Rank(from), to: Rank(to) };
        judge(&hello.encode(secret), &RUN, state)
    }

    #[test]
    fn members_of_the_generation_being_formed_are_let_in() {
        assert_eq!(verdict(5, 2, 1, &SECRET, &forming(5)), Verdict::Admit(Rank(2)));
    }

    #[test]
    fn older_generations_are_refused_and_newer_ones_kept() {
        let state = forming(5);
        assert_eq!(verdict(4, 2, 1, &SECRET, &state), Verdict::Refuse(Refusal::OldGeneration));
        assert_eq!(verdict(6, 2, 1, &SECRET, &state), Verdict::Keep);
        let formed = State { newest: Some((Generation(5), 0)), ..State::default() };
        assert_eq!(verdict(5, 2, 1, &SECRET, &formed), Verdict::Refuse(Refusal::OldGeneration));
        assert_eq!(verdict(0, 2, 1, &SECRET, &State::default()), Verdict::Keep);
    }

    #[test]
    fn others_are_refused() {
        let state = forming(5);
        assert_eq!(verdict(5, 2, 1, &Secret([9; 32]), &state), Verdict::Refuse(Refusal::Secret));
        for (from, to) in [(2, 0), (3, 1), (1, 1), (0, 1)] {
            assert_eq!(verdict(5, from, to, &SECRET, &state), Verdict::Refuse(Refusal::Rank), "{from} to {to}");
        }
        let hello =
            Hello { run: [7; 32], generation: Generation(5), lane: 0, from: Rank(2), to: Rank(1) }.encode(&SECRET);
        assert_eq!(judge(&hello, &RUN, &state), Verdict::Refuse(Refusal::Run));
        assert_eq!(judge(&[0; HELLO_BYTES], &RUN, &state), Verdict::Refuse(Refusal::Protocol));
    }

    /// The caller's end of a connection, and what the acceptor makes of the other.
    fn call(generation: u64) -> (TcpStream, Caller) {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let caller = TcpStream::connect(socket.local_addr().expect("an address")).expect("a connection");
        caller.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let hello =
            Hello { run: RUN, generation: Generation(generation), lane: 0, from: Rank(2), to: Rank(1) }.encode(&SECRET);
        (caller, Caller { stream: socket.accept().expect("the caller").0, hello, since: Instant::now() })
    }

    fn answer(mut caller: &TcpStream, hello: &[u8; HELLO_BYTES]) -> Option<Result<(), Refusal>> {
        let mut answer = [0; ANSWER_BYTES];
        caller.read_exact(&mut answer).expect("an answer");
        read_answer(&answer, hello, &SECRET)
    }

    #[test]
    fn an_early_caller_is_answered_when_its_generation_is_formed_or_passed_over() {
        let lobby = Lobby::new(RUN).expect("a lobby");
        let ((passed_over, first), (wanted, second)) = (call(6), call(7));
        let (first_hello, second_hello) = (first.hello, second.hello);
        lobby.receive(first);
        lobby.receive(second);
        assert!(lobby.has_early_callers());
        let doors = lobby.open(&membership(7)).expect("a new generation");
        assert_eq!(answer(&passed_over, &first_hello), Some(Err(Refusal::OldGeneration)));
        assert_eq!(answer(&wanted, &second_hello), Some(Ok(())));
        assert_eq!(doors.arrivals().iter().map(|(rank, _)| *rank).collect::<Vec<_>>(), [Rank(2)]);
    }

    #[test]
    fn an_early_caller_waits_for_a_limited_time() {
        let lobby = Lobby::new(RUN).expect("a lobby");
        let (_caller, early) = call(6);
        let since = early.since;
        lobby.receive(early);
        lobby.expire(since);
        assert!(lobby.has_early_callers());
        lobby.expire(since + MAX_EARLY_WAIT);
        assert!(!lobby.has_early_callers());
    }
}
