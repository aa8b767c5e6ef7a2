//! What can go wrong with stored bytes, in words a user can act on.

use std::time::Duration;

use object_store::Error as ObjectError;

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
        "cannot {action} {url}: access denied ({detail}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or the folder's permissions"
    )]
    Denied {
        /// Full address of the object.
        url: String,
        /// What was attempted.
        action: &'static str,
        /// The store's own words.
        detail: String,
    },
    /// The store did not answer, or answered with errors only, for as long as we tried.
    #[error("cannot {action} {url}: gave up after {:.1} s ({detail}); check that the store is up, and AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", elapsed.as_secs_f64())]
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
        "{url:?} is no usable store address: {reason}; use a path, file:///path, s3://bucket/prefix or memory://name"
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
        matches!(self, Self::Unreachable { .. } | Self::Io { .. } | Self::Denied { .. })
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
        let detail = innermost_words(&error);
        match error {
            _ if detail.contains("NoSuchBucket") => Self::MissingBucket { url, action },
            ObjectError::NotFound { .. } => Self::NotFound { url, action },
            ObjectError::PermissionDenied { .. } | ObjectError::Unauthenticated { .. } => {
                Self::Denied { url, action, detail }
            }
            ObjectError::InvalidPath { .. } => Self::BadUrl { url, reason: detail },
            ObjectError::Generic { store: "S3", .. } => Self::Unreachable { url, action, elapsed, detail },
            _ => Self::Io { url, action, detail },
        }
    }
}

/// The last error of the chain: the wrappers above it only repeat the path.
fn innermost_words(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
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
}
