//! Between the messages of `polo.v1` and the machine's own types.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use polo_proto::v1::{self, session_request, session_response};
use polo_recipe::ids::{Generation, Rank, Step};
use prost::Message as _;

use crate::machine::{
    Arrival, CheckpointPart, Evaluation, Introduction, Peer, Remedy, Role, Said, SourceLoss, Standing, StepDone, Tell,
    WorkerId,
};

/// Of what names a worker, its host or its address: as long as a DNS name with a port may be.
const MAX_NAME_BYTES: usize = 260;
/// Of what a worker tells people.
const MAX_WORDS_BYTES: usize = 4096;

/// Of steps, generations, milliseconds, tokens and bytes of a step: more than any run comes to, and far from where sums of them would overflow.
const MAX_NUMBER: u64 = 1 << 40;

/// A message that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// A message without content, or of a newer version.
    #[error("an empty or unknown message; is the worker of another version than the coordinator?")]
    Empty,
    /// The first message must be a hello.
    #[error("the first message of a session must be a hello")]
    NoHello,
    /// A second hello.
    #[error("a second hello in one session")]
    SecondHello,
    /// A name that cannot be shown or kept.
    #[error("{field} has {num_bytes} bytes or control characters; {most} bytes of plain text are the most")]
    BadName {
        /// The field.
        field: &'static str,
        /// Its length.
        num_bytes: usize,
        /// The greatest length.
        most: usize,
    },
    /// A number that no worker comes to.
    #[error("{field} is {value}; {MAX_NUMBER} is the most")]
    BadNumber {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// A digest of the wrong length.
    #[error("the digest of chunk {chunk} has {num_bytes} bytes, 32 are needed")]
    BadDigest {
        /// The chunk.
        chunk: u32,
        /// Its length.
        num_bytes: usize,
    },
}

/// What a hello says.
pub fn introduction(hello: v1::Hello) -> Result<(WorkerId, Introduction, Standing), WireError> {
    let standing = Standing {
        generation: generation(hello.generation)?,
        step: hello.step.map(step).transpose()?,
        is_leaving: hello.leaving,
    };
    let introduction = Introduction {
        incarnation: hello.incarnation,
        recipe_identity: name("recipe_identity", hello.recipe_identity)?,
        corpus_digest: name("corpus_digest", hello.corpus_digest)?,
        data_address: name("data_address", hello.data_address)?,
        host: name("host", hello.host)?,
        pid: hello.pid,
    };
    Ok((WorkerId(name("worker_id", hello.worker_id)?), introduction, standing))
}

/// A name as it may be kept, and shown in terminals.
fn name(field: &'static str, text: String) -> Result<String, WireError> {
    let is_fit = text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control);
    if is_fit { Ok(text) } else { Err(WireError::BadName { field, num_bytes: text.len(), most: MAX_NAME_BYTES }) }
}

fn number(field: &'static str, value: u64) -> Result<u64, WireError> {
    if value <= MAX_NUMBER { Ok(value) } else { Err(WireError::BadNumber { field, value }) }
}

fn step(value: u64) -> Result<Step, WireError> {
    number("step", value).map(Step)
}

fn generation(value: u64) -> Result<Generation, WireError> {
    number("generation", value).map(Generation)
}

/// Words for people, without what would steer their terminals, and no more of them than anybody reads.
fn words(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_WORDS_BYTES));
    text.replace(char::is_control, " ")
}

/// What a message after the hello says.
pub fn said(message: v1::SessionRequest) -> Result<Said, WireError> {
    use session_request::Message;
    Ok(match message.message.ok_or(WireError::Empty)? {
        Message::Hello(_) => return Err(WireError::SecondHello),
        Message::Heartbeat(m) => {
            Said::Heartbeat { step: step(m.step)?, phase: words(m.phase), phase_ms: number("phase_ms", m.phase_ms)? }
        }
        Message::Step(m) => Said::StepDone(step_done(&m)?),
        Message::Arrived(m) => Said::Arrived(arrival(m)?),
        Message::Leaving(_) => Said::Leaving,
        Message::PlaneLost(m) => Said::PlaneLost {
            generation: generation(m.generation)?,
            suspects: ranks(m.suspects),
            reason: words(m.reason),
            timed_out: m.timed_out,
        },
        Message::CheckpointPart(m) => Said::CheckpointPart(part(m)?),
        Message::CheckpointDamaged(m) => Said::CheckpointDamaged {
            generation: generation(m.generation)?,
            step: step(m.step)?,
            problem: words(m.problem),
        },
        Message::Finished(m) => Said::Finished { generation: generation(m.generation)?, step: step(m.step)? },
        Message::CopiesDiffer(m) => Said::CopiesDiffer {
            generation: generation(m.generation)?,
            step: step(m.step)?,
            chunk: m.chunk,
            suspects: ranks(m.suspects),
            is_certain: m.is_certain,
        },
        Message::NumericalTrouble(m) => Said::NumericalTrouble {
            generation: generation(m.generation)?,
            step: step(m.step)?,
            remedy: remedy(m.action()).ok_or(WireError::Empty)?,
            suspects: ranks(m.suspects),
        },
        Message::Validated(m) => Said::Validated(evaluation(m)?),
        Message::Failed(m) => Said::Failed { reason: words(m.reason), ends_run: m.ends_run },
    })
}

/// Also what only people are told of it is looked at: it is added up for them.
fn step_done(m: &v1::StepReport) -> Result<StepDone, WireError> {
    let of_sources = m.sources.iter().map(|source| ("num_tokens", source.num_tokens));
    let of_all = [("sent_bytes", m.sent_bytes), ("received_bytes", m.received_bytes), ("data_wait_ms", m.data_wait_ms)];
    of_all.into_iter().chain(of_sources).try_for_each(|(field, value)| number(field, value).map(drop))?;
    Ok(StepDone {
        generation: generation(m.generation)?,
        step: step(m.step)?,
        step_ms: number("step_ms", m.step_ms)?,
        compute_ms: number("compute_ms", m.compute_ms)?,
        num_slots: m.num_slots,
    })
}

fn ranks(ranks: Vec<u32>) -> Vec<Rank> {
    ranks.into_iter().map(Rank).collect()
}

fn arrival(m: v1::Arrived) -> Result<Arrival, WireError> {
    Ok(Arrival {
        generation: generation(m.generation)?,
        step: step(m.step)?,
        is_from_checkpoint: m.origin() == v1::Origin::Checkpoint,
        num_lost_chunks: m.num_lost_chunks,
        abort_ms: number("abort_ms", m.abort_ms)?,
        transfer_ms: number("transfer_ms", m.transfer_ms)?,
    })
}

/// Whose generation it was does not matter: a state's losses are the same in any.
fn evaluation(m: v1::Validated) -> Result<Evaluation, WireError> {
    let of_source = |loss: v1::ValidationLoss| {
        let v1::ValidationLoss { source, loss, num_tokens, bits_per_byte } = loss;
        SourceLoss { source, loss, num_tokens, bits_per_byte }
    };
    Ok(Evaluation { step: step(m.step)?, sources: m.sources.into_iter().map(of_source).collect() })
}

fn remedy(action: v1::TroubleAction) -> Option<Remedy> {
    match action {
        v1::TroubleAction::Unspecified => None,
        v1::TroubleAction::Stop => Some(Remedy::Stop),
        v1::TroubleAction::Skip => Some(Remedy::Skip),
        v1::TroubleAction::Recheck => Some(Remedy::Recheck),
        v1::TroubleAction::Blame => Some(Remedy::Blame),
    }
}

/// A role as a message has it.
pub fn role(role: Role) -> v1::Role {
    match role {
        Role::Member => v1::Role::Member,
        Role::Spare => v1::Role::Spare,
        Role::Leaving => v1::Role::Leaving,
    }
}

fn peer(peer: &Peer) -> v1::Peer {
    let Peer { worker, data_address, role: what } = peer;
    v1::Peer { worker_id: worker.0.clone(), data_address: data_address.clone(), role: role(*what).into() }
}

fn part(m: v1::CheckpointPart) -> Result<CheckpointPart, WireError> {
    let digest = |c: v1::ChunkDigest| {
        let bytes = c.digest.as_slice().try_into();
        Ok((c.chunk, bytes.map_err(|_| WireError::BadDigest { chunk: c.chunk, num_bytes: c.digest.len() })?))
    };
    let chunks = m.chunks.into_iter().map(digest).collect::<Result<_, _>>()?;
    let witnessed = m.witnessed.into_iter().map(digest).collect::<Result<_, _>>()?;
    let trained = m.trained.into_iter().map(|t| (t.stage, t.source, t.num_tokens)).collect();
    Ok(CheckpointPart { step: step(m.step)?, chunks, witnessed, trained })
}

/// What goes into messages to workers beside what the machine says.
pub struct Wire {
    /// Name of the run.
    pub run: String,
    /// How often workers are to be heard.
    pub heartbeat_interval_ms: u64,
    /// Of the journal.
    pub epoch: u64,
    /// From which the secrets of generations are derived.
    pub secret: [u8; 32],
    /// The newest generation's.
    pub roster: Mutex<EncodedRoster>,
}

impl Wire {
    /// What a worker is told, as a message.
    pub fn response(&self, tell: Tell) -> v1::SessionResponse {
        use session_response::Message;
        let message = match tell {
            Tell::Welcome => Message::Welcome(v1::Welcome {
                run: self.run.clone(),
                heartbeat_interval_ms: self.heartbeat_interval_ms,
                epoch: self.epoch,
            }),
            Tell::Generation { generation, rank, peers, checkpoint } => Message::Generation(v1::GenerationStart {
                generation: generation.0,
                rank: rank.0,
                roster: self.roster.lock().unwrap_or_else(PoisonError::into_inner).of(peers),
                secret: blake3::keyed_hash(&self.secret, &generation.0.to_le_bytes()).as_bytes().to_vec(),
                checkpoint_step: checkpoint.map(|s| s.0),
            }),
            Tell::Abort(generation, reason) => Message::Abort(v1::Abort { generation: generation.0, reason }),
            Tell::Stop => Message::Stop(v1::StopAtBoundary {}),
            Tell::Checkpoint => Message::Checkpoint(v1::CheckpointAtBoundary {}),
            Tell::GivenUp(reason) => Message::GivenUp(v1::GivenUp { reason }),
            Tell::Drained => Message::Drained(v1::Drained {}),
            Tell::Refused(reason) => Message::Refused(v1::Refused { reason }),
            Tell::Release => Message::Release(v1::Release {}),
        };
        v1::SessionResponse { message: Some(message) }
    }
}

/// A generation's workers as all their messages have them. Encoding them for each would take time that grows with the
/// square of the world size, in which nobody is heard.
#[derive(Default)]
pub struct EncodedRoster {
    peers: Arc<[Peer]>,
    encoded: Bytes,
}

impl EncodedRoster {
    fn of(&mut self, peers: Arc<[Peer]>) -> Bytes {
        if !Arc::ptr_eq(&self.peers, &peers) {
            self.encoded = v1::Roster { peers: peers.iter().map(peer).collect() }.encode_to_vec().into();
            self.peers = peers;
        }
        self.encoded.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(worker_id: &str) -> v1::Hello {
        v1::Hello { worker_id: worker_id.into(), host: "node".into(), ..Default::default() }
    }

    #[test]
    fn names_that_cannot_be_shown_are_refused() {
        assert!(introduction(hello("w0")).is_ok());
        assert!(introduction(hello(&"w".repeat(MAX_NAME_BYTES))).is_ok());
        for bad in ["w".repeat(MAX_NAME_BYTES + 1), "w\u{1b}[2J".into(), "a\nb".into()] {
            let refused = introduction(hello(&bad)).map(drop);
            assert!(matches!(refused, Err(WireError::BadName { field: "worker_id", .. })), "{bad:?}");
        }
    }

    #[test]
    fn words_lose_what_steers_terminals_and_what_nobody_reads() {
        let failed = v1::WorkerFailed { reason: format!("no\u{7}\n{}", "é".repeat(3000)), ends_run: false };
        let message = v1::SessionRequest { message: Some(session_request::Message::Failed(failed)) };
        let Ok(Said::Failed { reason, .. }) = said(message) else { panic!("it says that it failed") };
        assert!(reason.starts_with("no  éé") && reason.ends_with('é'), "{reason}");
        assert!(reason.len() <= MAX_WORDS_BYTES && reason.len() > MAX_WORDS_BYTES - 2);
    }
}
