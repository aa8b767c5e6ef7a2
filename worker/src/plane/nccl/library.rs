//! What the plane needs of NCCL and of the GPU under it, so that it can be tried without either.

use std::any::Any;

use polo_recipe::ids::Rank;

use super::Version;
use crate::streams::StreamError;

/// Why NCCL cannot be used, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum NcclError {
    /// A shared library is not there.
    #[error("{library} cannot be loaded; {advice}")]
    Missing {
        /// Its name.
        library: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A release that cannot abort.
    #[error("NCCL {version} is too old: {oldest} or newer is needed")]
    TooOld {
        /// The one found.
        version: Version,
        /// The first that would do.
        oldest: Version,
    },
    /// A release that aborts badly.
    #[error(
        "NCCL {version} cannot be used: {first} to {last} are known to fail when communicators are aborted, as they are \
         whenever a worker is lost; install a newer one"
    )]
    FailsOnAbort {
        /// The one found.
        version: Version,
        /// The first of these releases.
        first: Version,
        /// The last.
        last: Version,
    },
    /// A call failed, at once or later.
    #[error("NCCL says {result}: {words}; with NCCL_DEBUG=INFO in the environment it says more")]
    Call {
        /// Its result's name.
        result: String,
        /// Its description of the last error.
        words: String,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] StreamError),
    /// Memory that the device reaches could not be had.
    #[error("no {len_bytes} bytes of the host's memory for the GPU: {words}")]
    Memory {
        /// What was wanted.
        len_bytes: usize,
        /// libtorch's words.
        words: String,
    },
    /// The communicator was aborted before.
    #[error("the communicator has been aborted{}", .0.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Gone(Option<String>),
}

/// How something stands that NCCL was asked for.
#[derive(Debug)]
pub enum Status {
    /// Still under way.
    InProgress,
    /// Done.
    Done,
    /// It will never be done.
    Failed(NcclError),
}

/// Names a communicator that is to be formed.
pub type UniqueId = [u8; 128];

/// A message that the device moves.
#[derive(Debug, Clone, Copy)]
pub enum Bulk {
    /// From this memory to a rank.
    Send {
        /// The receiver.
        to: Rank,
        /// Where the message begins.
        address: *const u8,
        /// Its length.
        len_bytes: usize,
    },
    /// From a rank to this memory.
    Recv {
        /// The sender.
        from: Rank,
        /// Where the message is to begin.
        address: *mut u8,
        /// Its length.
        len_bytes: usize,
    },
    /// Sums of all ranks' fp32 to all of them, in place.
    AllReduce {
        /// Where they begin.
        address: *mut f32,
        /// How many.
        len: usize,
    },
}

/// Memory of the host that the device reaches as well.
pub struct HostMemory {
    /// Where it begins.
    pub address: *mut u8,
    /// Its length.
    pub len_bytes: usize,
    /// Frees it when dropped.
    pub owner: Box<dyn Any + Send>,
}

// SAFETY: the memory belongs to the owner, which may move between threads.
unsafe impl Send for HostMemory {}

/// NCCL on one device. None of its calls may block for long.
pub trait Library: Send + Sync {
    /// A name for a communicator that this process, as rank 0, brings together.
    fn unique_id(&self) -> Result<UniqueId, NcclError>;

    /// Begins to form a communicator; [`Comm::status`] says when it is formed.
    fn begin(&self, id: &UniqueId, world: usize, rank: Rank) -> Result<Box<dyn Comm>, NcclError>;

    /// Whether the device reaches the memory at this address.
    fn reaches(&self, address: *const u8) -> bool;

    /// Memory that it reaches.
    fn host_memory(&self, len_bytes: usize) -> Result<HostMemory, NcclError>;
}

/// A communicator and the stream on which it works.
pub trait Comm: Send + Sync {
    /// How forming it or the last [`enqueue`](Self::enqueue) stands, and whether it broke since. From any thread; not
    /// after an abort.
    fn status(&self) -> Status;

    /// Begins to put transfers on the stream, as one group; [`status`](Self::status) says when they are there. Not after
    /// an abort.
    ///
    /// # Safety
    /// The memory must stay, and must not be used otherwise, until they are done or, after an abort,
    /// [`is_done`](Self::is_done) says so.
    unsafe fn enqueue(&self, group: &[Bulk]) -> Status;

    /// Remembers the present end of the stream.
    fn mark(&self) -> Result<(), NcclError>;

    /// Whether the stream has come to the last mark.
    fn is_done(&self) -> Result<bool, NcclError>;

    /// Gives up whatever is under way and frees the communicator. Once only, from any thread.
    fn abort(&self);
}
