//! An all-reduce for planes that have none of their own: everybody sends everybody everything.

use polo_recipe::ids::Rank;
use zerocopy::IntoBytes;

use super::{DataPlane, PlaneError, Transfer};
use crate::flat::{
    Flat,
    ops::{add_assign, clear},
};

/// Elements that each rank sends at a time.
const MOST_AT_ONCE: usize = 1 << 20;

/// Sums `values` of the first `num_members` ranks, in the order of ranks.
pub(super) async fn by_messages<P: DataPlane + ?Sized>(
    plane: &mut P,
    num_members: usize,
    values: &mut [f32],
) -> Result<(), PlaneError> {
    let own = plane.rank();
    let others: Vec<_> = (0..num_members as u32).map(Rank).filter(|rank| *rank != own).collect();
    for part in values.chunks_mut(MOST_AT_ONCE) {
        let mut foreign: Vec<_> = others.iter().map(|_| Flat::zeros(part.len())).collect();
        let sends = others.iter().map(|to| Transfer::Send { to: *to, bytes: part.as_bytes() });
        let places = others.iter().zip(&mut foreign);
        let receives = places.map(|(from, place)| (*from, place.as_mut_slice().as_mut_bytes()));
        let receives = receives.map(|(from, bytes)| Transfer::Recv { from, bytes });
        plane.exchange(&mut sends.chain(receives).collect::<Vec<_>>()).await?;
        foreign.insert(own.index(), Flat::from(part.to_vec()));
        clear(part);
        foreign.iter().for_each(|values| add_assign(part, values.as_slice()));
    }
    Ok(())
}
