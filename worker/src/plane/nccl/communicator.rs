//! One communicator, from its forming to its abort: the only way in which one ever ends.
//!
//! A thread watches each, and aborts it when somebody asks for that or when NCCL reports a failure. So the thread that
//! computes never calls `ncclCommAbort`, which may take its time, and an idle communicator is watched as well.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::{Bulk, Comm, NcclError, Status};
use crate::plane::AbortHandle;
use crate::plane::wake::{Signal, wait};

/// How often a communicator that nobody uses is asked whether it still works.
const WATCH_PERIOD: Duration = Duration::from_millis(100);
/// How long an abort waits for calls that are under way. None of them should block; one that does is what aborts are for.
const CALL_PATIENCE: Duration = Duration::from_secs(5);
/// How long an abort may take, and after it the GPU to let go of memory.
const ABORT_PATIENCE: Duration = Duration::from_secs(30);
/// How often the GPU is asked after an abort.
const LET_GO_PERIOD: Duration = Duration::from_millis(1);

/// A communicator under watch. Dropping it aborts it.
pub(super) struct Communicator(Arc<Shared>);

struct Shared {
    comm: Box<dyn Comm>,
    life: Mutex<Life>,
    changed: Condvar,
    abort: AbortHandle,
    wake: Signal,
}

#[derive(Default)]
struct Life {
    stage: Stage,
    /// Calls of NCCL that have not returned.
    num_calls: usize,
    /// Whether the owner wants it to end.
    is_unwanted: bool,
    /// What NCCL complained of.
    complaint: Option<String>,
}

#[derive(Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Live,
    Aborting,
    Aborted,
}

/// How far a group has come.
pub(super) enum Progress {
    /// Its transfers are being put on the stream.
    Enqueued,
    /// They are there.
    Marked,
}

impl Communicator {
    /// Has it watched, for failures and for `abort`.
    pub(super) fn watch(comm: Box<dyn Comm>, abort: AbortHandle) -> io::Result<Self> {
        let (life, changed, wake) = (Mutex::default(), Condvar::new(), Signal::new()?);
        let shared = Arc::new(Shared { comm, life, changed, abort, wake });
        let watched = shared.clone();
        thread::Builder::new().name("nccl-watch".into()).spawn(move || watched.run())?;
        Ok(Self(shared))
    }

    /// How its forming stands.
    pub(super) fn status(&self) -> Status {
        self.0.call(|comm| comm.status()).unwrap_or_else(Status::Failed)
    }

    /// Begins a group.
    ///
    /// # Safety
    /// As for [`Comm::enqueue`]: after anything but the end of the group call [`stop`](Self::stop) before the memory is
    /// used again.
    pub(super) unsafe fn enqueue(&self, group: &[Bulk]) -> Status {
        // SAFETY: passed on.
        self.0.call(|comm| unsafe { comm.enqueue(group) }).unwrap_or_else(Status::Failed)
    }

    /// How the group stands that was begun last.
    pub(super) fn advance(&self, progress: &mut Progress) -> Status {
        self.try_advance(progress).unwrap_or_else(Status::Failed)
    }

    fn try_advance(&self, progress: &mut Progress) -> Result<Status, NcclError> {
        let status = self.0.call(|comm| comm.status())?;
        match (status, &progress) {
            (Status::Done, Progress::Enqueued) => {
                self.0.call(|comm| comm.mark())??;
                *progress = Progress::Marked;
                Ok(Status::InProgress)
            }
            (Status::Done, Progress::Marked) if self.0.comm.is_done()? => {
                // An abort meanwhile ends whatever was on the stream, too.
                self.0.call(|_| Status::Done)
            }
            (Status::Done, Progress::Marked) => Ok(Status::InProgress),
            (status, _) => Ok(status),
        }
    }

    /// Has it aborted, and waits until neither NCCL nor the GPU uses memory for it any more. Ends the process where that
    /// does not come, since nobody could use that memory safely; the others go on without this worker.
    pub(super) fn stop(&self) {
        if !self.0.end(ABORT_PATIENCE) || !self.0.has_let_go(ABORT_PATIENCE) {
            let seconds = ABORT_PATIENCE.as_secs();
            polo_log::fail(format_args!(
                "{seconds} s after an abort, NCCL still uses this worker's memory; the process ends"
            ));
            std::process::exit(1);
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if !self.0.end(ABORT_PATIENCE) {
            tracing::warn!("NCCL takes more than {} s to abort a communicator", ABORT_PATIENCE.as_secs());
        }
    }
}

impl Shared {
    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls NCCL, which an abort waits for.
    fn call<T>(&self, call: impl FnOnce(&dyn Comm) -> T) -> Result<T, NcclError> {
        let mut life = self.life();
        if life.stage != Stage::Live {
            return Err(NcclError::Gone(life.complaint.clone()));
        }
        life.num_calls += 1;
        drop(life);
        let result = call(&*self.comm);
        self.life().num_calls -= 1;
        self.changed.notify_all();
        Ok(result)
    }

    /// The watching thread.
    fn run(&self) {
        while !self.abort.is_aborted() && !self.life().is_unwanted {
            if let Ok(Status::Failed(error)) = self.call(|comm| comm.status()) {
                self.life().complaint = Some(error.to_string());
                break;
            }
            let mut fds = [&self.wake, self.abort.signal()].map(|signal| PollFd::new(signal, PollFlags::IN));
            // Where it cannot wait, it looks again at once.
            let _ = wait(&mut fds, Some(WATCH_PERIOD));
        }
        self.abort_comm();
    }

    fn abort_comm(&self) {
        let is_busy = |life: &mut Life| life.num_calls > 0;
        let waited = self.changed.wait_timeout_while(self.life(), CALL_PATIENCE, is_busy);
        waited.unwrap_or_else(PoisonError::into_inner).0.stage = Stage::Aborting;
        self.comm.abort();
        self.life().stage = Stage::Aborted;
        self.changed.notify_all();
    }

    /// Has it aborted. Returns whether it was within `patience`.
    fn end(&self, patience: Duration) -> bool {
        self.life().is_unwanted = true;
        self.wake.raise();
        let is_there = |life: &mut Life| life.stage != Stage::Aborted;
        let waited = self.changed.wait_timeout_while(self.life(), patience, is_there);
        waited.unwrap_or_else(PoisonError::into_inner).0.stage == Stage::Aborted
    }

    /// Waits until the stream is empty. A device that cannot even be asked has no work left that could run.
    fn has_let_go(&self, patience: Duration) -> bool {
        let since = Instant::now();
        if self.comm.mark().is_err() {
            return true;
        }
        while let Ok(false) = self.comm.is_done() {
            if since.elapsed() >= patience {
                return false;
            }
            thread::sleep(LET_GO_PERIOD);
        }
        true
    }
}
