//! The data plane over streams of any kind, with the frames and the errors of the one over TCP.

use std::{
    collections::BTreeSet,
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt, join, try_join_all};
use polo_recipe::ids::{Generation, Rank};
use polo_worker::plane::{
    AbortHandle, DataPlane, PlaneError, Transfer,
    frame::{Frame, HEADER_BYTES},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::sleep,
};

/// One generation's connections.
pub struct SimPlane {
    rank: Rank,
    generation: Generation,
    peers: Vec<Option<Peer>>,
    timeout: Duration,
    abort: AbortHandle,
}

struct Peer {
    read: Incoming,
    write: Outgoing,
}

struct Incoming {
    stream: Box<dyn AsyncRead + Send + Unpin>,
    num_received: u64,
}

struct Outgoing {
    stream: Box<dyn AsyncWrite + Send + Unpin>,
    num_sent: u64,
}

impl Peer {
    fn new(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self {
            read: Incoming { stream: Box::new(read), num_received: 0 },
            write: Outgoing { stream: Box::new(write), num_sent: 0 },
        }
    }
}

/// What is exchanged with one peer.
#[derive(Default)]
struct Messages<'a> {
    sends: Vec<&'a [u8]>,
    receives: Vec<&'a mut [u8]>,
}

impl SimPlane {
    /// A plane over connections to all other ranks, in rank order, with none at its own place.
    pub fn new<S: AsyncRead + AsyncWrite + Send + 'static>(
        rank: Rank,
        generation: Generation,
        streams: Vec<Option<S>>,
        timeout: Duration,
        abort: AbortHandle,
    ) -> Self {
        let peers = streams.into_iter().map(|stream| stream.map(Peer::new)).collect();
        Self { rank, generation, peers, timeout, abort }
    }

    /// Carries out the group; whoever it is done with is no longer `pending`.
    async fn transfer(
        &mut self,
        group: &mut [Transfer<'_>],
        pending: &Mutex<BTreeSet<Rank>>,
    ) -> Result<(), PlaneError> {
        let (own, world, generation) = (self.rank, self.peers.len(), self.generation);
        let mut by_peer: Vec<Messages<'_>> = self.peers.iter().map(|_| Default::default()).collect();
        for transfer in group {
            let peer = transfer.peer();
            if peer == own || peer.index() >= world {
                return Err(PlaneError::NoSuchPeer { rank: own, world, peer });
            }
            let Messages { sends, receives } = &mut by_peer[peer.index()];
            match transfer {
                Transfer::Send { bytes, .. } => sends.push(bytes),
                Transfer::Recv { bytes, .. } => receives.push(bytes),
            }
        }
        let ranks = (0..).map(Rank).zip(&mut self.peers).zip(by_peer);
        let pairs = ranks.filter_map(|((rank, peer), messages)| Some((rank, peer.as_mut()?, messages)));
        let all = pairs.map(|(rank, peer, Messages { sends, receives })| async move {
            let sending = peer.write.send(own, generation, sends);
            let receiving = peer.read.receive(rank, generation, receives);
            let (sent, received) = join(sending, receiving).await;
            received?;
            sent.map_err(|source| PlaneError::PeerLost { rank, source })?;
            pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&rank);
            Ok(())
        });
        try_join_all(all).await.map(drop)
    }
}

impl Outgoing {
    async fn send(&mut self, own: Rank, generation: Generation, messages: Vec<&[u8]>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for message in messages {
            let (sequence, len_bytes) = (self.num_sent, message.len() as u64);
            bytes.extend(Frame { from: own, generation, sequence, len_bytes }.encode());
            bytes.extend(message);
            self.num_sent += 1;
        }
        self.stream.write_all(&bytes).await
    }
}

impl Incoming {
    async fn receive(&mut self, rank: Rank, generation: Generation, places: Vec<&mut [u8]>) -> Result<(), PlaneError> {
        let lost = |source| PlaneError::PeerLost { rank, source };
        for place in places {
            let (sequence, len_bytes) = (self.num_received, place.len() as u64);
            let expected = Frame { from: rank, generation, sequence, len_bytes }.encode();
            let mut got = [0; HEADER_BYTES];
            self.stream.read_exact(&mut got).await.map_err(lost)?;
            if got != expected {
                let (expected, got) = (Frame::describe(&expected), Frame::describe(&got));
                return Err(PlaneError::Desynchronised { rank, expected, got });
            }
            self.stream.read_exact(place).await.map_err(lost)?;
            self.num_received += 1;
        }
        Ok(())
    }
}

impl DataPlane for SimPlane {
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
        async move {
            let pending = Mutex::new(group.iter().map(Transfer::peer).collect::<BTreeSet<_>>());
            let (abort, timeout) = (self.abort.clone(), self.timeout);
            tokio::select! {
                biased;
                () = abort.aborted() => Err(PlaneError::Aborted),
                done = self.transfer(group, &pending) => done,
                () = sleep(timeout) => {
                    let ranks = pending.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
                    let (waited_ms, what) = (timeout.as_millis() as u64, "exchanging messages".into());
                    Err(PlaneError::Timeout { waited_ms, ranks, what })
                }
            }
        }
        .boxed()
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }
}
