//! How many workers are needed, and what to change where no number of them is enough.

use super::{Load, Problem, Shape, footprint};
use crate::{
    config::{Batch, Copies, Gather},
    layout::Layout,
};

/// Samples are not made shorter than this to save memory.
const SHORTEST_SEQ_LEN: usize = 128;

/// The first of the changes, which leave the trained numbers as they are.
const NUM_WITHOUT_EFFECT: usize = 4;

/// Changes to a recipe with which it fits.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Remedy {
    /// The changes, as `--set` takes them.
    pub sets: Vec<String>,
    /// The fewest workers with which it fits then.
    pub num_workers: usize,
}

/// A change and how it is written.
type Change = (String, Problem);

/// The fewest workers that hold at most `memory_bytes` each; none if it does not fit even with one for each slot.
pub fn smallest_world(problem: &Problem, memory_bytes: u64) -> Option<usize> {
    let layout = Layout::qwen2(&problem.model);
    // Whoever holds most holds at least the mean, which needs no owners to be found.
    let may_fit = |n: &usize| mean_bytes(problem, *n, &layout).is_some_and(|mean| mean <= memory_bytes);
    let fits = |n: &usize| footprint(problem, *n).is_some_and(|found| found.total_bytes() <= memory_bytes);
    (1..=problem.batch.slots).filter(may_fit).find(fits)
}

/// The first that helps of: each change alone that leaves the trained numbers as they are, then one after the other, and
/// at last those that make it another run. None if nothing does.
pub fn what_would_fit(problem: &Problem, memory_bytes: u64) -> Option<Remedy> {
    let alone = changes(problem).into_iter().take(NUM_WITHOUT_EFFECT).map(|(set, changed)| (vec![set], changed));
    let remedy = |(sets, changed): (Vec<String>, Problem)| {
        smallest_world(&changed, memory_bytes).map(|num_workers| Remedy { sets, num_workers })
    };
    alone.chain(one_after_another(problem)).find_map(remedy)
}

/// Each problem has one change more than the one before, as long as changes help.
fn one_after_another(problem: &Problem) -> Vec<(Vec<String>, Problem)> {
    let (mut now, mut sets, mut found) = (problem.clone(), Vec::new(), Vec::new());
    for number in 0..changes(problem).len() {
        let (set, changed) = changes(&now).swap_remove(number);
        if least_bytes(&changed) < least_bytes(&now) {
            sets.push(set);
            now = changed;
            found.push((sets.clone(), now.clone()));
        }
    }
    while now.batch.seq_len / 2 >= SHORTEST_SEQ_LEN {
        now.batch.seq_len /= 2;
        let with_length = sets.iter().cloned().chain([format!("batch.seq_len={}", now.batch.seq_len)]).collect();
        found.push((with_length, now.clone()));
    }
    found
}

fn changes(problem: &Problem) -> Vec<Change> {
    let batch = |micro_batch| Batch { micro_batch, ..problem.batch.clone() };
    vec![
        ("model.recompute=true".into(), Problem { recompute: true, ..problem.clone() }),
        ("workers.copies=1".into(), Problem { copies: Copies::Number(1), ..problem.clone() }),
        ("workers.gather=block".into(), Problem { gather: Gather::Block, ..problem.clone() }),
        ("workers.offload_moments=true".into(), Problem { offload_moments: true, ..problem.clone() }),
        ("batch.micro_batch=1".into(), Problem { batch: batch(1), ..problem.clone() }),
    ]
}

/// What a worker holds where there is one for each slot.
fn least_bytes(problem: &Problem) -> u64 {
    mean_bytes(problem, problem.batch.slots, &Layout::qwen2(&problem.model)).unwrap_or(u64::MAX)
}

/// The mean over all workers. A total is linear in what a worker owns and stores, so the mean of these gives that of it.
fn mean_bytes(problem: &Problem, num_workers: usize, layout: &Layout) -> Option<u64> {
    let shape = Shape::new(problem, num_workers, layout)?;
    let owned_params = shape.num_params * shape.copies / shape.num_workers;
    let load = Load { owned_params, stored_params: shape.num_params / shape.num_workers };
    let totals = (0..num_workers).map(|rank| shape.footprint(rank, load).total_bytes());
    Some(totals.sum::<u64>() / shape.num_workers)
}
