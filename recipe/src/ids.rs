//! Numbers with a meaning of their own, so that one cannot be passed for another.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// How many updates a state has had: a fresh state is at `Step(0)`, and the first update takes it to `Step(1)`.
    ///
    /// Where a step being computed is named, it is named by the state it starts from.
    Step(u64)
);

id!(
    /// A worker's place within one generation, from 0.
    Rank(u32)
);

id!(
    /// One membership of the run; the number only grows, also across coordinator restarts.
    Generation(u64)
);

id!(
    /// A source of the corpus, as an index into [`crate::plan::Plan::sources`].
    SourceId(u32)
);

impl Step {
    /// The state after one more update.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Rank {
    /// The rank as an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl Generation {
    /// The generation after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
