//! Worlds of planes inside one process.

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use polo_recipe::ids::{Generation, Rank};
use polo_worker::plane::rendezvous::{Membership, Timeouts, form};
use polo_worker::plane::tcp::TcpPlane;
use polo_worker::plane::{AbortHandle, DataPlane, Lane, Listener, Secret};

/// Makes connected planes for a world of that size, in rank order, with that timeout for exchanges.
pub type Factory = fn(usize, Duration) -> Vec<Box<dyn DataPlane>>;

/// Longer than any test should take, so that a hang becomes a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn tcp(world: usize, timeout: Duration) -> Vec<Box<dyn DataPlane>> {
    tcp_planes(world, timeout).into_iter().map(|plane| Box::new(plane) as Box<dyn DataPlane>).collect()
}

pub fn tcp_planes(world: usize, timeout: Duration) -> Vec<TcpPlane> {
    let listeners: Vec<_> = (0..world).map(|_| listener("run")).collect();
    let timeouts = Timeouts { connect: PATIENCE, form: PATIENCE, exchange: timeout };
    thread::scope(|scope| {
        let forming: Vec<_> = (0..)
            .zip(&listeners)
            .map(|(rank, listener)| {
                let membership = membership(1, rank, &listeners);
                scope.spawn(move || form(listener, &membership, &timeouts, &abort_handle()))
            })
            .collect();
        let plane = |plane: thread::ScopedJoinHandle<'_, _>| plane.join().expect("no panic");
        forming.into_iter().map(|p| plane(p).expect("a plane")).collect()
    })
}

pub fn listener(run: &str) -> Listener {
    Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), run).expect("a free port")
}

/// An address where nobody listens, and nobody will: no other test or process uses that part of the loopback network.
/// `test` tells apart those that ask.
pub fn free_address(test: u8) -> SocketAddr {
    let host = Ipv4Addr::from(0x7f00_0000 | (std::process::id() << 2 & 0x00ff_fffc) | u32::from(test & 3));
    Listener::bind(SocketAddr::from((host, 0)), "run").expect("a free port").local_addr()
}

pub fn membership(generation: u64, rank: u32, listeners: &[Listener]) -> Membership {
    Membership {
        generation: Generation(generation),
        rank: Rank(rank),
        peers: listeners.iter().map(Listener::local_addr).collect(),
        secret: Secret([generation as u8; 32]),
        lane: Lane::Steps,
    }
}

pub fn abort_handle() -> AbortHandle {
    AbortHandle::new().expect("a file descriptor")
}

/// Waits for what a plane does.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    futures::executor::block_on(future)
}

/// Runs `work` on a thread for each plane, and returns the results in rank order.
pub fn on_all<P: Send, T: Send>(planes: Vec<P>, work: impl Fn(P) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let running: Vec<_> = planes.into_iter().map(|plane| scope.spawn(|| work(plane))).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}
