//! The leader's gRPC service: what helpers say becomes events, what the core says becomes messages.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt};
use polo_proto::v1::{self, helper_request, helper_response::Message, preparation_server::Preparation};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    leader::Inbound,
    leases::{Event, HelperId, Introduction, Said},
    pieces::Work,
    wire::{self, WireError},
};

/// Messages that may wait for one helper: more than it can have leases.
const SESSION_QUEUE: usize = 256;
/// How long a helper may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// What helpers reach. What they say goes to the core.
#[derive(Clone)]
pub struct Service {
    inbound: mpsc::Sender<Inbound>,
    description: Arc<v1::DescribeResponse>,
    numbers: Arc<HashMap<Work, usize>>,
    num_sessions: Arc<AtomicU64>,
}

impl Service {
    /// Serves `description`, and tells `inbound` of helpers; files have `numbers`.
    pub fn new(
        inbound: mpsc::Sender<Inbound>,
        description: v1::DescribeResponse,
        numbers: HashMap<Work, usize>,
    ) -> Self {
        Self { inbound, description: description.into(), numbers: numbers.into(), num_sessions: Arc::default() }
    }

    async fn tell_core(&self, inbound: Inbound) -> Result<(), Status> {
        self.inbound.send(inbound).await.map_err(|_| Status::unavailable("the preparation has ended"))
    }

    /// Also what it holds that is not known here.
    fn introduction(&self, hello: v1::HelperHello) -> Result<(Introduction, Vec<Work>), WireError> {
        let (mut held, mut unknown) = (vec![], vec![]);
        for file in hello.held {
            let work = wire::work(&file.work)?;
            match self.numbers.get(&work) {
                Some(number) => held.push((*number, file.result.as_deref().map(wire::digest).transpose()?)),
                None => unknown.push(work),
            }
        }
        let preparation = wire::digest(&hello.preparation)?;
        Ok((Introduction { name: hello.name, version: hello.version, preparation, held }, unknown))
    }

    fn said(&self, message: v1::HelperRequest) -> Result<Said, WireError> {
        use helper_request::Message as Up;
        let number = |work: &[u8]| {
            self.numbers.get(&wire::work(work)?).copied().ok_or(WireError("a file that is not of this preparation"))
        };
        match message.message {
            Some(Up::Heartbeat(heartbeat)) => Ok(Said::Heartbeat(heartbeat.progress)),
            Some(Up::Done(done)) => Ok(Said::Done(number(&done.work)?, wire::digest(&done.result)?)),
            Some(Up::Failed(failed)) => Ok(Said::Failed(number(&failed.work)?, failed.reason)),
            Some(Up::Hello(_)) | None => Err(WireError("neither heartbeat nor result")),
        }
    }

    /// Passes on what a helper says until its stream ends.
    async fn listen(self, id: HelperId, mut messages: Streaming<v1::HelperRequest>) {
        while let Ok(Some(message)) = messages.message().await {
            let Ok(said) = self.said(message) else { break };
            if self.tell_core(Inbound::Event(Event::Said(id, said))).await.is_err() {
                return;
            }
        }
        let _ = self.tell_core(Inbound::Event(Event::StreamBroken(id))).await;
    }
}

fn bad(error: WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

#[tonic::async_trait]
impl Preparation for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::HelperResponse, Status>> + Send>>;

    async fn describe(&self, _: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        Ok(Response::new((*self.description).clone()))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::HelperRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut messages = request.into_inner();
        let first = timeout(HELLO_TIMEOUT, messages.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(helper_request::Message::Hello(hello)) = first.and_then(|request| request.message) else {
            return Err(bad(WireError("something before the hello")));
        };
        let (introduction, unknown) = self.introduction(hello).map_err(bad)?;
        let id = HelperId(self.num_sessions.fetch_add(1, Ordering::Relaxed));
        let (session, responses) = mpsc::channel(SESSION_QUEUE);
        for work in unknown.into_iter().take(SESSION_QUEUE / 2) {
            let _ = session.try_send(wire::response(Message::Forget(v1::FileForgotten { work: wire::bytes(work.0) })));
        }
        self.tell_core(Inbound::Opened(id, session)).await?;
        self.tell_core(Inbound::Event(Event::Joined(id, introduction))).await?;
        tokio::spawn(self.clone().listen(id, messages));
        Ok(Response::new(Box::pin(ReceiverStream::new(responses).map(Ok))))
    }
}
