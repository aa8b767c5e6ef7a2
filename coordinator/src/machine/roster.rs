//! Who is what in the next generation: a pure function of who is here.

use polo_recipe::ids::Rank;

use super::{Role, Seat, WorkerId};

/// A worker that can be told of the next generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Who.
    pub worker: WorkerId,
    /// Its rank and role in the generation before, if it was in it.
    pub seat: Option<(Rank, Role)>,
    /// Order of joining.
    pub joined: u64,
    /// It was asked to leave.
    pub is_leaving: bool,
    /// It is a member only if there is nobody else.
    pub is_slow: bool,
}

impl Candidate {
    /// Whether others may need chunks that it holds.
    fn is_holder(&self) -> bool {
        matches!(self.seat, Some((_, Role::Member | Role::Leaving)))
    }

    /// Members stay, then spares that hold current parameters, then workers that were not there.
    fn precedence(&self) -> (bool, u8, u32, u64) {
        let (class, rank) = match self.seat {
            Some((rank, Role::Member | Role::Leaving)) => (0, rank.0),
            Some((rank, Role::Spare)) => (1, rank.0),
            None => (2, 0),
        };
        (self.is_slow, class, rank, self.joined)
    }
}

/// Who is what, and whether that lets everybody leave who was asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roster {
    /// In rank order.
    pub seats: Vec<Seat>,
    /// Whoever was asked to leave is needed as a member, because too few would remain.
    pub is_held_back: bool,
}

/// The next generation's seats, for at most `max_members` members and at least `min_members` that stay.
pub fn roster(candidates: Vec<Candidate>, min_members: usize, max_members: usize) -> Roster {
    let (leavers, mut stayers): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|c| c.is_leaving);
    let mut leavers: Vec<_> = leavers.into_iter().filter(Candidate::is_holder).collect();
    let is_held_back = stayers.len() < min_members.max(1) && !leavers.is_empty();
    if is_held_back {
        stayers.append(&mut leavers);
    }
    stayers.sort_by_key(Candidate::precedence);
    leavers.sort_by_key(Candidate::precedence);
    let role = |place: usize| if place < max_members { Role::Member } else { Role::Spare };
    let staying = stayers.into_iter().enumerate().map(|(place, c)| Seat { worker: c.worker, role: role(place) });
    let leaving = leavers.into_iter().map(|c| Seat { worker: c.worker, role: Role::Leaving });
    Roster { seats: staying.chain(leaving).collect(), is_held_back }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, seat: Option<(u32, Role)>) -> Candidate {
        let seat = seat.map(|(rank, role)| (Rank(rank), role));
        Candidate { worker: WorkerId(name.into()), seat, joined: 0, is_leaving: false, is_slow: false }
    }

    fn leaving(candidate: Candidate) -> Candidate {
        Candidate { is_leaving: true, ..candidate }
    }

    fn shown(roster: &Roster) -> String {
        let letter = |role| match role {
            Role::Member => 'm',
            Role::Spare => 's',
            Role::Leaving => 'l',
        };
        roster.seats.iter().map(|s| format!("{}{} ", s.worker, letter(s.role))).collect()
    }

    #[test]
    fn a_spare_goes_before_a_worker_that_was_not_there() {
        let here = vec![
            candidate("new", None),
            candidate("spare", Some((3, Role::Spare))),
            candidate("b", Some((1, Role::Member))),
            candidate("a", Some((0, Role::Member))),
        ];
        assert_eq!(shown(&roster(here, 1, 3)), "am bm sparem news ");
    }

    #[test]
    fn a_slow_member_makes_room_for_a_spare_but_not_for_nobody() {
        let slow = Candidate { is_slow: true, ..candidate("slow", Some((0, Role::Member))) };
        let member = candidate("b", Some((1, Role::Member)));
        assert_eq!(shown(&roster(vec![slow.clone(), member.clone()], 1, 2)), "bm slowm ");
        let spare = candidate("spare", Some((2, Role::Spare)));
        assert_eq!(shown(&roster(vec![slow, member, spare], 1, 2)), "bm sparem slows ");
    }

    #[test]
    fn whoever_leaves_gives_its_chunks_unless_it_holds_none() {
        let here = vec![
            leaving(candidate("a", Some((0, Role::Member)))),
            leaving(candidate("idle", None)),
            candidate("b", Some((1, Role::Member))),
        ];
        assert_eq!(shown(&roster(here, 1, 3)), "bm al ");
    }

    #[test]
    fn nobody_leaves_while_too_few_would_remain() {
        let here = vec![leaving(candidate("a", Some((0, Role::Member)))), candidate("b", Some((1, Role::Member)))];
        let held = roster(here.clone(), 2, 3);
        assert_eq!((shown(&held).as_str(), held.is_held_back), ("am bm ", true));
        assert!(!roster(here, 1, 3).is_held_back);
    }
}
