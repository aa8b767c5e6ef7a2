//! Small collectives over a plane.

use polo_recipe::ids::Rank;

use super::{DataPlane, PlaneError, Transfer};

/// Gives each of the first `lens.len()` ranks the records of all of them, in rank order. Rank r's has `lens[r]` bytes.
pub async fn all_gather(plane: &mut dyn DataPlane, lens: &[usize], record: &[u8]) -> Result<Vec<Vec<u8>>, PlaneError> {
    let mut gathered: Vec<_> = lens.iter().map(|len| vec![0; *len]).collect();
    let own = plane.rank();
    let mut group = Vec::new();
    for (rank, place) in (0..).map(Rank).zip(&mut gathered) {
        if rank == own {
            place.copy_from_slice(record);
            continue;
        }
        if !record.is_empty() {
            group.push(Transfer::Send { to: rank, bytes: record });
        }
        if !place.is_empty() {
            group.push(Transfer::Recv { from: rank, bytes: place });
        }
    }
    plane.exchange(&mut group).await?;
    drop(group);
    Ok(gathered)
}
