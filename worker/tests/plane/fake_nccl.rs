//! A faithful NCCL inside one process: forms once all ranks have come, puts groups on the stream later than it says,
//! matches messages of two ranks in order, waits for ever for a rank that is gone, and is broken by whoever uses a
//! communicator that was aborted.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use polo_recipe::ids::Rank;
use polo_worker::plane::nccl::{Bulk, Comm, HostMemory, Library, NcclError, Status, UniqueId};

static NUM_IDS: AtomicUsize = AtomicUsize::new(0);
static WORLDS: LazyLock<Mutex<HashMap<UniqueId, Arc<Mutex<World>>>>> = LazyLock::new(Mutex::default);

/// What the fakes of a test have been through.
#[derive(Default)]
pub struct Watched {
    /// Communicators begun.
    pub num_begun: AtomicUsize,
    /// Those aborted.
    pub num_aborted: AtomicUsize,
    /// Messages put on a stream.
    pub num_posted: AtomicUsize,
    /// Messages received.
    pub num_received: AtomicUsize,
    /// Whether every communicator now reports a failure.
    pub is_broken: AtomicBool,
    /// Whether the GPU has stopped working.
    pub is_stuck: AtomicBool,
}

pub struct FakeNccl {
    pub watched: Arc<Watched>,
    /// Whether the device reaches any memory, or only that which the library gave.
    pub reaches_all: bool,
}

#[derive(Default)]
struct World {
    ranks: BTreeSet<usize>,
    size: usize,
    /// Of each pair (from, to), messages whose receive has not been matched, and likewise receives.
    sends: HashMap<(usize, usize), VecDeque<Post>>,
    receives: HashMap<(usize, usize), VecDeque<Post>>,
    /// By rank, all-reduces that not all have come to.
    reduces: HashMap<usize, VecDeque<Post>>,
}

#[derive(Clone)]
struct Post {
    owner: usize,
    address: usize,
    len_bytes: usize,
    is_done: Arc<AtomicBool>,
}

impl World {
    /// The GPUs' work: moves what both sides have posted.
    fn work(&mut self, watched: &Watched) {
        for (pair, sends) in &mut self.sends {
            let receives = self.receives.entry(*pair).or_default();
            while let (Some(send), Some(receive)) = (sends.front(), receives.front()) {
                if send.len_bytes != receive.len_bytes {
                    break; // as NCCL: it hangs
                }
                // SAFETY: both sides keep their memory until their post is done or withdrawn, which this lock guards.
                unsafe { (receive.address as *mut u8).copy_from(send.address as *const u8, send.len_bytes) };
                watched.num_received.fetch_add(1, Ordering::Relaxed);
                for done in [sends.pop_front(), receives.pop_front()].into_iter().flatten() {
                    done.is_done.store(true, Ordering::Release);
                }
            }
        }
    }

    /// Sums, once all ranks have come to it.
    fn reduce(&mut self) {
        while self.reduces.len() == self.size && self.reduces.values().all(|posts| !posts.is_empty()) {
            let posts: Vec<_> = self.reduces.values_mut().filter_map(VecDeque::pop_front).collect();
            // SAFETY: as above.
            let all = posts
                .iter()
                .map(|post| unsafe { std::slice::from_raw_parts_mut(post.address as *mut f32, post.len_bytes / 4) });
            let mut all: Vec<_> = all.collect();
            for at in 0..all[0].len() {
                let sum = all.iter().map(|values| values[at]).sum();
                all.iter_mut().for_each(|values| values[at] = sum);
            }
            posts.iter().for_each(|post| post.is_done.store(true, Ordering::Release));
        }
    }

    fn withdraw(&mut self, rank: usize) {
        self.reduces.remove(&rank);
        for posts in self.sends.values_mut().chain(self.receives.values_mut()) {
            posts.retain(|post| post.owner != rank);
        }
    }
}

struct FakeComm {
    rank: usize,
    world: Arc<Mutex<World>>,
    watched: Arc<Watched>,
    own: Mutex<Own>,
    is_aborted: AtomicBool,
}

#[derive(Default)]
struct Own {
    /// Enqueued, but not on the stream yet; and how often it is still said to be in progress.
    waiting: Vec<Bulk>,
    num_delays: usize,
    /// All that was put on the stream since.
    on_stream: Vec<Arc<AtomicBool>>,
    /// Whatever was there at the last mark.
    marked: Vec<Arc<AtomicBool>>,
}

// SAFETY: the addresses are used under the world's lock.
unsafe impl Send for Own {}

impl Library for FakeNccl {
    fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = [0; 128];
        id[..8].copy_from_slice(&NUM_IDS.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        Ok(id)
    }

    fn begin(&self, id: &UniqueId, size: usize, rank: Rank) -> Result<Box<dyn Comm>, NcclError> {
        let world = WORLDS.lock().expect("no panic").entry(*id).or_default().clone();
        let mut joined = world.lock().expect("no panic");
        joined.size = size;
        assert!(joined.ranks.insert(rank.index()), "a unique id is used once");
        drop(joined);
        self.watched.num_begun.fetch_add(1, Ordering::Relaxed);
        let (watched, own) = (self.watched.clone(), Mutex::default());
        Ok(Box::new(FakeComm { rank: rank.index(), world, watched, own, is_aborted: AtomicBool::new(false) }))
    }

    fn reaches(&self, _: *const u8) -> bool {
        self.reaches_all
    }

    fn host_memory(&self, len_bytes: usize) -> Result<HostMemory, NcclError> {
        let mut memory = vec![0; len_bytes];
        Ok(HostMemory { address: memory.as_mut_ptr(), len_bytes, owner: Box::new(memory) })
    }
}

impl FakeComm {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no panic")
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().expect("no panic")
    }

    fn assert_live(&self) {
        assert!(!self.is_aborted.load(Ordering::Acquire), "used after its abort");
    }

    fn post(&self, own: &mut Own) {
        let mut world = self.world();
        for transfer in own.waiting.drain(..) {
            let is_done = Arc::new(AtomicBool::new(false));
            own.on_stream.push(is_done.clone());
            self.watched.num_posted.fetch_add(1, Ordering::Release);
            let (posts, pair, address, len_bytes) = match transfer {
                Bulk::AllReduce { address, len } => {
                    let post = Post { owner: self.rank, address: address as usize, len_bytes: len * 4, is_done };
                    world.reduces.entry(self.rank).or_default().push_back(post);
                    continue;
                }
                Bulk::Send { to, address, len_bytes } => {
                    (&mut world.sends, (self.rank, to.index()), address as usize, len_bytes)
                }
                Bulk::Recv { from, address, len_bytes } => {
                    (&mut world.receives, (from.index(), self.rank), address as usize, len_bytes)
                }
            };
            posts.entry(pair).or_default().push_back(Post { owner: self.rank, address, len_bytes, is_done });
        }
    }
}

impl Comm for FakeComm {
    fn status(&self) -> Status {
        self.assert_live();
        if self.watched.is_broken.load(Ordering::Acquire) {
            return Status::Failed(NcclError::Call {
                result: "ncclRemoteError".into(),
                words: "a link is down".into(),
            });
        }
        let world = self.world();
        if world.ranks.len() < world.size {
            return Status::InProgress;
        }
        drop(world);
        let mut own = self.own();
        if own.num_delays > 0 {
            own.num_delays -= 1;
            return Status::InProgress;
        }
        self.post(&mut own);
        Status::Done
    }

    unsafe fn enqueue(&self, group: &[Bulk]) -> Status {
        self.assert_live();
        let mut own = self.own();
        own.waiting.extend(group);
        own.num_delays = 2;
        Status::InProgress
    }

    fn mark(&self) -> Result<(), NcclError> {
        let mut own = self.own();
        own.marked = own.on_stream.drain(..).collect();
        Ok(())
    }

    fn is_done(&self) -> Result<bool, NcclError> {
        if !self.watched.is_stuck.load(Ordering::Acquire) {
            let mut world = self.world();
            world.work(&self.watched);
            world.reduce();
        }
        let is_aborted = self.is_aborted.load(Ordering::Acquire);
        Ok(is_aborted || self.own().marked.iter().all(|is_done| is_done.load(Ordering::Acquire)))
    }

    fn abort(&self) {
        assert!(!self.is_aborted.swap(true, Ordering::AcqRel), "aborted twice");
        self.world().withdraw(self.rank);
        self.own().waiting.clear();
        self.watched.num_aborted.fetch_add(1, Ordering::Relaxed);
    }
}
