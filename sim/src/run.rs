//! One simulated run, from its seed to a verdict.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use polo_coordinator::machine::Outcome;
use polo_store::{
    checkpoint::Manifest,
    testing::{forget_memory, register_memory},
};
use polo_worker::desk::{Desk, Doing};
use rand::{SeedableRng, rngs::StdRng};
use turmoil::Sim;

use crate::{
    oracle::Oracle,
    processes::{Shared, coordinator, worker},
    recipe::{corpus, recipe},
    scenario::{Fault, Node, Scenario},
    store::SimStore,
};

/// Virtual time between two looks at all hosts.
const TICK: Duration = Duration::from_millis(2);
/// After the last fault, a run must end within this time.
const LIVENESS: Duration = Duration::from_secs(240);

/// What became of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// What must not have happened.
    pub wrong: Vec<String>,
    /// What the processes said, with its moment in ms.
    pub news: Vec<(u64, String)>,
    /// Virtual time until the end.
    pub elapsed: Duration,
}

/// Runs a scenario and checks it.
pub fn simulate(scenario: &Scenario) -> Report {
    let name = format!("sim-{}-{:016x}", scenario.seed, rand::random::<u64>());
    let recipe = Arc::new(recipe(scenario, &name));
    let oracle = Oracle::new(&recipe);
    let [store, single_try] = SimStore::new(scenario.seed, oracle.clone());
    register_memory(&name, Arc::new(store.clone()), Arc::new(single_try.clone()));
    let report = run(scenario, recipe, oracle, [store, single_try]);
    forget_memory(&name);
    report
}

fn run(
    scenario: &Scenario,
    recipe: Arc<polo_recipe::config::Recipe>,
    oracle: Arc<Oracle>,
    stores: [SimStore; 2],
) -> Report {
    let corpus = corpus();
    stores[0].put_corpus(&corpus);
    let shared = Rc::new(Shared {
        plan: Arc::new(corpus.plan(&recipe).unwrap_or_else(|error| panic!("the simulated plan: {error}"))),
        corpus_digest: corpus.digest().to_string(),
        recipe,
        oracle: oracle.clone(),
        slot_time: Duration::from_millis(scenario.slot_ms),
        num_workers: scenario.num_workers,
        rng: RefCell::new(StdRng::seed_from_u64(scenario.seed ^ 1)),
        leaving: RefCell::default(),
        desks: RefCell::default(),
        outcome: RefCell::default(),
        news: RefCell::default(),
    });
    let mut sim = turmoil::Builder::new()
        .rng_seed(scenario.seed)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(3600))
        .min_message_latency(Duration::from_micros(100))
        .max_message_latency(TICK)
        .tcp_capacity(1 << 14)
        .build();
    let host = shared.clone();
    sim.host("coordinator", move || coordinator(host.clone()));
    for number in scenario.all_workers() {
        add_worker(&mut sim, &shared, number);
        if number >= scenario.num_workers {
            sim.crash(Node::Worker(number).name());
        }
    }
    drive(scenario, &mut sim, &shared, &stores);
    let mut wrong = oracle.wrong();
    wrong.extend(judge(&shared, &oracle, &stores[0]));
    let news = shared.news.borrow().clone();
    Report { wrong, news, elapsed: sim.elapsed() }
}

fn add_worker(sim: &mut Sim<'_>, shared: &Rc<Shared>, number: usize) {
    let shared = shared.clone();
    sim.host(Node::Worker(number).name(), move || worker(shared.clone(), number));
}

/// Lets time pass, and faults happen, until the run has ended or something is wrong.
fn drive(scenario: &Scenario, sim: &mut Sim<'_>, shared: &Rc<Shared>, stores: &[SimStore; 2]) {
    let mut faults = scenario.faults.iter().peekable();
    let limit = scenario.faults.last().map_or(Duration::ZERO, |last| last.at) + LIVENESS;
    while shared.outcome.borrow().is_none() && shared.oracle.wrong().is_empty() && sim.elapsed() < limit {
        while let Some(timed) = faults.next_if(|timed| timed.at <= sim.elapsed()) {
            shared.news.borrow_mut().push((sim.elapsed().as_millis() as u64, format!("{:?}", timed.fault)));
            befall(sim, shared, stores, &timed.fault, scenario);
        }
        if let Err(error) = sim.step() {
            shared.oracle.note(format!("a process ended with an error: {error}"));
        }
    }
}

fn befall(sim: &mut Sim<'_>, shared: &Shared, stores: &[SimStore; 2], fault: &Fault, scenario: &Scenario) {
    let all = || scenario.all_workers().map(Node::Worker).chain([Node::Coordinator]);
    let others = |node: Node| all().filter(move |other| *other != node).map(Node::name);
    match fault {
        Fault::Crash(node) => sim.crash(node.name()),
        Fault::Restart(node) => {
            if let Node::Worker(number) = node {
                shared.leaving.borrow_mut().remove(number);
            }
            // A coordinator that another fault had started already is left alone: it may be saying goodbye.
            if *node != Node::Coordinator || !sim.is_host_running(node.name()) {
                sim.bounce(node.name());
            }
        }
        Fault::Partition(a, b) => sim.partition(a.name(), b.name()),
        Fault::PartitionOneWay(a, b) => sim.partition_oneway(a.name(), b.name()),
        Fault::Repair(a, b) => sim.repair(a.name(), b.name()),
        Fault::Freeze(node) => others(*node).for_each(|other| sim.hold(node.name(), other)),
        Fault::Thaw(node) => others(*node).for_each(|other| sim.release(node.name(), other)),
        Fault::SlowLink(a, b, latency) => sim.set_link_latency(a.name(), b.name(), *latency),
        Fault::StoreTrouble(probability) => stores.iter().for_each(|store| store.set_trouble(*probability)),
        Fault::StoreWell => stores.iter().for_each(|store| store.set_trouble(0.0)),
        Fault::Drain(number) => drop(shared.leaving.borrow_mut().insert(*number)),
        Fault::Join(number) => sim.bounce(Node::Worker(*number).name()),
    }
}

/// What is wrong with the end.
fn judge(shared: &Shared, oracle: &Oracle, store: &SimStore) -> Option<String> {
    let last = oracle.states.len() as u64 - 1;
    match &*shared.outcome.borrow() {
        Some(Outcome::Completed { step, state_digest }) => {
            let right = oracle.last_digest();
            if step.0 != last || *state_digest != right.to_string() {
                return Some(format!("the run ended at step {step} with {state_digest}, not at {last} with {right}"));
            }
            let manifest = futures::executor::block_on(store.newest_manifest()).map(|bytes| Manifest::decode(&bytes));
            match manifest {
                Some(Ok(manifest)) if manifest.step == last && manifest.state_digest == right => None,
                other => Some(format!("the last state is not stored: {other:?}")),
            }
        }
        other => {
            let doing = |(name, desk): (&String, &Arc<Desk>)| {
                let Doing { generation, step, phase, .. } = desk.doing();
                let newest = desk.boundary().newest_order;
                format!("{name}: {phase}, generation {generation}, told of {newest}, step {step}")
            };
            let doing: Vec<_> = shared.desks.borrow().iter().map(doing).collect();
            Some(format!("the run did not complete: {other:?}; {}", doing.join("; ")))
        }
    }
}
