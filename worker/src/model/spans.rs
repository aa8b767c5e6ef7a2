//! Which rows of a micro-batch attend to each other: those of one sample, or only those of one document in it.

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

    /// The bounds for the kernels, and the number of spans.
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
