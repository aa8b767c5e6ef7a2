//! Which ranks own each chunk: hold its moments, sum its gradient and apply its update.
//!
//! Owners follow from who holds what, so that as little as possible moves when members change, and every member finds the
//! same ones. Loads are levelled to within one chunk, so that memory and traffic fall as copies / world.

use crate::ids::Rank;

/// The owners of each chunk, ascending.
///
/// `lens` are the chunks' lengths, `holders` who holds each already (ranks of `num_members` and above may give but not
/// own), `copies` how many owners a chunk has (at most `num_members`).
pub fn assign_owners(lens: &[usize], holders: &[Vec<Rank>], num_members: usize, copies: usize) -> Vec<Vec<Rank>> {
    let mut table = Table::new(lens, num_members, copies.min(num_members));
    table.keep(holders);
    table.fill();
    table.level();
    table.owners.into_iter().map(sorted).collect()
}

fn sorted(mut ranks: Vec<usize>) -> Vec<Rank> {
    ranks.sort_unstable();
    ranks.into_iter().map(|rank| Rank(rank as u32)).collect()
}

struct Table<'a> {
    lens: &'a [usize],
    copies: usize,
    owners: Vec<Vec<usize>>,
    /// Elements owned by each rank.
    loads: Vec<usize>,
    /// Of each two ranks, how many chunks they own together.
    shared: Vec<Vec<usize>>,
}

impl<'a> Table<'a> {
    fn new(lens: &'a [usize], num_members: usize, copies: usize) -> Self {
        Self {
            lens,
            copies,
            owners: vec![Vec::new(); lens.len()],
            loads: vec![0; num_members],
            shared: vec![vec![0; num_members]; num_members],
        }
    }

    /// Lets holders stay owners; of too many, those that own least so far.
    fn keep(&mut self, holders: &[Vec<Rank>]) {
        for (chunk, ranks) in holders.iter().enumerate() {
            let mut ranks: Vec<_> = ranks.iter().map(|r| r.index()).filter(|r| *r < self.loads.len()).collect();
            ranks.sort_by_key(|rank| (self.loads[*rank], *rank));
            for rank in ranks.into_iter().take(self.copies) {
                self.give(chunk, rank);
            }
        }
    }

    /// Finds owners for what lacks them, the longest chunks first.
    fn fill(&mut self) {
        let mut lacking: Vec<_> = (0..self.lens.len()).filter(|c| self.owners[*c].len() < self.copies).collect();
        lacking.sort_by_key(|chunk| std::cmp::Reverse(self.lens[*chunk]));
        for chunk in lacking {
            while self.owners[chunk].len() < self.copies {
                let free = (0..self.loads.len()).filter(|rank| !self.owners[chunk].contains(rank));
                // Of equals, whoever shares least with the other owners: after a loss, many can then heal each other.
                let Some(rank) = free.min_by_key(|r| (self.loads[*r], self.shared_with(chunk, *r))) else { break };
                self.give(chunk, rank);
            }
        }
    }

    /// Moves chunks from ranks that own much to those that own little, while a move helps. Each move makes the sum of
    /// the squared loads smaller, so this ends.
    fn level(&mut self) {
        while let Some((chunk, from, to)) = self.best_move() {
            self.take(chunk, from);
            self.give(chunk, to);
        }
    }

    /// A chunk whose move from the most to the least loaded rank that can swap it brings the two nearer to each other.
    fn best_move(&self) -> Option<(usize, usize, usize)> {
        let mut ranks: Vec<_> = (0..self.loads.len()).collect();
        ranks.sort_by_key(|rank| (self.loads[*rank], *rank));
        let (to, others) = ranks.split_first()?;
        others.iter().rev().find_map(|from| {
            let gap = self.loads[*from] - self.loads[*to];
            let can_move = |chunk: &usize| {
                let owners = &self.owners[*chunk];
                owners.contains(from) && !owners.contains(to) && 0 < self.lens[*chunk] && self.lens[*chunk] < gap
            };
            // The one that comes nearest to closing the gap, from both sides.
            let chunk = (0..self.lens.len()).filter(can_move).min_by_key(|c| gap.abs_diff(2 * self.lens[*c]))?;
            Some((chunk, *from, *to))
        })
    }

    fn take(&mut self, chunk: usize, rank: usize) {
        self.owners[chunk].retain(|owner| *owner != rank);
        self.loads[rank] -= self.lens[chunk];
        for other in &self.owners[chunk] {
            self.shared[*other][rank] -= 1;
            self.shared[rank][*other] -= 1;
        }
    }

    /// Chunks that `rank` owns together with the owners of `chunk`.
    fn shared_with(&self, chunk: usize, rank: usize) -> usize {
        self.owners[chunk].iter().map(|other| self.shared[*other][rank]).sum()
    }

    fn give(&mut self, chunk: usize, rank: usize) {
        for other in &self.owners[chunk] {
            self.shared[*other][rank] += 1;
            self.shared[rank][*other] += 1;
        }
        self.owners[chunk].push(rank);
        self.loads[rank] += self.lens[chunk];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn loads(lens: &[usize], owners: &[Vec<Rank>], num_members: usize) -> Vec<usize> {
        let mut loads = vec![0; num_members];
        for (len, ranks) in lens.iter().zip(owners) {
            ranks.iter().for_each(|rank| loads[rank.index()] += len);
        }
        loads
    }

    fn fresh(lens: &[usize], num_members: usize, copies: usize) -> Vec<Vec<Rank>> {
        assign_owners(lens, &vec![Vec::new(); lens.len()], num_members, copies)
    }

    fn num_moved(before: &[Vec<Rank>], after: &[Vec<Rank>]) -> usize {
        let new = |(b, a): (&Vec<Rank>, &Vec<Rank>)| a.iter().filter(|rank| !b.contains(rank)).count();
        before.iter().zip(after).map(new).sum()
    }

    #[test]
    fn nothing_moves_while_nobody_comes_or_goes() {
        let lens = vec![100; 24];
        let owners = fresh(&lens, 4, 2);
        assert_eq!(assign_owners(&lens, &owners, 4, 2), owners);
    }

    #[test]
    fn a_loss_moves_only_what_was_lost() {
        let lens = vec![100; 24];
        let before = fresh(&lens, 4, 2);
        // Rank 3 dies; the others keep their numbers.
        let held: Vec<Vec<_>> = before.iter().map(|r| r.iter().copied().filter(|r| r.0 < 3).collect()).collect();
        let after = assign_owners(&lens, &held, 3, 2);
        assert_eq!(num_moved(&held, &after), 12);
        assert_eq!(loads(&lens, &after, 3), [1600; 3]);
    }

    #[test]
    fn a_joiner_takes_its_share_and_nothing_else_moves() {
        let lens = vec![100; 24];
        let before = fresh(&lens, 3, 2);
        let after = assign_owners(&lens, &before, 4, 2);
        assert_eq!(num_moved(&before, &after), 12);
        assert_eq!(loads(&lens, &after, 4), [1200; 4]);
    }

    #[test]
    fn whoever_leaves_owns_nothing_more() {
        let lens = vec![100; 6];
        let before = fresh(&lens, 3, 1);
        let after = assign_owners(&lens, &before, 2, 1);
        assert!(after.iter().flatten().all(|rank| rank.0 < 2));
        assert_eq!(num_moved(&before, &after), 2);
    }

    proptest! {
        #[test]
        fn every_chunk_has_its_copies_and_loads_differ_by_at_most_one_chunk(
            lens in prop::collection::vec(1usize..1000, 1..60),
            num_members in 1usize..9,
            copies in 1usize..9,
            held in prop::collection::vec(prop::collection::btree_set(0u32..10, 0..4), 60),
        ) {
            let held: Vec<Vec<_>> = held[..lens.len()].iter().map(|s| s.iter().copied().map(Rank).collect()).collect();
            let owners = assign_owners(&lens, &held, num_members, copies);
            for ranks in &owners {
                prop_assert_eq!(ranks.len(), copies.min(num_members));
                prop_assert!(ranks.is_sorted() && ranks.windows(2).all(|w| w[0] != w[1]));
                prop_assert!(ranks.iter().all(|rank| rank.index() < num_members));
            }
            let loads = loads(&lens, &owners, num_members);
            let longest = lens.iter().max().copied().unwrap_or(0);
            let (least, most) = (loads.iter().min().copied(), loads.iter().max().copied());
            prop_assert!(most.unwrap_or(0) - least.unwrap_or(0) <= longest, "{:?}", loads);
        }
    }
}
