//! A flat fp32 vector that is a tensor for libtorch and a slice for everybody else.

use std::{marker::PhantomData, ops::Deref};

use tch::{Device, Kind, Tensor};

/// A one-dimensional fp32 vector in the host's memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Flat(Vec<f32>);

impl Flat {
    /// `len` zeros; memory is taken as it is written.
    pub fn zeros(len: usize) -> Self {
        Self(vec![0.0; len])
    }

    /// Its elements.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// Its elements, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl From<Vec<f32>> for Flat {
    fn from(elements: Vec<f32>) -> Self {
        Self(elements)
    }
}

/// A slice as a tensor, for as long as the slice is borrowed.
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

/// A tensor that libtorch only reads.
pub fn view(slice: &[f32]) -> View<'_> {
    View { tensor: blob(slice.as_ptr(), slice.len()), slice: PhantomData }
}

/// A tensor that libtorch may change in place.
pub fn view_mut(slice: &mut [f32]) -> View<'_> {
    View { tensor: blob(slice.as_mut_ptr(), slice.len()), slice: PhantomData }
}

fn blob(data: *const f32, len: usize) -> Tensor {
    // SAFETY: the memory holds `len` fp32 and outlives the view, which borrows it. Tensors that libtorch derives from it
    // live within calls that hold the view; operations on the host are synchronous.
    unsafe { Tensor::from_blob(data.cast(), &[len as i64], &[1], Kind::Float, Device::Cpu) }
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
