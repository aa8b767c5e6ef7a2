//! Worlds of planes in processes of their own, as NCCL needs them: of one process it takes one rank on a GPU. This test's
//! program is started again for each rank; what is asked of a plane here is done there.
//!
//! Over a socket go lines of JSON, each followed by the bytes that it announces.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures::future::BoxFuture;
use polo_recipe::ids::{Generation, Rank};
use polo_worker::plane::nccl::{self, MIN_BULK_BYTES, Terms};
use polo_worker::plane::rendezvous::{Membership, Timeouts, form};
use polo_worker::plane::{AbortHandle, DataPlane, Lane, PlaneError, Secret, Transfer};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::worlds::{PATIENCE, abort_handle, block_on, listener};

const PARENT: &str = "POLO_TEST_PARENT";
const GENERATION: Generation = Generation(1);

/// With TCP in each process this tries the processes themselves.
mod over_tcp {
    crate::contract::contract_tests!([] super::tcp:
        big_messages_pass_each_other
        an_abort_ends_a_running_exchange_and_all_later_ones
        the_death_of_a_peer_is_noticed_at_once
        a_silent_peer_is_named_after_the_timeout
        a_message_of_another_length_is_an_error
        a_rank_exchanges_with_others_only
    );
}

/// The real NCCL, also with all ranks on one GPU: `make test-gpu`.
mod over_nccl {
    crate::contract::contract_tests!([#[ignore = "needs a GPU: make test-gpu"]] super::nccl);
}

fn tcp(world: usize, timeout: Duration) -> Vec<Box<dyn DataPlane>> {
    planes(world, timeout, None)
}

/// Everything goes by NCCL where that can be, so that the contract is about it.
fn nccl(world: usize, timeout: Duration) -> Vec<Box<dyn DataPlane>> {
    planes(world, timeout, Some(1))
}

#[derive(Serialize, Deserialize)]
struct Setting {
    rank: u32,
    peers: Vec<SocketAddr>,
    timeout_ms: u64,
    /// None: over TCP alone.
    min_bulk_bytes: Option<usize>,
}

#[derive(Serialize, Deserialize)]
enum Request {
    /// The bytes that are sent follow.
    Exchange(Vec<Part>),
    Abort,
}

#[derive(Serialize, Deserialize)]
struct Part {
    is_sent: bool,
    peer: u32,
    len_bytes: usize,
}

/// The bytes that were received follow a success.
type Answer = Result<(), Failure>;

#[derive(Serialize, Deserialize)]
enum Failure {
    PeerLost(u32, String),
    Timeout(u64, Vec<u32>, String),
    Aborted,
    Desynchronised(u32, String, String),
    NoSuchPeer(u32, usize, u32),
    Other(String),
}

impl From<PlaneError> for Failure {
    fn from(error: PlaneError) -> Self {
        match error {
            PlaneError::PeerLost { rank, source } => Self::PeerLost(rank.0, source.to_string()),
            PlaneError::Timeout { waited_ms, ranks, what } => {
                Self::Timeout(waited_ms, ranks.into_iter().map(|rank| rank.0).collect(), what)
            }
            PlaneError::Aborted => Self::Aborted,
            PlaneError::Desynchronised { rank, expected, got } => Self::Desynchronised(rank.0, expected, got),
            PlaneError::NoSuchPeer { rank, world, peer } => Self::NoSuchPeer(rank.0, world, peer.0),
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<Failure> for PlaneError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::PeerLost(rank, words) => Self::PeerLost { rank: Rank(rank), source: io::Error::other(words) },
            Failure::Timeout(waited_ms, ranks, what) => {
                Self::Timeout { waited_ms, ranks: ranks.into_iter().map(Rank).collect(), what }
            }
            Failure::Aborted => Self::Aborted,
            Failure::Desynchronised(rank, expected, got) => Self::Desynchronised { rank: Rank(rank), expected, got },
            Failure::NoSuchPeer(rank, world, peer) => Self::NoSuchPeer { rank: Rank(rank), world, peer: Rank(peer) },
            Failure::Other(words) => Self::Local { what: "work in its process", source: io::Error::other(words) },
        }
    }
}

fn put(mut stream: &TcpStream, line: &impl Serialize, bytes: &[&[u8]]) -> io::Result<()> {
    let mut whole = serde_json::to_vec(line)?;
    whole.push(b'\n');
    bytes.iter().for_each(|part| whole.extend_from_slice(part));
    stream.write_all(&whole)
}

fn get<T: DeserializeOwned>(reader: &mut impl BufRead) -> io::Result<T> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// A plane whose work is done in another process. Dropping it ends that process.
struct Remote {
    rank: usize,
    world: usize,
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    abort: AbortHandle,
    process: Child,
}

fn planes(world: usize, timeout: Duration, min_bulk_bytes: Option<usize>) -> Vec<Box<dyn DataPlane>> {
    let started: Vec<_> = (0..world).map(|rank| start(rank, world)).collect();
    let peers: Vec<_> = started.iter().map(|(_, address)| *address).collect();
    for (plane, _) in &started {
        let (rank, timeout_ms, peers) = (plane.rank as u32, timeout.as_millis() as u64, peers.clone());
        put(&plane.stream, &Setting { rank, peers, timeout_ms, min_bulk_bytes }, &[]).expect("a child");
    }
    let formed = |(mut plane, _): (Remote, _)| {
        get::<Answer>(&mut plane.reader).expect("an answer").map_err(PlaneError::from).expect("a plane");
        Box::new(plane) as Box<dyn DataPlane>
    };
    started.into_iter().map(formed).collect()
}

/// Starts a process, and returns the address where its plane listens.
fn start(rank: usize, world: usize) -> (Remote, SocketAddr) {
    let door = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "processes::child", "--ignored", "--nocapture"]);
    command.env(PARENT, door.local_addr().expect("its address").to_string()).stdout(Stdio::null());
    // Ranks on one GPU pass for ranks on machines of their own, which talk over sockets.
    command.env("NCCL_HOSTID", format!("rank-{rank}")).env("NCCL_NET", "Socket").env("NCCL_SOCKET_IFNAME", "lo");
    let process = command.spawn().expect("a process");
    let (stream, _) = door.accept().expect("a child");
    stream.set_nodelay(true).expect("a socket");
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    let address = get(&mut reader).expect("an address");
    let abort = abort_handle();
    let (aborted, telling) = (abort.clone(), stream.try_clone().expect("a socket"));
    thread::spawn(move || {
        block_on(aborted.aborted());
        // The child may be gone.
        let _ = put(&telling, &Request::Abort, &[]);
    });
    (Remote { rank, world, stream, reader, abort, process }, address)
}

impl Remote {
    fn exchange_there(&mut self, group: &mut [Transfer<'_>]) -> Result<(), PlaneError> {
        let lost = |source| PlaneError::Local { what: "reach its process", source };
        let part = |transfer: &Transfer<'_>| Part {
            is_sent: matches!(transfer, Transfer::Send { .. }),
            peer: transfer.peer().0,
            len_bytes: transfer.len_bytes(),
        };
        let request = Request::Exchange(group.iter().map(part).collect());
        let sent = group.iter().filter_map(|transfer| match transfer {
            Transfer::Send { bytes, .. } => Some(*bytes),
            Transfer::Recv { .. } => None,
        });
        put(&self.stream, &request, &sent.collect::<Vec<_>>()).map_err(lost)?;
        get::<Answer>(&mut self.reader).map_err(lost)??;
        for transfer in group {
            if let Transfer::Recv { bytes, .. } = transfer {
                self.reader.read_exact(bytes).map_err(lost)?;
            }
        }
        Ok(())
    }
}

impl DataPlane for Remote {
    fn rank(&self) -> Rank {
        Rank(self.rank as u32)
    }

    fn world(&self) -> usize {
        self.world
    }

    fn generation(&self) -> Generation {
        GENERATION
    }

    fn exchange<'a>(&'a mut self, group: &'a mut [Transfer<'_>]) -> BoxFuture<'a, Result<(), PlaneError>> {
        Box::pin(async move { self.exchange_there(group) })
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The other side: one rank, until the parent hangs up.
#[test]
#[ignore = "is started by other tests"]
fn child() {
    let Ok(parent) = std::env::var(PARENT) else { return };
    let stream = TcpStream::connect(parent).expect("the parent");
    stream.set_nodelay(true).expect("a socket");
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    let listener = listener("run");
    put(&stream, &listener.local_addr(), &[]).expect("the parent");
    let Setting { rank, peers, timeout_ms, min_bulk_bytes } = get(&mut reader).expect("a setting");
    let (abort, secret) = (abort_handle(), Secret([1; 32]));
    let membership = Membership { generation: GENERATION, rank: Rank(rank), peers, secret, lane: Lane::Steps };
    let timeouts = Timeouts { connect: PATIENCE, form: PATIENCE, exchange: Duration::from_millis(timeout_ms) };
    let formed = form(&listener, &membership, &timeouts, &abort).and_then(|tcp| match min_bulk_bytes {
        None => Ok(Box::new(tcp) as Box<dyn DataPlane>),
        Some(min_bulk_bytes) => {
            let gpu = rank as usize % tch::Cuda::device_count().max(1) as usize;
            let failed = |source| PlaneError::Nccl { rank: Rank(rank), what: "use its GPU", source };
            let terms = Terms { form_timeout: PATIENCE, min_bulk_bytes: min_bulk_bytes.min(MIN_BULK_BYTES) };
            Ok(Box::new(nccl::form(nccl::load(gpu).map_err(failed)?, tcp, &terms)?))
        }
    });
    let answer = |result: Result<(), PlaneError>, bytes: &[&[u8]]| {
        put(&stream, &result.map_err(Failure::from), bytes).expect("the parent");
    };
    let mut plane = match formed {
        Ok(plane) => plane,
        Err(error) => return answer(Err(error), &[]),
    };
    answer(Ok(()), &[]);
    for mut parts in requests(reader, abort) {
        let result = exchange(&mut *plane, &mut parts);
        let received = parts.iter().filter(|(part, _)| result.is_ok() && !part.is_sent);
        let received: Vec<_> = received.map(|(_, bytes)| &bytes[..]).collect();
        answer(result, &received);
    }
}

type Parts = Vec<(Part, Vec<u8>)>;

/// The groups that the parent asks for, while a thread listens for its wish to abort.
fn requests(mut reader: BufReader<TcpStream>, abort: AbortHandle) -> mpsc::Receiver<Parts> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        loop {
            match get(&mut reader) {
                Ok(Request::Abort) => abort.abort(),
                Ok(Request::Exchange(parts)) => {
                    let fill = |part: Part| {
                        let mut bytes = vec![0; part.len_bytes];
                        if part.is_sent {
                            reader.read_exact(&mut bytes)?;
                        }
                        io::Result::Ok((part, bytes))
                    };
                    let parts = parts.into_iter().map(fill).collect::<io::Result<Parts>>().expect("the parent");
                    sender.send(parts).expect("the plane's thread");
                }
                // The parent is gone.
                Err(_) => std::process::exit(0),
            }
        }
    });
    receiver
}

fn exchange(plane: &mut dyn DataPlane, parts: &mut Parts) -> Result<(), PlaneError> {
    let transfers = parts.iter_mut().map(|(part, bytes)| to_transfer(part, bytes));
    block_on(plane.exchange(&mut transfers.collect::<Vec<_>>()))
}

fn to_transfer<'a>(part: &Part, bytes: &'a mut [u8]) -> Transfer<'a> {
    let peer = Rank(part.peer);
    if part.is_sent { Transfer::Send { to: peer, bytes } } else { Transfer::Recv { from: peer, bytes } }
}
