//! The gRPC services: sessions and requests become events, the machine's words become messages.

use std::{net::SocketAddr, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use polo_proto::v1::{self, session_request};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    core::{Facts, Inbound, MAX_WATCHERS},
    machine::{Event, Introduction, Standing, Tell, WorkerId},
    wire,
};

/// Messages that may wait for one worker before its session is given up.
const SESSION_QUEUE: usize = 64;

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Both services; what they hear goes to the core.
#[derive(Clone)]
pub struct Services {
    pub(crate) inbound: mpsc::Sender<Inbound>,
    pub(crate) facts: Arc<Facts>,
}

impl Services {
    async fn tell_core(&self, inbound: Inbound) -> Result<(), Status> {
        self.inbound.send(inbound).await.map_err(|_| has_ended())
    }

    /// The run's states from now on, for one more who watches.
    pub(crate) async fn watch(&self) -> Result<WatchStream<v1::Status>, Status> {
        let watching = self.ask_core(Inbound::Watch).await?;
        watching.map(WatchStream::new).ok_or_else(too_many_watch)
    }

    /// Asks the core something that it answers once.
    pub(crate) async fn ask_core<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Inbound) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        self.tell_core(question(answer)).await?;
        answered.await.map_err(|_| has_ended())
    }
}

fn too_many_watch() -> Status {
    Status::resource_exhausted(format!(
        "{MAX_WATCHERS} others watch this run already; ask for its status now and then instead"
    ))
}

fn has_ended() -> Status {
    Status::unavailable("the run has ended")
}

#[tonic::async_trait]
impl v1::coordination_server::Coordination for Services {
    type SessionStream = Responses<v1::SessionResponse>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let from = request.remote_addr();
        let mut messages = request.into_inner();
        let (worker, introduction, standing) = first_hello(&mut messages).await?;
        let (sender, receiver) = mpsc::channel(SESSION_QUEUE);
        tracing::debug!(%worker, ?from, "session opened");
        let incarnation = introduction.incarnation;
        self.open(&worker, introduction, standing, from, sender).await?;
        tokio::spawn(listen(self.clone(), worker, incarnation, messages));
        // Made into messages only as they are sent: those of a large generation take much room in all.
        let facts = self.facts.clone();
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(move |tell| Ok(facts.wire.response(tell))))))
    }
}

impl Services {
    async fn open(
        &self,
        worker: &WorkerId,
        mut introduction: Introduction,
        standing: Standing,
        from: Option<SocketAddr>,
        sender: mpsc::Sender<Tell>,
    ) -> Result<(), Status> {
        introduction.data_address = reachable_address(&introduction.data_address, from);
        let incarnation = introduction.incarnation;
        self.tell_core(Inbound::Opened(worker.clone(), incarnation, sender)).await?;
        self.tell_core(Inbound::Event(Event::Hello(worker.clone(), introduction, standing))).await
    }
}

/// A worker that listens on every interface is reached where its session comes from.
fn reachable_address(announced: &str, from: Option<SocketAddr>) -> String {
    match (announced.parse::<SocketAddr>(), from) {
        (Ok(address), Some(from)) if address.ip().is_unspecified() => {
            SocketAddr::new(from.ip(), address.port()).to_string()
        }
        _ => announced.into(),
    }
}

async fn first_hello(
    messages: &mut Streaming<v1::SessionRequest>,
) -> Result<(WorkerId, Introduction, Standing), Status> {
    match messages.message().await?.and_then(|m| m.message) {
        Some(session_request::Message::Hello(hello)) => wire::introduction(hello),
        _ => Err(wire::WireError::NoHello),
    }
    .map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Passes on what a worker says until its stream ends.
async fn listen(services: Services, worker: WorkerId, incarnation: u64, mut messages: Streaming<v1::SessionRequest>) {
    while let Ok(Some(message)) = messages.message().await {
        let report = match &message.message {
            Some(session_request::Message::Step(report)) => Some(report.clone()),
            _ => None,
        };
        let event = match wire::said(message) {
            Ok(said) => Event::Said(worker.clone(), incarnation, said),
            Err(error) => {
                tracing::warn!(%worker, %error, "session ended");
                break;
            }
        };
        if let Some(report) = report
            && services.tell_core(Inbound::Report(report)).await.is_err()
        {
            return;
        }
        if services.tell_core(Inbound::Event(event)).await.is_err() {
            return;
        }
    }
    let _ = services.tell_core(Inbound::Closed(worker, incarnation)).await;
}

#[tonic::async_trait]
impl v1::control_server::Control for Services {
    type WatchStatusStream = Responses<v1::WatchStatusResponse>;

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        let status = self.ask_core(Inbound::Status).await?;
        Ok(Response::new(v1::GetStatusResponse { status: Some(status) }))
    }

    async fn watch_status(
        &self,
        _: Request<v1::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let statuses = self.watch().await?;
        Ok(Response::new(Box::pin(statuses.map(|s| Ok(v1::WatchStatusResponse { status: Some(s) })))))
    }

    async fn get_history(&self, _: Request<v1::GetHistoryRequest>) -> Result<Response<v1::GetHistoryResponse>, Status> {
        let history = self.ask_core(Inbound::History).await?;
        Ok(Response::new(v1::GetHistoryResponse { history: Some(history) }))
    }

    async fn checkpoint(&self, _: Request<v1::CheckpointRequest>) -> Result<Response<v1::CheckpointResponse>, Status> {
        self.tell_core(Inbound::Event(Event::CheckpointRequested)).await?;
        Ok(Response::new(v1::CheckpointResponse {}))
    }

    async fn stop(&self, _: Request<v1::StopRequest>) -> Result<Response<v1::StopResponse>, Status> {
        self.tell_core(Inbound::Event(Event::StopRequested)).await?;
        Ok(Response::new(v1::StopResponse {}))
    }

    async fn drain(&self, request: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        let worker = WorkerId(request.into_inner().worker_id);
        let drained = self.ask_core(|answer| Inbound::Drain(worker, answer)).await?;
        drained.map(|()| Response::new(v1::DrainResponse {})).map_err(Status::not_found)
    }
}
