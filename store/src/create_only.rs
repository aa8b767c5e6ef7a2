//! A create-only put that stays exact when answers are lost.
//!
//! A put whose answer never came may have landed. When the next try is then told that the object exists, it may be our
//! own; only its bytes can tell.

use std::time::Duration;

use object_store::Error as ObjectError;
use tokio::time::Instant;

use crate::answer::{Answer, is_transient};
use crate::digest::Digest;

/// What one try came to.
pub(crate) enum Attempt {
    /// The object is there by this try.
    Created,
    /// Another object is there.
    Exists,
    /// Another conditional put is under way; nothing was written.
    Busy(ObjectError),
    /// No answer that says whether the object was written.
    Unknown(ObjectError),
    /// Trying again would not help.
    Refused(ObjectError),
}

impl Attempt {
    /// Reads a store's answer to one conditional put.
    pub(crate) fn from_put(answer: Result<(), ObjectError>) -> Self {
        match answer {
            Ok(()) => Self::Created,
            Err(e @ ObjectError::AlreadyExists { .. }) if is_clash(&Answer::of(&e)) => Self::Busy(e),
            Err(ObjectError::AlreadyExists { .. }) => Self::Exists,
            Err(e) if is_transient(&e) => Self::Unknown(e),
            Err(e) => Self::Refused(e),
        }
    }
}

/// S3 answers 412 to a condition that does not hold and 409 to a clash of two puts; Azure answers 409 to the former too,
/// under a name of its own.
fn is_clash(answer: &Answer) -> bool {
    answer.status == Some(409) && !answer.is_one_of(&["BlobAlreadyExists"])
}

/// Time between tries: doubles from `first` to `most`, less a jitter, and ends at `limit` in all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    pub first: Duration,
    pub most: Duration,
    pub limit: Duration,
    /// Sets apart in time whoever waits for other objects.
    pub salt: u64,
}

impl Backoff {
    /// The wait after so many failures: between half and all of the doubled time.
    pub(crate) fn wait(&self, num_failures: u32) -> Duration {
        let full = self.first.saturating_mul(1 << num_failures.min(16)).min(self.most);
        let salted = [self.salt.to_le_bytes(), u64::from(num_failures).to_le_bytes()].concat();
        let jitter = f64::from(Digest::of(&salted).as_bytes()[0]) / 255.0;
        full.mul_f64(1.0 - jitter / 2.0)
    }
}

/// Tries `put` until its outcome is known; `is_ours` reads the object back and compares.
pub(crate) async fn create_only<Put, IsOurs>(
    put: impl Fn() -> Put,
    is_ours: impl Fn() -> IsOurs,
    backoff: Backoff,
) -> Result<bool, ObjectError>
where
    Put: Future<Output = Attempt>,
    IsOurs: Future<Output = Result<bool, ObjectError>>,
{
    let (start, mut num_failures, mut may_have_landed) = (Instant::now(), 0, false);
    loop {
        let failure = match put().await {
            Attempt::Created => return Ok(true),
            Attempt::Exists if may_have_landed => return is_ours().await,
            Attempt::Exists => return Ok(false),
            Attempt::Refused(e) => return Err(e),
            Attempt::Busy(e) => e,
            Attempt::Unknown(e) => {
                may_have_landed = true;
                e
            }
        };
        let wait = backoff.wait(num_failures);
        if start.elapsed() + wait > backoff.limit {
            return Err(failure);
        }
        tokio::time::sleep(wait).await;
        num_failures += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_millis(100),
        most: Duration::from_secs(2),
        limit: Duration::from_secs(60),
        salt: 7,
    };

    fn exists(answer: &'static str) -> ObjectError {
        ObjectError::AlreadyExists { path: "k".into(), source: answer.into() }
    }

    fn lost() -> ObjectError {
        ObjectError::Generic { store: "S3", source: "connection reset".into() }
    }

    async fn outcome(attempts: Vec<Attempt>, ours: bool) -> Result<bool, ObjectError> {
        let attempts = Mutex::new(attempts.into_iter());
        let put = || async { attempts.lock().expect("not poisoned").next().expect("no further try is due") };
        let backoff = Backoff { first: Duration::ZERO, ..BACKOFF };
        create_only(put, || async { Ok(ours) }, backoff).await
    }

    #[tokio::test]
    async fn plain_answers_are_taken_at_their_word() {
        assert!(outcome(vec![Attempt::Created], false).await.expect("created"));
        assert!(!outcome(vec![Attempt::Exists], true).await.expect("another's, without a look"));
        assert!(outcome(vec![Attempt::Refused(lost())], true).await.is_err());
    }

    #[tokio::test]
    async fn after_a_lost_answer_the_bytes_decide() {
        assert!(outcome(vec![Attempt::Unknown(lost()), Attempt::Exists], true).await.expect("ours landed"));
        assert!(!outcome(vec![Attempt::Unknown(lost()), Attempt::Exists], false).await.expect("another's"));
        assert!(outcome(vec![Attempt::Unknown(lost()), Attempt::Created], false).await.expect("second try"));
    }

    #[tokio::test]
    async fn a_clash_is_tried_again_and_proves_nothing() {
        assert!(!outcome(vec![Attempt::Busy(lost()), Attempt::Exists], true).await.expect("another's"));
    }

    #[tokio::test]
    async fn trying_ends_at_the_limit() {
        let backoff = Backoff { limit: Duration::from_millis(10), ..BACKOFF };
        let answer = create_only(|| async { Attempt::Unknown(lost()) }, || async { Ok(true) }, backoff).await;
        assert!(answer.is_err());
    }

    #[test]
    fn a_condition_that_fails_is_told_from_a_clash() {
        let of = |words| Attempt::from_put(Err(exists(words)));
        let clash = "Server returned non-2xx status code: 409 Conflict: <Code>ConditionalRequestConflict</Code>";
        assert!(matches!(of(clash), Attempt::Busy(_)));
        for answer in [
            "Server returned non-2xx status code: 412 Precondition Failed: the key is 409",
            "Server returned non-2xx status code: 409 Conflict: <Code>BlobAlreadyExists</Code>",
            "Object already exists",
        ] {
            assert!(matches!(of(answer), Attempt::Exists), "{answer}");
        }
        assert!(matches!(Attempt::from_put(Err(lost())), Attempt::Unknown(_)));
        let source = "Server returned non-2xx status code: 400 Bad Request: <Code>ExpiredToken</Code>".into();
        let refused = ObjectError::Generic { store: "GCS", source };
        assert!(matches!(Attempt::from_put(Err(refused)), Attempt::Refused(_)));
    }

    #[test]
    fn waits_double_up_to_the_most_and_rivals_wait_differently() {
        for num_failures in 0..40 {
            let (wait, full) = (BACKOFF.wait(num_failures), 100 * (1 << num_failures.min(16)).min(20));
            assert!((full / 2..=full).contains(&wait.as_millis()), "{wait:?} after {num_failures}");
        }
        let rival = Backoff { salt: 8, ..BACKOFF };
        assert!((0..4).any(|n| rival.wait(n) != BACKOFF.wait(n)));
    }
}
