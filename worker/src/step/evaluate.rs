//! The loss on held-out samples: all ranks that can compute share them out, and each sums all ranks' losses in one order.

use std::ops::Range;

use futures::future::FutureExt;
use polo_recipe::{
    config::Batch,
    ids::{Rank, Step},
    plan::ValidationSet,
};

use super::{Bench, StepError, Stepper, members, parameters};
use crate::{
    plane::{PlaneError, gather::all_gather},
    reduce::Traffic,
    rig::HeldOut,
    trace::Track,
};

/// Bytes of a group's loss.
const LOSS_BYTES: usize = size_of::<f64>();

impl Stepper<'_> {
    /// The summed loss of each of the plan's validation sets, equal to the bit on all members and for every world.
    pub async fn evaluate(&self, bench: &mut Bench<'_>, step: Step) -> Result<Vec<f64>, StepError> {
        self.show(step, "evaluate");
        let _evaluating = self.setting.trace.span(Track::Compute, "evaluate");
        let sets = self.setting.plan.validation_sets();
        let groups = groups(sets, &self.setting.batch);
        let shares = shares(groups.len(), &self.computing, self.num_members);
        let own = self.losses(bench, step, &groups[shares[self.rank.index()].clone()], &shares).await?;
        let record: Vec<u8> = own.iter().flat_map(|loss| loss.to_le_bytes()).collect();
        let lens: Vec<_> = shares.iter().map(|share| share.len() * LOSS_BYTES).collect();
        let gathered = all_gather(bench.plane, &lens, &record).await?.concat();
        let losses = gathered.as_chunks::<LOSS_BYTES>().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
        let mut sums = vec![0.0; sets.len()];
        groups.iter().zip(losses).for_each(|(group, loss)| sums[group.set] += loss);
        Ok(sums)
    }

    /// This rank's losses. Meanwhile blocks are gathered, if they are not here.
    async fn losses(
        &self,
        bench: &mut Bench<'_>,
        step: Step,
        groups: &[HeldOut],
        shares: &[Range<usize>],
    ) -> Result<Vec<f64>, StepError> {
        let Bench { plane, state, arithmetic, network, .. } = bench;
        let abort = plane.abort_handle();
        let is_cancelled = || abort.is_aborted();
        let receivers = members(shares.len()).filter(|rank| !shares[rank.index()].is_empty()).collect();
        let (gatherer, mut params) = parameters(self.setting, &self.owners, receivers, &state.params);
        let (mut losses, mut gathered) = (Ok(Vec::new()), Ok::<_, PlaneError>(()));
        let main = async {
            if !groups.is_empty() {
                losses = arithmetic.losses(step, groups, &mut params, &is_cancelled).await;
            }
            drop(params);
        };
        let side = async {
            let (Some(mut gatherer), mut traffic) = (gatherer, Traffic::default()) else { return };
            for block in 0..self.setting.layout.blocks.len() {
                match gatherer.gather(&mut **plane, block, &mut traffic).await {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => return gathered = Err(error),
                }
            }
        };
        network.together(main.boxed_local(), side.boxed()).await;
        gathered?;
        losses
    }
}

/// As many windows at once as in training, cut in a way that no world changes: what is computed at once may decide bits.
fn groups(sets: &[ValidationSet], batch: &Batch) -> Vec<HeldOut> {
    let of_set = |(set, ValidationSet { windows, .. }): (usize, &ValidationSet)| {
        let Range { start, end } = *windows;
        let width = batch.micro_batch as u64;
        (start..end).step_by(batch.micro_batch).map(move |from| HeldOut { set, windows: from..(from + width).min(end) })
    };
    sets.iter().enumerate().flat_map(of_set).collect()
}

/// The groups of each member: those that compute have equal shares, to within one.
fn shares(num_groups: usize, computing: &[Rank], num_members: usize) -> Vec<Range<usize>> {
    let bound = |place: usize| num_groups * place / computing.len().max(1);
    let mut shares = vec![0..0; num_members];
    for (place, rank) in computing.iter().enumerate() {
        shares[rank.index()] = bound(place)..bound(place + 1);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_do_not_reach_from_one_set_into_the_next() {
        let set = |source: &str, windows| ValidationSet { source: source.into(), windows };
        let batch = Batch { seq_len: 4, samples_per_step: 4, slots: 2, micro_batch: 2, document_mask: false };
        let found = groups(&[set("en", 5..8), set("zh", 0..2)], &batch);
        let expected = [(0, 5..7), (0, 7..8), (1, 0..2)].map(|(set, windows)| HeldOut { set, windows });
        assert_eq!(found, expected);
    }

    #[test]
    fn those_that_compute_share_all_groups_in_their_order() {
        assert_eq!(shares(7, &[Rank(0), Rank(2)], 4), [0..3, 0..0, 3..7, 0..0]);
        assert_eq!(shares(1, &[Rank(0), Rank(1)], 2), [0..0, 0..1]);
    }
}
