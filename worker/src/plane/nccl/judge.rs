//! What becomes of something that NCCL was asked for, as a pure function.

use std::time::Duration;

use super::{NcclError, Status};

/// What to do about it.
#[derive(Debug)]
pub enum Verdict {
    /// Ask again.
    Wait,
    /// It is done.
    Ready,
    /// The communicator must be aborted.
    Abort(Reason),
}

/// Why.
#[derive(Debug)]
pub enum Reason {
    /// It was asked for.
    Asked,
    /// NCCL failed.
    Failed(NcclError),
    /// It takes too long.
    TimedOut,
}

/// Judges by what NCCL says, whether somebody asked for an abort, and how long it was waited. What is asked for goes
/// before what failed, which an abort elsewhere may have caused.
pub fn judge(status: Status, is_aborted: bool, waited: Duration, timeout: Duration) -> Verdict {
    match status {
        _ if is_aborted => Verdict::Abort(Reason::Asked),
        Status::Failed(error) => Verdict::Abort(Reason::Failed(error)),
        Status::Done => Verdict::Ready,
        Status::InProgress if waited >= timeout => Verdict::Abort(Reason::TimedOut),
        Status::InProgress => Verdict::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);
    const JUST_BEFORE: Duration = Duration::from_millis(9999);

    fn failed() -> Status {
        Status::Failed(NcclError::Gone(None))
    }

    #[test]
    fn work_under_way_is_waited_for_until_the_timeout() {
        assert!(matches!(judge(Status::InProgress, false, JUST_BEFORE, TIMEOUT), Verdict::Wait));
        assert!(matches!(judge(Status::InProgress, false, TIMEOUT, TIMEOUT), Verdict::Abort(Reason::TimedOut)));
    }

    #[test]
    fn work_that_is_done_late_is_done() {
        assert!(matches!(judge(Status::Done, false, TIMEOUT * 2, TIMEOUT), Verdict::Ready));
    }

    #[test]
    fn a_failure_is_told_even_after_the_timeout() {
        for waited in [Duration::ZERO, TIMEOUT * 2] {
            let verdict = judge(failed(), false, waited, TIMEOUT);
            assert!(matches!(verdict, Verdict::Abort(Reason::Failed(NcclError::Gone(None)))), "{verdict:?}");
        }
    }

    #[test]
    fn an_abort_that_was_asked_for_goes_before_everything() {
        for status in [Status::InProgress, Status::Done, failed()] {
            let verdict = judge(status, true, TIMEOUT, TIMEOUT);
            assert!(matches!(verdict, Verdict::Abort(Reason::Asked)), "{verdict:?}");
        }
    }
}
