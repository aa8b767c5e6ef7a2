//! The sum of all slots' gradients by the data plane's own all-reduce, `run.reduction = "nccl"`: on a GPU less work than the
//! exact reduction, and not the same bits in every world.

use polo_recipe::{
    ids::Rank,
    layout::{ChunkId, Layout},
};

use crate::{
    flat::{
        Flat,
        ops::{add_assign, copy},
    },
    plane::{DataPlane, PlaneError},
    reduce::{Sums, Traffic},
};

/// Who sums, and what each rank keeps of it.
pub(super) struct AllReduce<'a> {
    pub(super) layout: &'a Layout,
    pub(super) owners: &'a [Vec<Rank>],
    pub(super) num_members: usize,
}

impl AllReduce<'_> {
    /// Writes the sum over all members' `pieces` of a block to `sums`, for this rank's chunks. Returns what a ring moves.
    pub(super) async fn run(
        &self,
        plane: &mut dyn DataPlane,
        block: usize,
        pieces: &mut [Flat],
        sums: &mut Sums,
    ) -> Result<Traffic, PlaneError> {
        let (own, block) = (plane.rank(), self.layout.blocks[block].range.clone());
        let mut nothing;
        let total = match pieces {
            [first, others @ ..] => {
                others.iter().for_each(|piece| add_assign(first.as_mut_slice(), piece.as_slice()));
                first
            }
            [] => {
                nothing = Flat::zeros(block.len());
                &mut nothing
            }
        };
        plane.all_reduce(self.num_members, total.as_mut_slice()).await?;
        for (chunk, cut) in self.layout.chunks_in(&block) {
            let ChunkId(number) = chunk.id;
            if self.owners[number as usize].contains(&own) {
                let sum = sums.entry(chunk.id).or_insert_with(|| Flat::zeros(chunk.range.len()));
                let place = cut.start - chunk.range.start..cut.end - chunk.range.start;
                copy(&mut sum.as_mut_slice()[place], &total.as_slice()[cut.start - block.start..cut.end - block.start]);
            }
        }
        let bytes = (size_of::<f32>() * block.len() * 2 * (self.num_members - 1) / self.num_members) as u64;
        Ok(Traffic { sent_bytes: bytes, received_bytes: bytes })
    }
}
