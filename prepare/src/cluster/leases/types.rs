//! What the machine hears, what it wants done, and what it tells people.

use std::fmt;

use polo_store::Digest;

use super::MAX_FAILURES;
use crate::reading::Way;

/// Milliseconds since some moment.
pub type NowMs = u64;

/// One session of a helper; a helper that comes back has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HelperId(pub u64);

/// Who works on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    /// A helper.
    Helper(HelperId),
    /// The leader's own cores, while it waits.
    Own,
}

/// What the decisions are made with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of the program and its formats.
    pub version: String,
    /// Digest of what is prepared.
    pub preparation: Digest,
    /// Nothing is begun before so many helpers are there ...
    pub min_helpers: usize,
    /// ... or this time has passed.
    pub max_wait_ms: u64,
    /// A helper that is silent for longer is given up.
    pub silence_timeout_ms: u64,
    /// A helper that has leases but makes no progress for longer is given up.
    pub progress_timeout_ms: u64,
    /// Most stored bytes of files that are leased or done before their turn.
    pub max_ahead_bytes: u64,
}

/// Who a helper is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Introduction {
    /// For people.
    pub name: String,
    /// Of its program.
    pub version: String,
    /// What it would prepare.
    pub preparation: Digest,
    /// What it has of an earlier session: files, with results where those are stored.
    pub held: Vec<(usize, Option<Digest>)>,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A helper wants to take part.
    Joined(HelperId, Introduction),
    /// It says something.
    Said(HelperId, Said),
    /// Its stream ended.
    StreamBroken(HelperId),
    /// The leader's own cores say something.
    OwnSaid(Said),
    /// The leader will soon come to this file.
    Soon(usize),
    /// The leader has come to this file.
    Turn(usize),
    /// Time has passed.
    Tick,
}

/// What somebody says who works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Here I am; the number grows while there is progress.
    Heartbeat(u64),
    /// The result of a file is stored; with the digest of its index.
    Done(usize, Digest),
    /// This file cannot be done here.
    Failed(usize, String),
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The helper takes part.
    Welcome(HelperId),
    /// It does not, or not any more; its stream ends.
    Dismiss(HelperId, Dismissal),
    /// Have a file worked on.
    Lease(Worker, usize),
    /// It need not be worked on any more.
    Forget(HelperId, usize),
    /// Answers [`Event::Soon`]: how the leader has it from now on, if that is known.
    TakeEarly(usize, Option<Way>),
    /// Answers [`Event::Turn`].
    Take(usize, Way),
    /// A result that nobody wants lies there.
    Discard(usize),
    /// For people.
    News(News),
}

/// Why a helper does not take part, or not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dismissal {
    /// Its program is of another version.
    OtherVersion {
        /// The helper's.
        helper: String,
        /// The leader's.
        leader: String,
    },
    /// It has made ready for something else.
    OtherPreparation,
    /// It was not heard of.
    Silent {
        /// For how long.
        for_ms: u64,
    },
    /// It is there, but what it has leased does not go on.
    Stuck {
        /// For how long.
        for_ms: u64,
    },
    /// It failed too often in a row.
    Failing {
        /// What it said last.
        reason: String,
    },
}

impl Dismissal {
    /// Whether it would be the same if the helper came back.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Silent { .. })
    }
}

impl fmt::Display for Dismissal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherVersion { helper, leader } => write!(
                f,
                "it is of version {helper} (program/corpora/results), and the leader of {leader}; run the same program \
                 everywhere"
            ),
            Self::OtherPreparation => f.write_str("the leader prepares something else by now; join it again"),
            Self::Silent { for_ms } => write!(f, "nothing was heard of it for {} s", for_ms / 1000),
            Self::Stuck { for_ms } => {
                write!(
                    f,
                    "it made no progress for {} s; look at its machine and at the way to the stores",
                    for_ms / 1000
                )
            }
            Self::Failing { reason } => write!(f, "it failed {MAX_FAILURES} times in a row, last with: {reason}"),
        }
    }
}

/// What people are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A helper takes part.
    Joined {
        /// Its name.
        name: String,
        /// How many there are now.
        num_helpers: usize,
    },
    /// A helper that had nothing to do works on a file, and perhaps on others after it.
    Leased {
        /// Its name.
        name: String,
        /// The file.
        file: usize,
    },
    /// A helper is gone.
    Left {
        /// Its name.
        name: String,
        /// Why; nothing where its stream broke.
        why: Option<Dismissal>,
        /// What it had leased.
        files: Vec<usize>,
    },
    /// A helper may not take part.
    Refused {
        /// Its name.
        name: String,
        /// Why.
        why: Dismissal,
    },
    /// A file was not done.
    Failed {
        /// Who failed.
        name: String,
        /// The file.
        file: usize,
        /// Why.
        reason: String,
    },
    /// Not as many helpers came as were awaited.
    BegunWithout {
        /// How many there are.
        num_helpers: usize,
        /// How many were awaited.
        min_helpers: usize,
    },
}

/// What the leader waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Awaited {
    /// Helpers, before anything is begun.
    Helpers {
        /// How many.
        min_helpers: usize,
    },
    /// The result of a file.
    File {
        /// Its number.
        file: usize,
        /// Whose.
        name: String,
    },
}

/// What people see of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// Helpers that take part.
    pub num_helpers: usize,
    /// Files that are worked on.
    pub num_leased: usize,
    /// Files that are done before their turn.
    pub num_done: usize,
    /// What the leader waits for.
    pub awaited: Option<Awaited>,
}
