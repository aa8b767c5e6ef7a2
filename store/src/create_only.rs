//! A create-only put that stays exact when answers are lost.
//!
//! A put whose answer never came may have landed. When the next try is then told that the object exists, it may be our
//! own; only its bytes can tell.

use std::time::Duration;

use object_store::Error as ObjectError;
use tokio::time::Instant;

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
            // On S3 a failed condition (412) arrives with the store's own error inside, a clash of two puts (409) with
            // the bare answer.
            Err(ObjectError::AlreadyExists { source, path }) if is_clash(source.as_ref()) => {
                Self::Busy(ObjectError::AlreadyExists { source, path })
            }
            Err(ObjectError::AlreadyExists { .. }) => Self::Exists,
            Err(e @ ObjectError::Generic { store: "S3", .. }) => Self::Unknown(e),
            Err(e) => Self::Refused(e),
        }
    }
}

fn is_clash(source: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    !source.is::<ObjectError>() && source.to_string().contains("409")
}

/// Time between tries: doubles from `first`, and ends at `limit` in all.
#[derive(Clone, Copy)]
pub(crate) struct Backoff {
    pub first: Duration,
    pub limit: Duration,
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
    let (start, mut wait, mut may_have_landed) = (Instant::now(), backoff.first, false);
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
        if start.elapsed() + wait > backoff.limit {
            return Err(failure);
        }
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn lost() -> ObjectError {
        ObjectError::Generic { store: "S3", source: "connection reset".into() }
    }

    async fn outcome(attempts: Vec<Attempt>, ours: bool) -> Result<bool, ObjectError> {
        let attempts = Mutex::new(attempts.into_iter());
        let put = || async { attempts.lock().expect("not poisoned").next().expect("no further try is due") };
        let backoff = Backoff { first: Duration::ZERO, limit: Duration::from_secs(60) };
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
        let backoff = Backoff { first: Duration::from_secs(2), limit: Duration::from_secs(1) };
        let answer = create_only(|| async { Attempt::Unknown(lost()) }, || async { Ok(true) }, backoff).await;
        assert!(answer.is_err());
    }
}
