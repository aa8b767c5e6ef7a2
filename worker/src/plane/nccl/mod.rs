//! The plane over NCCL: long messages go from GPU to GPU, everything else over the TCP plane of the same generation.
//!
//! Over TCP go short messages, and the headers of all, before NCCL is asked for anything. So a group reaches NCCL only
//! when the other ends are there and mean the same messages; those that die, stay away or are out of step are noticed as
//! they are on TCP alone. Once a rank's part of the group is through, it says so to the other ends and waits for their
//! word. So after an exchange nothing is under way that a rank's leaving could take along.
//!
//! The rules for NCCL: communicators do not block and are asked how they stand, against a deadline; each generation has
//! a fresh unique id; after a fault, and at the end of each generation, every rank aborts, and none ever destroys
//! ([`communicator`]). The process, its CUDA context and its weights live on. Start reading at [`form`].

mod communicator;
mod cuda;
mod judge;
mod library;
mod split;
mod staging;
mod version;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use polo_recipe::ids::{Generation, Rank};

use self::communicator::{Communicator, Progress};
use self::judge::{Reason, Verdict, judge};
use self::split::{Split, split};
use self::staging::Staging;
use super::all_reduce::by_messages;
use super::tcp::{Carrying, Message, TcpPlane};
use super::{AbortHandle, DataPlane, PlaneError, Transfer};

pub use self::cuda::load;
pub use self::library::{Bulk, Comm, HostMemory, Library, NcclError, Status, UniqueId};
pub use self::version::{Version, check_version};

/// Messages of at least this length go by NCCL. Not measured yet: shorter ones should be quicker over TCP than a launch.
pub const MIN_BULK_BYTES: usize = 64 << 10;

/// How long the sockets are waited for before NCCL is asked again.
const POLL_PERIOD: Duration = Duration::from_micros(50);
/// How long after a failure TCP may take to say who was lost: NCCL does not.
const BLAME_PATIENCE: Duration = Duration::from_millis(500);

/// A [`DataPlane`] over NCCL.
pub struct NcclPlane {
    tcp: TcpPlane,
    /// None in a world of one.
    communicator: Option<Communicator>,
    library: Arc<dyn Library>,
    min_bulk_bytes: usize,
    staging: Staging,
}

/// What all ranks of a generation must have alike.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// How long forming the communicator may take.
    pub form_timeout: Duration,
    /// From which length on messages go by NCCL; usually [`MIN_BULK_BYTES`].
    pub min_bulk_bytes: usize,
}

/// Forms the communicator of the ranks that have met on `tcp`. Exchanges have the timeout of that plane, and both have its
/// abort handle.
///
/// Rank 0 makes the unique id: NCCL has the process that makes it bring the others together. It is as old as the
/// connections over which it is sent, so it belongs to this generation alone.
pub fn form(library: Arc<dyn Library>, mut tcp: TcpPlane, terms: &Terms) -> Result<NcclPlane, PlaneError> {
    let communicator = if tcp.world() > 1 { Some(meet(&*library, &mut tcp, terms.form_timeout)?) } else { None };
    Ok(NcclPlane { tcp, communicator, library, min_bulk_bytes: terms.min_bulk_bytes, staging: Staging::default() })
}

fn meet(library: &dyn Library, tcp: &mut TcpPlane, timeout: Duration) -> Result<Communicator, PlaneError> {
    let (rank, world) = (tcp.rank(), tcp.world());
    let failed = |source| PlaneError::Nccl { rank, what: "form its communicator", source };
    let id = share_id(library, tcp)?;
    let comm = library.begin(&id, world, rank).map_err(failed)?;
    let watching = Communicator::watch(comm, tcp.abort_handle());
    let communicator = watching.map_err(|source| PlaneError::Local { what: "watch NCCL", source })?;
    let others = (0..world as u32).map(Rank).filter(|other| *other != rank).collect();
    accompany(tcp, &others, "form its communicator", timeout, || communicator.status())?;
    Ok(communicator)
}

fn share_id(library: &dyn Library, tcp: &mut TcpPlane) -> Result<UniqueId, PlaneError> {
    const MAKER: Rank = Rank(0);
    let mut id = [0; size_of::<UniqueId>()];
    if tcp.rank() != MAKER {
        tcp.carry(vec![Message::Whole(Transfer::Recv { from: MAKER, bytes: &mut id })])?;
        return Ok(id);
    }
    let failed = |source| PlaneError::Nccl { rank: MAKER, what: "make a unique id", source };
    id = library.unique_id().map_err(failed)?;
    let others = (1..tcp.world() as u32).map(Rank);
    tcp.carry(others.map(|to| Message::Whole(Transfer::Send { to, bytes: &id })).collect())?;
    Ok(id)
}

/// Asks for `status` until it is done, tells `peers` so, and returns when all of them have said the same. Meanwhile TCP
/// tells if one of them is lost.
fn accompany(
    tcp: &mut TcpPlane,
    peers: &BTreeSet<Rank>,
    what: &'static str,
    timeout: Duration,
    mut status: impl FnMut() -> Status,
) -> Result<(), PlaneError> {
    let (rank, abort) = (tcp.rank(), tcp.abort_handle());
    let word = |from: &Rank| Message::Whole(Transfer::Recv { from: *from, bytes: &mut [] });
    let mut carrying = tcp.begin(peers.iter().map(word).collect())?;
    let since = Instant::now();
    loop {
        match judge(status(), abort.is_aborted(), since.elapsed(), timeout) {
            Verdict::Wait => drop(carrying.step(POLL_PERIOD)?),
            Verdict::Ready => break,
            Verdict::Abort(Reason::Asked) => return Err(PlaneError::Aborted),
            Verdict::Abort(Reason::TimedOut) => return Err(timed_out(&carrying, peers, what, since.elapsed())),
            Verdict::Abort(Reason::Failed(source)) => {
                return Err(blame(&mut carrying, PlaneError::Nccl { rank, what, source }));
            }
        }
    }
    peers.iter().for_each(|peer| carrying.send_empty(*peer));
    carrying.finish()
}

/// Those who have not said that they are through; all, if this rank alone is not.
fn timed_out(carrying: &Carrying<'_>, peers: &BTreeSet<Rank>, what: &str, waited: Duration) -> PlaneError {
    let silent: Vec<_> = carrying.awaited().collect();
    let ranks = if silent.is_empty() { peers.iter().copied().collect() } else { silent };
    PlaneError::Timeout { waited_ms: waited.as_millis() as u64, ranks, what: format!("NCCL was to {what}") }
}

/// The loss behind a failure, if TCP comes to know of one.
fn blame(carrying: &mut Carrying<'_>, failure: PlaneError) -> PlaneError {
    let since = Instant::now();
    while since.elapsed() < BLAME_PATIENCE && carrying.awaited().next().is_some() {
        let stepped = carrying.step(BLAME_PATIENCE.saturating_sub(since.elapsed()));
        if let Err(cause) = stepped.and_then(|_| carrying.check_abort()) {
            return cause;
        }
    }
    failure
}

impl NcclPlane {
    fn exchange_blocking(&mut self, group: &mut [Transfer<'_>]) -> Result<(), PlaneError> {
        let Split { control, bulk, peers } = split(group.iter_mut().map(Transfer::reborrow), self.min_bulk_bytes);
        self.tcp.carry(control)?;
        if bulk.is_empty() { Ok(()) } else { self.move_bulk(bulk, &peers) }
    }

    fn move_bulk(&mut self, bulk: Vec<Transfer<'_>>, peers: &BTreeSet<Rank>) -> Result<(), PlaneError> {
        const WHAT: &str = "exchange messages";
        let rank = self.tcp.rank();
        let failed = |source| PlaneError::Nccl { rank, what: WHAT, source };
        let staged = self.staging.stage(&*self.library, bulk).map_err(failed)?;
        // SAFETY: the group is borrowed, and staging kept, until this returns.
        unsafe { self.perform(&staged.bulk, peers, WHAT) }?;
        staged.finish();
        Ok(())
    }

    fn all_reduce_blocking(&mut self, values: &mut [f32]) -> Result<(), PlaneError> {
        const WHAT: &str = "sum gradients";
        let rank = self.tcp.rank();
        let peers: BTreeSet<_> = (0..self.tcp.world() as u32).map(Rank).filter(|peer| *peer != rank).collect();
        if peers.is_empty() || values.is_empty() {
            return Ok(());
        }
        let len_bytes = size_of_val(values);
        let said = peers.iter().map(|to| Message::HeaderTo { to: *to, len_bytes });
        let heard = peers.iter().map(|from| Message::HeaderFrom { from: *from, len_bytes });
        self.tcp.carry(said.chain(heard).collect())?;
        let failed = |source| PlaneError::Nccl { rank, what: WHAT, source };
        let address = self.staging.stage_values(&*self.library, values).map_err(failed)?;
        // SAFETY: the values are borrowed, and staging kept, until this returns.
        unsafe { self.perform(&[Bulk::AllReduce { address, len: values.len() }], &peers, WHAT) }?;
        staging::take_back(address, values);
        Ok(())
    }

    /// Has NCCL perform a group, and returns when all of `peers` are through with it as well.
    ///
    /// # Safety
    /// As for [`Comm::enqueue`], until this returns: it does so only when the transfers are done or NCCL has let go of the
    /// memory.
    unsafe fn perform(&mut self, group: &[Bulk], peers: &BTreeSet<Rank>, what: &'static str) -> Result<(), PlaneError> {
        let rank = self.tcp.rank();
        let gone = || PlaneError::Nccl { rank, what, source: NcclError::Gone(None) };
        let communicator = self.communicator.as_ref().ok_or_else(gone)?;
        // SAFETY: as promised; `stop` returns when nothing uses the memory any more.
        let mut begun = Some(unsafe { communicator.enqueue(group) });
        let mut progress = Progress::Enqueued;
        let timeout = self.tcp.timeout();
        let performed = accompany(&mut self.tcp, peers, what, timeout, || match begun.take() {
            Some(Status::Failed(error)) => Status::Failed(error),
            _ => communicator.advance(&mut progress),
        });
        if performed.is_err() {
            communicator.stop();
        }
        performed
    }
}

impl DataPlane for NcclPlane {
    fn rank(&self) -> Rank {
        self.tcp.rank()
    }

    fn world(&self) -> usize {
        self.tcp.world()
    }

    fn generation(&self) -> Generation {
        self.tcp.generation()
    }

    fn exchange<'a>(&'a mut self, group: &'a mut [Transfer<'_>]) -> BoxFuture<'a, Result<(), PlaneError>> {
        // The thread that calls has nothing else to do, so it may block.
        Box::pin(async move { self.exchange_blocking(group) })
    }

    /// NCCL's own where all ranks take part; its communicator has all of them.
    fn all_reduce<'a>(
        &'a mut self,
        num_members: usize,
        values: &'a mut [f32],
    ) -> BoxFuture<'a, Result<(), PlaneError>> {
        if num_members < self.world() {
            return Box::pin(by_messages(self, num_members, values));
        }
        Box::pin(async move { self.all_reduce_blocking(values) })
    }

    fn abort_handle(&self) -> AbortHandle {
        self.tcp.abort_handle()
    }
}
