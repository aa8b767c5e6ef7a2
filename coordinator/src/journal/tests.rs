use polo_recipe::ids::{Generation, Step};

use super::*;
use crate::machine::{Evaluation, Goodput, Outcome, RecordError, SourceLoss};

fn store(name: &str) -> Store {
    Store::open(&format!("memory://journal-{name}")).expect("open")
}

fn holder() -> Holder {
    Holder::here(([127, 0, 0, 1], 7070).into(), false)
}

async fn take_up(store: &Store) -> Result<Journal, JournalError> {
    let past = read(store).await.expect("readable");
    Journal::take_up(store.clone(), &past, holder(), Fencing::CreateOnly).await
}

fn generation(number: u64) -> Entry {
    Entry::Generation {
        generation: Generation(number),
        members: Vec::new(),
        step: Step(number * 10),
        goodput: Goodput::default(),
    }
}

#[tokio::test]
async fn a_run_is_taken_up_where_it_was_left() {
    let store = store("left");
    let journal = take_up(&store).await.expect("a new run");
    for number in [1, 2, 7] {
        journal.record(generation(number)).await.expect("written");
    }
    store.put("journal/notes.txt", Default::default()).await.expect("put");
    let past = read(&store).await.expect("readable");
    assert_eq!((past.restored.generation, past.restored.step), (Generation(7), Step(70)));
    assert_eq!(past.holder.expect("held").pid, std::process::id());
    let next = take_up(&store).await.expect("the first one is gone");
    assert_eq!((journal.epoch, next.epoch), (1, 5));
}

#[tokio::test]
async fn whoever_was_superseded_is_told_by_whom_and_writes_nothing_more() {
    let store = store("superseded");
    let first = take_up(&store).await.expect("a new run");
    first.record(generation(1)).await.expect("written");
    first.confirm().await.expect("nobody else is there");
    let second = take_up(&store).await.expect("taken over");
    for error in [first.confirm().await, first.record(generation(2)).await] {
        assert!(matches!(&error, Err(RecordError::Superseded(by)) if by.contains("127.0.0.1:7070")), "{error:?}");
    }
    second.record(generation(2)).await.expect("written");
    assert!(matches!(first.record(generation(3)).await, Err(RecordError::Superseded(_))));
    first.close().await;
    assert_eq!(read(&store).await.expect("readable").restored.generation, Generation(2));
}

#[tokio::test]
async fn of_two_that_take_up_a_run_at_once_one_is_refused() {
    let store = store("at-once");
    let past = read(&store).await.expect("readable");
    let take_up = || Journal::take_up(store.clone(), &past, holder(), Fencing::CreateOnly);
    let (one, other) = tokio::join!(take_up(), take_up());
    let refused = one.err().or(other.err()).expect("one of them");
    assert!(matches!(&refused, JournalError::Held { address, .. } if address == "127.0.0.1:7070"), "{refused}");
    assert_eq!(numbers(&store).await.expect("listed"), [1]);
}

#[tokio::test]
async fn nobody_holds_a_run_that_has_ended() {
    let store = store("ended");
    let journal = take_up(&store).await.expect("a new run");
    let ended = Outcome::Stopped { step: Step(3), state_digest: "d".into() };
    let written = journal.record(Entry::Ended(ended.clone()));
    journal.close().await;
    written.await.expect("written before the journal closed");
    let past = read(&store).await.expect("readable");
    assert_eq!((past.holder, past.restored.ended), (None, Some(ended)));
}

#[tokio::test]
async fn evaluations_are_kept_with_every_bit_beside_entries_of_before_there_were_any() {
    let store = store("evaluations");
    let before = r#"{"coordinator":1,"entry":{"generation":{"generation":3,"members":[],"step":30,"goodput":{"trained_ms":1,"elapsed_ms":2}}}}"#;
    store.put("journal/00000000000000000001.json", before.into()).await.expect("put");
    let evaluation = Evaluation {
        step: Step(30),
        sources: [0.1 + 0.2, 1e-300, f64::INFINITY, 2.0_f64.next_up()]
            .map(|loss| SourceLoss { source: "en".into(), loss, num_tokens: 24, bits_per_byte: Some(loss / 3.0) })
            .to_vec(),
    };
    let journal = take_up(&store).await.expect("taken up");
    journal.record(Entry::Validated(evaluation.clone())).await.expect("written");
    let restored = read(&store).await.expect("readable").restored;
    assert_eq!((restored.generation, restored.evaluations), (Generation(3), vec![evaluation]));
}

#[tokio::test]
async fn entries_of_another_format_and_gaps_are_named() {
    let other = store("format");
    other.put("journal/00000000000000000001.json", r#"{"generation":1,"workers":[]}"#.into()).await.expect("put");
    let error = read(&other).await.expect_err("another format").to_string();
    assert!(error.contains("journal/00000000000000000001.json") && error.contains("coordinator"), "{error}");
    let gap = store("gap");
    gap.put("journal/00000000000000000002.json", Default::default()).await.expect("put");
    let error = read(&gap).await.expect_err("a gap").to_string();
    assert!(error.contains("journal/00000000000000000001.json is missing"), "{error}");
}

#[tokio::test]
async fn an_entry_of_its_own_that_got_there_late_is_no_other_coordinator() {
    let (store, holder) = (store("late"), holder());
    let past = read(&store).await.expect("readable");
    let journal = Journal::take_up(store.clone(), &past, holder.clone(), Fencing::CreateOnly).await.expect("a new run");
    let given_up = Line { coordinator: holder.coordinator, record: Record::Entry(generation(1)) };
    let bytes = serde_json::to_vec(&given_up).expect("JSON");
    store.put(&key(2), bytes.into()).await.expect("put");
    journal.confirm().await.expect("nobody else writes");
    journal.record(generation(2)).await.expect("written");
    assert_eq!(numbers(&store).await.expect("listed"), [1, 2, 3]);
}

#[tokio::test]
async fn without_a_fence_a_number_that_is_taken_still_counts() {
    let store = store("unfenced");
    let past = read(&store).await.expect("readable");
    let take_up = || Journal::take_up(store.clone(), &past, holder(), Fencing::None);
    let journal = take_up().await.expect("a new run");
    assert!(matches!(take_up().await.err(), Some(JournalError::Held { .. })));
    journal.record(generation(1)).await.expect("written");
    assert_eq!(read(&store).await.expect("readable").restored.generation, Generation(1));
}

#[test]
fn a_holder_that_listens_everywhere_is_sought_on_its_host() {
    let here = Holder::here(([0, 0, 0, 0], 7070).into(), false);
    assert_eq!(here.address, format!("{}:7070", here.host));
    assert_eq!(Holder::here(([10, 0, 0, 1], 7070).into(), false).address, "10.0.0.1:7070");
}
