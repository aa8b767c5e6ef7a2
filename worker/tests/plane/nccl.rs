//! The plane over NCCL, on a fake of the library; `processes.rs` has the real one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use polo_recipe::ids::Rank;
use polo_worker::plane::nccl::{NcclPlane, Terms, form};
use polo_worker::plane::{DataPlane, PlaneError, Transfer};

use crate::contract::contract_tests;
use crate::fake_nccl::{FakeNccl, Watched};
use crate::worlds::{PATIENCE, block_on, on_all, tcp_planes};

fn planes(world: usize, timeout: Duration, min_bulk_bytes: usize, reaches_all: bool) -> (Vec<NcclPlane>, Arc<Watched>) {
    let watched = Arc::new(Watched::default());
    let formed = on_all(tcp_planes(world, timeout), |tcp| {
        let library = Arc::new(FakeNccl { watched: watched.clone(), reaches_all });
        form(library, tcp, &Terms { form_timeout: PATIENCE, min_bulk_bytes }).expect("a communicator")
    });
    (formed, watched)
}

fn boxed((planes, _): (Vec<NcclPlane>, Arc<Watched>)) -> Vec<Box<dyn DataPlane>> {
    planes.into_iter().map(|plane| Box::new(plane) as Box<dyn DataPlane>).collect()
}

/// Everything goes by NCCL.
mod bulk {
    use super::*;

    contract_tests!(all_bulk);

    fn all_bulk(world: usize, timeout: Duration) -> Vec<Box<dyn DataPlane>> {
        boxed(planes(world, timeout, 1, true))
    }
}

/// Longer messages go by NCCL, and none lies where the device reaches it.
mod mixed {
    use super::*;

    contract_tests!(mixed);

    fn mixed(world: usize, timeout: Duration) -> Vec<Box<dyn DataPlane>> {
        boxed(planes(world, timeout, 100, false))
    }
}

const LONG: usize = 1000;

/// Both ranks send each other a long message.
fn swap(plane: &mut NcclPlane) -> Result<(), PlaneError> {
    let peer = Rank(1 - plane.rank().0);
    let (outgoing, mut incoming) = (vec![plane.rank().0 as u8; LONG], vec![9; LONG]);
    let send = Transfer::Send { to: peer, bytes: &outgoing };
    block_on(plane.exchange(&mut [send, Transfer::Recv { from: peer, bytes: &mut incoming }]))?;
    assert_eq!(incoming, vec![peer.0 as u8; LONG]);
    Ok(())
}

#[test]
fn only_long_messages_go_by_nccl_and_every_communicator_ends_in_an_abort() {
    let (planes, watched) = planes(3, PATIENCE, 10, true);
    on_all(planes, |mut plane| {
        let peers = (0..3).map(Rank).filter(|peer| *peer != plane.rank()).collect::<Vec<_>>();
        for len in [9, 10] {
            let outgoing = vec![1; len];
            let mut incoming = vec![vec![0; len]; peers.len()];
            let sends = peers.iter().map(|to| Transfer::Send { to: *to, bytes: &outgoing });
            let receives = peers.iter().zip(&mut incoming).map(|(from, bytes)| Transfer::Recv { from: *from, bytes });
            block_on(plane.exchange(&mut sends.chain(receives).collect::<Vec<_>>())).expect("an exchange");
            assert!(incoming.iter().all(|bytes| *bytes == outgoing));
        }
    });
    assert_eq!(watched.num_received.load(Ordering::Relaxed), 6, "of the longer ones only");
    assert_eq!(watched.num_aborted.load(Ordering::Relaxed), 3);
}

#[test]
fn a_world_of_one_needs_no_communicator() {
    let (_planes, watched) = planes(1, PATIENCE, 1, true);
    assert_eq!(watched.num_begun.load(Ordering::Relaxed), 0);
}

#[test]
fn an_abort_ends_what_the_gpu_never_finishes_and_the_other_rank_hears_of_the_loss() {
    let (planes, watched) = planes(2, PATIENCE, 1, true);
    watched.is_stuck.store(true, Ordering::Release);
    let abort = planes[0].abort_handle();
    thread::scope(|scope| {
        scope.spawn(|| {
            while watched.num_posted.load(Ordering::Acquire) < 4 {
                thread::yield_now();
            }
            abort.abort();
        });
        let ends = on_all(planes, |mut plane| swap(&mut plane));
        assert!(matches!(ends[0], Err(PlaneError::Aborted)), "{ends:?}");
        assert!(matches!(ends[1], Err(PlaneError::PeerLost { rank: Rank(0), .. })), "{ends:?}");
    });
    assert_eq!(watched.num_aborted.load(Ordering::Relaxed), 2);
}

#[test]
fn what_the_gpu_never_finishes_ends_with_the_timeout_and_the_names_of_those_awaited() {
    let (planes, watched) = planes(2, Duration::from_millis(30), 1, true);
    watched.is_stuck.store(true, Ordering::Release);
    let ends = on_all(planes, |mut plane| {
        let error = swap(&mut plane).expect_err("nothing moves");
        (plane, error)
    });
    let named = |error: &PlaneError| matches!(error, PlaneError::Timeout { ranks, .. } if ranks.len() == 1);
    let lost = |error: &PlaneError| matches!(error, PlaneError::PeerLost { .. });
    assert!(ends.iter().all(|(_, error)| named(error) || lost(error)));
    assert!(ends.iter().any(|(_, error)| error.to_string().contains("NCCL was to exchange messages")));
}

#[test]
fn a_failure_is_told_in_nccls_words_and_ends_the_communicators() {
    let (mut planes, watched) = planes(2, PATIENCE, 1, true);
    on_all(planes.iter_mut().collect(), |plane| swap(plane).expect("a first exchange"));
    watched.is_broken.store(true, Ordering::Release);
    let errors = on_all(planes.iter_mut().collect(), |plane| swap(plane).expect_err("a broken link").to_string());
    for error in errors {
        assert!(error.contains("cannot exchange messages: "), "{error}");
        assert!(error.contains("NCCL says ncclRemoteError: a link is down"), "{error}");
    }
    assert_eq!(watched.num_aborted.load(Ordering::Relaxed), 2);
}

#[test]
fn an_idle_communicator_is_aborted_by_whoever_wants_it_and_when_nccl_fails() {
    let (planes, watched) = planes(2, PATIENCE, 1, true);
    let until_aborted = |num: usize| {
        let is_aborted = || watched.num_aborted.load(Ordering::Acquire) == num;
        let since = Instant::now();
        while !is_aborted() && since.elapsed() < PATIENCE {
            thread::yield_now();
        }
        assert!(is_aborted(), "{num} communicators");
    };
    planes[0].abort_handle().abort();
    until_aborted(1);
    watched.is_broken.store(true, Ordering::Release);
    until_aborted(2);
}
