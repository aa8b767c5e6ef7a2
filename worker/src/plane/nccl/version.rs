//! Which releases of NCCL can be used.

use std::fmt;

use super::NcclError;

/// The first release whose non-blocking communicators can be aborted at any time.
const OLDEST: Version = Version { major: 2, minor: 26, patch: 2 };
/// Releases that are known to fail when communicators are aborted: the first and the last of them.
const FAIL_ON_ABORT: [Version; 2] =
    [Version { major: 2, minor: 28, patch: 3 }, Version { major: 2, minor: 28, patch: 8 }];

/// A release of NCCL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// As in 2.28.9: the 2.
    pub major: i32,
    /// The 28.
    pub minor: i32,
    /// The 9.
    pub patch: i32,
}

impl Version {
    /// From the number that `ncclGetVersion` gives: 22809 is 2.28.9, and up to 2.8 a zero less, 2804 is 2.8.4
    /// (`NCCL_VERSION` in nccl.h).
    pub fn from_code(code: i32) -> Self {
        let per_major = if code < 10_000 { 1000 } else { 10_000 };
        Self { major: code / per_major, minor: code % per_major / 100, patch: code % 100 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Whether the release with this number can be used, and if not, why.
pub fn check_version(code: i32) -> Result<Version, NcclError> {
    let version = Version::from_code(code);
    let [first, last] = FAIL_ON_ABORT;
    if version < OLDEST {
        return Err(NcclError::TooOld { version, oldest: OLDEST });
    }
    if (first..=last).contains(&version) {
        return Err(NcclError::FailsOnAbort { version, first, last });
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_that_can_be_aborted_are_accepted_and_others_refused_with_the_reason() {
        const TOO_OLD: &str = "is too old: 2.26.2 or newer";
        const FAILS: &str = "known to fail when communicators are aborted";
        let cases = [
            (2804, "2.8.4", Some(TOO_OLD)),
            (21_903, "2.19.3", Some(TOO_OLD)),
            (22_601, "2.26.1", Some(TOO_OLD)),
            (22_602, "2.26.2", None),
            (22_707, "2.27.7", None),
            (22_802, "2.28.2", None),
            (22_803, "2.28.3", Some(FAILS)),
            (22_807, "2.28.7", Some(FAILS)),
            (22_808, "2.28.8", Some(FAILS)),
            (22_809, "2.28.9", None),
            (22_901, "2.29.1", None),
            (30_000, "3.0.0", None),
        ];
        for (code, name, refusal) in cases {
            assert_eq!(Version::from_code(code).to_string(), name);
            match (check_version(code), refusal) {
                (Ok(version), None) => assert_eq!(version.to_string(), name),
                (Err(error), Some(reason)) => {
                    let text = error.to_string();
                    assert!(text.contains(reason) && text.contains(name), "{code}: {text}");
                }
                (found, _) => panic!("{code}: {found:?}"),
            }
        }
    }
}
