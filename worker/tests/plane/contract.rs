//! What every implementation of the data plane must do. The simulated one is tested with it as well (`sim/tests/plane.rs`).

use std::time::Duration;

use polo_recipe::ids::Rank;
use polo_worker::plane::gather::all_gather;
use polo_worker::plane::{DataPlane, PlaneError, Transfer};

use crate::worlds::{Factory, PATIENCE, block_on, on_all};

/// Makes a test of each part of the contract, or of those named, for the planes of a [`Factory`].
macro_rules! contract_tests {
    ($factory:path) => {
        crate::contract::contract_tests!([] $factory);
    };
    ($attributes:tt $factory:path) => {
        crate::contract::contract_tests!($attributes $factory:
            a_plane_knows_its_place
            messages_arrive_whole_and_in_order_in_every_world
            a_group_of_many_tiny_messages_arrives
            big_messages_pass_each_other
            records_are_gathered_in_rank_order
            an_abort_ends_a_running_exchange_and_all_later_ones
            the_death_of_a_peer_is_noticed_at_once
            a_silent_peer_is_named_after_the_timeout
            a_message_of_another_length_is_an_error
            a_rank_exchanges_with_others_only
            members_sum_their_values_to_the_same_bits
        );
    };
    ($attributes:tt $factory:path: $($name:ident)*) => {
        $(crate::contract::contract_tests!(@test $attributes $factory, $name);)*
    };
    (@test [$($attribute:tt)*] $factory:path, $name:ident) => {
        #[test]
        $($attribute)*
        fn $name() {
            crate::contract::$name($factory);
        }
    };
}
pub(crate) use contract_tests;

/// What `from` sends to `to` as message `number`: of many lengths, among them 0.
fn message(from: u32, to: u32, number: usize) -> Vec<u8> {
    let len = number * 37 % 300;
    (0..len).map(|i| (from as usize * 101 + to as usize * 31 + number * 7 + i) as u8).collect()
}

fn peers(plane: &dyn DataPlane) -> Vec<Rank> {
    (0..plane.world() as u32).map(Rank).filter(|rank| *rank != plane.rank()).collect()
}

/// Exchanges messages `numbers` with every peer, in one group, and checks what comes.
fn exchange_all(plane: &mut dyn DataPlane, numbers: std::ops::Range<usize>) {
    let (own, peers) = (plane.rank().0, peers(plane));
    let pairs = || peers.iter().flat_map(|peer| numbers.clone().map(move |number| (*peer, number)));
    let outgoing: Vec<_> = pairs().map(|(peer, number)| (peer, message(own, peer.0, number))).collect();
    let expected: Vec<_> = pairs().map(|(peer, number)| message(peer.0, own, number)).collect();
    let mut incoming: Vec<_> = expected.iter().map(|message| vec![0; message.len()]).collect();
    let sends = outgoing.iter().map(|(to, bytes)| Transfer::Send { to: *to, bytes });
    let places = pairs().zip(&mut incoming);
    let receives = places.map(|((from, _), bytes)| Transfer::Recv { from, bytes });
    block_on(plane.exchange(&mut sends.chain(receives).collect::<Vec<_>>())).expect("an exchange");
    assert_eq!(incoming, expected);
}

pub fn receive(plane: &mut dyn DataPlane, from: u32) -> Result<Vec<u8>, PlaneError> {
    let mut bytes = vec![0; 5];
    block_on(plane.exchange(&mut [Transfer::Recv { from: Rank(from), bytes: &mut bytes }])).map(|()| bytes)
}

pub fn a_plane_knows_its_place(planes: Factory) {
    for world in 1..=5 {
        let seen: Vec<_> = planes(world, PATIENCE).iter().map(|p| (p.rank().index(), p.world())).collect();
        assert_eq!(seen, (0..world).map(|rank| (rank, world)).collect::<Vec<_>>());
    }
}

pub fn messages_arrive_whole_and_in_order_in_every_world(planes: Factory) {
    for world in 1..=5 {
        on_all(planes(world, PATIENCE), |mut plane| {
            for numbers in [0..1, 1..2, 2..30, 30..30, 30..100] {
                exchange_all(&mut *plane, numbers);
            }
        });
    }
}

pub fn a_group_of_many_tiny_messages_arrives(planes: Factory) {
    on_all(planes(3, PATIENCE), |mut plane| exchange_all(&mut *plane, 0..5000));
}

pub fn big_messages_pass_each_other(planes: Factory) {
    const LEN: usize = 64 << 20;
    on_all(planes(2, PATIENCE), |mut plane| {
        let (own, peer) = (plane.rank().0 as u8, Rank(1 - plane.rank().0));
        let outgoing: Vec<_> = (0..LEN).map(|i| (i >> 8) as u8 ^ own).collect();
        let mut incoming = vec![0; LEN];
        let send = Transfer::Send { to: peer, bytes: &outgoing };
        block_on(plane.exchange(&mut [send, Transfer::Recv { from: peer, bytes: &mut incoming }]))
            .expect("an exchange");
        assert!(incoming.iter().zip(&outgoing).all(|(theirs, ours)| theirs ^ ours == 1));
    });
}

pub fn records_are_gathered_in_rank_order(planes: Factory) {
    let record = |rank: usize| vec![rank as u8; rank * 2];
    for (world, num_gathering) in [(1, 1), (2, 2), (5, 5), (5, 3)] {
        let expected: Vec<_> = (0..num_gathering).map(record).collect();
        let lens: Vec<_> = expected.iter().map(Vec::len).collect();
        on_all(planes(world, PATIENCE), |mut plane| {
            let rank = plane.rank().index();
            if rank < num_gathering {
                let gathered = block_on(all_gather(&mut *plane, &lens, &record(rank))).expect("a gather");
                assert_eq!(gathered, expected, "rank {rank} of {world}");
            }
        });
    }
}

pub fn an_abort_ends_a_running_exchange_and_all_later_ones(planes: Factory) {
    let mut planes = planes(2, PATIENCE);
    let abort = planes[0].abort_handle();
    assert!(!abort.is_aborted());
    let plane = &mut *planes[0];
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| receive(plane, 1));
        abort.abort();
        assert!(matches!(waiting.join().expect("no panic"), Err(PlaneError::Aborted)));
    });
    assert!(abort.is_aborted());
    assert!(matches!(receive(&mut *planes[0], 1), Err(PlaneError::Aborted)));
}

pub fn the_death_of_a_peer_is_noticed_at_once(planes: Factory) {
    on_all(planes(3, PATIENCE), |mut plane| match plane.rank() {
        Rank(2) => drop(plane),
        _ => assert!(matches!(receive(&mut *plane, 2), Err(PlaneError::PeerLost { rank: Rank(2), .. }))),
    });
}

pub fn a_silent_peer_is_named_after_the_timeout(planes: Factory) {
    let mut planes = planes(3, Duration::from_millis(20));
    let error = receive(&mut *planes[0], 2).expect_err("nobody sends");
    let PlaneError::Timeout { waited_ms, ranks, .. } = &error else { panic!("{error}") };
    assert!(*waited_ms >= 20);
    assert_eq!(*ranks, [Rank(2)]);
    let text = error.to_string();
    assert!(text.contains("for rank 2 while exchanging messages"), "{text}");
}

pub fn a_message_of_another_length_is_an_error(planes: Factory) {
    let errors = on_all(planes(2, PATIENCE), |mut plane| {
        if plane.rank() == Rank(0) {
            return receive(&mut *plane, 1).err().map(|error| error.to_string());
        }
        let sent = block_on(plane.exchange(&mut [Transfer::Send { to: Rank(0), bytes: &[1; 4] }]));
        // Stays until the other side has judged; a plane may call a message sent only when it was received.
        let end = sent.and_then(|()| receive(&mut *plane, 0).map(drop));
        assert!(matches!(end, Err(PlaneError::PeerLost { .. })), "{end:?}");
        None
    });
    let text = errors[0].as_deref().expect("an error");
    // Which number the message has depends on what was said when the plane was formed.
    assert!(text.contains("rank 1 is out of step: expected message ") && text.contains(" of 5 bytes"), "{text}");
    assert!(text.contains("got message ") && text.contains(" of 4 bytes from rank 1"), "{text}");
}

pub fn a_rank_exchanges_with_others_only(planes: Factory) {
    let mut planes = planes(2, PATIENCE);
    for peer in [0, 2] {
        let error = receive(&mut *planes[0], peer).expect_err("no such peer");
        assert!(matches!(error, PlaneError::NoSuchPeer { peer: p, .. } if p == Rank(peer)), "{error}");
    }
}

/// Also where some ranks take no part, and where there is nothing to sum.
pub fn members_sum_their_values_to_the_same_bits(planes: Factory) {
    let value = |rank: usize, at: usize| (rank + 1) as f32 * 0.1 + at as f32;
    for (world, num_members) in [(1, 1), (2, 2), (4, 4), (4, 3)] {
        for len in [0, 1, 300, (1 << 20) + 7] {
            let sums = on_all(planes(world, PATIENCE), |mut plane| {
                let rank = plane.rank().index();
                let mut values: Vec<_> = (0..len).map(|at| value(rank, at)).collect();
                if rank < num_members {
                    block_on(plane.all_reduce(num_members, &mut values)).expect("a sum");
                }
                values
            });
            for at in [0, len / 2, len.saturating_sub(1)].into_iter().filter(|at| *at < len) {
                let expected: f32 = (0..num_members).map(|rank| value(rank, at)).sum();
                assert!((sums[0][at] - expected).abs() <= expected * 1e-6, "{} at {at}: {expected}", sums[0][at]);
            }
            let bits = |sum: &Vec<f32>| sum.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(sums[1..num_members].iter().all(|sum| bits(sum) == bits(&sums[0])), "{num_members} of {world}");
        }
    }
}
