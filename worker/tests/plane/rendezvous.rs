//! Who gets into a generation, and how forming one ends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use futures::executor::block_on;
use polo_recipe::ids::{Generation, Rank};
use polo_worker::plane::gather::all_gather;
use polo_worker::plane::rendezvous::{Membership, Timeouts, form};
use polo_worker::plane::tcp::TcpPlane;
use polo_worker::plane::{Lane, Listener, PlaneError, Refusal, Secret};

use crate::worlds::{PATIENCE, abort_handle, free_address, listener, membership, on_all};

const PATIENT: Timeouts = Timeouts { connect: PATIENCE, form: PATIENCE, exchange: PATIENCE };

fn join(listener: &Listener, membership: &Membership) -> Result<TcpPlane, PlaneError> {
    form(listener, membership, &PATIENT, &abort_handle())
}

/// What rank 0 says to a caller while it forms its own membership.
fn refusal_by(
    first: &Listener,
    membership: &Membership,
    call: impl FnOnce() -> Result<TcpPlane, PlaneError>,
) -> Refusal {
    let abort = abort_handle();
    thread::scope(|scope| {
        let forming = scope.spawn(|| form(first, membership, &PATIENT, &abort));
        let refusal = refusal(call());
        abort.abort();
        assert!(matches!(forming.join().expect("no panic"), Err(PlaneError::Aborted)));
        refusal
    })
}

fn refusal(result: Result<TcpPlane, PlaneError>) -> Refusal {
    match result {
        Err(PlaneError::Refused { rank: Rank(0), reason, .. }) => reason,
        other => panic!("not a refusal by rank 0: {other:?}"),
    }
}

#[test]
fn one_listener_serves_generation_after_generation() {
    let listeners: Vec<_> = (0..3).map(|_| listener("run")).collect();
    for generation in [1, 2, 9] {
        let ranks = (0..).zip(&listeners).collect();
        on_all(ranks, |(rank, listener)| {
            let mut plane = join(listener, &membership(generation, rank, &listeners)).expect("a plane");
            let gathered = block_on(all_gather(&mut plane, &[1; 3], &[rank as u8])).expect("a gather");
            assert_eq!(gathered, [[0], [1], [2]]);
        });
    }
}

#[test]
fn a_caller_of_an_older_generation_is_refused() {
    let listeners = [listener("run"), listener("run")];
    join(&listeners[0], &membership(5, 0, &listeners[..1])).expect("a world of one");
    let late = join(&listeners[1], &membership(4, 1, &listeners));
    assert_eq!(refusal(late), Refusal::OldGeneration);
}

#[test]
fn a_caller_of_a_newer_generation_is_kept_until_it_is_formed() {
    let listeners = [listener("run"), listener("run")];
    thread::scope(|scope| {
        let early = scope.spawn(|| join(&listeners[1], &membership(2, 1, &listeners)));
        join(&listeners[0], &membership(1, 0, &listeners[..1])).expect("a world of one");
        join(&listeners[0], &membership(2, 0, &listeners)).expect("the plane that the other waits for");
        early.join().expect("no panic").expect("the plane that was waited for");
    });
}

#[test]
fn a_generation_is_formed_once() {
    let listener = [listener("run")];
    join(&listener[0], &membership(7, 0, &listener)).expect("a world of one");
    for generation in [6, 7] {
        let error = join(&listener[0], &membership(generation, 0, &listener)).expect_err("an old generation");
        assert!(matches!(error, PlaneError::OldGeneration { newest: Generation(7), .. }), "{error}");
    }
}

#[test]
fn a_caller_with_another_secret_is_refused() {
    let listeners = [listener("run"), listener("run")];
    let stranger = Membership { secret: Secret([99; 32]), ..membership(1, 1, &listeners) };
    let call = || join(&listeners[1], &stranger);
    assert_eq!(refusal_by(&listeners[0], &membership(1, 0, &listeners), call), Refusal::Secret);
}

#[test]
fn a_caller_of_another_run_is_refused() {
    let listeners = [listener("run"), listener("another run")];
    let call = || join(&listeners[1], &membership(1, 1, &listeners));
    assert_eq!(refusal_by(&listeners[0], &membership(1, 0, &listeners), call), Refusal::Run);
}

#[test]
fn a_caller_with_another_membership_is_refused() {
    let listeners = [listener("run"), listener("run"), listener("run")];
    // The caller knows of three members, the called of two.
    let call = || join(&listeners[2], &membership(1, 2, &listeners));
    assert_eq!(refusal_by(&listeners[0], &membership(1, 0, &listeners[..2]), call), Refusal::Rank);
}

#[test]
fn waiting_for_peers_that_never_come_ends_with_their_names() {
    let listeners: Vec<_> = (0..4).map(|_| listener("run")).collect();
    let mut membership = membership(3, 1, &listeners);
    let gone = free_address(1);
    membership.peers[0] = gone;
    let timeouts = Timeouts { connect: PATIENCE, form: Duration::from_millis(30), exchange: PATIENCE };
    let error = form(&listeners[1], &membership, &timeouts, &abort_handle()).expect_err("nobody is there");
    let text = error.to_string();
    assert!(text.contains("for ranks 0, 2, 3 while forming generation 3; rank 0 at"), "{text}");
    assert!(text.contains(&gone.to_string()) && text.contains("refused"), "{text}");
    assert!(text.contains("higher ranks have not called"), "{text}");
}

#[test]
fn a_process_that_is_gone_is_not_waited_for_as_long_as_one_that_is_busy() {
    let listeners = [listener("run"), listener("run")];
    let short = Duration::from_millis(30);
    let mut unreachable = membership(1, 1, &listeners);
    unreachable.peers[0] = free_address(2);
    let timeouts = Timeouts { connect: short, form: PATIENCE, exchange: PATIENCE };
    let error = form(&listeners[1], &unreachable, &timeouts, &abort_handle()).expect_err("nobody is there");
    assert!(error.to_string().contains("refused"), "{error}");
    // The other's process listens but has not come to this generation.
    let timeouts = Timeouts { connect: short, form: short * 5, exchange: PATIENCE };
    let error = form(&listeners[1], &membership(2, 1, &listeners), &timeouts, &abort_handle()).expect_err("not met");
    let PlaneError::Timeout { waited_ms, .. } = &error else { panic!("{error}") };
    assert!(*waited_ms >= 150 && error.to_string().contains("has not joined this generation"), "{error}");
}

#[test]
fn a_peer_that_listens_late_is_called_again() {
    let free = free_address(3);
    let caller = listener("run");
    let peers = vec![free, caller.local_addr()];
    let of = |rank| Membership {
        lane: Lane::Steps,
        generation: Generation(1),
        rank: Rank(rank),
        peers: peers.clone(),
        secret: Secret([1; 32]),
    };
    thread::scope(|scope| {
        let calling = scope.spawn(|| join(&caller, &of(1)));
        let late = Listener::bind(free, "run").expect("the same port");
        join(&late, &of(0)).expect("a plane");
        calling.join().expect("no panic").expect("a plane");
    });
}

#[test]
fn an_abort_ends_forming() {
    let listeners = [listener("run"), listener("run")];
    // As rank 0 it waits to be called; as rank 1, of a generation that is new to the other, for an answer.
    for (rank, generation) in [(0, 1), (1, 2)] {
        let (abort, membership) = (abort_handle(), membership(generation, rank, &listeners));
        thread::scope(|scope| {
            let forming = scope.spawn(|| form(&listeners[rank as usize], &membership, &PATIENT, &abort));
            abort.abort();
            assert!(matches!(forming.join().expect("no panic"), Err(PlaneError::Aborted)));
        });
    }
}

#[test]
fn strangers_disturb_nobody() {
    let listeners = [listener("run"), listener("run")];
    let _silent = TcpStream::connect(listeners[0].local_addr()).expect("a connection");
    let mut noisy = TcpStream::connect(listeners[0].local_addr()).expect("a connection");
    noisy.write_all(&[b'x'; 200]).expect("an open connection");
    let results = on_all(vec![0, 1], |rank| join(&listeners[rank], &membership(1, rank as u32, &listeners)).is_ok());
    assert_eq!(results, [true, true]);
    // Sent away, not waited for; the reset may overtake the answer.
    let _ = noisy.read_to_end(&mut Vec::new());
}
