//! What is said to people, line by line.

use std::io::Write;

/// Writes a line to standard error in one piece: worker processes write there as well, and `eprintln!` would let their
/// lines mix with this one.
pub fn say(line: impl std::fmt::Display) {
    // Nobody may be listening any more, which is no reason to end a run.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
