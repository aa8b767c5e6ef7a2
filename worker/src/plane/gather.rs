//! Small collectives over a plane.

use super::{DataPlane, PlaneError, Transfer};
use polo_recipe::ids::Rank;

/// Gives every rank the equally long `record` of every rank, one after another in rank order.
pub fn all_gather(plane: &mut dyn DataPlane, record: &[u8]) -> Result<Vec<u8>, PlaneError> {
    let mut gathered = vec![0; plane.world() * record.len()];
    if record.is_empty() {
        return Ok(gathered);
    }
    let own = plane.rank();
    let mut group = Vec::new();
    for (rank, place) in (0..).map(Rank).zip(gathered.chunks_exact_mut(record.len())) {
        if rank == own {
            place.copy_from_slice(record);
        } else {
            group.push(Transfer::Send { to: rank, bytes: record });
            group.push(Transfer::Recv { from: rank, bytes: place });
        }
    }
    plane.exchange(&mut group)?;
    drop(group);
    Ok(gathered)
}
