//! A flat fp32 vector that is a tensor for libtorch and a slice for everybody else.
//!
//! Vectors live where the process's device reaches them ([`home`]). Whatever is done to all elements of one is done there
//! ([`ops`]); code that reads slices itself is right on any device, but slow on a GPU, as memory comes to the host for it.

pub mod home;
pub mod ops;

use std::{marker::PhantomData, ops::Deref};

use tch::{Kind, Tensor};

use self::home::Managed;
use crate::streams::Stream;

pub use self::home::device;

/// A one-dimensional fp32 vector.
#[derive(Debug)]
pub struct Flat(Memory);

#[derive(Debug)]
enum Memory {
    Host(Vec<f32>),
    Managed(Managed),
}

impl Flat {
    /// `len` zeros; ordinary memory is taken as it is written.
    pub fn zeros(len: usize) -> Self {
        Self(Managed::zeros(len).map_or_else(|| Memory::Host(vec![0.0; len]), Memory::Managed))
    }

    /// `len` zeros in ordinary memory, whatever the device.
    pub fn zeros_on_host(len: usize) -> Self {
        Self(Memory::Host(vec![0.0; len]))
    }

    /// The same in ordinary memory.
    pub fn into_host(self) -> Self {
        match self.0 {
            Memory::Host(_) => self,
            Memory::Managed(managed) => Self(Memory::Host(ops::on_host(managed.as_slice()).into_owned())),
        }
    }

    /// Its elements.
    pub fn as_slice(&self) -> &[f32] {
        match &self.0 {
            Memory::Host(elements) => elements,
            Memory::Managed(managed) => managed.as_slice(),
        }
    }

    /// Its elements, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        match &mut self.0 {
            Memory::Host(elements) => elements,
            Memory::Managed(managed) => managed.as_mut_slice(),
        }
    }
}

impl Default for Flat {
    fn default() -> Self {
        Self::zeros_on_host(0)
    }
}

impl PartialEq for Flat {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Clone for Flat {
    fn clone(&self) -> Self {
        match &self.0 {
            Memory::Host(elements) => Self(Memory::Host(elements.clone())),
            Memory::Managed(managed) => managed.as_slice().to_vec().into(),
        }
    }
}

impl From<Vec<f32>> for Flat {
    fn from(elements: Vec<f32>) -> Self {
        let Some(managed) = Managed::zeros(elements.len()) else { return Self(Memory::Host(elements)) };
        let mut flat = Self(Memory::Managed(managed));
        ops::copy(flat.as_mut_slice(), &elements);
        flat
    }
}

/// A slice as a tensor of the device that reaches it, for as long as the slice is borrowed. When it is dropped, the device
/// has done all that this thread has given it.
pub struct View<'a> {
    tensor: Tensor,
    slice: PhantomData<&'a mut [f32]>,
}

impl Deref for View<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.tensor
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        let finished = Stream::current(self.tensor.device()).and_then(Stream::finish);
        if let Err(error) = finished {
            // Whatever is asked of the device next fails as well, and says so.
            tracing::error!(%error, "the device did not finish");
        }
    }
}

/// A tensor that libtorch only reads.
pub fn view(slice: &[f32]) -> View<'_> {
    View { tensor: blob(slice.as_ptr(), slice.len()), slice: PhantomData }
}

/// A tensor that libtorch may change in place.
pub fn view_mut(slice: &mut [f32]) -> View<'_> {
    View { tensor: blob(slice.as_mut_ptr(), slice.len()), slice: PhantomData }
}

fn blob(data: *const f32, len: usize) -> Tensor {
    let device = if len == 0 { device() } else { home::device_of(data) };
    // SAFETY: the memory holds `len` fp32, is reached by the device, and outlives the view, which borrows it. Tensors that
    // libtorch derives from it live within calls that hold the view, and the view waits for the device when it is dropped.
    unsafe { Tensor::from_blob(data.cast(), &[len as i64], &[1], Kind::Float, device) }
}

/// The pieces of `whole` at ascending ranges that do not overlap; empty ones may lie anywhere.
pub fn disjoint_mut<T>(whole: &mut [T], ranges: impl IntoIterator<Item = std::ops::Range<usize>>) -> Vec<&mut [T]> {
    let (mut rest, mut offset) = (whole, 0);
    let mut pieces = Vec::new();
    for range in ranges {
        if range.is_empty() {
            pieces.push(&mut [][..]);
            continue;
        }
        let (piece, tail) = rest[range.start - offset..].split_at_mut(range.len());
        pieces.push(piece);
        (rest, offset) = (tail, range.end);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_and_slice_are_the_same_memory() {
        let mut flat = Flat::zeros(5);
        flat.as_mut_slice()[3] = 2.5;
        assert_eq!(view(flat.as_slice()).double_value(&[3]), 2.5);
        let _ = view_mut(flat.as_mut_slice()).shallow_clone().fill_(7.0);
        assert_eq!(flat.as_slice(), [7.0; 5]);
    }

    #[test]
    fn pieces_lie_where_their_ranges_say() {
        let mut numbers = [0.0, 1.0, 2.0, 3.0, 4.0];
        let pieces = disjoint_mut(&mut numbers, [1..2, 0..0, 3..5]);
        assert_eq!(pieces, [&[1.0][..], &[], &[3.0, 4.0][..]]);
    }
}
