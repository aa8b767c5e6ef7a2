//! What happens to a simulated run, as plain data drawn from a seed.

use std::time::Duration;

use polo_recipe::config::{Gather, OptimizerState};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

/// A whole simulated run.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Where everything else comes from.
    pub seed: u64,
    /// Steps of the run.
    pub num_steps: u64,
    /// Slots of a step.
    pub num_slots: usize,
    /// Owners of a chunk, as the recipe writes it.
    pub copies: String,
    /// How parameters come that a worker does not own.
    pub gather: Gather,
    /// Step at which a second stage begins, if there is one, and whether it resets the optimizer's state.
    pub second_stage: Option<(u64, OptimizerState)>,
    /// Steps from one evaluation of held-out samples to the next, if there are any.
    pub validated_every_steps: Option<u64>,
    /// Steps between checkpoints.
    pub checkpoint_every_steps: u64,
    /// Workers that are there from the start.
    pub num_workers: usize,
    /// Workers that may train at once.
    pub max_workers: usize,
    /// How long a slot takes.
    pub slot_ms: u64,
    /// What happens, in the order of time.
    pub faults: Vec<Timed>,
}

/// A fault and its moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Timed {
    /// Since the start.
    pub at: Duration,
    /// What happens.
    pub fault: Fault,
}

/// A place in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// The coordinator.
    Coordinator,
    /// A worker.
    Worker(usize),
}

impl Node {
    /// Its host name.
    pub fn name(self) -> String {
        match self {
            Self::Coordinator => "coordinator".into(),
            Self::Worker(number) => format!("worker-{number}"),
        }
    }
}

/// Something that goes wrong, or is set right again.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The process is killed.
    Crash(Node),
    /// It is started again, with nothing in memory.
    Restart(Node),
    /// Nothing gets through between the two.
    Partition(Node, Node),
    /// Nothing gets through from the first to the second.
    PartitionOneWay(Node, Node),
    /// Both ways are open again.
    Repair(Node, Node),
    /// Everything to and from the node is held back, as if it were frozen.
    Freeze(Node),
    /// What was held back arrives.
    Thaw(Node),
    /// Messages between the two take so long.
    SlowLink(Node, Node, Duration),
    /// The store fails, or loses its answers, with this probability.
    StoreTrouble(f64),
    /// The store is well again.
    StoreWell,
    /// A further worker comes.
    Join(usize),
    /// A worker is asked to leave.
    Drain(usize),
}

const NUM_JOINERS: usize = 2;

impl Scenario {
    /// The scenario of a seed.
    pub fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let num_workers = rng.random_range(1..=4);
        let num_slots = rng.random_range(num_workers.max(2)..=8);
        let copies = ["1", "2", "2", "3", "\"all\""].choose(&mut rng).copied().unwrap_or("2").to_owned();
        let mut scenario = Self {
            seed,
            num_steps: rng.random_range(10..=40),
            num_slots,
            copies,
            gather: Gather::Step,
            second_stage: None,
            validated_every_steps: None,
            checkpoint_every_steps: rng.random_range(2..=9),
            num_workers,
            max_workers: rng.random_range(1..=num_slots),
            slot_ms: rng.random_range(5..=40),
            faults: Vec::new(),
        };
        let num_faults = rng.random_range(0..=8);
        (0..num_faults).for_each(|_| scenario.add_fault(&mut rng));
        // Orders do not reach all workers at once.
        for number in scenario.all_workers() {
            let latency = Duration::from_millis(if rng.random_bool(0.4) { rng.random_range(2..80) } else { 2 });
            let fault = Fault::SlowLink(Node::Worker(number), Node::Coordinator, latency);
            scenario.faults.push(Timed { at: Duration::ZERO, fault });
        }
        for joiner in 0..NUM_JOINERS {
            if rng.random_bool(0.5) {
                scenario.add(&mut rng, Fault::Join(num_workers + joiner));
            }
        }
        scenario.faults.sort_by_key(|timed| timed.at);
        // Drawn last, so that seeds from before there was a choice still give the same faults.
        scenario.gather = if rng.random_bool(0.5) { Gather::Step } else { Gather::Block };
        if rng.random_bool(0.5) {
            let state = if rng.random_bool(0.7) { OptimizerState::Reset } else { OptimizerState::Carry };
            scenario.second_stage = Some((rng.random_range(1..scenario.num_steps), state));
        }
        if rng.random_bool(0.5) {
            scenario.validated_every_steps = Some(rng.random_range(1..=5));
        }
        scenario
    }

    /// The same run with nothing going wrong.
    pub fn undisturbed(self) -> Self {
        Self { faults: Vec::new(), ..self }
    }

    /// Host numbers of all workers that may ever be there.
    pub fn all_workers(&self) -> std::ops::Range<usize> {
        0..self.num_workers + NUM_JOINERS
    }

    fn moment(&self, rng: &mut StdRng) -> Duration {
        // Slots are shared out, so this is about as long as the run takes without faults.
        let whole_ms = self.num_steps * (self.num_slots as u64 * self.slot_ms / self.num_workers as u64 + 10);
        Duration::from_millis(rng.random_range(0..whole_ms))
    }

    fn add(&mut self, rng: &mut StdRng, fault: Fault) -> Duration {
        let at = self.moment(rng);
        self.faults.push(Timed { at, fault });
        at
    }

    /// Adds a fault and what sets it right again.
    fn add_fault(&mut self, rng: &mut StdRng) {
        let worker = Node::Worker(rng.random_range(0..self.num_workers));
        let other = match rng.random_range(0..self.num_workers + 1) {
            number if number < self.num_workers && Node::Worker(number) != worker => Node::Worker(number),
            _ => Node::Coordinator,
        };
        let node = if rng.random_bool(0.2) { Node::Coordinator } else { worker };
        let (fault, remedy) = match rng.random_range(0..11) {
            0..4 => (Fault::Crash(node), Fault::Restart(node)),
            4 => (Fault::Partition(worker, other), Fault::Repair(worker, other)),
            5 => (Fault::PartitionOneWay(worker, other), Fault::Repair(worker, other)),
            6 => (Fault::PartitionOneWay(other, worker), Fault::Repair(worker, other)),
            7 => (Fault::Freeze(node), Fault::Thaw(node)),
            8 => {
                let latency = Duration::from_millis(rng.random_range(20..300));
                (Fault::SlowLink(worker, other, latency), Fault::SlowLink(worker, other, Duration::from_millis(2)))
            }
            9 => {
                let number = rng.random_range(0..self.num_workers);
                (Fault::Drain(number), Fault::Restart(Node::Worker(number)))
            }
            _ => (Fault::StoreTrouble(rng.random_range(0.1..0.9)), Fault::StoreWell),
        };
        let at = self.add(rng, fault);
        let lasts = Duration::from_millis(rng.random_range(50..6000));
        self.faults.push(Timed { at: at + lasts, fault: remedy });
    }
}
