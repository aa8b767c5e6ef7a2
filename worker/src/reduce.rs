//! The exact all-reduce: sums the slots' gradients over the fixed tree of [`polo_recipe::slots`].
//!
//! The result is the same to the bit for every world, because every addition of the tree is carried out on the same
//! operands in the same order; the world only decides where. Each rank brings the sums of its own subtrees. The flat
//! vector is divided among the ranks in runs of chunks; a run's reducer receives that run of everybody's sums, carries
//! out the additions that are left, and sends the total to all. This happens in rounds, which bound the memory needed.

use std::ops::Range;

use polo_recipe::ids::Rank;
use polo_recipe::slots::{PartialSums, assign, subtrees};
use zerocopy::IntoBytes;

use crate::flat::disjoint_mut;
use crate::plane::{DataPlane, PlaneError, Transfer};

/// Memory that a round takes for other ranks' sums, unless set otherwise.
const SCRATCH_PARAMS: usize = 8 << 20;
/// Elements summed at a time: few enough for a handful of such blocks to stay in the nearest cache.
const BLOCK_PARAMS: usize = 2048;
/// Partial sums of [`chunk_square_norm`]; part of its definition.
const NORM_LANES: usize = 16;

// Numbers travel as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "the data plane's numbers are little-endian");

/// The reduction of one generation, to be used for each of its steps.
#[derive(Debug)]
pub struct ExactReduce {
    rank: Rank,
    world: usize,
    /// All chunks of the flat vector, in order.
    chunks: Vec<Range<usize>>,
    /// The run of chunks that each rank reduces, as indices into `chunks`.
    runs: Vec<Range<usize>>,
    /// Of each rank, how many subtree sums it brings.
    num_pieces: Vec<usize>,
    /// The additions over all ranks' pieces.
    terms: Vec<Term>,
    round_params: usize,
    /// Other ranks' pieces of the round's part, one after another.
    foreign: Vec<f32>,
    /// Partial sums of the block at hand.
    stack: Vec<[f32; BLOCK_PARAMS]>,
}

/// The next operand: a piece is pushed on the stack of sums, then the last two are joined `num_merges` times.
#[derive(Debug)]
struct Term {
    source: Source,
    num_merges: usize,
}

#[derive(Debug)]
enum Source {
    /// This rank's piece of that number.
    Own(usize),
    /// Another rank's piece, counted through all other ranks.
    Foreign(usize),
}

/// What a reduction yields besides the sum.
#[derive(Debug, Clone, PartialEq)]
pub struct Reduced {
    /// Sum of the squares of each chunk's elements, in the order of the chunks: the same on all ranks.
    pub chunk_square_norms: Vec<f64>,
    /// What this rank sent to others, without headers.
    pub bytes_sent: u64,
    /// What this rank received from others, without headers.
    pub bytes_received: u64,
}

impl ExactReduce {
    /// Plans the reduction of `slots` over vectors that consist of `chunks`, for rank `rank` of `world`.
    ///
    /// # Panics
    /// If `rank` is not below `world`, if `world` is above `slots`, or if the chunks do not lie one after another from 0.
    pub fn new(slots: usize, chunks: Vec<Range<usize>>, rank: Rank, world: usize) -> Self {
        let shares = assign(slots, world).unwrap_or_default();
        assert!(rank.index() < shares.len(), "rank {rank} of {world} has no slots of {slots}");
        let end = chunks.iter().try_fold(0, |end, chunk| (chunk.start == end).then_some(chunk.end));
        assert!(end.is_some(), "the chunks do not lie one after another from 0");
        let pieces: Vec<_> = shares.iter().map(|share| subtrees(slots, share)).collect();
        let mut reduce = Self {
            rank,
            world,
            runs: (0..world).map(|rank| run_of(&chunks, rank, world)).collect(),
            chunks,
            num_pieces: pieces.iter().map(Vec::len).collect(),
            terms: terms(slots, &pieces, rank),
            round_params: 0,
            foreign: Vec::new(),
            stack: vec![[0.0; BLOCK_PARAMS]; slots.ilog2() as usize + 2],
        };
        reduce.set_scratch_params(SCRATCH_PARAMS);
        reduce
    }

    /// Sets how many elements of other ranks' sums a round may hold; all ranks must set the same.
    pub fn set_scratch_params(&mut self, scratch_params: usize) {
        // Derived from all ranks' pieces, not the others': rounds must be equal everywhere.
        self.round_params = (scratch_params / self.num_pieces.iter().sum::<usize>()).max(1);
    }

    /// The rank that sums, and takes the norm of, chunk number `chunk`.
    pub fn reducer(&self, chunk: usize) -> Option<Rank> {
        (0..).map(Rank).zip(&self.runs).find(|(_, run)| run.contains(&chunk)).map(|(rank, _)| rank)
    }

    /// Replaces `pieces[0]` on every rank by the sum over all slots.
    ///
    /// `pieces` are whole flat vectors: the sums of `subtrees(slots, assign(slots, world)[rank])`, in that order. The
    /// others are left as they are. After an error `pieces[0]` holds nothing of use.
    ///
    /// # Panics
    /// If the plane is of another rank or world than the plan, or `pieces` of another number or length.
    pub fn run(&mut self, plane: &mut dyn DataPlane, pieces: &mut [&mut [f32]]) -> Result<Reduced, PlaneError> {
        assert_eq!((plane.rank(), plane.world()), (self.rank, self.world), "a plane of another generation");
        assert_eq!(pieces.len(), self.num_pieces[self.rank.index()], "number of subtree sums");
        let num_params = self.chunks.last().map_or(0, |chunk| chunk.end);
        assert!(pieces.iter().all(|piece| piece.len() == num_params), "every sum has {num_params} elements");
        let mut wire = Wire { plane, bytes_sent: 0, bytes_received: 0 };
        for round in 0..self.num_rounds() {
            let parts: Vec<_> = (0..self.world).map(|rank| self.part(rank, round)).collect();
            self.collect(&mut wire, &parts, pieces)?;
            self.sum(&parts[self.rank.index()], pieces);
            spread(&mut wire, &parts, pieces[0])?;
        }
        let chunk_square_norms = self.norms(&mut wire, pieces[0])?;
        Ok(Reduced { chunk_square_norms, bytes_sent: wire.bytes_sent, bytes_received: wire.bytes_received })
    }

    /// The elements that `rank` reduces in all rounds.
    fn span(&self, rank: usize) -> Range<usize> {
        let run = &self.chunks[self.runs[rank].clone()];
        run.first().map_or(0, |chunk| chunk.start)..run.last().map_or(0, |chunk| chunk.end)
    }

    fn num_rounds(&self) -> usize {
        (0..self.world).map(|rank| self.span(rank).len().div_ceil(self.round_params)).max().unwrap_or(0)
    }

    /// The elements that `rank` reduces in `round`.
    fn part(&self, rank: usize, round: usize) -> Range<usize> {
        let span = self.span(rank);
        let at = |round: usize| (span.start + round * self.round_params).min(span.end);
        at(round)..at(round + 1)
    }

    /// Sends each reducer its part of this rank's pieces, and receives this rank's part of all others'.
    fn collect(
        &mut self,
        wire: &mut Wire<'_>,
        parts: &[Range<usize>],
        pieces: &[&mut [f32]],
    ) -> Result<(), PlaneError> {
        let own = self.rank.index();
        let num_foreign = self.num_pieces.iter().sum::<usize>() - self.num_pieces[own];
        let len = parts[own].len();
        self.foreign.resize((num_foreign * len).max(self.foreign.len()), 0.0);
        let mut places = self.foreign.chunks_mut(len.max(1));
        let mut group = Vec::new();
        for (rank, part) in parts.iter().enumerate().filter(|(rank, _)| *rank != own) {
            let to = Rank(rank as u32);
            if !part.is_empty() {
                group.extend(pieces.iter().map(|piece| Transfer::Send { to, bytes: piece[part.clone()].as_bytes() }));
            }
            if len > 0 {
                let places = places.by_ref().take(self.num_pieces[rank]);
                group.extend(places.map(|place| Transfer::Recv { from: to, bytes: place.as_mut_bytes() }));
            }
        }
        wire.exchange(group)
    }

    /// Writes the total of this rank's part to its place in `pieces[0]`.
    fn sum(&mut self, part: &Range<usize>, pieces: &mut [&mut [f32]]) {
        if let [Term { source: Source::Own(0), .. }] = self.terms[..] {
            return;
        }
        for start in part.clone().step_by(BLOCK_PARAMS) {
            let block = start..(start + BLOCK_PARAMS).min(part.end);
            self.sum_block(&block, part, pieces);
            pieces[0][block.clone()].copy_from_slice(&self.stack[0][..block.len()]);
        }
    }

    /// Leaves the total of `block`, which lies in `part`, at the bottom of the stack.
    fn sum_block(&mut self, block: &Range<usize>, part: &Range<usize>, pieces: &[&mut [f32]]) {
        let len = block.len();
        let mut depth = 0;
        for term in &self.terms {
            let operand = match term.source {
                Source::Own(piece) => &pieces[piece][block.clone()],
                Source::Foreign(piece) => &self.foreign[piece * part.len() + block.start - part.start..][..len],
            };
            if term.num_merges == 0 {
                self.stack[depth][..len].copy_from_slice(operand);
                depth += 1;
                continue;
            }
            // The first merge needs no copy of its right operand.
            add_assign(&mut self.stack[depth - 1][..len], operand);
            for _ in 1..term.num_merges {
                depth -= 1;
                let (left, right) = self.stack.split_at_mut(depth);
                add_assign(&mut left[depth - 1][..len], &right[0][..len]);
            }
        }
    }

    /// Takes the norms of this rank's chunks of the total, and exchanges them for those of the others.
    fn norms(&self, wire: &mut Wire<'_>, total: &[f32]) -> Result<Vec<f64>, PlaneError> {
        let mut norms = vec![0.0; self.chunks.len()];
        for chunk in self.runs[self.rank.index()].clone() {
            norms[chunk] = chunk_square_norm(&total[self.chunks[chunk].clone()]);
        }
        spread(wire, &self.runs, &mut norms)?;
        Ok(norms)
    }
}

/// Sends this rank's part of `all` to every other rank, and fills in their parts. Parts lie in rank order.
fn spread<T>(wire: &mut Wire<'_>, parts: &[Range<usize>], all: &mut [T]) -> Result<(), PlaneError>
where
    [T]: IntoBytes + zerocopy::FromBytes + zerocopy::Immutable,
{
    let own = wire.plane.rank().index();
    let mut places = disjoint_mut(all, parts.iter().cloned());
    let (before, rest) = places.split_at_mut(own);
    let Some((mine, after)) = rest.split_first_mut() else { return Ok(()) };
    let mine = mine.as_bytes();
    let mut group = Vec::new();
    for (rank, place) in (0..own).chain(own + 1..).zip(before.iter_mut().chain(after)) {
        let peer = Rank(rank as u32);
        if !mine.is_empty() {
            group.push(Transfer::Send { to: peer, bytes: mine });
        }
        if !place.is_empty() {
            group.push(Transfer::Recv { from: peer, bytes: place.as_mut_bytes() });
        }
    }
    wire.exchange(group)
}

/// A plane with its traffic counted.
struct Wire<'a> {
    plane: &'a mut dyn DataPlane,
    bytes_sent: u64,
    bytes_received: u64,
}

impl Wire<'_> {
    fn exchange(&mut self, mut group: Vec<Transfer<'_>>) -> Result<(), PlaneError> {
        for transfer in &group {
            match transfer {
                Transfer::Send { bytes, .. } => self.bytes_sent += bytes.len() as u64,
                Transfer::Recv { bytes, .. } => self.bytes_received += bytes.len() as u64,
            }
        }
        if group.is_empty() { Ok(()) } else { self.plane.exchange(&mut group) }
    }
}

/// The chunks whose middle lies in the rank's equal share of the elements.
fn run_of(chunks: &[Range<usize>], rank: usize, world: usize) -> Range<usize> {
    let num_params = chunks.last().map_or(0, |chunk| chunk.end);
    let first_of = |rank| chunks.partition_point(|chunk| (chunk.start + chunk.end) * world < 2 * num_params * rank);
    if rank + 1 == world { first_of(rank)..chunks.len() } else { first_of(rank)..first_of(rank + 1) }
}

fn terms(slots: usize, pieces: &[Vec<Range<usize>>], own: Rank) -> Vec<Term> {
    let mut sums = PartialSums::new(slots);
    let (mut num_own, mut num_foreign) = (0, 0);
    let mut terms = Vec::new();
    for (rank, piece) in pieces.iter().enumerate().flat_map(|(rank, pieces)| pieces.iter().map(move |p| (rank, p))) {
        let (count, source): (_, fn(usize) -> Source) =
            if rank == own.index() { (&mut num_own, Source::Own) } else { (&mut num_foreign, Source::Foreign) };
        terms.push(Term { source: source(*count), num_merges: sums.push(piece.clone()) });
        *count += 1;
    }
    terms
}

/// Adds `from` to `into`, element by element.
///
/// # Panics
/// If their lengths differ.
pub fn add_assign(into: &mut [f32], from: &[f32]) {
    assert_eq!(into.len(), from.len(), "lengths of the summands");
    for (left, right) in into.iter_mut().zip(from) {
        *left += right;
    }
}

/// The sum of the squares, in f64, in an order fixed by the length: element `i` goes to partial sum `i % 16`, and the
/// partial sums are added up in halves.
pub fn chunk_square_norm(chunk: &[f32]) -> f64 {
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
