use super::*;

fn restored(names: &[&str]) -> Restored {
    let member = |name: &&str| (id(name), introduction(incarnation(name)), Role::Member);
    let mut restored = Restored { checkpoints: vec![Step(2)], ..Restored::default() };
    restored.replay(Entry::Generation {
        generation: Generation(8),
        members: names.iter().map(member).collect(),
        step: Step(3),
        goodput: Goodput { trained_ms: 300, elapsed_ms: 400, since_ms: None },
    });
    restored
}

fn back_after(names: &[&str]) -> Scene {
    let (state, actions) = State::restore(settings(), restored(names), 0);
    Scene { state, now: 0, actions, journal_is_slow: false, busy_since: 0 }
}

fn attach(scene: &mut Scene, name: &str, generation: u64, step: u64) {
    let standing = Standing { generation: Generation(generation), step: Some(Step(step)), is_leaving: false };
    scene.event(Event::Hello(id(name), introduction(incarnation(name)), standing));
}

#[test]
fn members_that_come_back_keep_their_generation_and_the_newest_step_is_theirs() {
    let mut scene = back_after(&["a", "b", "c"]);
    let probes = scene.actions.iter().filter(|a| matches!(a, Action::Probe(..))).count();
    assert_eq!((probes, scene.state.newest_step()), (3, Step(3)));
    for (name, step) in [("a", 7), ("b", 7), ("c", 6)] {
        scene.probed(name, Alive::Yes);
        attach(&mut scene, name, 8, step);
    }
    assert_eq!((scene.running(), scene.state.generation()), (vec!["a", "b", "c"], Generation(8)));
    assert_eq!((scene.state.newest_step(), scene.state.incidents().len()), (Step(7), 0));
    scene.beat_until(9000, &[("a", ""), ("b", ""), ("c", "")]);
    assert_eq!(scene.state.generation(), Generation(8));
}

#[test]
fn a_member_that_died_meanwhile_is_lost_at_once_and_the_others_are_awaited() {
    let mut scene = back_after(&["a", "b", "c"]);
    scene.probed("b", Alive::No).probed("a", Alive::Yes).probed("c", Alive::Yes);
    assert_eq!(scene.state.incidents()[0].worker, Some(id("b")));
    scene.actions.clear();
    attach(&mut scene, "a", 8, 4);
    assert_eq!(scene.num_aborts("a"), 1, "the generation ended before it came back");
    assert!(scene.running().is_empty(), "c is alive and on its way");
    attach(&mut scene, "c", 8, 4);
    assert_eq!((scene.running(), scene.state.generation()), (vec!["a", "c"], Generation(9)));
}

#[test]
fn a_member_that_does_not_come_back_lapses() {
    let mut scene = back_after(&["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        scene.probed(name, Alive::Yes);
    }
    attach(&mut scene, "a", 8, 4);
    attach(&mut scene, "b", 8, 4);
    scene.beat_until(4000, &[("a", ""), ("b", "")]);
    assert_eq!(scene.running(), ["a", "b", "c"]);
    scene.beat_until(5000, &[("a", ""), ("b", "")]);
    assert_eq!(scene.running(), ["a", "b"]);
}

#[test]
fn trouble_that_was_seen_meanwhile_is_handled_when_it_is_told() {
    let mut scene = back_after(&["a", "b", "c"]);
    for name in ["a", "b", "c"] {
        scene.probed(name, Alive::Yes);
        attach(&mut scene, name, 8, 4);
    }
    let (generation, reason) = (Generation(8), "reset".to_string());
    scene.says("a", Said::PlaneLost { generation, suspects: vec![Rank(1)], reason, timed_out: false });
    scene.probed("b", Alive::Yes);
    assert_eq!(scene.state.generation(), Generation(9));
}

#[test]
fn a_generation_that_not_all_were_told_of_is_formed_anew() {
    let mut scene = back_after(&["a", "b", "c"]);
    for (name, generation) in [("a", 8), ("b", 7), ("c", 8)] {
        scene.probed(name, Alive::Yes);
        attach(&mut scene, name, generation, 4);
    }
    assert_eq!((scene.running(), scene.state.generation()), (vec!["a", "b", "c"], Generation(9)));
    assert!(["a", "b", "c"].iter().all(|name| scene.num_aborts(name) > 0));
}

#[test]
fn a_new_process_takes_the_place_of_one_that_is_expected_back() {
    let mut scene = back_after(&["a", "b", "c"]);
    scene.event(Event::Hello(id("a"), introduction(1), Standing::default()));
    assert_eq!(scene.state.incidents()[0].cause, LossCause::Replaced);
}

#[test]
fn a_journal_is_replayed_to_what_it_said_last() {
    let mut restored = restored(&["a", "b"]);
    let incident = |recovery_ms| Incident {
        number: 0,
        cause: LossCause::ProcessGone,
        worker: Some(id("c")),
        generation: Generation(7),
        step: Step(3),
        sign_ms: 0,
        at_ms: 0,
        recovery_ms,
        bill: Bill::default(),
        went_back: None,
    };
    restored.replay(Entry::Incident(incident(None)));
    restored.replay(Entry::Incident(incident(Some(40))));
    assert_eq!(restored.incidents, [incident(Some(40))]);
    let (state, _) = State::restore(settings(), restored.clone(), 1000);
    assert_eq!(state.goodput().share(1200), Some(0.5), "300 ms of 400 before and none of 200 since");
    let written = serde_json::to_string(&restored).unwrap();
    assert_eq!(serde_json::from_str::<Restored>(&written).unwrap(), restored);
    restored.replay(Entry::Ended(Outcome::Failed { reason: "no workers".into() }));
    assert!(restored.members.is_empty(), "nobody is expected back to a run that ended");
}

#[test]
fn a_run_that_was_completed_needs_no_workers_as_long_as_its_last_checkpoint_is_there() {
    let completed = |step| Outcome::Completed { step: Step(step), state_digest: "same".into() };
    let outcome_after = |ended: Outcome| {
        let mut restored = restored(&["a"]);
        restored.replay(Entry::Ended(ended));
        let (state, actions) = State::restore(settings(), restored, 0);
        assert!(actions.is_empty(), "nobody is looked for: {actions:?}");
        state.outcome().cloned()
    };
    assert_eq!(outcome_after(completed(2)), Some(completed(2)));
    assert_eq!(outcome_after(completed(10)), None, "its checkpoint is gone");
    assert_eq!(outcome_after(Outcome::Stopped { step: Step(2), state_digest: "same".into() }), None);
}

#[test]
fn a_loss_while_the_journal_writes_aborts_those_who_train() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]);
    scene.journal_is_slow = true;
    scene.join(&["d"]).breaks("c").probed("c", Alive::No);
    assert!(scene.told("a").contains(&&Tell::Abort(Generation(8), "lost worker c: its process is gone".into())));
    scene.journal_answers();
    assert_eq!((scene.running(), scene.state.generation()), (vec!["a", "b", "d"], Generation(10)));
}
