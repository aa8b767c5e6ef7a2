//! A flat fp32 vector that is a tensor for libtorch and a slice for everybody else.

use std::ops::Range;

use tch::{Device, Kind, Tensor};
use zerocopy::IntoBytes;

/// A one-dimensional fp32 tensor in the host's memory, of which this is the only owner.
#[derive(Debug)]
pub struct Flat {
    tensor: Tensor,
    len: usize,
}

impl Flat {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self { tensor: Tensor::zeros([len as i64], (Kind::Float, Device::Cpu)), len }
    }

    /// The vector as a tensor, for libtorch to read or to change in place.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Its elements.
    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: the tensor is contiguous fp32 of `len` elements on the host, and lives as long as `self`. Operations
        // that change it through `tensor()` are synchronous and run on the thread that holds this borrow.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast(), self.len) }
    }

    /// Its elements, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as in `as_slice`; `&mut self` makes this the only view from Rust.
        unsafe { std::slice::from_raw_parts_mut(self.tensor.data_ptr().cast(), self.len) }
    }

    /// The bytes of some of its elements, little-endian.
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.as_slice()[range].as_bytes()
    }

    /// The bytes of some of its elements, to be changed.
    pub fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        self.as_mut_slice()[range].as_mut_bytes()
    }
}

/// The pieces of `whole` at ascending ranges that do not overlap; empty ones may lie anywhere.
pub fn disjoint_mut<T>(whole: &mut [T], ranges: impl IntoIterator<Item = Range<usize>>) -> Vec<&mut [T]> {
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
        assert_eq!(flat.tensor().double_value(&[3]), 2.5);
        let _ = flat.tensor().shallow_clone().fill_(7.0);
        assert_eq!(flat.as_slice(), [7.0; 5]);
    }

    #[test]
    fn pieces_lie_where_their_ranges_say() {
        let mut numbers = [0.0, 1.0, 2.0, 3.0, 4.0];
        let pieces = disjoint_mut(&mut numbers, [1..2, 0..0, 3..5]);
        assert_eq!(pieces, [&[1.0][..], &[], &[3.0, 4.0][..]]);
    }
}
