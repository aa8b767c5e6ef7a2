//! Times the exact reduction over loopback: `cargo run -p polo-worker --example reduce_loopback [MILLION_PARAMS [WORLD [SLOTS]]]`.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use polo_recipe::ids::{Generation, Rank};
use polo_recipe::ownership::assign_owners;
use polo_recipe::slots::{assign, subtrees};
use polo_worker::flat::Flat;
use polo_worker::plane::rendezvous::{Membership, Timeouts, form};
use polo_worker::plane::{AbortHandle, Lane, Listener, PlaneError, Secret};
use polo_worker::reduce::{Cuts, ExactReduce, Sums, hand_out};

const ROUNDS: usize = 8;
const CHUNK_PARAMS: usize = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Result<Vec<usize>, _> = std::env::args().skip(1).map(|arg| arg.parse()).collect();
    let numbers = numbers?;
    let number = |at: usize, default| numbers.get(at).copied().unwrap_or(default);
    let (num_params, world) = (number(0, 42) * 1_000_000, number(1, 2));
    let slots = number(2, world);
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listeners = (0..world).map(|_| Listener::bind(loopback, "bench")).collect::<Result<Vec<_>, _>>()?;
    let peers: Vec<_> = listeners.iter().map(Listener::local_addr).collect();
    thread::scope(|scope| {
        let ranks = (0..).map(Rank).zip(&listeners);
        let run = |(rank, listener)| {
            let peers = peers.clone();
            scope.spawn(move || work(listener, rank, peers, num_params, slots))
        };
        let running: Vec<_> = ranks.map(run).collect();
        running.into_iter().try_for_each(|rank| rank.join().expect("no panic"))
    })?;
    Ok(())
}

fn work(
    listener: &Listener,
    rank: Rank,
    peers: Vec<SocketAddr>,
    params: usize,
    slots: usize,
) -> Result<(), PlaneError> {
    let world = peers.len();
    let membership = Membership { generation: Generation(1), rank, peers, secret: Secret([0; 32]), lane: Lane::Steps };
    let timeouts =
        Timeouts { connect: Duration::from_secs(5), form: Duration::from_secs(5), exchange: Duration::from_secs(5) };
    let abort = AbortHandle::new().map_err(|source| PlaneError::Local { what: "make a handle", source })?;
    let started = Instant::now();
    let mut plane = form(listener, &membership, &timeouts, &abort)?;
    if rank.0 == 0 {
        println!("{world} ranks formed in {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    }
    let cut = |start: usize| start..(start + CHUNK_PARAMS).min(params);
    let chunks: Vec<_> = (0..params).step_by(CHUNK_PARAMS).map(cut).collect();
    let lens: Vec<_> = chunks.iter().map(ExactSizeIterator::len).collect();
    let owners = assign_owners(&lens, &vec![Vec::new(); lens.len()], world, 1);
    let shares = assign(slots, world).expect("no more ranks than slots");
    let pieces = vec![Flat::from(vec![1e-3; params]); subtrees(slots, &shares[rank.index()]).len()];
    let mut sums = Sums::new();
    let receivers: Vec<_> = (0..world as u32).map(Rank).collect();
    let mut handed_out = vec![0.0; params];
    let cuts = Cuts { blocks: vec![0..params; 1], chunks: chunks.clone() };
    let mut reduce = ExactReduce::new(slots, &shares, cuts, owners.clone(), rank);
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let mut traffic = block_on(reduce.run(&mut plane, 0, &pieces, &mut sums))?;
        traffic += block_on(hand_out(&mut plane, &chunks, &owners, &receivers, &mut handed_out))?;
        let seconds = started.elapsed().as_secs_f64();
        if rank.0 == 0 {
            let gigabytes = (traffic.sent_bytes + traffic.received_bytes) as f64 / 1e9;
            println!("{seconds:.3} s, {gigabytes:.3} GB sent and received, {:.2} GB/s", gigabytes / seconds);
        }
    }
    Ok(())
}
