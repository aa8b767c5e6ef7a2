//! Memory for messages that the device cannot reach where they are.
//!
//! What is trained lies where the device reaches it, and moves from there. A record in an ordinary vector may be long as
//! well; it goes through this memory, which is the business of its own end alone.

use super::{Bulk, HostMemory, Library, NcclError};
use crate::plane::Transfer;

/// Grows to the most that a group has needed.
#[derive(Default)]
pub(super) struct Staging(Option<HostMemory>);

/// A group as the device sees it.
pub(super) struct Staged<'a> {
    pub(super) bulk: Vec<Bulk>,
    /// Places in staging, and whither their contents belong.
    returns: Vec<(*const u8, &'a mut [u8])>,
}

impl Staging {
    /// Finds an address that the device reaches for each transfer, and puts there what is to be sent.
    pub(super) fn stage<'a>(
        &mut self,
        library: &dyn Library,
        transfers: Vec<Transfer<'a>>,
    ) -> Result<Staged<'a>, NcclError> {
        let is_reached: Vec<_> = transfers.iter().map(|transfer| library.reaches(start_of(transfer))).collect();
        let unreached = transfers.iter().zip(&is_reached).filter(|(_, is_reached)| !**is_reached);
        let mut place = self.at_least(library, unreached.map(|(transfer, _)| transfer.len_bytes()).sum())?;
        let mut staged = Staged { bulk: Vec::new(), returns: Vec::new() };
        for (transfer, is_reached) in transfers.into_iter().zip(is_reached) {
            let len_bytes = transfer.len_bytes();
            staged.push(transfer, (!is_reached).then_some(place));
            if !is_reached {
                place = place.wrapping_add(len_bytes);
            }
        }
        Ok(staged)
    }

    /// Where the device reaches what is in `values`: there, or in a copy here, which [`take_back`] brings back.
    pub(super) fn stage_values(&mut self, library: &dyn Library, values: &mut [f32]) -> Result<*mut f32, NcclError> {
        if library.reaches(values.as_ptr().cast()) {
            return Ok(values.as_mut_ptr());
        }
        let place: *mut f32 = self.at_least(library, size_of_val(values))?.cast();
        // SAFETY: there is room for all, in memory that nothing else names and that is aligned as pages are.
        unsafe { place.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
        Ok(place)
    }

    fn at_least(&mut self, library: &dyn Library, len_bytes: usize) -> Result<*mut u8, NcclError> {
        if len_bytes == 0 {
            return Ok(std::ptr::null_mut());
        }
        if let Some(memory) = self.0.as_ref().filter(|memory| memory.len_bytes >= len_bytes) {
            return Ok(memory.address);
        }
        self.0 = None;
        Ok(self.0.insert(library.host_memory(len_bytes)?).address)
    }
}

impl<'a> Staged<'a> {
    fn push(&mut self, transfer: Transfer<'a>, place: Option<*mut u8>) {
        let len_bytes = transfer.len_bytes();
        self.bulk.push(match transfer {
            Transfer::Send { to, bytes } => {
                if let Some(place) = place {
                    // SAFETY: `stage` has made room for all, one after another, in memory that nothing else names.
                    unsafe { place.copy_from_nonoverlapping(bytes.as_ptr(), len_bytes) };
                }
                Bulk::Send { to, address: place.map_or(bytes.as_ptr(), |place| place), len_bytes }
            }
            Transfer::Recv { from, bytes } => {
                let address = place.unwrap_or(bytes.as_mut_ptr());
                if let Some(place) = place {
                    self.returns.push((place, bytes));
                }
                Bulk::Recv { from, address, len_bytes }
            }
        });
    }

    /// Brings what was received to where it belongs. Call it once the transfers are done.
    pub(super) fn finish(self) {
        for (place, bytes) in self.returns {
            // SAFETY: as in `push`; the device has filled it.
            unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(place, bytes.len()) };
        }
    }
}

/// Brings what [`Staging::stage_values`] has put elsewhere to where it belongs. Call it once the device is done with it.
pub(super) fn take_back(place: *mut f32, values: &mut [f32]) {
    if place != values.as_mut_ptr() {
        // SAFETY: as many as were put there; the device has changed them.
        unsafe { values.as_mut_ptr().copy_from_nonoverlapping(place, values.len()) };
    }
}

fn start_of(transfer: &Transfer<'_>) -> *const u8 {
    match transfer {
        Transfer::Send { bytes, .. } => bytes.as_ptr(),
        Transfer::Recv { bytes, .. } => bytes.as_ptr(),
    }
}
