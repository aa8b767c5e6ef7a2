//! Slots: the fixed shares of a step, who computes which, and the one tree over which their gradients are summed.
//!
//! Floating-point addition does not associate, so the order of summation is part of the result. It is fixed by the
//! number of slots alone: the root is `[0, slots)`, and a node `[lo, hi)` of more than one slot is the sum of
//! `[lo, mid)` and `[mid, hi)`, where `mid - lo` is the largest power of two below `hi - lo` (the tree of RFC 6962,
//! section 2.1). Ranks only decide who performs which addition.

use std::ops::Range;

/// The tree node's point of division: `[node.start, mid)` is its left child and `[mid, node.end)` its right one.
///
/// `None` for a leaf (and for an empty range).
pub fn split(node: &Range<usize>) -> Option<usize> {
    (node.len() > 1).then(|| node.start + node.len().next_power_of_two() / 2)
}

/// Contiguous slots for each of `world` ranks, in rank order, whose numbers differ by at most one.
///
/// `None` if `world` is 0 or above `slots`, which would leave a rank without work.
pub fn assign(slots: usize, world: usize) -> Option<Vec<Range<usize>>> {
    let cut = |rank: usize| rank * slots / world;
    (1..=slots).contains(&world).then(|| (0..world).map(|rank| cut(rank)..cut(rank + 1)).collect())
}

/// The largest nodes of the tree over `slots` that lie wholly in `range`, from left to right; together they are `range`.
pub fn subtrees(slots: usize, range: &Range<usize>) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    collect_subtrees(0..slots, range, &mut found);
    found
}

fn collect_subtrees(node: Range<usize>, range: &Range<usize>, found: &mut Vec<Range<usize>>) {
    if node.is_empty() || node.end <= range.start || range.end <= node.start {
        return;
    }
    if range.start <= node.start && node.end <= range.end {
        found.push(node);
    } else if let Some(mid) = split(&node) {
        collect_subtrees(node.start..mid, range, found);
        collect_subtrees(mid..node.end, range, found);
    }
}

/// The additions by which a rank that computes its slots one after another arrives at the sums of its subtrees.
///
/// Buffers are numbered from 0 and used as a stack, so few are alive at a time (at most about twice the logarithm of
/// the rank's slots), and each is used again as soon as it has been added to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SumPlan {
    /// One entry for each slot of the rank, to be carried out in this order.
    pub steps: Vec<SlotSteps>,
    /// What the buffers hold at the end: buffer `i` has the sum of `pieces[i]`. Equal to [`subtrees`] of the range.
    pub pieces: Vec<Range<usize>>,
    /// How many buffers are needed.
    pub num_buffers: usize,
}

/// What to do for one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotSteps {
    /// The slot to compute.
    pub slot: usize,
    /// The buffer its gradient is accumulated in, from zero.
    pub buffer: usize,
    /// Additions to do after that, in order.
    pub merges: Vec<Merge>,
}

/// Adds buffer `from` to buffer `into`, element by element, and gives `from` free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    /// The left operand and the result.
    pub into: usize,
    /// The right operand.
    pub from: usize,
}

impl SumPlan {
    /// The plan for the slots of `range`, of a step of `slots`.
    pub fn new(slots: usize, range: &Range<usize>) -> Self {
        let mut sums = PartialSums::new(slots);
        let (mut steps, mut num_buffers) = (Vec::new(), 0);
        for slot in range.clone() {
            let buffer = sums.nodes.len();
            num_buffers = num_buffers.max(buffer + 1);
            let num_merges = sums.push(slot..slot + 1);
            let merges = (0..num_merges).map(|i| Merge { into: buffer - i - 1, from: buffer - i }).collect();
            steps.push(SlotSteps { slot, buffer, merges });
        }
        Self { steps, pieces: sums.nodes, num_buffers }
    }
}

/// Sums of neighbouring nodes, joined as soon as their parent can be formed.
#[derive(Debug, Clone)]
pub struct PartialSums {
    slots: usize,
    nodes: Vec<Range<usize>>,
}

impl PartialSums {
    /// No sums yet, of a tree over `slots`.
    pub fn new(slots: usize) -> Self {
        Self { slots, nodes: Vec::new() }
    }

    /// The nodes whose sums there are, from left to right.
    pub fn nodes(&self) -> &[Range<usize>] {
        &self.nodes
    }

    /// Adds the sum of the node to the right of the last one. Returns how many times after that the last sum is to be
    /// added to the one before it, which it then replaces.
    pub fn push(&mut self, node: Range<usize>) -> usize {
        self.nodes.push(node);
        let mut num_merges = 0;
        while let [.., left, right] = self.nodes.as_slice()
            && is_node(self.slots, &(left.start..right.end))
        {
            let parent = left.start..right.end;
            self.nodes.truncate(self.nodes.len() - 2);
            self.nodes.push(parent);
            num_merges += 1;
        }
        num_merges
    }
}

/// Whether the tree over `slots` has this node.
fn is_node(slots: usize, range: &Range<usize>) -> bool {
    let mut node = 0..slots;
    while node != *range {
        match split(&node) {
            Some(mid) if range.end <= mid => node = node.start..mid,
            Some(mid) if mid <= range.start => node = mid..node.end,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The whole sum, written out.
    fn expression(node: Range<usize>) -> String {
        match split(&node) {
            Some(mid) => format!("({}+{})", expression(node.start..mid), expression(mid..node.end)),
            None => node.start.to_string(),
        }
    }

    /// What the buffers hold after a rank has followed its plan, with the checks that a trainer relies on.
    fn follow(plan: &SumPlan) -> Vec<String> {
        let mut buffers: Vec<Option<String>> = vec![None; plan.num_buffers];
        for step in &plan.steps {
            assert_eq!(buffers[step.buffer], None, "slot {} would overwrite a sum", step.slot);
            buffers[step.buffer] = Some(step.slot.to_string());
            for merge in &step.merges {
                let right = buffers[merge.from].take().expect("an operand");
                let left = buffers[merge.into].take().expect("an operand");
                buffers[merge.into] = Some(format!("({left}+{right})"));
            }
        }
        assert!(buffers[plan.pieces.len()..].iter().all(Option::is_none), "a sum outside the pieces");
        buffers.into_iter().flatten().collect()
    }

    /// The root's expression from those of the pieces of all ranks.
    fn combine(node: Range<usize>, pieces: &[(Range<usize>, String)]) -> String {
        match pieces.iter().find(|(range, _)| *range == node) {
            Some((_, text)) => text.clone(),
            None => {
                let mid = split(&node).expect("every leaf is in a piece");
                format!("({}+{})", combine(node.start..mid, pieces), combine(mid..node.end, pieces))
            }
        }
    }

    #[test]
    fn the_tree_is_fixed_by_the_number_of_slots() {
        assert_eq!(expression(0..1), "0");
        assert_eq!(expression(0..3), "((0+1)+2)");
        assert_eq!(expression(0..7), "(((0+1)+(2+3))+((4+5)+6))");
    }

    #[test]
    fn a_rank_sends_whole_subtrees() {
        assert_eq!(subtrees(8, &(0..8)), vec![0..8; 1]);
        assert_eq!(subtrees(8, &(3..8)), [3..4, 4..8]);
        assert_eq!(subtrees(7, &(1..7)), [1..2, 2..4, 4..7]);
        assert_eq!(subtrees(6, &(3..3)), []);
    }

    #[test]
    fn a_world_above_the_slots_or_of_nobody_has_no_assignment() {
        assert_eq!(assign(4, 5), None);
        assert_eq!(assign(4, 0), None);
        assert_eq!(assign(0, 0), None);
        assert_eq!(assign(5, 3), Some(vec![0..1, 1..3, 3..5]));
    }

    proptest! {
        #[test]
        fn every_world_sums_the_same_expression(slots in 1usize..70, pick in 0usize..70) {
            let world = 1 + pick % slots;
            let shares = assign(slots, world).expect("a rank for each");
            let mut pieces = Vec::new();
            for share in &shares {
                let plan = SumPlan::new(slots, share);
                prop_assert_eq!(&plan.pieces, &subtrees(slots, share));
                pieces.extend(plan.pieces.iter().cloned().zip(follow(&plan)));
            }
            prop_assert_eq!(combine(0..slots, &pieces), expression(0..slots));
        }

        #[test]
        fn shares_are_contiguous_and_differ_by_at_most_one(slots in 1usize..200, pick in 0usize..200) {
            let shares = assign(slots, 1 + pick % slots).expect("a rank for each");
            let lens = shares.iter().map(Range::len);
            prop_assert!(lens.clone().max().unwrap_or(0) - lens.min().unwrap_or(0) <= 1);
            prop_assert_eq!((shares[0].start, shares[shares.len() - 1].end), (0, slots));
            prop_assert!(shares.windows(2).all(|w| w[0].end == w[1].start));
        }

        #[test]
        fn few_buffers_are_alive(slots in 1usize..300, start in 0usize..300, len in 1usize..300) {
            let range = start % slots..(start % slots + len).min(slots);
            let log = range.len().ilog2() as usize;
            prop_assert!(SumPlan::new(slots, &range).num_buffers <= 2 * log + 1);
        }
    }
}
