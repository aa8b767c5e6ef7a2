//! The data plane: moves bytes between the ranks of one generation, and nothing else.
//!
//! A plane never computes with what it carries and never outlives its generation: after an error or an abort it is
//! dropped and a new one is formed. Nothing here waits without a bound, and any wait ends at once on [`AbortHandle::abort`].
//! Start reading at [`DataPlane`]; [`rendezvous`] forms planes of the TCP implementation, [`tcp`], and [`nccl`] puts NCCL
//! on top of one.

mod all_reduce;
mod dial;
mod error;
pub mod frame;
pub mod gather;
mod handshake;
mod listener;
mod lobby;
pub mod nccl;
pub mod rendezvous;
pub mod tcp;
mod wake;

use futures::future::BoxFuture;
use polo_recipe::ids::{Generation, Rank};

pub use self::error::PlaneError;
pub use self::handshake::{Refusal, Secret};
pub use self::listener::Listener;
pub use self::wake::AbortHandle;

/// One message of a group, straight from or to the caller's memory.
///
/// Both sides must agree on the length beforehand; a message of another length is [`PlaneError::Desynchronised`].
#[derive(Debug)]
pub enum Transfer<'a> {
    /// Sends `bytes` to a rank.
    Send {
        /// The receiver.
        to: Rank,
        /// The message; may be empty.
        bytes: &'a [u8],
    },
    /// Fills `bytes` with the next message of a rank.
    Recv {
        /// The sender.
        from: Rank,
        /// The place for the message.
        bytes: &'a mut [u8],
    },
}

impl Transfer<'_> {
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> Transfer<'_> {
        match self {
            Self::Send { to, bytes } => Transfer::Send { to: *to, bytes },
            Self::Recv { from, bytes } => Transfer::Recv { from: *from, bytes },
        }
    }

    /// Length of the message in bytes.
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Send { bytes, .. } => bytes.len(),
            Self::Recv { bytes, .. } => bytes.len(),
        }
    }

    /// The other side.
    pub fn peer(&self) -> Rank {
        match self {
            Self::Send { to, .. } => *to,
            Self::Recv { from, .. } => *from,
        }
    }
}

/// Which of a generation's planes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Lane {
    /// The one on which steps are taken.
    #[default]
    Steps,
    /// The one on which chunks move to new owners while a step is computed.
    State,
}

/// The connections among the ranks of one generation.
pub trait DataPlane: Send {
    /// This worker's rank.
    fn rank(&self) -> Rank;

    /// How many ranks there are.
    fn world(&self) -> usize;

    /// The generation that the plane belongs to.
    fn generation(&self) -> Generation;

    /// Performs all transfers of `group` concurrently and returns when all are done.
    ///
    /// Between one pair of ranks, messages are matched in order, also across calls. A message counts as sent when its
    /// memory may be used again, not when it was received. After an error the plane must be dropped: some of the
    /// messages may have been transferred in part.
    fn exchange<'a>(&'a mut self, group: &'a mut [Transfer<'_>]) -> BoxFuture<'a, Result<(), PlaneError>>;

    /// Makes `values` of each of the first `num_members` ranks the sum of theirs, equal to the bit on all of them, in an order
    /// that is the plane's own. The others take no part.
    fn all_reduce<'a>(
        &'a mut self,
        num_members: usize,
        values: &'a mut [f32],
    ) -> BoxFuture<'a, Result<(), PlaneError>> {
        Box::pin(all_reduce::by_messages(self, num_members, values))
    }

    /// A handle that interrupts this plane from any thread.
    fn abort_handle(&self) -> AbortHandle;
}
