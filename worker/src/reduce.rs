//! The exact reduction: sums the slots' gradients over the fixed tree of [`polo_recipe::slots`].
//!
//! The result is the same to the bit for every world, because every addition of the tree is carried out on the same
//! operands in the same order; the world only decides where. Each rank brings the sums of its own subtrees. A chunk's
//! owners receive that chunk of everybody's sums and carry out the additions that are left, each for itself. This happens
//! block by block, as the backward comes to them, and within a block in rounds, which bound the memory needed. After the
//! update the owners hand out the parameters.

use std::collections::BTreeMap;
use std::ops::Range;

use polo_recipe::buffers::SCRATCH_PARAMS;
use polo_recipe::ids::Rank;
use polo_recipe::layout::{ChunkId, Layout};
use polo_recipe::slots::{PartialSums, subtrees};
use tch::Device;
use zerocopy::IntoBytes;

use crate::flat::ops::{add_assign, copy};
use crate::flat::{Flat, device, disjoint_mut};
use crate::plane::{DataPlane, PlaneError, Transfer};

/// Elements summed at a time: on the host, few enough for a handful of such blocks to stay in the nearest cache; on a GPU,
/// enough to be worth a launch.
fn block_params() -> usize {
    if device() == Device::Cpu { 2048 } else { 1 << 20 }
}

// Numbers travel as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "the data plane's numbers are little-endian");

/// The gradient's sums over all slots, of the chunks that a rank sums.
pub type Sums = BTreeMap<ChunkId, Flat>;

/// The reduction of one generation, to be used for each of its steps.
#[derive(Debug)]
pub struct ExactReduce {
    rank: Rank,
    /// All chunks of the flat vector, in order.
    chunks: Vec<Range<usize>>,
    /// Who sums each chunk.
    owners: Vec<Vec<Rank>>,
    /// Of each rank, how many subtree sums it brings.
    num_pieces: Vec<usize>,
    /// The additions over all ranks' pieces.
    terms: Vec<Term>,
    /// Of each block, its elements in the flat vector.
    blocks: Vec<Range<usize>>,
    /// Most elements of a rank's that are reduced at a time.
    most: usize,
    /// Other ranks' pieces of the round's part, one after another.
    foreign: Flat,
    /// Partial sums of the block at hand.
    stack: Vec<Flat>,
}

/// How a flat vector is divided.
#[derive(Debug, Clone, Default)]
pub struct Cuts {
    /// What is reduced at once; a block consists of whole chunks.
    pub blocks: Vec<Range<usize>>,
    /// What is owned, one after another from 0.
    pub chunks: Vec<Range<usize>>,
}

impl Cuts {
    /// Those of a model.
    pub fn of(layout: &Layout) -> Self {
        Self {
            blocks: layout.blocks.iter().map(|block| block.range.clone()).collect(),
            chunks: layout.chunks.iter().map(|chunk| chunk.range.clone()).collect(),
        }
    }
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

impl ExactReduce {
    /// Plans the reduction of `slots` over vectors that `cuts` divides, for rank `rank`. `shares` has
    /// each rank's slots, which may be none; together they are all slots. `owners` says who sums each chunk.
    ///
    /// # Panics
    /// If the shares are not all slots, or if the chunks do not lie one after another from 0.
    pub fn new(slots: usize, shares: &[Range<usize>], cuts: Cuts, owners: Vec<Vec<Rank>>, rank: Rank) -> Self {
        let Cuts { blocks, chunks } = cuts;
        let end = chunks.iter().try_fold(0, |end, chunk| (chunk.start == end).then_some(chunk.end));
        assert!(end.is_some(), "the chunks do not lie one after another from 0");
        let pieces: Vec<_> = shares.iter().map(|share| subtrees(slots, share)).collect();
        let mut reduce = Self {
            rank,
            num_pieces: pieces.iter().map(Vec::len).collect(),
            terms: terms(slots, &pieces, rank),
            most: 0,
            blocks,
            chunks,
            owners,
            foreign: Flat::default(),
            stack: (0..slots.ilog2() + 2).map(|_| Flat::zeros(block_params())).collect(),
        };
        reduce.set_scratch_params(SCRATCH_PARAMS);
        reduce
    }

    /// Sets how many elements of other ranks' sums a round may hold; all ranks must set the same.
    pub fn set_scratch_params(&mut self, scratch_params: usize) {
        // Derived from all ranks' pieces, not the others': rounds must be equal everywhere.
        self.most = (scratch_params / self.num_pieces.iter().sum::<usize>().max(1)).max(1);
    }

    /// How many blocks there are.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Subtree sums that this rank brings.
    pub fn num_pieces(&self) -> usize {
        self.num_pieces[self.rank.index()]
    }

    /// Who sums each chunk.
    pub fn owners(&self) -> &[Vec<Rank>] {
        &self.owners
    }

    /// Numbers of the chunks that `rank` sums.
    pub fn owned(&self, rank: Rank) -> impl Iterator<Item = usize> {
        (0..self.owners.len()).filter(move |chunk| self.owners[*chunk].contains(&rank))
    }

    /// Writes the sum over all slots to `sums`, for this rank's chunks of `block`.
    ///
    /// `pieces` are vectors of the block's length: the sums of `subtrees(slots, share)` of this rank's share, in that
    /// order. After an error the sums are of no use. All ranks must take the blocks in the same order. Returns the bytes
    /// sent and received, without headers.
    ///
    /// # Panics
    /// If the plane is of another rank than the plan, or `pieces` of another number or length.
    pub async fn run(
        &mut self,
        plane: &mut dyn DataPlane,
        block: usize,
        pieces: &[Flat],
        sums: &mut Sums,
    ) -> Result<Traffic, PlaneError> {
        assert_eq!(plane.rank(), self.rank, "a plane of another generation");
        let block = self.blocks[block].clone();
        let are_whole = pieces.iter().all(|piece| piece.as_slice().len() == block.len());
        assert!(pieces.len() == self.num_pieces() && are_whole, "{} pieces of {}", self.num_pieces(), block.len());
        let mut traffic = Traffic::default();
        for round in self.rounds(&block) {
            let parts: Vec<_> = (0..self.num_pieces.len() as u32).map(|rank| self.part(Rank(rank), &round)).collect();
            traffic += self.collect(plane, block.start, &parts, pieces).await?;
            self.sum(block.start, &round, pieces, sums);
        }
        Ok(traffic)
    }

    /// Chunks that lie in `range` in whole or in part, and those parts.
    fn cuts(&self, range: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let (start, end) = (range.start, range.end);
        let first = self.chunks.partition_point(|chunk| chunk.end <= start);
        let met = (first..self.chunks.len()).take_while(move |chunk| self.chunks[*chunk].start < end);
        met.map(move |chunk| (chunk, self.chunks[chunk].start.max(start)..self.chunks[chunk].end.min(end)))
    }

    /// Divides `block` so that no rank sums more than the most elements at a time.
    fn rounds(&self, block: &Range<usize>) -> Vec<Range<usize>> {
        let mut rounds = Vec::new();
        let (mut start, mut loads) = (block.start, vec![0; self.num_pieces.len()]);
        for (chunk, cut) in self.cuts(block) {
            let owners = &self.owners[chunk];
            let mut from = cut.start;
            while from < cut.end {
                let room = self.most - owners.iter().map(|rank| loads[rank.index()]).max().unwrap_or(0);
                if room == 0 {
                    rounds.push(std::mem::replace(&mut start, from)..from);
                    loads.fill(0);
                    continue;
                }
                let len = room.min(cut.end - from);
                owners.iter().for_each(|rank| loads[rank.index()] += len);
                from += len;
            }
        }
        rounds.push(start..block.end);
        rounds
    }

    /// The elements of `round` that `rank` sums.
    fn part(&self, rank: Rank, round: &Range<usize>) -> Vec<Range<usize>> {
        let mut part: Vec<Range<usize>> = Vec::new();
        for (_, cut) in self.cuts(round).filter(|(chunk, _)| self.owners[*chunk].contains(&rank)) {
            match part.last_mut() {
                Some(last) if last.end == cut.start => last.end = cut.end,
                _ => part.push(cut),
            }
        }
        part
    }

    /// Sends each owner its part of this rank's pieces, which begin at `start`, and receives this rank's part of all
    /// others'.
    async fn collect(
        &mut self,
        plane: &mut dyn DataPlane,
        start: usize,
        parts: &[Vec<Range<usize>>],
        pieces: &[Flat],
    ) -> Result<Traffic, PlaneError> {
        let own = self.rank.index();
        let num_foreign = self.num_pieces.iter().sum::<usize>() - self.num_pieces[own];
        let len = parts[own].iter().map(Range::len).sum::<usize>();
        if self.foreign.as_slice().len() < num_foreign * len {
            self.foreign = Flat::zeros(num_foreign * len);
        }
        let mut rest = self.foreign.as_mut_slice();
        let mut group = Vec::new();
        for (rank, part) in parts.iter().enumerate().filter(|(rank, _)| *rank != own) {
            let peer = Rank(rank as u32);
            for piece in pieces {
                let bytes = |cut: &Range<usize>| piece.as_slice()[cut.start - start..cut.end - start].as_bytes();
                group.extend(part.iter().map(|cut| Transfer::Send { to: peer, bytes: bytes(cut) }));
            }
            for cut in (0..self.num_pieces[rank]).flat_map(|_| &parts[own]) {
                let (place, tail) = std::mem::take(&mut rest).split_at_mut(cut.len());
                group.push(Transfer::Recv { from: peer, bytes: place.as_mut_bytes() });
                rest = tail;
            }
        }
        exchange(plane, group).await
    }

    /// Writes the totals of this rank's chunks in `round` to `sums`.
    fn sum(&mut self, start: usize, round: &Range<usize>, pieces: &[Flat], sums: &mut Sums) {
        let own = |(chunk, _): &(usize, Range<usize>)| self.owners[*chunk].contains(&self.rank);
        let cuts: Vec<_> = self.cuts(round).filter(own).collect();
        let part_len = cuts.iter().map(|(_, cut)| cut.len()).sum();
        let mut offset = 0;
        for (chunk, cut) in cuts {
            let place = self.chunks[chunk].clone();
            let total = sums.entry(ChunkId(chunk as u32)).or_insert_with(|| Flat::zeros(place.len())).as_mut_slice();
            for from in cut.clone().step_by(block_params()) {
                let to = (from + block_params()).min(cut.end);
                let total = &mut total[from - place.start..to - place.start];
                self.sum_block(&(from - start..to - start), offset + from - cut.start, part_len, pieces);
                copy(total, &self.stack[0].as_slice()[..total.len()]);
            }
            offset += cut.len();
        }
    }

    /// Leaves the total of the pieces' elements `at`, which lie at `offset` of a part of `part_len` elements, at the bottom
    /// of the stack.
    fn sum_block(&mut self, at: &Range<usize>, offset: usize, part_len: usize, pieces: &[Flat]) {
        let len = at.len();
        let mut depth = 0;
        for term in &self.terms {
            let operand = match term.source {
                Source::Own(piece) => &pieces[piece].as_slice()[at.clone()],
                Source::Foreign(piece) => &self.foreign.as_slice()[piece * part_len + offset..][..len],
            };
            if term.num_merges == 0 {
                copy(&mut self.stack[depth].as_mut_slice()[..len], operand);
                depth += 1;
                continue;
            }
            // The first merge needs no copy of its right operand.
            add_assign(&mut self.stack[depth - 1].as_mut_slice()[..len], operand);
            for _ in 1..term.num_merges {
                depth -= 1;
                let (left, right) = self.stack.split_at_mut(depth);
                add_assign(&mut left[depth - 1].as_mut_slice()[..len], &right[0].as_slice()[..len]);
            }
        }
    }
}

/// Bytes that a rank has moved, without headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// To others.
    pub sent_bytes: u64,
    /// From others.
    pub received_bytes: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
    }
}

/// Performs the transfers, and counts their bytes.
pub async fn exchange(plane: &mut dyn DataPlane, mut group: Vec<Transfer<'_>>) -> Result<Traffic, PlaneError> {
    let mut traffic = Traffic::default();
    for transfer in &group {
        match transfer {
            Transfer::Send { bytes, .. } => traffic.sent_bytes += bytes.len() as u64,
            Transfer::Recv { bytes, .. } => traffic.received_bytes += bytes.len() as u64,
        }
    }
    if !group.is_empty() {
        plane.exchange(&mut group).await?;
    }
    Ok(traffic)
}

/// The owners hand out the parameters of their chunks to `receivers`, who lack those that they do not own. Each receiver
/// gets a chunk from that owner which gives least so far, so all ranks must name the same receivers.
pub async fn hand_out(
    plane: &mut dyn DataPlane,
    chunks: &[Range<usize>],
    owners: &[Vec<Rank>],
    receivers: &[Rank],
    params: &mut [f32],
) -> Result<Traffic, PlaneError> {
    let own = plane.rank();
    let places = disjoint_mut(params, chunks.iter().cloned());
    let mut given = vec![0; plane.world()];
    let mut group = Vec::new();
    for (place, owners) in places.into_iter().zip(owners) {
        let mut giver = || {
            let giver = owners.iter().copied().min_by_key(|rank| given[rank.index()])?;
            given[giver.index()] += place.len();
            Some(giver)
        };
        let lacking = receivers.iter().filter(|to| !owners.contains(to));
        let gifts: Vec<_> = lacking.filter_map(|to| Some((giver()?, *to))).collect();
        if let Some((from, _)) = gifts.iter().find(|(_, to)| *to == own) {
            group.push(Transfer::Recv { from: *from, bytes: place.as_mut_bytes() });
        } else {
            let place = &*place;
            let own_gifts = gifts.iter().filter(|(from, _)| *from == own);
            group.extend(own_gifts.map(|(_, to)| Transfer::Send { to: *to, bytes: place.as_bytes() }));
        }
    }
    exchange(plane, group).await
}

/// The additions over all ranks' pieces, in the order of the slots.
fn terms(slots: usize, pieces: &[Vec<Range<usize>>], own: Rank) -> Vec<Term> {
    let mut sources = Vec::new();
    let (mut num_own, mut num_foreign) = (0, 0);
    for (rank, piece) in pieces.iter().enumerate().flat_map(|(rank, pieces)| pieces.iter().map(move |p| (rank, p))) {
        let (count, source): (_, fn(usize) -> Source) =
            if rank == own.index() { (&mut num_own, Source::Own) } else { (&mut num_foreign, Source::Foreign) };
        sources.push((piece.clone(), source(*count)));
        *count += 1;
    }
    sources.sort_by_key(|(piece, _)| piece.start);
    assert!(sources.windows(2).all(|w| w[0].0.end == w[1].0.start), "the shares are not all slots");
    let mut sums = PartialSums::new(slots);
    sources.into_iter().map(|(piece, source)| Term { source, num_merges: sums.push(piece) }).collect()
}
