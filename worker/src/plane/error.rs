//! What can go wrong between ranks.

use std::io;

use polo_recipe::ids::{Generation, Rank};

use super::handshake::Refusal;
use super::nccl::NcclError;

/// Why a plane could not be formed, or stopped carrying.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// The connection to a rank broke. Usually the peer died, but it may also have dropped its plane because of the
    /// death of a third: take it for a sign, and the coordinator's word for the fact.
    #[error("lost the connection to rank {rank}: {source}")]
    PeerLost {
        /// The peer.
        rank: Rank,
        /// What the socket said.
        source: io::Error,
    },
    /// Nothing moved for too long.
    #[error("waited {waited_ms} ms for {} while {what}", list(.ranks))]
    Timeout {
        /// How long nothing moved.
        waited_ms: u64,
        /// Whom it was waited for.
        ranks: Vec<Rank>,
        /// What was being done, and what is known about the hindrance.
        what: String,
    },
    /// [`AbortHandle::abort`](super::AbortHandle::abort) was called.
    #[error("the data plane was aborted")]
    Aborted,
    /// A peer sent another message than the one expected; the two ranks do not follow the same plan.
    #[error("rank {rank} is out of step: expected {expected}, got {got}")]
    Desynchronised {
        /// The sender.
        rank: Rank,
        /// The message that should have come.
        expected: String,
        /// The message that came.
        got: String,
    },
    /// A peer would not have the connection.
    #[error("rank {rank} refused the connection for generation {generation}: {reason}")]
    Refused {
        /// The peer.
        rank: Rank,
        /// The generation that was to be formed.
        generation: Generation,
        /// Its reason.
        reason: Refusal,
    },
    /// A generation was to be formed that is not newer than one before it.
    #[error("cannot form generation {generation}: this worker has already formed {newest}; form a newer one")]
    OldGeneration {
        /// The generation asked for.
        generation: Generation,
        /// The newest one so far.
        newest: Generation,
    },
    /// The caller named a rank that it cannot exchange with.
    #[error("rank {rank} of a world of {world} cannot exchange with rank {peer}")]
    NoSuchPeer {
        /// The caller.
        rank: Rank,
        /// The number of ranks.
        world: usize,
        /// The rank asked for.
        peer: Rank,
    },
    /// An address of a peer means nothing here.
    #[error("the data-plane address {address} of rank {rank} cannot be resolved: {source}")]
    Address {
        /// The peer.
        rank: Rank,
        /// What it announced.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// NCCL or the GPU failed, which concerns all ranks; it does not say whose fault it is.
    #[error("rank {rank} cannot {what}: {source}")]
    Nccl {
        /// This rank.
        rank: Rank,
        /// What was tried.
        what: &'static str,
        /// What NCCL said.
        source: NcclError,
    },
    /// The operating system refused something that concerns no peer.
    #[error("the data plane cannot {what}: {source}")]
    Local {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn list(ranks: &[Rank]) -> String {
    let names: Vec<_> = ranks.iter().map(Rank::to_string).collect();
    format!("{} {}", if ranks.len() == 1 { "rank" } else { "ranks" }, names.join(", "))
}
