//! Waking a thread that polls sockets.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, Timespec, eventfd, poll};
use rustix::io::Errno;

/// A condition that `poll` can wait for: readable from [`Signal::raise`] until [`Signal::clear`].
#[derive(Debug)]
pub(super) struct Signal(OwnedFd);

impl Signal {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?))
    }

    pub(super) fn raise(&self) {
        // Fails only where the counter is full, and then the signal is up already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub(super) fn clear(&self) {
        // Fails only where the signal is down already.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Interrupts the forming and every exchange of one plane, from any thread and for good.
#[derive(Debug, Clone)]
pub struct AbortHandle(Arc<Latch>);

#[derive(Debug)]
struct Latch {
    set: AtomicBool,
    signal: Signal,
    notify: tokio::sync::Notify,
}

impl AbortHandle {
    /// A handle that is not aborted. Fails when the process is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Latch {
            set: AtomicBool::new(false),
            signal: Signal::new()?,
            notify: tokio::sync::Notify::new(),
        })))
    }

    /// Makes a running or later call return [`PlaneError::Aborted`](super::PlaneError::Aborted) at once.
    pub fn abort(&self) {
        self.0.set.store(true, Ordering::Release);
        self.0.signal.raise();
        self.0.notify.notify_waiters();
    }

    /// Returns once [`abort`](Self::abort) was called: for planes that are not driven by blocking calls.
    pub async fn aborted(&self) {
        let notified = self.0.notify.notified();
        if !self.is_aborted() {
            notified.await;
        }
    }

    /// Whether [`abort`](Self::abort) was called.
    pub fn is_aborted(&self) -> bool {
        self.0.set.load(Ordering::Acquire)
    }

    pub(super) fn signal(&self) -> &Signal {
        &self.0.signal
    }
}

/// Waits until one of `fds` is ready, `timeout` has passed (`None`: no limit), or a Unix signal came.
pub(super) fn wait(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    // A timeout that the system cannot express is longer than anybody waits.
    let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
    match poll(fds, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
