use super::*;

#[test]
fn the_run_completes_when_all_agree_and_the_last_checkpoint_is_stored() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).finish(&["a", "b", "c"], 10);
    assert_eq!(scene.state.outcome(), None, "the state is not stored yet");
    scene.stored(10, "same");
    let completed = Outcome::Completed { step: Step(10), state_digest: "same".into() };
    assert_eq!(scene.state.outcome(), Some(&completed));
    assert_eq!(scene.told("b").last(), Some(&&Tell::Release));
}

#[test]
fn nobody_is_let_go_before_the_end_is_in_the_journal() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).finish(&["a", "b", "c"], 10);
    scene.journal_is_slow = true;
    scene.stored(10, "same").breaks("b").finish(&["a"], 10).at(60_000);
    assert_eq!((scene.state.outcome(), scene.state.next_wake()), (None, None));
    let ends = scene.actions.iter().filter(|a| matches!(a, Action::Record(Entry::Ended(_)))).count();
    assert_eq!((ends, scene.told("a").contains(&&Tell::Release)), (1, false), "it is written once");
    scene.journal_answers();
    assert!(matches!(scene.state.outcome(), Some(Outcome::Completed { .. })));
    assert_eq!(["a", "b", "c"].map(|name| scene.told(name).last() == Some(&&Tell::Release)), [true; 3]);
}

#[test]
fn a_death_at_the_very_end_makes_the_survivors_finish_again() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).finish(&["a", "b"], 10);
    scene.breaks("c").probed("c", Alive::No).finish(&["a"], 10);
    scene.stored(10, "same");
    assert_eq!(scene.state.outcome(), None, "b has not finished in this generation");
    scene.finish(&["b"], 10);
    assert!(matches!(scene.state.outcome(), Some(Outcome::Completed { .. })));
}

#[test]
fn a_stop_is_told_to_all_and_to_those_who_form_anew() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).event(Event::StopRequested).breaks("c").probed("c", Alive::No);
    assert_eq!(scene.told("a").into_iter().filter(|t| matches!(t, Tell::Stop)).count(), 2);
    scene.stored(6, "same").finish(&["a", "b"], 6);
    let stopped = Outcome::Stopped { step: Step(6), state_digest: "same".into() };
    assert_eq!(scene.state.outcome(), Some(&stopped));
}

#[test]
fn the_digest_of_a_checkpoint_that_was_there_before_is_read() {
    let mut scene = Scene::new(&[10]);
    scene.join(&["a", "b", "c"]).finish(&["a", "b", "c"], 10);
    let reads = |scene: &Scene| scene.actions.iter().filter(|a| **a == Action::ReadCheckpoint(Step(10))).count();
    assert_eq!((reads(&scene), scene.state.outcome()), (1, None));
    scene.stored(10, "same");
    let completed = Outcome::Completed { step: Step(10), state_digest: "same".into() };
    assert_eq!(scene.state.outcome(), Some(&completed));
}

#[test]
fn spares_and_leaving_workers_have_nothing_to_finish() {
    let mut scene = Scene::with(Settings { max_members: 2, ..settings() }, &[]);
    scene.join(&["a", "b", "c"]).finish(&["a", "b"], 10).stored(10, "same");
    assert!(matches!(scene.state.outcome(), Some(Outcome::Completed { .. })));
    assert_eq!(scene.told("c").last(), Some(&&Tell::Release));
}

#[test]
fn a_superseded_coordinator_ends_and_tells_workers_nothing() {
    let mut scene = Scene::new(&[]);
    scene.journal_is_slow = true;
    scene.join(&["a", "b", "c"]);
    scene.actions.clear();
    let superseded = Err(RecordError::Superseded("coordinator 7 on elsewhere".into()));
    scene.event(Event::Recorded(Generation(8), superseded));
    let Some(Outcome::Failed { reason }) = scene.state.outcome() else { panic!("it goes on") };
    assert!(reason.contains("coordinator 7 on elsewhere") && reason.contains("another coordinator"), "{reason}");
    assert!(scene.told("a").is_empty());
    assert!(!scene.actions.iter().any(|a| matches!(a, Action::Record(_))), "nor does it write");
}
