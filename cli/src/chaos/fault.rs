//! Which fault comes next: a pure function of chance and of what could be hurt.

use std::fmt;

use rand::{Rng, RngExt, seq::IndexedRandom};

/// Longest time for which the coordinator or the store is away.
const LONGEST_ABSENCE_MS: u64 = 2000;

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`; another process takes its place.
    KillWorker {
        /// Whom.
        worker: String,
    },
    /// SIGSTOP, and SIGCONT after a while.
    FreezeWorker {
        /// Whom.
        worker: String,
        /// For how long.
        ms: u64,
    },
    /// Nothing goes in or out of its network for a while, and nobody is told.
    CutOffWorker {
        /// Whom.
        worker: String,
        /// For how long.
        ms: u64,
    },
    /// SIGTERM; a worker of another name takes its place.
    DrainWorker {
        /// Whom.
        worker: String,
    },
    /// `kill -9`, and another process on the same address after a while.
    KillCoordinator {
        /// For how long nobody is there.
        ms: u64,
    },
    /// SIGSTOP, and SIGCONT after a while.
    FreezeCoordinator {
        /// For how long.
        ms: u64,
    },
    /// A bit of the newest checkpoint flips, and all workers are killed, so that it is needed.
    DamageCheckpoint {
        /// Decides which chunk and which of its bytes.
        draw: u64,
    },
    /// Chunks can neither be written nor read for a while.
    BreakStore {
        /// For how long.
        ms: u64,
    },
}

/// Kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// [`Fault::KillWorker`]
    KillWorker,
    /// [`Fault::FreezeWorker`]
    FreezeWorker,
    /// [`Fault::CutOffWorker`]
    CutOffWorker,
    /// [`Fault::DrainWorker`]
    DrainWorker,
    /// [`Fault::KillCoordinator`]
    KillCoordinator,
    /// [`Fault::FreezeCoordinator`]
    FreezeCoordinator,
    /// [`Fault::DamageCheckpoint`]
    DamageCheckpoint,
    /// [`Fault::BreakStore`]
    BreakStore,
}

/// What is whole at the moment, and so can be hurt.
#[derive(Debug, Clone, Default)]
pub struct Situation {
    /// Workers that live, are not frozen and were not asked to leave.
    pub workers: Vec<String>,
    /// Whether the coordinator lives and is not frozen.
    pub coordinator: bool,
    /// Whether the store can be read and written.
    pub store: bool,
    /// Whether there is a checkpoint.
    pub checkpoint: bool,
    /// Whether workers have networks that can be cut.
    pub cables: bool,
    /// After so long without a sign of life a worker counts as dead.
    pub heartbeat_timeout_ms: u64,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::KillWorker,
        Self::FreezeWorker,
        Self::CutOffWorker,
        Self::DrainWorker,
        Self::KillCoordinator,
        Self::FreezeCoordinator,
        Self::DamageCheckpoint,
        Self::BreakStore,
    ];

    /// Its name, for people and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillWorker => "kill worker",
            Self::FreezeWorker => "freeze worker",
            Self::CutOffWorker => "cut off worker",
            Self::DrainWorker => "drain worker",
            Self::KillCoordinator => "kill coordinator",
            Self::FreezeCoordinator => "freeze coordinator",
            Self::DamageCheckpoint => "damage checkpoint",
            Self::BreakStore => "break store",
        }
    }

    fn is_possible(self, situation: &Situation) -> bool {
        match self {
            Self::KillWorker | Self::FreezeWorker => !situation.workers.is_empty(),
            Self::CutOffWorker => situation.cables && !situation.workers.is_empty(),
            // The last one has nobody to hand its state to, and need not find a moment to leave.
            Self::DrainWorker => situation.workers.len() > 1,
            Self::KillCoordinator | Self::FreezeCoordinator => situation.coordinator,
            // Otherwise nobody would read it.
            Self::DamageCheckpoint => situation.checkpoint && situation.store && situation.coordinator,
            Self::BreakStore => situation.store,
        }
    }
}

impl Fault {
    /// Draws a fault of any of these kinds that is possible, each as likely as the others; `None` if nothing can be hurt.
    pub fn draw(rng: &mut impl Rng, kinds: &[Kind], situation: &Situation) -> Option<Self> {
        let possible: Vec<_> = kinds.iter().copied().filter(|kind| kind.is_possible(situation)).collect();
        let kind = *possible.choose(rng)?;
        let worker = situation.workers.choose(rng).cloned().unwrap_or_default();
        let absence_ms = rng.random_range(0..=LONGEST_ABSENCE_MS);
        // As often shorter as longer than a worker may be silent.
        let silence_ms = rng.random_range(0..=2 * situation.heartbeat_timeout_ms);
        let draw = rng.random();
        Some(match kind {
            Kind::KillWorker => Self::KillWorker { worker },
            Kind::FreezeWorker => Self::FreezeWorker { worker, ms: silence_ms },
            Kind::CutOffWorker => Self::CutOffWorker { worker, ms: silence_ms },
            Kind::DrainWorker => Self::DrainWorker { worker },
            Kind::KillCoordinator => Self::KillCoordinator { ms: absence_ms },
            Kind::FreezeCoordinator => Self::FreezeCoordinator { ms: absence_ms },
            Kind::DamageCheckpoint => Self::DamageCheckpoint { draw },
            Kind::BreakStore => Self::BreakStore { ms: absence_ms },
        })
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::KillWorker { .. } => Kind::KillWorker,
            Self::FreezeWorker { .. } => Kind::FreezeWorker,
            Self::CutOffWorker { .. } => Kind::CutOffWorker,
            Self::DrainWorker { .. } => Kind::DrainWorker,
            Self::KillCoordinator { .. } => Kind::KillCoordinator,
            Self::FreezeCoordinator { .. } => Kind::FreezeCoordinator,
            Self::DamageCheckpoint { .. } => Kind::DamageCheckpoint,
            Self::BreakStore { .. } => Kind::BreakStore,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind().name();
        match self {
            Self::KillWorker { worker } | Self::DrainWorker { worker } => write!(f, "{kind} {worker}"),
            Self::FreezeWorker { worker, ms } | Self::CutOffWorker { worker, ms } => {
                write!(f, "{kind} {worker} for {ms} ms")
            }
            Self::KillCoordinator { ms } | Self::FreezeCoordinator { ms } | Self::BreakStore { ms } => {
                write!(f, "{kind} for {ms} ms")
            }
            Self::DamageCheckpoint { .. } => write!(f, "{kind}, then kill all workers"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn all_is_well() -> Situation {
        Situation {
            workers: vec!["w0".into(), "w1".into(), "w2".into()],
            coordinator: true,
            store: true,
            checkpoint: true,
            cables: true,
            heartbeat_timeout_ms: 2000,
        }
    }

    fn drawn(seed: u64, situation: &Situation) -> Vec<Fault> {
        let mut rng = StdRng::seed_from_u64(seed);
        (0..300).filter_map(|_| Fault::draw(&mut rng, &Kind::ALL, situation)).collect()
    }

    fn kinds(situation: &Situation) -> BTreeSet<Kind> {
        drawn(1, situation).iter().map(Fault::kind).collect()
    }

    #[test]
    fn one_seed_gives_one_series_of_faults() {
        assert_eq!(drawn(7, &all_is_well()), drawn(7, &all_is_well()));
        assert_ne!(drawn(7, &all_is_well()), drawn(8, &all_is_well()));
    }

    #[test]
    fn all_kinds_come_when_all_is_well_and_none_when_nothing_is_there() {
        assert_eq!(kinds(&all_is_well()), Kind::ALL.into());
        assert_eq!(kinds(&Situation::default()), BTreeSet::new());
    }

    #[test]
    fn what_is_broken_already_is_left_alone() {
        let without_coordinator = kinds(&Situation { coordinator: false, ..all_is_well() });
        let workers_and_store =
            [Kind::KillWorker, Kind::FreezeWorker, Kind::CutOffWorker, Kind::DrainWorker, Kind::BreakStore];
        assert_eq!(without_coordinator, workers_and_store.into());
        assert!(!kinds(&Situation { cables: false, ..all_is_well() }).contains(&Kind::CutOffWorker));
        let without_store = kinds(&Situation { store: false, ..all_is_well() });
        assert!(!without_store.contains(&Kind::BreakStore) && !without_store.contains(&Kind::DamageCheckpoint));
        assert!(!kinds(&Situation { checkpoint: false, ..all_is_well() }).contains(&Kind::DamageCheckpoint));
    }

    #[test]
    fn only_the_kinds_that_are_wanted_come() {
        let mut rng = StdRng::seed_from_u64(1);
        let wanted = [Kind::CutOffWorker, Kind::BreakStore];
        let drawn: BTreeSet<_> =
            (0..50).filter_map(|_| Fault::draw(&mut rng, &wanted, &all_is_well())).map(|f| f.kind()).collect();
        assert_eq!(drawn, wanted.into());
    }

    #[test]
    fn the_last_worker_is_not_asked_to_leave() {
        let kinds = kinds(&Situation { workers: vec!["w0".into()], ..all_is_well() });
        assert!(!kinds.contains(&Kind::DrainWorker) && kinds.contains(&Kind::KillWorker));
    }

    #[test]
    fn freezes_last_shorter_and_longer_than_the_silence_that_counts_as_death() {
        let faults = drawn(3, &all_is_well());
        let freezes: Vec<_> = faults
            .iter()
            .filter_map(|f| if let Fault::FreezeWorker { ms, .. } = f { Some(*ms) } else { None })
            .collect();
        assert!(freezes.iter().any(|ms| *ms < 2000) && freezes.iter().any(|ms| *ms > 2000), "{freezes:?}");
        assert!(freezes.iter().all(|ms| *ms <= 4000), "{freezes:?}");
    }
}
