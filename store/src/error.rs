//! What can go wrong with stored bytes, in words a user can act on.

use std::time::Duration;

use object_store::Error as ObjectError;

use crate::answer::{Answer, is_remote};

/// Names of the clouds for a bucket that is not there.
const MISSING_BUCKET: [&str; 2] = ["NoSuchBucket", "ContainerNotFound"];
/// Names for credentials that held once. Amazon answers 400 or 403, by the service.
const EXPIRED: [&str; 3] = ["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"];
/// Names for a bucket of another region than the one that was signed for.
const WRONG_REGION: [&str; 3] =
    ["AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"];

/// An operation on stored bytes that failed. Every message names the address and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The object is not there.
    #[error("cannot {action} {url}: there is no such object; check the address")]
    NotFound {
        /// Full address of the object.
        url: String,
        /// What was attempted.
        action: &'static str,
    },
    /// The bucket is not there.
    #[error("cannot {action} {url}: the bucket does not exist; create it, or correct the address or the endpoint")]
    MissingBucket {
        /// Full address of the object.
        url: String,
        /// What was attempted.
        action: &'static str,
    },
    /// The store knows us not, or not for this.
    #[error(
        "cannot {action} {url}: access denied ({detail}); check {}, and that they are allowed to do this",
        credentials(url)
    )]
    Denied {
        /// Full address of the object.
        url: String,
        /// What was attempted.
        action: &'static str,
        /// The store's own words.
        detail: String,
    },
    /// The credentials held once, and no longer.
    #[error(
        "cannot {action} {url}: the credentials have expired ({detail}); renew {}, and start again",
        credentials(url)
    )]
    Expired {
        /// Full address of the object.
        url: String,
        /// What was attempted.
        action: &'static str,
        /// The store's own words.
        detail: String,
    },
    /// The bucket is elsewhere.
    #[error(
        "cannot {action} {url}: the bucket is in another region ({detail}); set AWS_REGION to the bucket's region, and AWS_ENDPOINT_URL to that region's endpoint or to nothing"
    )]
    WrongRegion {
        /// Full address of the object.
        url: String,
        /// What was attempted.
        action: &'static str,
        /// The store's own words.
        detail: String,
    },
    /// The store answered that it will not do this, for a reason that has no name here.
    #[error(
        "cannot {action} {url}: the store refused ({detail}); check the address, {} and {}",
        endpoint(url),
        credentials(url)
    )]
    Refused {
        /// Full address of the object.
        url: String,
        /// What was attempted.
        action: &'static str,
        /// The store's own words.
        detail: String,
    },
    /// The store did not answer, or answered with errors only, for as long as we tried.
    #[error("cannot {action} {url}: gave up after {:.1} s ({detail}); check that the store is up and can be reached, then {}, then {}", elapsed.as_secs_f64(), endpoint(url), credentials(url))]
    Unreachable {
        /// Full address of the object.
        url: String,
        /// What was attempted.
        action: &'static str,
        /// How long we tried.
        elapsed: Duration,
        /// The last failure.
        detail: String,
    },
    /// The address of a store cannot be understood.
    #[error(
        "{url:?} is no usable store address: {reason}; use a path, file:///path, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or memory://name"
    )]
    BadUrl {
        /// The address as given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A local file system refused.
    #[error("cannot {action} {url}: {detail}")]
    Io {
        /// Full address of the object.
        url: String,
        /// What was attempted.
        action: &'static str,
        /// The system's words.
        detail: String,
    },
    /// Bytes are not what they must be.
    #[error("{place} is damaged: {reason}")]
    Damaged {
        /// The object, and where in it.
        place: String,
        /// What was expected, what is there, and what to do.
        reason: String,
    },
    /// Something whole is not what was asked for.
    #[error("{place}: {reason}")]
    Mismatch {
        /// The object, and where in it.
        place: String,
        /// What was expected, what is there, and what to do.
        reason: String,
    },
    /// A checkpoint of this step exists with other content.
    #[error(
        "{url} exists with another content: the same step gave two states; stop both runs and look for the worker that computes differently"
    )]
    ConflictingCheckpoint {
        /// Address of the manifest.
        url: String,
        /// The step.
        step: u64,
    },
    /// The run in this store follows another recipe.
    #[error(
        "{url} belongs to the recipe {stored}, but this one is {ours}; give the new run another store, or go back to the stored recipe"
    )]
    OtherRecipe {
        /// Address of the stored recipe.
        url: String,
        /// Its identity.
        stored: String,
        /// The identity of the recipe that was given.
        ours: String,
    },
}

impl StoreError {
    /// Whether this says that the object is absent.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether this says that stored bytes are absent or not what they must be, which a retry does not mend.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Damaged { .. })
    }

    /// Whether another machine may fare better: the trouble may lie in this one's disk, network or keys.
    pub fn is_local(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Io { .. }
                | Self::Denied { .. }
                | Self::Expired { .. }
                | Self::WrongRegion { .. }
                | Self::Refused { .. }
        )
    }

    /// Bytes at `place` that are not what they must be.
    pub fn damaged(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Damaged { place: place.into(), reason: reason.into() }
    }

    /// Something whole at `place` that is not what was asked for.
    pub fn mismatch(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Mismatch { place: place.into(), reason: reason.into() }
    }

    /// Puts the object store's error into our words.
    pub(crate) fn from_object(error: ObjectError, url: String, action: &'static str, elapsed: Duration) -> Self {
        let answer = Answer::of(&error);
        let detail = answer.words.clone();
        match error {
            _ if answer.is_one_of(&MISSING_BUCKET) => Self::MissingBucket { url, action },
            _ if answer.is_one_of(&EXPIRED) => Self::Expired { url, action, detail },
            _ if answer.is_one_of(&WRONG_REGION) || detail.contains("incorrectly configured region") => {
                Self::WrongRegion { url, action, detail }
            }
            ObjectError::NotFound { .. } => Self::NotFound { url, action },
            ObjectError::PermissionDenied { .. } | ObjectError::Unauthenticated { .. } => {
                Self::Denied { url, action, detail }
            }
            ObjectError::InvalidPath { .. } => Self::BadUrl { url, reason: detail },
            e if is_remote(&e) && answer.is_transient() => Self::Unreachable { url, action, elapsed, detail },
            e if is_remote(&e) => Self::Refused { url, action, detail },
            _ => Self::Io { url, action, detail },
        }
    }
}

/// Where the credentials for `url` come from.
fn credentials(url: &str) -> &'static str {
    match url.split_once("://") {
        Some(("s3", _)) => {
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or the role of this machine"
        }
        Some(("gs", _)) => "GOOGLE_APPLICATION_CREDENTIALS, or the service account of this machine",
        Some(("az", _)) => {
            "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or the managed identity of this machine"
        }
        _ => "the folder's permissions",
    }
}

/// What says where the server of `url` is.
fn endpoint(url: &str) -> &'static str {
    match url.split_once("://") {
        Some(("s3", _)) => "AWS_ENDPOINT_URL and AWS_REGION",
        Some(("gs", _)) => "GOOGLE_BASE_URL",
        Some(("az", _)) => "AZURE_STORAGE_ENDPOINT",
        _ => "the folder",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreachable_store_is_reported_with_the_time_spent_on_it() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = ObjectError::Generic { store: "S3", source: refused.into() };
        let words =
            StoreError::from_object(error, "s3://b/k".into(), "read", Duration::from_millis(30_040)).to_string();
        for part in ["cannot read s3://b/k", "after 30.0 s", "connection refused", "AWS_ENDPOINT_URL"] {
            assert!(words.contains(part), "{words}");
        }
    }

    fn reported(
        status: &'static str,
        make: impl FnOnce(Box<dyn std::error::Error + Send + Sync>) -> ObjectError,
    ) -> StoreError {
        let source = format!("Server returned non-2xx status code: {status}").into();
        StoreError::from_object(make(source), "s3://b/k".into(), "read", Duration::ZERO)
    }

    #[test]
    fn permanent_answers_are_told_apart_by_name() {
        let generic = |source| ObjectError::Generic { store: "S3", source };
        let denied = |source| ObjectError::PermissionDenied { path: "k".into(), source };
        let missing = |source| ObjectError::NotFound { path: "k".into(), source };
        for error in [
            reported("400 Bad Request: <Code>ExpiredToken</Code><Message>Too old</Message>", generic),
            reported("403 Forbidden: <Code>ExpiredToken</Code>", denied),
        ] {
            assert!(matches!(error, StoreError::Expired { .. }), "{error:?}");
            assert!(error.to_string().contains("AWS_SESSION_TOKEN") && error.is_local(), "{error}");
        }
        let error = reported("400 Bad Request: <Code>AuthorizationHeaderMalformed</Code>", generic);
        assert!(matches!(error, StoreError::WrongRegion { .. }) && error.to_string().contains("AWS_REGION"), "{error}");
        let error = reported("404 Not Found: <Code>NoSuchBucket</Code>", missing);
        assert!(matches!(error, StoreError::MissingBucket { .. }), "{error:?}");
        assert!(matches!(reported("404 Not Found: ", missing), StoreError::NotFound { .. }));
        assert!(matches!(reported("403 Forbidden: <Code>AccessDenied</Code>", denied), StoreError::Denied { .. }));
        let error = reported("400 Bad Request: <Code>KeyTooLongError</Code>", generic);
        assert!(
            matches!(error, StoreError::Refused { .. }) && error.to_string().contains("KeyTooLongError"),
            "{error}"
        );
    }
}
