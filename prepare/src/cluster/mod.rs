//! One corpus from several machines.
//!
//! A **leader** does what a preparation on one machine does, and lets **helpers** do ahead of its turn what costs a file
//! most: reading, taking apart, judging, encoding. A helper stores the result of a file, batch by batch ([`packing`]), beside
//! the journal ([`pieces`]), and the leader takes it up when the file's turn comes, as if it had made it itself; duplicates
//! are decided by the leader alone, in input order. So the corpus does not depend on who has worked on what. Who works on
//! which file is decided by a pure machine ([`leases`]); [`leader`] and [`service`] are the shell around it, [`helper`] is
//! the other side, and [`work`] are the threads that work on leased files on either.

pub mod helper;
pub mod leader;
mod leases;
pub mod packing;
pub mod pieces;
mod service;
mod wire;
mod work;

use std::{collections::BTreeSet, time::Duration};

use polo_store::Digest;

use crate::{
    inputs::Input,
    progress::Screen,
    reading::{Supply, Way},
    tools::Tools,
};
use pieces::{FORMAT_VERSION, Work};

/// Tokenizer, cleaning file and options go to helpers in one message, which may have this many bytes.
const MAX_DESCRIPTION_BYTES: usize = 64 << 20;
/// A helper that heartbeats has this long to make any progress.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(600);
/// For how long the helpers that are to be there at the beginning are waited for.
const MAX_WAIT_FOR_HELPERS: Duration = Duration::from_secs(60);

/// Of the program, and of the format of results. That of corpora is a part of the plan.
fn version() -> String {
    format!("{}/{FORMAT_VERSION}", env!("CARGO_PKG_VERSION"))
}

/// What all machines must agree on: the plan, and which source has which number.
fn preparation(tools: &Tools) -> Digest {
    Digest::of(format!("{:?}\n{:?}", tools.plan(), tools.sources).as_bytes())
}

/// A file of the preparation.
#[derive(Debug, Clone)]
pub struct FileInPlan {
    /// Number of its source.
    pub source: usize,
    /// Its number in the source.
    pub number: usize,
    /// The file.
    pub input: Input,
    /// What its result is called.
    pub work: Work,
}

/// Without helpers every file is read here, but for those whose results were left by a preparation that had some.
pub struct Alone {
    done: BTreeSet<usize>,
    screen: Screen,
}

impl Alone {
    /// With results of the files `done`.
    pub fn new(done: BTreeSet<usize>, screen: Screen) -> Self {
        Self { done, screen }
    }
}

impl Supply for Alone {
    fn early(&self, file: usize) -> Option<Way> {
        Some(self.turn(file))
    }

    fn turn(&self, file: usize) -> Way {
        if self.done.contains(&file) { Way::Result(None) } else { Way::Read }
    }

    fn stop(&self) {}

    fn tell(&self, words: String) {
        self.screen.say(&words);
    }
}
