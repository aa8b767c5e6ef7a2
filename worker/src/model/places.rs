//! Where the rows of a micro-batch stand: which of them attend to each other, and at which positions.

use tch::{Kind, Tensor};

use super::{ModelError, rope::RopeTables};

/// Spans of rows and the angles of their positions, for kernels on the host and on the rows' device.
pub struct Places {
    /// On the host.
    pub spans: Spans,
    /// On the device, for each position of a sample.
    pub rope: RopeTables,
    /// Of each row, its position in its span; int64 on the device.
    pub positions: Tensor,
    /// The bounds of [`Spans`], int32 on the device: `cu_seqlens`.
    pub bounds: Tensor,
}

impl Places {
    /// Places of the rows in `spans`, none longer than the tables, on these tables' device.
    pub fn new(spans: Spans, rope: RopeTables) -> Result<Self, ModelError> {
        let device = rope.cosine.device();
        let positions = Tensor::f_from_slice(&spans.positions)?.f_to_device(device)?;
        let bounds = Tensor::f_from_slice(&spans.bounds)?.f_to_kind(Kind::Int)?.f_to_device(device)?;
        Ok(Self { spans, rope, positions, bounds })
    }
}

/// Consecutive spans of rows. A row attends to itself and to those before it in its span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spans {
    /// Where each span begins, ascending from 0, and after the last one its end: the `cu_seqlens` of variable-length
    /// attention.
    bounds: Vec<i64>,
    /// Of each row, its place in its span.
    positions: Vec<i64>,
}

impl Spans {
    /// Of a micro-batch with the ids `inputs`, `[batch, sequence]` row-major: each sample is a span, or, if the id that
    /// ends a document is given, each document's part of a sample.
    pub fn new(inputs: &[i64], sequence: usize, document_end: Option<i64>) -> Self {
        let mut spans = Self { bounds: vec![0], positions: Vec::with_capacity(inputs.len()) };
        for sample in inputs.chunks(sequence.max(1)) {
            sample.split_inclusive(|id| Some(*id) == document_end).for_each(|span| spans.push(span.len() as i64));
        }
        spans
    }

    fn push(&mut self, num_rows: i64) {
        self.positions.extend(0..num_rows);
        self.bounds.push(self.num_rows());
    }

    /// Rows of all spans together.
    pub fn num_rows(&self) -> i64 {
        self.positions.len() as i64
    }

    /// Rows of the longest span.
    pub fn longest(&self) -> i64 {
        self.bounds.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    }

    /// Of each row, its place in its span.
    pub fn positions(&self) -> &[i64] {
        &self.positions
    }

    /// Where each span begins, and after the last one its end.
    pub fn bounds(&self) -> &[i64] {
        &self.bounds
    }

    /// The bounds for the host's kernels, and the number of spans.
    pub(super) fn raw(&self) -> (*const i64, i64) {
        (self.bounds.as_ptr(), self.bounds.len() as i64 - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: i64 = 9;

    #[test]
    fn without_document_ends_each_sample_is_a_span() {
        let spans = Spans::new(&[1, END, 3, 4, 5, END], 3, None);
        assert_eq!(spans, Spans { bounds: vec![0, 3, 6], positions: vec![0, 1, 2, 0, 1, 2] });
    }

    #[test]
    fn a_document_ends_with_its_end_and_with_its_sample() {
        let spans = Spans::new(&[1, END, 3, 4, END, END], 3, Some(END));
        assert_eq!(spans, Spans { bounds: vec![0, 2, 3, 5, 6], positions: vec![0, 1, 0, 0, 1, 0] });
        assert_eq!((spans.num_rows(), spans.longest()), (6, 2));
    }
}
