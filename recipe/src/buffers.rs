//! Sizes of buffers that decide what a worker holds: the worker makes them, and [`crate::footprint`] counts them.

/// Elements of other ranks' gradient sums in a round of the reduction, at most.
pub const SCRATCH_PARAMS: usize = 8 << 20;

/// Blocks that may wait for their reduction; more would only take memory.
pub const MOST_WAITING: usize = 2;

/// Logits in a piece of the head: 256 MiB of fp32. A constant, because rows are summed into gradients piece by piece.
const PIECE_LOGITS: usize = 1 << 26;
/// Most rows in a piece; few enough for a small vocabulary's logits to stay in cache.
const PIECE_MAX_ROWS: usize = 512;

/// Rows (tokens) whose logits exist at the same time.
pub fn piece_rows(vocab_size: usize) -> usize {
    (PIECE_LOGITS / vocab_size / 16 * 16).clamp(16, PIECE_MAX_ROWS)
}
