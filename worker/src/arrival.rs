//! How the ranks of a new generation arrive at one state: a pure function of what each of them holds.
//!
//! The newest state wins of which every chunk is still there. A step that some survivor has applied was decided, so the
//! others roll it forward from the sums they have; one that nobody has applied is taken again. A checkpoint, or the initial
//! state, stands in where chunks are lost. Every rank computes the same [`Arrival`] from the same records.

use polo_recipe::{
    config::{Copies, Gather},
    ids::{Rank, Step},
    layout::ChunkId,
    mistakes::{Mistake, is_back},
    ownership::assign_owners,
};

/// What a rank shows of what it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Step of its chunks and parameters; none if it holds nothing.
    pub step: Option<Step>,
    /// Whether all its parameters are those of `step`.
    pub params_complete: bool,
    /// Whether it knows how the step to `step` was decided.
    pub has_decision: bool,
    /// By chunk, whether it holds the moments of `step`.
    pub chunks: Vec<bool>,
    /// By chunk, whether it has the gradient sum of the step from `step` as well.
    pub summed: Vec<bool>,
}

impl Held {
    /// Bytes of [`Held::encode`] for so many chunks.
    pub fn num_bytes(num_chunks: usize) -> usize {
        9 + 2 * num_chunks.div_ceil(8)
    }

    /// Little-endian: step + 1 or 0, flags, then a bit for each chunk that is held and one for each that is summed.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.step.map_or(0, |step| step.0 + 1).to_le_bytes().to_vec();
        bytes.push(u8::from(self.params_complete) | u8::from(self.has_decision) << 1);
        for bits in [&self.chunks, &self.summed] {
            let pack = |eight: &[bool]| eight.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
            bytes.extend(bits.chunks(8).map(pack));
        }
        bytes
    }

    /// Reads [`Held::encode`]'s bytes, of which there must be [`Held::num_bytes`].
    pub fn decode(bytes: &[u8], num_chunks: usize) -> Self {
        let step = u64::from_le_bytes(std::array::from_fn(|i| bytes[i])).checked_sub(1).map(Step);
        let (chunks, summed) = bytes[9..].split_at(num_chunks.div_ceil(8));
        let unpack = |bits: &[u8]| (0..num_chunks).map(|chunk| bits[chunk / 8] >> (chunk % 8) & 1 == 1).collect();
        let (params_complete, has_decision) = (bytes[8] & 1 != 0, bytes[8] & 2 != 0);
        Self { step, params_complete, has_decision, chunks: unpack(chunks), summed: unpack(summed) }
    }
}

/// Where the first state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nobody holds a whole one, and there is no checkpoint.
    Fresh,
    /// The newest checkpoint, of which each member loads its chunks.
    Checkpoint,
    /// The ranks hold it among them.
    Survivors,
}

/// A chunk that travels between two ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// The chunk.
    pub chunk: ChunkId,
    /// Who gives it.
    pub from: Rank,
    /// Who gets it.
    pub to: Rank,
    /// Whether its parameters travel.
    pub params: bool,
    /// Whether its moments travel.
    pub moments: bool,
}

/// How a generation begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Where the state comes from.
    pub origin: Origin,
    /// Its step.
    pub step: Step,
    /// Chunks of the newest state seen of which no copy is left.
    pub num_lost_chunks: usize,
    /// Who tells the others of the ledger and of the last decision; nobody where none of the ranks knows.
    pub teller: Option<Rank>,
    /// Ranks that have yet to apply the last decided step.
    pub rolling: Vec<Rank>,
    /// Owners of each chunk from now on, ascending.
    pub owners: Vec<Vec<Rank>>,
    /// Moves of parameters to those who compute with all of them, over before anybody computes.
    pub mends: Vec<Move>,
    /// Moves of chunks to their owners: while the first step is computed or, where it is computed with what owners gather,
    /// before it.
    pub moves: Vec<Move>,
    /// Members that have the first step's slots: all, or those whose parameters are complete after the mends. From the
    /// second step on, all members have.
    pub computing: Vec<Rank>,
}

/// What is not a rank's own.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// The first ranks are members; spares and leaving workers follow.
    pub num_members: usize,
    /// The newest checkpoint.
    pub checkpoint: Option<Step>,
    /// Lengths of the chunks.
    pub chunk_lens: &'a [usize],
    /// Owners that each chunk is to have.
    pub copies: Copies,
    /// How parameters come that a rank does not own.
    pub gather: Gather,
}

/// Decides how a generation begins whose ranks hold `held`.
pub fn arrive(held: &[Held], terms: Terms<'_>) -> Arrival {
    let newest = held.iter().filter_map(|h| h.step).max();
    let is_whole = |step: &Step| num_lost(held, *step, terms.chunk_lens.len()) == 0;
    let whole = held.iter().filter_map(|h| h.step).filter(is_whole).max();
    let num_lost_chunks = newest.map_or(0, |step| num_lost(held, step, terms.chunk_lens.len()));
    match (whole, terms.checkpoint) {
        (Some(step), checkpoint) if checkpoint.is_none_or(|c| c <= step) => go_on(held, step, num_lost_chunks, terms),
        (_, Some(step)) => reload(Origin::Checkpoint, step, num_lost_chunks, terms),
        (_, None) => reload(Origin::Fresh, Step(0), num_lost_chunks, terms),
    }
}

/// Whether `one` can be brought to `step` by applying the step before it.
fn can_roll(held: &[Held], one: &Held, step: Step) -> bool {
    let is_told = held.iter().any(|h| h.step == Some(step) && h.has_decision);
    is_told && one.step.map(Step::next) == Some(step) && one.summed.contains(&true)
}

/// Ranks that hold each chunk at `step`, or can after applying the step before it.
fn holders(held: &[Held], step: Step, num_chunks: usize) -> Vec<Vec<Rank>> {
    let nothing = vec![false; num_chunks];
    let at_step = |one: &'_ Held| match one {
        Held { step: Some(s), .. } if *s == step => one.chunks.clone(),
        _ if can_roll(held, one, step) => one.summed.clone(),
        _ => nothing.clone(),
    };
    let at_step: Vec<_> = held.iter().map(at_step).collect();
    let of_chunk =
        |chunk: usize| (0..held.len()).filter(|r| at_step[*r][chunk]).map(|rank| Rank(rank as u32)).collect();
    (0..num_chunks).map(of_chunk).collect()
}

fn num_lost(held: &[Held], step: Step, num_chunks: usize) -> usize {
    holders(held, step, num_chunks).iter().filter(|ranks| ranks.is_empty()).count()
}

fn members(terms: Terms<'_>) -> impl Iterator<Item = Rank> {
    (0..terms.num_members as u32).map(Rank)
}

/// Nobody holds anything that counts: every member makes or loads what it owns.
fn reload(origin: Origin, step: Step, num_lost_chunks: usize, terms: Terms<'_>) -> Arrival {
    let nobody = vec![Vec::new(); terms.chunk_lens.len()];
    let owners = assign_owners(terms.chunk_lens, &nobody, terms.num_members, terms.copies.among(terms.num_members));
    let all: Vec<_> = members(terms).collect();
    let mends = match (origin, terms.gather) {
        (Origin::Checkpoint, Gather::Step) => mends(&all, &owners, &mut Givers::new(terms.num_members)),
        _ => Vec::new(),
    };
    let (teller, rolling, moves) = (None, Vec::new(), Vec::new());
    Arrival { origin, step, num_lost_chunks, teller, rolling, owners, mends, moves, computing: all }
}

fn go_on(held: &[Held], step: Step, num_lost_chunks: usize, terms: Terms<'_>) -> Arrival {
    let rank_of = |rank: usize| Rank(rank as u32);
    let is_at = |rank: &usize| held[*rank].step == Some(step);
    let rolling: Vec<_> = (0..held.len()).filter(|r| can_roll(held, &held[*r], step)).map(rank_of).collect();
    let knows = |rank: &usize| is_at(rank) && (rolling.is_empty() || held[*rank].has_decision);
    let teller = (0..held.len()).find(knows).map(rank_of);
    let holders = holders(held, step, terms.chunk_lens.len());
    let owners = assign_owners(terms.chunk_lens, &holders, terms.num_members, terms.copies.among(terms.num_members));
    let mut givers = Givers::new(held.len());
    let (computing, mends) = match terms.gather {
        Gather::Step => ready_to_compute(held, step, &rolling, &holders, terms, &mut givers),
        Gather::Block => (members(terms).collect(), Vec::new()),
    };
    let have_params = if terms.gather == Gather::Step { &computing[..] } else { &[] };
    let moves = moves(&owners, &holders, have_params, &mut givers);
    Arrival { origin: Origin::Survivors, step, num_lost_chunks, teller, rolling, owners, mends, moves, computing }
}

/// Members that hold all parameters, or nearly, and what they lack of them.
fn ready_to_compute(
    held: &[Held],
    step: Step,
    rolling: &[Rank],
    holders: &[Vec<Rank>],
    terms: Terms<'_>,
    givers: &mut Givers,
) -> (Vec<Rank>, Vec<Move>) {
    let is_here = |rank: &Rank| held[rank.index()].step == Some(step) || rolling.contains(rank);
    let mut computing: Vec<_> = members(terms).filter(is_here).collect();
    let is_mended = |rank: &Rank| rolling.contains(rank) || !is_here(rank) || !held[rank.index()].params_complete;
    if computing.is_empty() || is_back(Mistake::JoinerInMidStep) {
        computing = members(terms).collect();
    }
    let mended: Vec<_> = computing.iter().copied().filter(is_mended).collect();
    let mends = if is_back(Mistake::JoinerInMidStep) { Vec::new() } else { mends(&mended, holders, givers) };
    (computing, mends)
}

/// Parameters of all chunks that the ranks in `mended` do not hold.
fn mends(mended: &[Rank], holders: &[Vec<Rank>], givers: &mut Givers) -> Vec<Move> {
    let mut mends = Vec::new();
    for (chunk, ranks) in (0..).map(ChunkId).zip(holders) {
        for to in mended.iter().filter(|rank| !ranks.contains(rank)) {
            let from = givers.choose(ranks);
            mends.extend(from.map(|from| Move { chunk, from, to: *to, params: true, moments: false }));
        }
    }
    mends
}

/// What owners lack of their chunks.
fn moves(owners: &[Vec<Rank>], holders: &[Vec<Rank>], have_params: &[Rank], givers: &mut Givers) -> Vec<Move> {
    let mut moves = Vec::new();
    for (chunk, (owners, holders)) in (0..).map(ChunkId).zip(owners.iter().zip(holders)) {
        for to in owners.iter().filter(|rank| !holders.contains(rank)) {
            let from = givers.choose(holders);
            let params = !have_params.contains(to);
            moves.extend(from.map(|from| Move { chunk, from, to: *to, params, moments: true }));
        }
    }
    moves
}

/// Shares out the giving.
struct Givers(Vec<usize>);

impl Givers {
    fn new(num_ranks: usize) -> Self {
        Self(vec![0; num_ranks])
    }

    /// Of these ranks, the one that gives least so far.
    fn choose(&mut self, ranks: &[Rank]) -> Option<Rank> {
        let rank = ranks.iter().copied().min_by_key(|rank| (self.0[rank.index()], *rank))?;
        self.0[rank.index()] += 1;
        Some(rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENS: [usize; 4] = [10; 4];

    fn terms(num_members: usize, copies: usize, checkpoint: Option<u64>) -> Terms<'static> {
        let copies = Copies::Number(copies);
        Terms { num_members, checkpoint: checkpoint.map(Step), chunk_lens: &LENS, copies, gather: Gather::Step }
    }

    fn nothing() -> Held {
        let none = vec![false; LENS.len()];
        Held { chunks: none.clone(), summed: none, ..Held::default() }
    }

    /// A rank at a step boundary.
    fn holds(step: u64, chunks: [usize; 2]) -> Held {
        let chunks = (0..LENS.len()).map(|chunk| chunks.contains(&chunk)).collect();
        Held { step: Some(Step(step)), params_complete: true, has_decision: true, chunks, ..nothing() }
    }

    /// The same rank after the sums of the next step.
    fn summed(held: Held) -> Held {
        Held { summed: held.chunks.clone(), ..held }
    }

    fn ranks(numbers: &[u32]) -> Vec<Rank> {
        numbers.iter().copied().map(Rank).collect()
    }

    #[test]
    fn records_survive_encoding() {
        let held = Held { params_complete: false, summed: holds(0, [3, 3]).chunks, ..holds(300, [1, 3]) };
        for held in [held, nothing()] {
            assert_eq!(held.encode().len(), Held::num_bytes(LENS.len()));
            assert_eq!(Held::decode(&held.encode(), LENS.len()), held);
        }
    }

    #[test]
    fn without_any_state_the_run_starts_fresh_or_from_its_checkpoint() {
        let fresh = arrive(&[nothing(), nothing()], terms(2, 1, None));
        assert_eq!((fresh.origin, fresh.step, fresh.mends.len()), (Origin::Fresh, Step(0), 0));
        let loaded = arrive(&[nothing(), nothing()], terms(2, 1, Some(8)));
        assert_eq!((loaded.origin, loaded.step), (Origin::Checkpoint, Step(8)));
        assert_eq!(loaded.mends.len(), 4, "each is given the parameters that the other has loaded");
        assert_eq!(loaded.computing, ranks(&[0, 1]));
    }

    #[test]
    fn survivors_of_a_loss_compute_at_once_while_chunks_get_their_second_copy() {
        // Of three ranks that own two chunks each in two copies, one died.
        let arrival = arrive(&[holds(9, [0, 1]), holds(9, [2, 3])], terms(2, 2, Some(4)));
        assert_eq!((arrival.origin, arrival.step, arrival.num_lost_chunks), (Origin::Survivors, Step(9), 0));
        assert_eq!((arrival.rolling.len(), arrival.mends.len()), (0, 0));
        assert_eq!(arrival.computing, ranks(&[0, 1]));
        assert_eq!(arrival.moves.len(), 4);
        assert!(arrival.moves.iter().all(|m| m.moments && !m.params && m.from != m.to));
    }

    #[test]
    fn a_step_that_one_survivor_has_applied_is_rolled_forward_by_the_other() {
        let behind = summed(holds(9, [2, 3]));
        let ahead = Held { params_complete: false, ..holds(10, [0, 1]) };
        let arrival = arrive(&[behind, ahead], terms(2, 1, None));
        assert_eq!((arrival.origin, arrival.step), (Origin::Survivors, Step(10)));
        assert_eq!((arrival.rolling.as_slice(), arrival.teller), (&ranks(&[0])[..], Some(Rank(1))));
        assert_eq!(arrival.mends.len(), 4, "both lack the parameters that the other has updated");
        assert_eq!(arrival.moves, []);
    }

    #[test]
    fn a_step_that_nobody_has_applied_is_taken_again() {
        let arrival = arrive(&[summed(holds(9, [0, 1])), holds(9, [2, 3])], terms(2, 1, None));
        assert_eq!((arrival.step, arrival.rolling.len(), arrival.mends.len()), (Step(9), 0, 0));
    }

    #[test]
    fn without_the_sums_an_applied_step_cannot_be_rolled_forward_and_the_checkpoint_is_taken() {
        let arrival = arrive(&[holds(9, [2, 3]), holds(10, [0, 1])], terms(2, 1, Some(8)));
        assert_eq!((arrival.origin, arrival.step, arrival.num_lost_chunks), (Origin::Checkpoint, Step(8), 2));
    }

    #[test]
    fn what_a_rank_holds_without_having_summed_it_is_not_rolled_forward() {
        let behind = Held { summed: holds(0, [2, 2]).chunks, ..holds(9, [2, 3]) };
        let arrival = arrive(&[behind, holds(10, [0, 1])], terms(2, 1, Some(8)));
        assert_eq!((arrival.origin, arrival.num_lost_chunks), (Origin::Checkpoint, 1));
    }

    #[test]
    fn where_the_last_copy_is_gone_all_return_to_the_checkpoint() {
        let arrival = arrive(&[holds(9, [0, 1]), holds(9, [1, 2])], terms(2, 2, Some(4)));
        assert_eq!((arrival.origin, arrival.step, arrival.num_lost_chunks), (Origin::Checkpoint, Step(4), 1));
    }

    #[test]
    fn an_older_state_that_is_whole_counts_unless_the_checkpoint_is_newer() {
        let old = Held { chunks: vec![true; 4], ..holds(6, [0, 1]) };
        let held = [old, holds(9, [0, 1])];
        assert_eq!(arrive(&held, terms(2, 1, Some(4))).step, Step(6));
        assert_eq!(arrive(&held, terms(2, 1, Some(7))).origin, Origin::Checkpoint);
    }

    #[test]
    fn a_joiner_has_no_slots_in_its_first_step_and_gets_only_its_share() {
        let arrival = arrive(&[holds(9, [0, 1]), holds(9, [2, 3]), nothing()], terms(3, 1, None));
        assert_eq!(arrival.computing, ranks(&[0, 1]));
        assert_eq!(arrival.moves.len(), 1);
        assert!(arrival.moves.iter().all(|m| m.to == Rank(2) && m.params && m.moments));
        assert_eq!(arrival.mends, []);
    }

    #[test]
    fn a_spare_that_becomes_a_member_computes_at_once() {
        let spare = Held { chunks: vec![false; 4], has_decision: false, ..holds(9, [0, 1]) };
        let arrival = arrive(&[holds(9, [0, 1]), holds(9, [2, 3]), spare], terms(3, 1, None));
        assert_eq!(arrival.computing, ranks(&[0, 1, 2]));
        assert!(arrival.moves.iter().all(|m| m.to == Rank(2) && !m.params && m.moments));
    }

    #[test]
    fn whoever_leaves_gives_and_gets_nothing() {
        let arrival = arrive(&[holds(9, [0, 1]), holds(9, [2, 3])], terms(1, 2, None));
        assert_eq!(arrival.computing, ranks(&[0]));
        assert_eq!(arrival.owners, vec![ranks(&[0]); 4]);
        assert!(arrival.moves.iter().all(|m| (m.from, m.to) == (Rank(1), Rank(0))));
        assert_eq!(arrival.moves.len(), 2);
    }

    #[test]
    fn where_blocks_are_gathered_chunks_move_whole_and_every_member_computes() {
        let block = |num_members, checkpoint| Terms { gather: Gather::Block, ..terms(num_members, 1, checkpoint) };
        let held = |chunks| Held { params_complete: false, ..holds(9, chunks) };
        let arrival = arrive(&[held([0, 1]), held([2, 3]), nothing()], block(3, None));
        assert_eq!((arrival.computing, arrival.mends), (ranks(&[0, 1, 2]), vec![]));
        assert!(!arrival.moves.is_empty() && arrival.moves.iter().all(|m| m.params && m.moments));
        let loaded = arrive(&[nothing(), nothing()], block(2, Some(8)));
        assert_eq!((loaded.origin, loaded.mends, loaded.moves), (Origin::Checkpoint, vec![], vec![]));
    }

    #[test]
    fn the_only_member_that_holds_nothing_is_mended_before_it_computes() {
        let leaving = Held { chunks: vec![true; 4], ..holds(9, [0, 1]) };
        let arrival = arrive(&[nothing(), leaving], terms(1, 1, None));
        assert_eq!(arrival.computing, ranks(&[0]));
        assert_eq!((arrival.mends.len(), arrival.moves.len()), (4, 4));
        assert!(arrival.moves.iter().all(|m| !m.params));
    }
}
