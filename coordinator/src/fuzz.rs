//! What a coordinator makes of messages that no worker sends, and of a journal that it did not write: an answer or an
//! error, and a status that can be told.

use std::{num::NonZeroUsize, sync::Arc};

use polo_fuzz::fuzz;
use polo_proto::v1::{self, session_request::Message};
use polo_recipe::{
    config::Recipe,
    ids::{Generation, Step},
    layout::Layout,
    plan::{Plan, SourceTokens},
};
use polo_store::{Digest, Store};
use prost::Message as _;

use crate::{
    core::Facts,
    journal, json,
    machine::{Action, Entry, Event, Restored, Settings, State, WorkerId},
    outside::Network,
    status::{Progress, history, status},
    web,
    wire::{Wire, introduction, said},
};

const FOLDER: &str = env!("CARGO_MANIFEST_DIR");
const NUM_WORKERS: usize = 3;
const MS_BETWEEN_MESSAGES: u64 = 300;

const RECIPE: &str = r#"
    run = { name = "fuzz", store = "memory://fuzz" }
    corpus = { url = "memory://corpus" }
    batch = { seq_len = 8, samples_per_step = 4, slots = 4 }
    [model.qwen2]
    hidden_size = 8
    num_hidden_layers = 1
    num_attention_heads = 2
    num_key_value_heads = 1
    intermediate_size = 12
    vocab_size = 20
    [[stages]]
    name = "one"
    steps = 10
    schedule = { kind = "constant", peak_learning_rate = 1e-3 }
    sources = [{ name = "en", weight_tokens = 1 }]
    [validation]
    every_steps = 5
    samples_per_source = 4
    sources = ["en"]
    watch = ["en"]
"#;

fn facts() -> Facts {
    let recipe = Recipe::from_resolved(RECIPE).expect("a recipe");
    let tokens = [SourceTokens { name: "en".into(), num_tokens: 10_000 }];
    let layout = Layout::qwen2(&recipe.model.qwen2);
    Facts {
        recipe_identity: "recipe".into(),
        corpus: Digest::of(b"corpus"),
        layout,
        plan: Plan::new(&recipe, &tokens).expect("a plan"),
        store: Store::open("memory://fuzz").expect("memory"),
        keep: NonZeroUsize::MIN,
        checkpoint_every_steps: 5,
        storing: Default::default(),
        outside: Arc::new(Network { client: Default::default() }),
        wire: Wire {
            run: "fuzz".into(),
            heartbeat_interval_ms: 100,
            epoch: 1,
            secret: [1; 32],
            roster: Default::default(),
        },
    }
}

fn settings(facts: &Facts) -> Settings {
    Settings {
        recipe_identity: facts.recipe_identity.clone(),
        corpus_digest: facts.corpus.to_string(),
        num_steps: Step(facts.plan.num_steps()),
        max_members: 4,
        num_chunks: facts.layout.chunks.len(),
        min_workers: 1,
        expected_workers: NUM_WORKERS,
        settle_ms: 1000,
        wait_timeout_ms: 60_000,
        heartbeat_timeout_ms: 2000,
        evict_stragglers: true,
        validation: Recipe::from_resolved(RECIPE).expect("a recipe").validation,
    }
}

/// A coordinator without its sockets and stores: what it asks of these is granted at once.
struct Scene<'a> {
    facts: &'a Facts,
    state: State,
    progress: Progress,
    /// Of the journal.
    entries: Vec<Entry>,
    now: u64,
}

impl Scene<'_> {
    fn event(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let actions = self.state.step(self.now, event);
            events.extend(actions.into_iter().filter_map(|action| self.granted(action)));
        }
    }

    fn granted(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Record(entry) => {
                let is_awaited = matches!(entry, Entry::Generation { .. } | Entry::Ended(_));
                self.entries.push(entry);
                is_awaited.then(|| Event::Recorded(self.state.generation(), Ok(())))
            }
            Action::StoreCheckpoint(draft) => Some(Event::CheckpointStored(draft.step, Ok("digest".into()))),
            Action::ReadCheckpoint(step) => Some(Event::CheckpointStored(step, Ok("digest".into()))),
            Action::Tell(_, _, tell) => {
                self.facts.wire.response(tell).encoded_len();
                None
            }
            _ => None,
        }
    }

    /// As a message of the session in which it comes.
    fn hear(&mut self, session: &mut Option<(WorkerId, u64)>, request: v1::SessionRequest) {
        self.now += MS_BETWEEN_MESSAGES;
        if let Some(Message::Hello(hello)) = request.message {
            let Ok((worker, introduction, standing)) = introduction(hello) else { return };
            *session = Some((worker.clone(), introduction.incarnation));
            return self.event(Event::Hello(worker, introduction, standing));
        }
        let report = match &request.message {
            Some(Message::Step(report)) => Some(report.clone()),
            _ => None,
        };
        let (Some((worker, incarnation)), Ok(said)) = (session, said(request)) else { return };
        if let Some(report) = report {
            self.progress.take(report, &self.facts.plan);
        }
        self.event(Event::Said(worker.clone(), *incarnation, said));
    }

    fn tell_everybody(&self) {
        let status = status(&self.state, &self.progress, self.facts, self.now);
        json::status(&status);
        json::history(&history(&self.state, &self.progress));
        web::metrics::text(&status).expect("metrics");
    }
}

fn encoded(messages: impl IntoIterator<Item = Message>) -> Vec<u8> {
    let request = |message| v1::SessionRequest { message: Some(message) };
    messages.into_iter().flat_map(|message| request(message).encode_length_delimited_to_vec()).collect()
}

/// What workers say from their arrival to a checkpoint.
fn conversation(facts: &Facts) -> Vec<u8> {
    let hello = |n: usize| {
        Message::Hello(v1::Hello {
            worker_id: format!("w{n}"),
            incarnation: n as u64,
            recipe_identity: facts.recipe_identity.clone(),
            corpus_digest: facts.corpus.to_string(),
            data_address: format!("10.0.0.{n}:7100"),
            host: "host".into(),
            pid: 1,
            ..Default::default()
        })
    };
    let generation = 8;
    let arrived = |_| Message::Arrived(v1::Arrived { generation, num_lost_chunks: 0, ..Default::default() });
    let step = |step| {
        let loss = v1::SourceLoss { source: "en".into(), loss: 2.5, num_tokens: 32 };
        let report = v1::StepReport { generation, step, loss: 2.5, step_ms: 100, num_workers: 3, ..Default::default() };
        Message::Step(v1::StepReport { sources: vec![loss], compute_ms: 90, sent_bytes: 10, ..report })
    };
    let validated = |step| {
        let loss = v1::ValidationLoss { source: "en".into(), loss: 2.5, num_tokens: 32, bits_per_byte: Some(1.0) };
        Message::Validated(v1::Validated { generation, step, sources: vec![loss] })
    };
    let part = |_| {
        let chunks = (0..facts.layout.chunks.len() as u32).map(|chunk| v1::ChunkDigest { chunk, digest: vec![7; 32] });
        let trained = vec![v1::TrainedTokens { stage: "one".into(), source: "en".into(), num_tokens: 160 }];
        let part = v1::CheckpointPart { generation, step: 5, chunks: chunks.collect(), trained, ..Default::default() };
        Message::CheckpointPart(part)
    };
    let steps = (1..=5).flat_map(|number| (0..NUM_WORKERS).map(move |_| number)).map(step);
    let heartbeat = |_| Message::Heartbeat(v1::Heartbeat { generation, step: 5, phase: "compute".into(), phase_ms: 5 });
    let all = (0..NUM_WORKERS).map(hello).chain((0..NUM_WORKERS).map(arrived)).chain(steps);
    let all = all.chain((0..NUM_WORKERS).map(|_| validated(5))).chain((0..NUM_WORKERS).map(part));
    encoded(all.chain((0..NUM_WORKERS).map(heartbeat)))
}

/// What goes wrong.
fn complaints() -> Vec<u8> {
    let generation = 8;
    encoded([
        Message::PlaneLost(v1::PlaneLost { generation, suspects: vec![1], reason: "reset".into(), timed_out: true }),
        Message::NumericalTrouble(v1::NumericalTrouble {
            generation,
            step: 1,
            action: 4,
            suspects: vec![2],
            ..Default::default()
        }),
        Message::CopiesDiffer(v1::CopiesDiffer { generation, step: 1, chunk: 1, suspects: vec![0], is_certain: true }),
        Message::CheckpointDamaged(v1::CheckpointDamaged { generation, step: 5, problem: "torn".into() }),
        Message::Finished(v1::Finished { generation, step: 10, state_digest: "digest".into() }),
        Message::Failed(v1::WorkerFailed { reason: "no memory".into(), ends_run: false }),
        Message::Leaving(v1::Leaving {}),
    ])
}

/// A coordinator that has heard all of this from three workers whose messages take turns.
fn heard<'a>(facts: &'a Facts, bytes: &[u8]) -> Scene<'a> {
    let state = State::new(settings(facts), Generation(7), Vec::new(), 0);
    let mut scene = Scene { facts, state, progress: Progress::new(None), entries: Vec::new(), now: 0 };
    let (mut sessions, mut rest) = ([const { None }; NUM_WORKERS], bytes);
    for turn in 0.. {
        let Ok(request) = v1::SessionRequest::decode_length_delimited(&mut rest) else { break };
        scene.hear(&mut sessions[turn % NUM_WORKERS], request);
        if rest.is_empty() || scene.state.outcome().is_some() {
            break;
        }
    }
    scene
}

/// After hellos that make sense, a number that is as large as it can be in every place.
fn extremes(facts: &Facts, most: u64) -> Vec<u8> {
    let report = |step, loss| v1::StepReport {
        generation: 8,
        step,
        loss,
        sources: vec![v1::SourceLoss { source: "en".into(), loss, num_tokens: most }; 2],
        grad_norm: loss,
        step_ms: most,
        sent_bytes: most,
        received_bytes: most,
        data_wait_ms: most,
        num_workers: u32::MAX,
        compute_ms: most,
        ..Default::default()
    };
    let arrived = v1::Arrived {
        generation: 8,
        num_lost_chunks: u32::MAX,
        abort_ms: most,
        transfer_ms: most,
        ..Default::default()
    };
    let beat = v1::Heartbeat { generation: most, step: most, phase: "x".into(), phase_ms: most };
    let loss = v1::ValidationLoss {
        source: "en".into(),
        loss: f64::NAN,
        num_tokens: most,
        bits_per_byte: Some(f64::INFINITY),
    };
    let trained = vec![v1::TrainedTokens { stage: "one".into(), source: "en".into(), num_tokens: most }];
    let chunks = vec![v1::ChunkDigest { chunk: u32::MAX, digest: vec![7; 32] }];
    let said = [
        Message::Arrived(arrived),
        Message::Heartbeat(beat),
        Message::Step(report(1, f64::MAX)),
        Message::Step(report(2, f64::NAN)),
        Message::Step(report(3, f64::NEG_INFINITY)),
        Message::Step(report(most, 0.0)),
        Message::Validated(v1::Validated { generation: 8, step: 5, sources: vec![loss.clone()] }),
        Message::Validated(v1::Validated { generation: most, step: most, sources: vec![loss] }),
        Message::CheckpointPart(v1::CheckpointPart {
            generation: 8,
            step: most,
            chunks: chunks.clone(),
            trained,
            witnessed: chunks,
        }),
        Message::PlaneLost(v1::PlaneLost {
            generation: 8,
            suspects: vec![u32::MAX],
            reason: "x".repeat(9_999),
            timed_out: true,
        }),
        Message::CopiesDiffer(v1::CopiesDiffer {
            generation: 8,
            step: most,
            chunk: u32::MAX,
            suspects: vec![u32::MAX],
            is_certain: true,
        }),
        Message::Finished(v1::Finished { generation: 8, step: most, state_digest: String::new() }),
    ];
    let of_each = said.into_iter().flat_map(|message| (0..NUM_WORKERS).map(move |_| message.clone()));
    let mut conversation = conversation(facts);
    let hellos: usize = {
        let mut rest = &conversation[..];
        (0..NUM_WORKERS).for_each(|_| drop(v1::SessionRequest::decode_length_delimited(&mut rest)));
        conversation.len() - rest.len()
    };
    conversation.truncate(hellos);
    [conversation, encoded(of_each)].concat()
}

#[test]
fn the_conversation_comes_to_a_checkpoint() {
    let facts = facts();
    let state = heard(&facts, &conversation(&facts)).state;
    assert_eq!((state.generation(), state.newest_checkpoint()), (Generation(8), Some(Step(5))));
}

#[test]
fn fuzz_messages() {
    let facts = facts();
    let both = [conversation(&facts), complaints()].concat();
    let extremes = [1 << 40, u64::MAX].map(|most| extremes(&facts, most));
    let seeds = [&[conversation(&facts), complaints(), both][..], &extremes].concat();
    fuzz(FOLDER, "messages", &seeds, |bytes| heard(&facts, bytes).tell_everybody());
}

#[test]
fn fuzz_journals() {
    let facts = facts();
    let entries = heard(&facts, &[conversation(&facts), complaints()].concat()).entries;
    assert!(entries.iter().any(|entry| matches!(entry, Entry::Incident(_))), "{entries:?}");
    fuzz(FOLDER, "journals", &[journal::as_text(entries)], |text| {
        let Ok(restored) = journal::replayed(text) else { return };
        let restored = Restored { checkpoints: vec![Step(5)], ..restored };
        let (state, actions) = State::restore(settings(&facts), restored, 0);
        let mut scene = Scene { facts: &facts, state, progress: Progress::new(None), entries: Vec::new(), now: 0 };
        let events: Vec<_> = actions.into_iter().filter_map(|action| scene.granted(action)).collect();
        events.into_iter().for_each(|event| scene.event(event));
        for ms in [0, 1_000, 10_000, 100_000] {
            scene.now += ms;
            scene.event(Event::Tick);
        }
        scene.tell_everybody();
    });
}
