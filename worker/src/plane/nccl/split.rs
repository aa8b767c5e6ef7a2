//! Which messages of a group go which way.
//!
//! Both ends must decide alike, and all that both know of a message is its length: where its memory lies is known to one
//! of them only, and dealt with there ([`super::staging`]).

use std::collections::BTreeSet;

use polo_recipe::ids::Rank;

use crate::plane::{Transfer, tcp::Message};

/// A group in its two parts, each in the group's order.
#[derive(Debug, Default)]
pub(super) struct Split<'a> {
    /// What goes over TCP: short messages, and the headers of all.
    pub(super) control: Vec<Message<'a>>,
    /// What NCCL moves.
    pub(super) bulk: Vec<Transfer<'a>>,
    /// The other ends of `bulk`.
    pub(super) peers: BTreeSet<Rank>,
}

/// Gives messages of at least `min_bulk_bytes`, unless they are empty, to NCCL.
pub(super) fn split<'a>(group: impl IntoIterator<Item = Transfer<'a>>, min_bulk_bytes: usize) -> Split<'a> {
    let mut split = Split::default();
    for transfer in group {
        let len_bytes = transfer.len_bytes();
        if len_bytes < min_bulk_bytes.max(1) {
            split.control.push(Message::Whole(transfer));
            continue;
        }
        split.control.push(match transfer {
            Transfer::Send { to, .. } => Message::HeaderTo { to, len_bytes },
            Transfer::Recv { from, .. } => Message::HeaderFrom { from, len_bytes },
        });
        split.peers.insert(transfer.peer());
        split.bulk.push(transfer);
    }
    split
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it is sent, its peer, its length, and whether it is whole.
    type Seen = (bool, u32, usize, bool);

    /// What goes over TCP, and what by NCCL.
    fn describe(split: &Split<'_>) -> (Vec<Seen>, Vec<Seen>) {
        let is_sent = |transfer: &Transfer<'_>| matches!(transfer, Transfer::Send { .. });
        let control = split.control.iter().map(|message| match message {
            Message::Whole(transfer) => (is_sent(transfer), transfer.peer().0, transfer.len_bytes(), true),
            Message::HeaderTo { to, len_bytes } => (true, to.0, *len_bytes, false),
            Message::HeaderFrom { from, len_bytes } => (false, from.0, *len_bytes, false),
        });
        let bulk = split.bulk.iter().map(|transfer| (is_sent(transfer), transfer.peer().0, transfer.len_bytes(), true));
        (control.collect(), bulk.collect())
    }

    #[test]
    fn both_ends_of_a_message_send_it_the_same_way_and_in_the_same_order() {
        let lens = [0, 1, 99, 100, 101, 5, 1000, 0, 100];
        for min_bulk_bytes in [0, 1, 100, usize::MAX] {
            let sent: Vec<_> = lens.map(|len| vec![0; len]).into();
            let mut received = sent.clone();
            let sends = sent.iter().map(|bytes| Transfer::Send { to: Rank(1), bytes });
            let receives = received.iter_mut().map(|bytes| Transfer::Recv { from: Rank(0), bytes });
            let (sender, receiver) = (split(sends, min_bulk_bytes), split(receives, min_bulk_bytes));
            let ((control, bulk), (expected_control, expected_bulk)) = (describe(&sender), describe(&receiver));
            let mirrored = |(is_sent, peer, len, is_whole): Seen| (!is_sent, 1 - peer, len, is_whole);
            assert_eq!(bulk, expected_bulk.into_iter().map(mirrored).collect::<Vec<_>>());
            assert_eq!(control, expected_control.into_iter().map(mirrored).collect::<Vec<_>>());
        }
    }

    #[test]
    fn long_messages_are_announced_in_their_place_among_the_short_ones() {
        let (short, long) = ([0; 9], [0; 10]);
        let mut place = [0; 10];
        let group = [
            Transfer::Send { to: Rank(2), bytes: &short },
            Transfer::Send { to: Rank(2), bytes: &long },
            Transfer::Recv { from: Rank(1), bytes: &mut place },
            Transfer::Send { to: Rank(2), bytes: &[] },
        ];
        let split = split(group, 10);
        let (control, bulk) = describe(&split);
        assert_eq!(control, [(true, 2, 9, true), (true, 2, 10, false), (false, 1, 10, false), (true, 2, 0, true)]);
        assert_eq!(bulk, [(true, 2, 10, true), (false, 1, 10, true)]);
        assert_eq!(split.peers, BTreeSet::from([Rank(1), Rank(2)]));
    }
}
