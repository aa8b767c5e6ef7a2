//! Who computes which slots and sums which chunks, in one try at a step.

use std::ops::Range;

use polo_recipe::{
    ids::Rank,
    slots::{SumPlan, assign},
};

use super::{Attempt, Setting};
use crate::reduce::{Cuts, ExactReduce};

/// Who computes and who sums what.
pub(super) struct Shape {
    /// By member.
    pub(super) shares: Vec<Range<usize>>,
    pub(super) sums: SumPlan,
    pub(super) reduce: ExactReduce,
}

pub(super) fn members(num_members: usize) -> impl Iterator<Item = Rank> {
    (0..num_members as u32).map(Rank)
}

/// Slots of each member: those that compute have the fixed assignment, passed on by `rotation` places.
pub(super) fn shares(setting: &Setting, num_members: usize, computing: &[Rank], rotation: usize) -> Vec<Range<usize>> {
    let assigned = assign(setting.batch.slots, computing.len()).unwrap_or_default();
    let mut shares = vec![0..0; num_members];
    for (place, rank) in computing.iter().enumerate() {
        if let Some(share) = assigned.get((place + rotation) % computing.len()) {
            shares[rank.index()] = share.clone();
        }
    }
    shares
}

pub(super) fn shape(
    setting: &Setting,
    num_members: usize,
    computing: &[Rank],
    owners: &[Vec<Rank>],
    rank: Rank,
    attempt: &Attempt,
) -> Shape {
    let slots = setting.batch.slots;
    let shares = shares(setting, num_members, computing, attempt.rotation);
    let mut owners = owners.to_vec();
    if attempt.has_witnesses {
        owners.iter_mut().for_each(|owners| add_witness(owners, num_members));
    }
    let sums = SumPlan::new(slots, &shares[rank.index()]);
    Shape { reduce: ExactReduce::new(slots, &shares, Cuts::of(&setting.layout), owners, rank), sums, shares }
}

/// Adds the member that comes after the owners of a chunk, unless all members are owners. Which chunk comes out wrong
/// may change from try to try, so each has its witness.
fn add_witness(owners: &mut Vec<Rank>, num_members: usize) {
    let first = owners.first().map_or(0, |rank| rank.index());
    let mut others = (first..first + num_members).map(|rank| Rank((rank % num_members) as u32));
    if let Some(witness) = others.find(|rank| !owners.contains(rank)) {
        owners.push(witness);
        owners.sort_unstable();
    }
}
