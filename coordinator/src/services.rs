//! The gRPC services: sessions and requests become events, the machine's words become messages.

use std::{net::SocketAddr, pin::Pin};

use futures::{Stream, StreamExt};
use polo_proto::v1::{self, session_request, session_response};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    core::Inbound,
    machine::{Event, Introduction, WorkerId},
    wire,
};

/// Messages that may wait for one worker before its session is given up.
const SESSION_QUEUE: usize = 64;

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Both services; what they hear goes to the core.
#[derive(Clone)]
pub struct Services {
    pub(crate) inbound: mpsc::Sender<Inbound>,
    pub(crate) status: watch::Receiver<v1::Status>,
}

impl Services {
    async fn tell_core(&self, inbound: Inbound) -> Result<(), Status> {
        self.inbound.send(inbound).await.map_err(|_| Status::unavailable("the run has ended"))
    }
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
        let (worker, introduction) = first_hello(&mut messages).await?;
        let (sender, receiver) = mpsc::channel(SESSION_QUEUE);
        tracing::debug!(%worker, ?from, "session opened");
        self.open(&worker, introduction.clone(), from, sender).await?;
        tokio::spawn(listen(self.clone(), worker, introduction.incarnation, messages));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(Ok))))
    }
}

impl Services {
    async fn open(
        &self,
        worker: &WorkerId,
        mut introduction: Introduction,
        from: Option<SocketAddr>,
        sender: mpsc::Sender<v1::SessionResponse>,
    ) -> Result<(), Status> {
        introduction.data_address = reachable_address(&introduction.data_address, from);
        let incarnation = introduction.incarnation;
        self.tell_core(Inbound::Opened(worker.clone(), incarnation, sender)).await?;
        self.tell_core(Inbound::Event(Event::Hello(worker.clone(), introduction))).await
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

async fn first_hello(messages: &mut Streaming<v1::SessionRequest>) -> Result<(WorkerId, Introduction), Status> {
    match messages.message().await?.and_then(|m| m.message) {
        Some(session_request::Message::Hello(hello)) => Ok(wire::introduction(hello)),
        _ => Err(Status::invalid_argument(wire::WireError::NoHello.to_string())),
    }
}

/// Passes on what a worker says until its stream ends.
async fn listen(services: Services, worker: WorkerId, incarnation: u64, mut messages: Streaming<v1::SessionRequest>) {
    while let Ok(Some(message)) = messages.message().await {
        let Some(message) = message.message else { break };
        if let session_request::Message::Step(report) = &message {
            let report = Inbound::Report(report.clone());
            if services.tell_core(report).await.is_err() {
                return;
            }
        }
        let event = match wire::said(message) {
            Ok(said) => Event::Said(worker.clone(), incarnation, said),
            Err(error) => {
                tracing::warn!(%worker, %error, "session ended");
                break;
            }
        };
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
        let status = self.status.borrow().clone();
        Ok(Response::new(v1::GetStatusResponse { status: Some(status) }))
    }

    async fn watch_status(
        &self,
        _: Request<v1::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let statuses = WatchStream::new(self.status.clone());
        Ok(Response::new(Box::pin(statuses.map(|s| Ok(v1::WatchStatusResponse { status: Some(s) })))))
    }

    async fn checkpoint(&self, _: Request<v1::CheckpointRequest>) -> Result<Response<v1::CheckpointResponse>, Status> {
        self.tell_core(Inbound::Event(Event::CheckpointRequested)).await?;
        Ok(Response::new(v1::CheckpointResponse {}))
    }

    async fn stop(&self, _: Request<v1::StopRequest>) -> Result<Response<v1::StopResponse>, Status> {
        self.tell_core(Inbound::Event(Event::StopRequested)).await?;
        Ok(Response::new(v1::StopResponse {}))
    }
}

/// Whether a message is the last that a session carries.
pub(crate) fn is_farewell(response: &v1::SessionResponse) -> bool {
    use session_response::Message;
    matches!(response.message, Some(Message::Refused(_) | Message::GivenUp(_) | Message::Release(_)))
}
