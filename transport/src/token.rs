//! Tokens: secrets in files, which may change while they are used.

use std::path::{Path, PathBuf};

use crate::TransportError;

/// Characters of a token that nobody guesses, if they are random.
const LEAST_BYTES: usize = 16;

/// What a file holds, without the white space around it.
pub(crate) fn read(path: &Path) -> Result<String, TransportError> {
    let text = std::fs::read_to_string(path).map_err(|source| TransportError::Read { path: path.into(), source })?;
    let token = text.trim();
    if token.len() < LEAST_BYTES {
        return Err(TransportError::ShortToken { path: path.into(), num_bytes: token.len(), least: LEAST_BYTES });
    }
    Ok(token.into())
}

/// A token that others must show.
#[derive(Debug, Clone)]
pub(crate) struct Expected(pub PathBuf);

impl Expected {
    /// Whether `shown` is it. Takes the same time wherever they differ. A file that cannot be read matches nothing.
    pub fn is(&self, shown: &str) -> bool {
        match read(&self.0) {
            // Comparing digests of this kind takes constant time.
            Ok(token) => blake3::hash(token.as_bytes()) == blake3::hash(shown.as_bytes()),
            Err(error) => {
                tracing::error!(%error, "nobody with this token is let in");
                false
            }
        }
    }
}
