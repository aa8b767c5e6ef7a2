//! The simulated data plane does what every data plane must: the contract suite is that of the real one.
#![allow(missing_docs)]

#[path = "../../worker/tests/plane/contract.rs"]
mod contract;

contract::contract_tests!(worlds::simulated);

mod worlds {
    use std::{sync::LazyLock, thread, time::Duration};

    use polo_recipe::ids::{Generation, Rank};
    use polo_sim::plane::SimPlane;
    use polo_worker::plane::{AbortHandle, DataPlane};
    use tokio::{
        io::{DuplexStream, duplex},
        runtime::Runtime,
    };

    pub type Factory = fn(usize, Duration) -> Vec<Box<dyn DataPlane>>;

    pub const PATIENCE: Duration = Duration::from_secs(20);
    const BUFFER_BYTES: usize = 1 << 16;

    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));

    pub fn block_on<T>(future: impl Future<Output = T>) -> T {
        RUNTIME.block_on(future)
    }

    pub fn simulated(world: usize, timeout: Duration) -> Vec<Box<dyn DataPlane>> {
        let mut streams: Vec<Vec<Option<DuplexStream>>> =
            (0..world).map(|_| (0..world).map(|_| None).collect()).collect();
        for (low, high) in (0..world).flat_map(|low| (low + 1..world).map(move |high| (low, high))) {
            let (one, other) = duplex(BUFFER_BYTES);
            (streams[low][high], streams[high][low]) = (Some(one), Some(other));
        }
        let plane = |(rank, streams)| {
            let abort = AbortHandle::new().expect("a file descriptor");
            Box::new(SimPlane::new(Rank(rank), Generation(1), streams, timeout, abort)) as Box<dyn DataPlane>
        };
        (0..).zip(streams).map(plane).collect()
    }

    pub fn on_all<P: Send, T: Send>(planes: Vec<P>, work: impl Fn(P) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let running: Vec<_> = planes.into_iter().map(|plane| scope.spawn(|| work(plane))).collect();
            running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        })
    }
}
