//! What is done to vectors element by element, where they live: by loops on the host, by libtorch on a GPU.
//!
//! Additions have the same bits on both. A sum of squares is taken in another order on a GPU; all ranks of a run compute
//! alike.
//!
//! # Panics
//! All of these do if the lengths differ, or if the GPU fails: nothing can be done in its process any more.

use std::borrow::Cow;

use tch::{Device, Kind, TchError};

use super::{device, view, view_mut};

/// Partial sums of [`chunk_square_norm`]; part of its definition.
const NORM_LANES: usize = 16;

fn is_host() -> bool {
    device() == Device::Cpu
}

fn done<T>(result: Result<T, TchError>) -> T {
    result.unwrap_or_else(|error| panic!("the GPU failed: {error}"))
}

/// Sets all elements to 0.
pub fn clear(vector: &mut [f32]) {
    if is_host() {
        return vector.fill(0.0);
    }
    done(view_mut(vector).shallow_clone().f_zero_().map(drop));
}

/// Copies `from` to `into`. Either may lie in ordinary memory.
pub fn copy(into: &mut [f32], from: &[f32]) {
    if is_host() {
        return into.copy_from_slice(from);
    }
    assert_eq!(into.len(), from.len(), "lengths of both");
    done(view_mut(into).shallow_clone().f_copy_(&view(from)).map(drop));
}

/// Adds `from` to `into`, element by element.
pub fn add_assign(into: &mut [f32], from: &[f32]) {
    assert_eq!(into.len(), from.len(), "lengths of the summands");
    if is_host() {
        return into.iter_mut().zip(from).for_each(|(left, right)| *left += right);
    }
    done(view_mut(into).shallow_clone().f_add_(&view(from)).map(drop));
}

/// Whether all elements are finite.
pub fn are_finite(vector: &[f32]) -> bool {
    if is_host() {
        return vector.iter().all(|element| element.is_finite());
    }
    done(view(vector).f_isfinite().and_then(|finite| finite.f_all()).and_then(|all| all.f_int64_value(&[]))) != 0
}

/// The elements in ordinary memory: reading them where they are would move them away from the GPU.
pub fn on_host(vector: &[f32]) -> Cow<'_, [f32]> {
    if is_host() {
        return Cow::Borrowed(vector);
    }
    let mut copied = vec![0.0; vector.len()];
    copy(&mut copied, vector);
    Cow::Owned(copied)
}

/// The sum of the squares, in f64, in an order fixed by the length: on the host element `i` goes to partial sum `i % 16`,
/// and the partial sums are added up in halves.
pub fn chunk_square_norm(chunk: &[f32]) -> f64 {
    if !is_host() {
        let squares = view(chunk).f_to_kind(Kind::Double).and_then(|wide| wide.f_square());
        return done(squares.and_then(|squares| squares.f_sum(Kind::Double)).and_then(|sum| sum.f_double_value(&[])));
    }
    let mut lanes = [0.0; NORM_LANES];
    let (rows, rest) = chunk.as_chunks::<NORM_LANES>();
    for row in rows {
        add_squares(&mut lanes, row);
    }
    add_squares(&mut lanes, rest);
    let mut width = NORM_LANES;
    while width > 1 {
        width /= 2;
        let (low, high) = lanes.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
    }
    lanes[0]
}

fn add_squares(lanes: &mut [f64; NORM_LANES], row: &[f32]) {
    for (lane, value) in lanes.iter_mut().zip(row) {
        *lane += f64::from(*value) * f64::from(*value);
    }
}
