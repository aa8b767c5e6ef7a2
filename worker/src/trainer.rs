//! The thread that owns all numbers: takes part in one generation after another.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use futures::{
    executor::block_on,
    future::{BoxFuture, FutureExt, LocalBoxFuture},
};
use polo_proto::v1::{self, session_request::Message};
use polo_recipe::ids::{Rank, Step};
use tokio::{runtime::Handle, task::unconstrained};

use crate::{
    checkpointer::Checkpointer,
    desk::Desk,
    generation::{Left, take_part},
    plane::{
        AbortHandle, DataPlane, Lane, Listener, PlaneError, Secret, nccl,
        rendezvous::{Membership, Timeouts, form},
    },
    pool::Pool,
    rig::{Arithmetic, Network},
    session::{Ending, Event, Order},
    state::TrainState,
    step::Setting,
    streams::Stream,
};

/// Everything that outlives a generation.
pub struct Trainer {
    /// What does not change.
    pub setting: Arc<Setting>,
    /// The state that is trained.
    pub state: TrainState,
    /// Gradient buffers, kept from step to step.
    pub pool: Pool,
    /// What computes.
    pub arithmetic: Box<dyn Arithmetic>,
    /// The way to the other ranks.
    pub network: Arc<dyn Network>,
    /// The run's store.
    pub checkpointer: Checkpointer,
    /// Steps between checkpoints; 0 for none but the last.
    pub checkpoint_every_steps: u64,
}

impl Trainer {
    /// Takes part in generations until the session ends, and returns how.
    pub async fn run(mut self) -> Ending {
        loop {
            let abort = match AbortHandle::new() {
                Ok(abort) => abort,
                Err(error) => return self.fail(format!("the system gives no event file: {error}"), false),
            };
            let order = match self.desk().next_order(&abort).await {
                Ok(order) => order,
                Err(ending) => return ending,
            };
            match take_part(&mut self, &order, &abort).await {
                Ok(Left::ForAnother) => self.desk().handle(Event::Left(order.generation)),
                Ok(Left::Finished) => {}
                Err(error) if error.is_dropped() => self.desk().handle(Event::Left(order.generation)),
                Err(error) => match error.plane() {
                    Some(trouble) => self.report_trouble(&order, trouble),
                    None => return self.fail(error.to_string(), error.ends_run()),
                },
            }
        }
    }

    fn report_trouble(&self, order: &Order, trouble: &PlaneError) {
        let suspects = match trouble {
            PlaneError::PeerLost { rank, .. } | PlaneError::Desynchronised { rank, .. } => vec![*rank],
            PlaneError::Timeout { ranks, .. } => ranks.clone(),
            _ => Vec::new(),
        };
        let suspects = suspects.into_iter().map(|Rank(rank)| rank).collect();
        let timed_out = matches!(trouble, PlaneError::Timeout { .. });
        let (generation, reason) = (order.generation.0, trouble.to_string());
        tracing::info!(generation, reason, "the data plane broke");
        self.desk().send(Message::PlaneLost(v1::PlaneLost { generation, suspects, reason, timed_out }));
        self.desk().handle(Event::Left(order.generation));
    }

    fn fail(&self, reason: String, ends_run: bool) -> Ending {
        self.desk().send(Message::Failed(v1::WorkerFailed { reason: reason.clone(), ends_run }));
        self.desk().handle(Event::Failed(reason.clone()));
        Ending::Failed(reason)
    }

    pub(crate) fn desk(&self) -> &Desk {
        &self.setting.desk
    }

    /// Step of the state it holds, 0 if it holds none.
    pub(crate) fn step(&self) -> Step {
        self.state.step.unwrap_or_default()
    }
}

/// The other ranks: over TCP, and where GPUs compute, for long messages over NCCL.
pub struct PlaneNetwork {
    /// Where they call.
    pub listener: Listener,
    /// How long they are waited for.
    pub timeouts: Timeouts,
    /// Drives what runs beside the thread that computes.
    pub runtime: Handle,
    /// NCCL, and where what runs beside the computation puts the GPU's work.
    pub nccl: Option<(Arc<dyn nccl::Library>, Stream)>,
}

impl PlaneNetwork {
    fn form_blocking(&self, order: &Order, lane: Lane, abort: &AbortHandle) -> Result<Box<dyn DataPlane>, PlaneError> {
        let (peers, secret) = (resolve(&order.peers)?, Secret(order.secret));
        let membership = Membership { generation: order.generation, rank: Rank(order.rank), peers, secret, lane };
        let tcp = form(&self.listener, &membership, &self.timeouts, abort)?;
        let Some((library, _)) = &self.nccl else { return Ok(Box::new(tcp)) };
        let terms = nccl::Terms { form_timeout: self.timeouts.form, min_bulk_bytes: nccl::MIN_BULK_BYTES };
        Ok(Box::new(nccl::form(library.clone(), tcp, &terms)?))
    }
}

impl PlaneNetwork {
    /// From now on this thread's work for a GPU does not wait for what the computation puts on it.
    fn leave_computing_alone(&self) {
        let changed = self.nccl.as_ref().map(|(_, stream)| stream.make_current());
        if let Some(Err(error)) = changed {
            tracing::warn!(%error, "the reduction shares the stream of the computation");
        }
    }
}

impl Network for PlaneNetwork {
    fn form<'a>(
        &'a self,
        order: &'a Order,
        lane: Lane,
        abort: &'a AbortHandle,
    ) -> BoxFuture<'a, Result<Box<dyn DataPlane>, PlaneError>> {
        async move { self.form_blocking(order, lane, abort) }.boxed()
    }

    fn together<'a>(&'a self, main: LocalBoxFuture<'a, ()>, side: BoxFuture<'a, ()>) -> LocalBoxFuture<'a, ()> {
        async move {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    self.leave_computing_alone();
                    self.runtime.block_on(side);
                });
                // Whatever drives this one is not polled meanwhile, so it cannot renew tokio's budget of the task.
                block_on(unconstrained(main));
            });
        }
        .boxed_local()
    }
}

fn resolve(peers: &[String]) -> Result<Vec<SocketAddr>, PlaneError> {
    let one = |(rank, address): (Rank, &String)| {
        let none = || std::io::Error::new(std::io::ErrorKind::NotFound, "it has no address");
        let found = address.to_socket_addrs().and_then(|mut all| all.next().ok_or_else(none));
        found.map_err(|source| PlaneError::Address { rank, address: address.clone(), source })
    };
    (0..).map(Rank).zip(peers).map(one).collect()
}
