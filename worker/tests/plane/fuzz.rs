//! What a worker makes of a peer that does not speak as peers do: it refuses it or ends the plane with an error, and is
//! ready for the next one.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use polo_fuzz::fuzz;
use polo_recipe::ids::Rank;
use polo_worker::plane::{
    DataPlane, Listener, Transfer,
    rendezvous::{Timeouts, form},
    tcp::TcpPlane,
};

use crate::{
    contract::receive,
    worlds::{PATIENCE, abort_handle, block_on, listener, membership},
};

const PATIENT: Timeouts = Timeouts { connect: PATIENCE, form: PATIENCE, exchange: PATIENCE };
const MESSAGE: &[u8] = b"hello";

fn call(from: &Listener, to: SocketAddr) -> TcpPlane {
    let mut membership = membership(1, 1, &[listener("run"), listener("run")]);
    membership.peers[0] = to;
    form(from, &membership, &PATIENT, &abort_handle()).expect("a plane")
}

/// All that a well-behaved rank 1 sends to rank 0: it calls, and sends two messages.
fn genuine() -> Vec<u8> {
    let (first, second) = (listener("run"), listener("run"));
    let between = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = between.local_addr().expect("an address");
    let membership = membership(1, 0, &[listener("run"), listener("run")]);
    thread::scope(|scope| {
        let to = first.local_addr();
        let recording = scope.spawn(move || recorded(&between, to));
        scope.spawn(|| two_messages(form(&first, &membership, &PATIENT, &abort_handle()).expect("a plane")));
        let mut plane = call(&second, address);
        for _ in 0..2 {
            let send = Transfer::Send { to: Rank(0), bytes: MESSAGE };
            block_on(plane.exchange(&mut [send])).expect("sent");
        }
        drop(plane);
        recording.join().expect("no panic")
    })
}

/// Passes one connection on, both ways, and returns what the caller said.
fn recorded(between: &TcpListener, to: SocketAddr) -> Vec<u8> {
    let (mut caller, _) = between.accept().expect("a caller");
    let mut called = TcpStream::connect(to).expect("rank 0 listens");
    let (mut answers, mut back) = (called.try_clone().expect("a handle"), caller.try_clone().expect("a handle"));
    thread::spawn(move || std::io::copy(&mut answers, &mut back));
    let mut said = Vec::new();
    let mut bytes = [0; 1024];
    while let Ok(num_bytes @ 1..) = caller.read(&mut bytes) {
        said.extend_from_slice(&bytes[..num_bytes]);
        called.write_all(&bytes[..num_bytes]).expect("rank 0 reads");
    }
    let _ = called.shutdown(Shutdown::Write);
    said
}

/// How many messages came, until something was wrong.
fn two_messages(mut plane: TcpPlane) -> usize {
    (0..2).take_while(|_| receive(&mut plane, 1).is_ok()).count()
}

/// How many messages rank 0 takes from somebody who sends these bytes, hangs up, and listens for so long.
fn taken(bytes: &[u8], patience: Duration) -> usize {
    let first = listener("run");
    let membership = membership(1, 0, &[listener("run"), listener("run")]);
    let abort = abort_handle();
    thread::scope(|scope| {
        let victim = scope.spawn(|| form(&first, &membership, &PATIENT, &abort).map(two_messages));
        let mut attacker = TcpStream::connect(first.local_addr()).expect("a connection");
        attacker.set_read_timeout(Some(patience)).expect("set");
        let _ = attacker.write_all(bytes);
        let _ = attacker.shutdown(Shutdown::Write);
        let _ = attacker.read_to_end(&mut Vec::new());
        abort.abort();
        victim.join().expect("no panic").unwrap_or(0)
    })
}

#[test]
fn fuzz_data_planes() {
    let genuine = genuine();
    assert_eq!(taken(&genuine, PATIENCE), 2);
    // A caller of a later generation is kept waiting, which says nothing more.
    let patience = Duration::from_millis(20);
    fuzz(env!("CARGO_MANIFEST_DIR"), "data-planes", &[genuine], |bytes| assert!(taken(bytes, patience) <= 2));
}
