//! The processes of a simulated run: what `polo coordinator` and `polo-worker` do, on simulated ground.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures::future::join;
use polo_coordinator::{
    News, Opening, Run,
    machine::{Notice, Outcome},
};
use polo_proto::v1;
use polo_recipe::{config::Recipe, layout::Layout, plan::Plan};
use polo_store::Store;
use polo_transport::{Client, Guard};
use polo_worker::{
    agent::Agent,
    checkpointer::Checkpointer,
    desk::Desk,
    pool::Pool,
    session::{Ending, Event, Session},
    state::TrainState,
    step::Setting,
    trace::Trace,
    trainer::Trainer,
};
use rand::{RngExt, rngs::StdRng};
use tokio::sync::mpsc;
use turmoil::net::TcpListener;

use crate::{
    arithmetic::SimArithmetic,
    net::{SimOutside, connect, incoming},
    network::SimNetwork,
    oracle::Oracle,
    scenario::Node,
};

const COORDINATOR_PORT: u16 = 7070;
const DATA_PORT: u16 = 9000;
const SIGNAL_POLL: Duration = Duration::from_millis(10);

/// What all processes of a run share with whoever watches it.
pub struct Shared {
    /// The run.
    pub recipe: Arc<Recipe>,
    /// What follows from it and the corpus.
    pub plan: Arc<Plan>,
    /// Digest of the corpus.
    pub corpus_digest: String,
    /// What must come out.
    pub oracle: Arc<Oracle>,
    /// How long a slot takes.
    pub slot_time: Duration,
    /// Workers that are there from the start.
    pub num_workers: usize,
    /// Where processes draw their incarnations from.
    pub rng: RefCell<StdRng>,
    /// Workers that have been asked to leave and have not heard of it.
    pub leaving: RefCell<BTreeSet<usize>>,
    /// The newest process of each worker.
    pub desks: RefCell<BTreeMap<String, Arc<Desk>>>,
    /// How the run ended.
    pub outcome: RefCell<Option<Outcome>>,
    /// What the coordinator said, with its moment in ms.
    pub news: RefCell<Vec<(u64, String)>>,
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

/// `polo coordinator`, started again whenever it could not open the run.
pub async fn coordinator(shared: Rc<Shared>) -> turmoil::Result {
    let (sender, mut news) = mpsc::unbounded_channel();
    let (recipe, notes) = (shared.recipe.clone(), shared.clone());
    tokio::task::spawn_local(async move {
        while let Some(news) = news.recv().await {
            if let News::Notice(notice) = news {
                if matches!(notice, Notice::ValidationsDiffer { .. }) {
                    notes.oracle.note(notice.to_string());
                }
                notes.note(notice.to_string());
            }
        }
    });
    let address = SocketAddr::new(turmoil::lookup("coordinator"), COORDINATOR_PORT);
    let expected_workers = shared.num_workers;
    let listener = TcpListener::bind(any(COORDINATOR_PORT)).await?;
    let run = loop {
        let outside = Arc::new(SimOutside);
        let opening = Opening {
            expected_workers,
            address,
            unfenced: false,
            outside,
            guard: Guard::default(),
            is_encrypted: false,
        };
        match Run::open(&recipe, opening, sender.clone()).await {
            Ok(run) => break run,
            Err(error) => shared.note(format!("the run cannot be opened: {error}")),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let outcome = run.serve_incoming(incoming(listener)).await?;
    shared.note(format!("{outcome:?}"));
    *shared.outcome.borrow_mut() = Some(outcome);
    Ok(())
}

impl Shared {
    fn note(&self, what: String) {
        self.news.borrow_mut().push((turmoil::sim_elapsed().unwrap_or_default().as_millis() as u64, what));
    }
}

/// `polo-worker`, started again whenever it ends with a failure.
pub async fn worker(shared: Rc<Shared>, number: usize) -> turmoil::Result {
    let name = Node::Worker(number).name();
    let listener = TcpListener::bind(any(DATA_PORT)).await?;
    let network = SimNetwork::new(shared.oracle.clone());
    tokio::spawn(network.clone().listen(listener));
    loop {
        let ending = one_worker(&shared, number, &network).await;
        shared.note(format!("{name} ends: {ending:?}"));
        if !matches!(ending, Ending::Failed(_)) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What a signal does to a worker.
async fn pass_on_wishes_to_leave(shared: &Shared, number: usize, desk: Arc<Desk>) {
    while !shared.leaving.borrow_mut().remove(&number) {
        tokio::time::sleep(SIGNAL_POLL).await;
    }
    desk.handle(Event::LeaveWanted);
    std::future::pending().await
}

async fn one_worker(shared: &Shared, number: usize, network: &SimNetwork) -> Ending {
    let name = &Node::Worker(number).name();
    let (to_agent, effects) = mpsc::unbounded_channel();
    let (to_outbox, outbox) = mpsc::unbounded_channel();
    let coordinator = format!("http://coordinator:{COORDINATOR_PORT}");
    let timeout = Duration::from_secs(shared.recipe.workers.coordinator_timeout_s);
    let session = Session::new(coordinator.clone(), timeout, 0);
    let desk = Arc::new(Desk::new(session, to_agent, to_outbox));
    shared.desks.borrow_mut().insert(name.clone(), desk.clone());
    let agent = Agent {
        hello: v1::Hello {
            worker_id: name.clone(),
            incarnation: shared.rng.borrow_mut().random(),
            recipe_identity: shared.recipe.identity(),
            corpus_digest: shared.corpus_digest.clone(),
            data_address: format!("{name}:{DATA_PORT}"),
            host: name.clone(),
            ..Default::default()
        },
        coordinator,
        client: Client::default(),
        connect: connect(),
        connect_timeout: Duration::from_secs(shared.recipe.workers.connect_timeout_s),
        desk: desk.clone(),
        effects,
        outbox,
        repeated: Vec::new(),
    };
    let trainer = trainer(shared, name, desk.clone(), network.clone());
    tokio::select! {
        biased;
        (ending, _) = join(agent.run(), trainer.run()) => ending,
        () = pass_on_wishes_to_leave(shared, number, desk) => Ending::Failed("never".into()),
    }
}

fn trainer(shared: &Shared, name: &str, desk: Arc<Desk>, network: SimNetwork) -> Trainer {
    let recipe = &shared.recipe;
    let store = Store::open(&recipe.run.store).unwrap_or_else(|error| panic!("the simulated store: {error}"));
    let setting = Setting {
        trace: Trace::default(),
        layout: Arc::new(Layout::qwen2(&recipe.model.qwen2)),
        plan: shared.plan.clone(),
        batch: recipe.batch.clone(),
        max_grad_norm: recipe.optimizer.max_grad_norm,
        on_non_finite: recipe.optimizer.on_non_finite,
        reduction: recipe.run.reduction,
        copies: recipe.workers.copies,
        bytes_per_token: Vec::new(),
        desk: desk.clone(),
    };
    Trainer {
        state: TrainState::empty(&setting.layout, &setting.plan, recipe.workers.gather),
        setting: Arc::new(setting),
        pool: Pool::default(),
        arithmetic: Box::new(SimArithmetic {
            who: name.into(),
            recipe: recipe.clone(),
            oracle: shared.oracle.clone(),
            slot_time: shared.slot_time,
            work: None,
            left: None,
        }),
        network: Arc::new(network),
        checkpointer: Checkpointer { store, desk, in_flight: None },
        checkpoint_every_steps: recipe.checkpoint.every_steps,
    }
}
