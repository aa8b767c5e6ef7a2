//! Two files whose lines correspond, as one stream of batches: lines of one and the other by turns.

use std::io::{self, BufRead, BufReader, Read};

use crate::{
    documents::{BATCH_BYTES, Batch, Content, Records},
    error::{Place, PrepareError, read_error},
};

/// The batches of two files. Ends after the first error: beyond it lines may not correspond any more.
pub struct AlignedBatches<R> {
    keys: [String; 2],
    streams: [BufReader<R>; 2],
    records: Records,
    max_line_bytes: usize,
    next_line: u64,
    failed: bool,
}

impl<R: Read> AlignedBatches<R> {
    /// The batches of the files `keys`, read from `streams`; no line is longer than `max_line_bytes`.
    pub fn new(keys: [&str; 2], records: Records, max_line_bytes: usize, streams: [R; 2]) -> Self {
        let keys = keys.map(str::to_owned);
        Self { keys, streams: streams.map(BufReader::new), records, max_line_bytes, next_line: 1, failed: false }
    }

    fn read_batch(&mut self) -> Result<Option<Batch>, PrepareError> {
        let (first, mut lines) = (self.next_line, vec![]);
        while lines.len() < BATCH_BYTES {
            let num_bytes = [self.read_line(0, &mut lines)?, self.read_line(1, &mut lines)?];
            match num_bytes {
                [0, 0] => break,
                [0, _] => return Err(self.ends_early(0)),
                [_, 0] => return Err(self.ends_early(1)),
                _ => self.next_line += 1,
            }
        }
        let (key, records) = (self.keys[0].clone(), self.records.clone());
        let is_empty = lines.is_empty();
        Ok((!is_empty).then_some(Batch { key, records, first, first_byte: 0, content: Content::LinePairs(lines) }))
    }

    /// Appends a line of file `side`, ended by a newline even if the file's last one is not.
    fn read_line(&mut self, side: usize, lines: &mut Vec<u8>) -> Result<usize, PrepareError> {
        let start = lines.len();
        let max_bytes = self.max_line_bytes as u64;
        let read: io::Result<usize> = self.streams[side].by_ref().take(max_bytes + 1).read_until(b'\n', lines);
        let num_read = read.map_err(|error| read_error(&self.keys[side], error))?;
        if lines.len() - start > self.max_line_bytes {
            let (key, place) = (self.keys[side].clone(), Place::Line(self.next_line));
            return Err(PrepareError::TooLong { key, place, max_bytes });
        }
        if num_read > 0 && !lines.ends_with(b"\n") {
            lines.push(b'\n');
        }
        Ok(num_read)
    }

    fn ends_early(&self, side: usize) -> PrepareError {
        let num_lines = self.next_line - 1;
        PrepareError::Unaligned { key: self.keys[side].clone(), other: self.keys[1 - side].clone(), num_lines }
    }
}

impl<R: Read> Iterator for AlignedBatches<R> {
    type Item = Result<Batch, PrepareError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let batch = self.read_batch();
        self.failed = batch.is_err();
        batch.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(a: &[u8], b: &[u8]) -> Vec<Result<(u64, Vec<u8>), String>> {
        let batches = AlignedBatches::new(["a", "b"], Records::File, 10, [a, b]);
        let told = |batch: Batch| match batch.content {
            Content::LinePairs(lines) => (batch.first, lines),
            _ => unreachable!("lines come in pairs"),
        };
        batches.map(|batch| batch.map(told).map_err(|error| error.to_string())).collect()
    }

    #[test]
    fn lines_come_by_turns() {
        assert_eq!(batches(b"1\n\n3", b"eins\nzwei\ndrei\n"), [Ok((1, b"1\neins\n\nzwei\n3\ndrei\n".to_vec()))]);
        assert_eq!(batches(b"", b""), []);
    }

    #[test]
    fn files_that_do_not_correspond_are_told() {
        let error = |a: &[u8], b: &[u8]| batches(a, b).remove(0).expect_err("wrong");
        assert!(
            error(b"1\n", b"eins\nzwei\n").starts_with("a: ends after 1 lines"),
            "{}",
            error(b"1\n", b"eins\nzwei\n")
        );
        assert!(error(b"1\n2\n", b"eins\n").starts_with("b: ends after 1 lines"));
        assert!(error(b"1\n12345678901\n", b"eins\nzwei\n").starts_with("a: line 2: a document of more than 10 bytes"));
    }
}
