//! Where this process stands: what lines are marked with.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

use polo_recipe::ids::{Generation, Step};
use serde_json::{Value, json};

const UNKNOWN: u64 = u64::MAX;

static RUN: OnceLock<String> = OnceLock::new();
static GENERATION: AtomicU64 = AtomicU64::new(UNKNOWN);
static RANK: AtomicU64 = AtomicU64::new(UNKNOWN);
static STEP: AtomicU64 = AtomicU64::new(UNKNOWN);

/// This process belongs to a run, for good.
pub fn in_run(name: &str) {
    RUN.get_or_init(|| name.into());
}

/// It has come into a generation; a coordinator has no rank.
pub fn in_generation(generation: Generation, rank: Option<u32>) {
    GENERATION.store(generation.0, Ordering::Relaxed);
    RANK.store(rank.map_or(UNKNOWN, u64::from), Ordering::Relaxed);
}

/// It has completed a step.
pub fn at_step(step: Step) {
    STEP.store(step.0, Ordering::Relaxed);
}

/// What is known by now; the rest is null.
pub(crate) fn fields() -> [(&'static str, Value); 4] {
    let known = |number: &AtomicU64| match number.load(Ordering::Relaxed) {
        UNKNOWN => Value::Null,
        number => json!(number),
    };
    [("run", json!(RUN.get())), ("generation", known(&GENERATION)), ("rank", known(&RANK)), ("step", known(&STEP))]
}
