//! The worker's side of the session: keeps a stream to the coordinator, passes messages both ways, sends heartbeats.
//!
//! It runs beside the torch thread and never touches a tensor, so it answers while a step computes.

use std::{sync::Arc, time::Duration};

use futures::future::{BoxFuture, FutureExt};
use polo_proto::v1::{
    self, SessionRequest, coordination_client::CoordinationClient, session_request::Message as Up,
    session_response::Message as Down,
};
use polo_recipe::ids::{Generation, Step};
use polo_transport::Client;
use prost::Message as _;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    desk::Desk,
    session::{Effect, Ending, Event, Order, Role},
};

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// How long a last message may take to leave.
const FAREWELL: Duration = Duration::from_millis(500);

/// Keeps the session until the process is to end.
pub struct Agent {
    /// Who this worker is.
    pub hello: v1::Hello,
    /// `http://host:port` or `https://host:port`.
    pub coordinator: String,
    /// What is shown there.
    pub client: Client,
    /// Makes connections.
    pub connect: Connect,
    /// Within which a connection has to be made.
    pub connect_timeout: Duration,
    /// Where the trainer is met.
    pub desk: Arc<Desk>,
    /// What the session wants of this agent.
    pub effects: UnboundedReceiver<Effect>,
    /// What the trainer wants to say.
    pub outbox: UnboundedReceiver<Up>,
    /// What must be said again in a new session: it may have been lost with the old one.
    pub repeated: Vec<Up>,
}

/// How to reach a gRPC server; the simulation brings its own.
pub type Connect = Box<dyn Fn(Endpoint) -> BoxFuture<'static, Result<Channel, tonic::transport::Error>> + Send + Sync>;

/// Over the real network.
pub fn over_network(client: Client) -> Connect {
    Box::new(move |endpoint| {
        let client = client.clone();
        async move { client.connect(endpoint).await }.boxed()
    })
}

/// How one session went.
enum Gone {
    /// The stream broke, or could not be opened.
    Broken(String),
    /// The session machine wants another session, or the end.
    Wanted(Effect),
}

struct Stream {
    up: mpsc::Sender<SessionRequest>,
    down: Streaming<v1::SessionResponse>,
}

impl Agent {
    /// Runs until the session ends, and returns how.
    pub async fn run(mut self) -> Ending {
        let mut backoff = FIRST_BACKOFF;
        let mut is_away = false;
        loop {
            let gone = match self.attach().await {
                Ok(stream) => {
                    (backoff, is_away) = (FIRST_BACKOFF, false);
                    self.converse(stream).await
                }
                Err(problem) => Gone::Broken(problem),
            };
            let effect = match gone {
                Gone::Wanted(effect) => Some(effect),
                Gone::Broken(problem) => {
                    if !std::mem::replace(&mut is_away, true) {
                        let coordinator = &self.coordinator;
                        tracing::warn!("no session with the coordinator at {coordinator}: {problem}; trying again");
                    }
                    self.desk.handle(Event::Detached { problem });
                    self.pause(backoff).await
                }
            };
            match effect {
                Some(Effect::Exit(ending)) => return ending,
                Some(Effect::Attach { anew: true }) => self.become_another(),
                _ => backoff = (backoff * 2).min(LONGEST_BACKOFF),
            }
        }
    }

    /// What the incarnation before saw of its generation says nothing of this one's.
    fn become_another(&mut self) {
        self.hello.incarnation = rand::random();
        self.repeated.retain(|message| !matches!(message, Up::PlaneLost(_) | Up::Arrived(_)));
    }

    /// Waits before the next try; returns early when the session wants something else than a try.
    async fn pause(&mut self, backoff: Duration) -> Option<Effect> {
        let is_news = |effect: &Effect| !matches!(effect, Effect::Attach { anew: false });
        let news = async {
            loop {
                match self.effects.recv().await {
                    Some(effect) if is_news(&effect) => return effect,
                    Some(_) => {}
                    None => std::future::pending().await,
                }
            }
        };
        let effect = timeout(backoff, news).await.ok();
        self.desk.handle(Event::Tick);
        effect
    }

    async fn attach(&mut self) -> Result<Stream, String> {
        let (endpoint, credentials) = self.client.prepare(&self.coordinator).map_err(|e| words(&e))?;
        let endpoint = endpoint.connect_timeout(self.connect_timeout).tcp_nodelay(true);
        // A coordinator that falls silent without closing the connection must not be waited for without end.
        let endpoint =
            endpoint.http2_keep_alive_interval(self.connect_timeout).keep_alive_timeout(self.connect_timeout);
        let channel = (self.connect)(endpoint).await.map_err(|e| words(&e))?;
        let (up, requests) = mpsc::channel(64);
        let (generation, step, leaving) = self.desk.standing();
        let (generation, step) = (generation.0, step.map(|s| s.0));
        let hello = v1::Hello { generation, step, leaving, ..self.hello.clone() };
        let first = [Up::Hello(hello)].into_iter().chain(self.repeated.iter().cloned());
        for message in first {
            let _ = up.try_send(SessionRequest { message: Some(message) });
        }
        let mut client = CoordinationClient::with_interceptor(channel, credentials);
        let opening = client.session(ReceiverStream::new(requests));
        let opened = timeout(self.connect_timeout, opening).await;
        let response = opened.map_err(|_| format!("no answer within {} s", self.connect_timeout.as_secs()))?;
        Ok(Stream { up, down: response.map_err(|status| status.message().to_string())?.into_inner() })
    }

    /// Passes messages both ways until something ends the session.
    async fn converse(&mut self, mut stream: Stream) -> Gone {
        let mut heartbeat = interval(self.connect_timeout);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                biased;
                Some(effect) = self.effects.recv() => match effect {
                    Effect::Exit(ending) => return self.leave(stream, ending).await,
                    Effect::Attach { anew: true } => return Gone::Wanted(effect),
                    Effect::HangUp(problem) => return Gone::Broken(problem),
                    Effect::SayLeaving => Up::Leaving(v1::Leaving {}),
                    _ => continue,
                },
                received = stream.down.message() => match received {
                    Ok(Some(message)) => {
                        if let Some(Down::Welcome(welcome)) = &message.message {
                            heartbeat = interval(Duration::from_millis(welcome.heartbeat_interval_ms.max(1)));
                            heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
                        }
                        self.hear(message);
                        continue;
                    }
                    Ok(None) => return Gone::Broken("the coordinator closed the session".into()),
                    Err(status) => return Gone::Broken(status.message().to_string()),
                },
                Some(message) = self.outbox.recv() => self.noted(message),
                _ = heartbeat.tick() => self.heartbeat(),
            };
            if stream.up.send(SessionRequest { message: Some(message) }).await.is_err() {
                return Gone::Broken("the coordinator closed the session".into());
            }
        }
    }

    fn heartbeat(&self) -> Up {
        self.desk.handle(Event::Tick);
        let doing = self.desk.doing();
        let (generation, step) = (doing.generation.0, doing.step.0);
        Up::Heartbeat(v1::Heartbeat {
            generation,
            step,
            phase: doing.phase.into(),
            phase_ms: doing.since.elapsed().as_millis() as u64,
        })
    }

    /// Keeps what would have to be said again; a later message of a kind makes an earlier one obsolete.
    fn noted(&mut self, message: Up) -> Up {
        if let Up::Step(report) = &message {
            polo_log::at_step(Step(report.step));
        }
        if matches!(message, Up::CheckpointPart(_) | Up::Finished(_) | Up::PlaneLost(_) | Up::Arrived(_)) {
            let same_kind = std::mem::discriminant(&message);
            self.repeated.retain(|kept| std::mem::discriminant(kept) != same_kind);
            self.repeated.push(message.clone());
        }
        message
    }

    fn hear(&self, message: v1::SessionResponse) {
        let event = match message.message {
            Some(Down::Welcome(welcome)) => Event::Attached { epoch: welcome.epoch },
            Some(Down::Generation(start)) => match order(start) {
                Ok(order) => {
                    polo_log::in_generation(order.generation, Some(order.rank));
                    Event::Ordered(order)
                }
                Err(problem) => Event::Failed(problem),
            },
            Some(Down::Abort(abort)) => Event::Dropped(Generation(abort.generation)),
            Some(Down::Stop(_)) => Event::Stop,
            Some(Down::Checkpoint(_)) => Event::Checkpoint,
            Some(Down::GivenUp(given_up)) => {
                tracing::warn!(reason = given_up.reason, "counted out by the coordinator; joining again");
                Event::GivenUp
            }
            Some(Down::Refused(refused)) => Event::Refused(refused.reason),
            Some(Down::Release(_)) => Event::Released,
            Some(Down::Drained(_)) => Event::Drained,
            None => Event::Failed("an unknown message from the coordinator; is it of another version?".into()),
        };
        self.desk.handle(event);
    }

    /// Says what is left to say, and lets the coordinator close the stream.
    async fn leave(&mut self, mut stream: Stream, ending: Ending) -> Gone {
        let farewell = async {
            while let Ok(message) = self.outbox.try_recv() {
                let _ = stream.up.send(SessionRequest { message: Some(message) }).await;
            }
            drop(stream.up);
            while let Ok(Some(_)) = stream.down.message().await {}
        };
        let _ = timeout(FAREWELL, farewell).await;
        Gone::Wanted(Effect::Exit(ending))
    }
}

fn order(start: v1::GenerationStart) -> Result<Order, String> {
    let secret = start.secret.as_slice().try_into();
    let roster = v1::Roster::decode(start.roster).map_err(|e| format!("a roster that cannot be read: {e}"))?;
    Ok(Order {
        generation: Generation(start.generation),
        rank: start.rank,
        roles: roster.peers.iter().map(role).collect::<Result<_, _>>()?,
        peers: roster.peers.into_iter().map(|p| p.data_address).collect(),
        secret: secret.map_err(|_| format!("the secret of generation {} is not 32 bytes", start.generation))?,
        checkpoint: start.checkpoint_step,
    })
}

fn role(peer: &v1::Peer) -> Result<Role, String> {
    match peer.role() {
        v1::Role::Member => Ok(Role::Member),
        v1::Role::Spare => Ok(Role::Spare),
        v1::Role::Leaving => Ok(Role::Leaving),
        v1::Role::Unspecified => {
            Err(format!("worker {} has no role; is the coordinator of another version?", peer.worker_id))
        }
    }
}

/// The error and its causes on one line.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |e| e.source());
    let mut words: Vec<String> = chain.map(ToString::to_string).collect();
    words.dedup();
    words.join(": ")
}
