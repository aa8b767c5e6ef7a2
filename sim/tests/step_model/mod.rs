//! A world of a few ranks that take two steps while some of them crash, as a model to be searched exhaustively.

mod process;

use polo_recipe::{
    config::{Copies, Gather},
    ids::{Rank, Step},
};
use polo_worker::arrival::{Arrival, Origin, Terms, arrive};
use stateright::{Model, Property};

use process::{Message, NUM_CHUNKS, Phase, Process};

/// The step at which training ends.
pub const LAST_STEP: u8 = 2;

/// What may happen.
#[derive(Debug, Clone, Copy)]
pub struct World {
    pub num_crashes: usize,
    pub copies: usize,
    pub num_founders: usize,
    /// Whether a fresh process may become a member, in place of a crashed one or beside all others.
    pub has_joiner: bool,
    /// The newest checkpoint, all the time.
    pub checkpoint: Option<u64>,
}

/// How the present generation began; an [`Arrival`] that can be hashed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Plan {
    /// Whether all begin with what they have made or loaded.
    pub is_reloaded: bool,
    pub step: u8,
    pub teller: Option<usize>,
    pub rolling: Vec<usize>,
    /// By chunk.
    pub owners: Vec<Vec<usize>>,
    pub mends: Vec<Move>,
    pub moves: Vec<Move>,
    pub computing: Vec<usize>,
}

/// A chunk on its way; ranks as everywhere in [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Move {
    pub chunk: usize,
    pub from: usize,
    pub to: usize,
    pub params: bool,
    pub moments: bool,
}

impl Plan {
    fn of(arrival: &Arrival) -> Self {
        let indices = |ranks: &[Rank]| ranks.iter().map(|rank| rank.index()).collect::<Vec<_>>();
        let moved = |m: &polo_worker::arrival::Move| Move {
            chunk: m.chunk.0 as usize,
            from: m.from.index(),
            to: m.to.index(),
            params: m.params,
            moments: m.moments,
        };
        Self {
            is_reloaded: arrival.origin != Origin::Survivors,
            step: arrival.step.0 as u8,
            teller: arrival.teller.map(Rank::index),
            rolling: indices(&arrival.rolling),
            owners: arrival.owners.iter().map(|owners| indices(owners)).collect(),
            mends: arrival.mends.iter().map(moved).collect(),
            moves: arrival.moves.iter().map(moved).collect(),
            computing: indices(&arrival.computing),
        }
    }
}

/// Where the world is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Scene {
    processes: Vec<Process>,
    /// The process of each rank.
    members: Vec<usize>,
    plan: Plan,
    /// By sender and receiver (processes), what is on its way, in order.
    wires: Vec<Vec<Message>>,
    crashes_left: usize,
    /// Whether a generation began with less than some of its ranks had decided.
    went_back: bool,
}

/// What happens next.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    /// A process has all that its phase waits for, and enters the next.
    Advance(usize),
    /// A process dies; of what it sent to each process, only so many messages arrive.
    Crash(usize, Vec<usize>),
    /// A process hears of a death, and leaves its generation.
    Leave(usize),
    /// A process hears of a newer generation, with the joiner in it.
    Tell(usize),
    /// All that live begin another generation.
    Form { with_joiner: bool },
}

impl Scene {
    fn wire(&mut self, from: usize, to: usize) -> &mut Vec<Message> {
        let width = self.processes.len();
        &mut self.wires[from * width + to]
    }

    fn first_message(&self, from: usize, to: usize) -> Option<&Message> {
        self.wires[from * self.processes.len() + to].first()
    }

    fn rank_of(&self, process: usize) -> Option<usize> {
        self.members.iter().position(|member| *member == process)
    }

    fn has_lost_a_member(&self) -> bool {
        self.members.iter().any(|member| self.processes[*member].phase == Phase::Crashed)
    }

    fn can_advance(&self, process: usize) -> bool {
        let Some(rank) = self.rank_of(process) else { return false };
        let Some(awaited) = self.processes[process].awaits(rank, &self.plan, self.members.len()) else { return false };
        awaited.iter().all(|from| self.first_message(self.members[*from], process).is_some())
    }

    fn advance(&mut self, process: usize) -> Option<()> {
        let rank = self.rank_of(process)?;
        let num_ranks = self.members.len();
        let awaited = self.processes[process].awaits(rank, &self.plan, num_ranks)?;
        let received: Vec<_> = awaited.iter().map(|from| self.wire(self.members[*from], process).remove(0)).collect();
        let plan = self.plan.clone();
        for (to, message) in self.processes[process].advance(rank, &plan, num_ranks, &received) {
            self.wire(process, self.members[to]).push(message);
        }
        Some(())
    }

    fn crash(&mut self, process: usize, kept: &[usize]) {
        for (to, kept) in kept.iter().enumerate() {
            self.wire(process, to).truncate(*kept);
        }
        self.processes[process] = Process::empty(Phase::Crashed);
        self.crashes_left -= 1;
    }

    /// Of what a process has sent, every way to lose the ends.
    fn ways_to_crash(&self, process: usize) -> Vec<Vec<usize>> {
        let width = self.processes.len();
        let lens = (0..width).map(|to| self.wires[process * width + to].len());
        lens.fold(vec![Vec::new()], |ways, len| {
            let longer = |way: &Vec<usize>| (0..=len).map(|kept| [&way[..], &[kept]].concat()).collect::<Vec<_>>();
            ways.iter().flat_map(longer).collect()
        })
    }

    fn can_form(&self) -> bool {
        let mut living =
            self.processes.iter().filter(|p| !matches!(p.phase, Phase::Crashed | Phase::Absent)).peekable();
        living.peek().is_some() && living.all(|p| p.phase == Phase::Idle)
    }

    fn form(&mut self, world: &World, with_joiner: bool) {
        let is_member = |process: &usize| match self.processes[*process].phase {
            Phase::Idle => true,
            Phase::Absent => with_joiner,
            _ => false,
        };
        self.members = (0..self.processes.len()).filter(is_member).collect();
        let held: Vec<_> = self.members.iter().map(|member| self.processes[*member].held()).collect();
        let (num_members, copies) = (held.len(), Copies::Number(world.copies));
        let checkpoint = world.checkpoint.map(Step);
        let terms = Terms { num_members, checkpoint, chunk_lens: &[1; NUM_CHUNKS], copies, gather: Gather::Step };
        let arrival = arrive(&held, terms);
        let newest = held.iter().filter_map(|h| h.step).max().unwrap_or(Step(0));
        self.went_back |= arrival.step < newest;
        self.plan = Plan::of(&arrival);
        self.wires.iter_mut().for_each(Vec::clear);
        for rank in 0..num_members {
            let process = self.members[rank];
            for (to, message) in self.processes[process].begin(rank, &self.plan, num_members) {
                self.wire(process, self.members[to]).push(message);
            }
        }
    }

    fn is_over(&self) -> bool {
        self.processes.iter().all(|p| matches!(p.phase, Phase::Done | Phase::Crashed | Phase::Absent))
    }
}

impl Model for World {
    type State = Scene;
    type Action = Happening;

    fn init_states(&self) -> Vec<Scene> {
        let mut processes = vec![Process::empty(Phase::Idle); self.num_founders];
        processes.extend(self.has_joiner.then(|| Process::empty(Phase::Absent)));
        let wires = vec![Vec::new(); processes.len() * processes.len()];
        let (members, plan, crashes_left) = (Vec::new(), Plan::default(), self.num_crashes);
        let mut scene = Scene { processes, members, plan, wires, crashes_left, went_back: false };
        scene.form(self, false);
        vec![scene]
    }

    fn actions(&self, scene: &Scene, actions: &mut Vec<Happening>) {
        let has_candidate = scene.processes.iter().any(|p| p.phase == Phase::Absent);
        for (number, process) in scene.processes.iter().enumerate() {
            if scene.can_advance(number) {
                actions.push(Happening::Advance(number));
            }
            let is_member = !matches!(process.phase, Phase::Crashed | Phase::Absent);
            if is_member && has_candidate && !process.is_told {
                actions.push(Happening::Tell(number));
            }
            if is_member && scene.crashes_left > 0 {
                actions.extend(scene.ways_to_crash(number).into_iter().map(|kept| Happening::Crash(number, kept)));
            }
            if is_member && process.phase != Phase::Idle && scene.has_lost_a_member() {
                actions.push(Happening::Leave(number));
            }
        }
        if scene.can_form() {
            // A generation that somebody has heard of is not replaced by one without its joiner.
            let is_announced = scene.processes.iter().any(|p| p.is_told);
            actions.extend((!is_announced).then_some(Happening::Form { with_joiner: false }));
            actions.extend(has_candidate.then_some(Happening::Form { with_joiner: true }));
        }
    }

    fn next_state(&self, scene: &Scene, happening: Happening) -> Option<Scene> {
        let mut next = scene.clone();
        match happening {
            Happening::Advance(process) => next.advance(process)?,
            Happening::Crash(process, kept) => next.crash(process, &kept),
            Happening::Leave(process) => {
                let rank = next.rank_of(process)?;
                next.processes[process].leave(rank, &scene.plan);
            }
            Happening::Tell(process) => next.processes[process].is_told = true,
            Happening::Form { with_joiner } => next.form(self, with_joiner),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("every process holds what it says that it holds", |_, scene: &Scene| {
                scene.processes.iter().all(Process::is_honest)
            }),
            Property::always("nobody waits for ever", |world: &Self, scene: &Scene| {
                let mut actions = Vec::new();
                world.actions(scene, &mut actions);
                !actions.is_empty() || scene.is_over()
            }),
            Property::sometimes("the end is reached after a crash", |world: &Self, scene: &Scene| {
                scene.crashes_left < world.num_crashes && scene.is_over() && !scene.has_lost_a_member()
            }),
        ];
        if self.num_crashes < self.copies {
            properties.push(Property::always("no decided step is dropped", |_, scene: &Scene| !scene.went_back));
            let is_rolling = |_: &Self, scene: &Scene| !scene.plan.rolling.is_empty();
            properties.push(Property::sometimes("a decided step is rolled forward", is_rolling));
        } else {
            properties.push(Property::sometimes("a state is lost as a whole", |_, scene: &Scene| scene.went_back));
        }
        properties
    }
}
