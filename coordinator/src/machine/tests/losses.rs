use super::*;

#[test]
fn a_dead_process_ends_the_generation_and_the_survivors_go_on_at_once() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).breaks("b");
    assert_eq!(scene.running(), ["a", "b", "c"], "a broken stream is only a sign");
    scene.probed("b", Alive::No);
    assert_eq!(scene.running(), ["a", "c"]);
    let aborts = |t: &&Tell| matches!(t, Tell::Abort(Generation(8), _));
    assert_eq!(scene.told("a").into_iter().filter(aborts).count(), 1);
    assert_eq!(scene.state.incidents().len(), 1);
    assert_eq!(scene.state.incidents()[0].cause, LossCause::ProcessGone);
}

#[test]
fn a_process_that_lives_behind_a_broken_stream_has_until_its_heartbeat_lapses() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).breaks("b").probed("b", Alive::Yes);
    assert_eq!(scene.running(), ["a", "b", "c"]);
    for name in ["a", "c"] {
        scene.now = 1500;
        scene.says(name, Said::Heartbeat { step: Step(0), phase: String::new(), phase_ms: 0 });
    }
    scene.at(2000);
    assert_eq!(scene.running(), ["a", "c"]);
}

#[test]
fn a_broken_data_plane_is_formed_anew_once_every_suspect_was_probed() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]);
    let lost = Said::PlaneLost {
        generation: Generation(8),
        suspects: vec![Rank(1)],
        reason: "reset".into(),
        timed_out: false,
    };
    scene.says("a", lost.clone());
    assert!(scene.running().is_empty());
    scene.probed("b", Alive::Yes);
    assert_eq!((scene.running(), scene.state.generation()), (vec!["a", "b", "c"], Generation(9)));
    scene.says("c", lost);
    assert_eq!(scene.running(), ["a", "b", "c"], "news of an old generation changes nothing");
    let is_dropped = |t: &&Tell| matches!(t, Tell::Abort(Generation(8), _));
    let is_told_again = |name: &str| scene.told(name).iter().filter(|t| is_dropped(t)).count() == 2;
    assert!(is_told_again("b"), "but whoever may still be in it is told to leave it");
}

#[test]
fn a_worker_that_others_wait_for_in_vain_again_and_again_is_dismissed() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]);
    let in_vain = |generation: u64| Said::PlaneLost {
        generation: Generation(generation),
        suspects: vec![Rank(1)],
        reason: "waited 30000 ms for rank 1".into(),
        timed_out: true,
    };
    scene.says("a", in_vain(8)).probed("b", Alive::Yes);
    scene.step_done(&["a"], 1);
    scene.says("a", in_vain(9)).probed("b", Alive::Yes);
    assert_eq!(scene.running(), ["a", "b", "c"], "between two times it took part in a step");
    scene.says("c", in_vain(10));
    assert_eq!((scene.running(), scene.state.generation()), (vec!["a", "c"], Generation(11)));
    let Some(Tell::Refused(reason)) = scene.told("b").pop() else { panic!("it is not told to leave") };
    assert!(reason.contains("2 times in a row") && reason.contains("waited 30000 ms"), "{reason}");
}

#[test]
fn a_data_plane_that_breaks_while_the_journal_writes_spoils_what_is_written() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]);
    scene.journal_is_slow = true;
    let (generation, suspects, reason) = (Generation(8), vec![], "reset".to_string());
    scene.join(&["d"]).says("a", Said::PlaneLost { generation, suspects, reason, timed_out: false });
    assert!(scene.told("b").contains(&&Tell::Abort(Generation(8), "reset".into())), "9 is not in the journal yet");
    scene.journal_answers();
    assert_eq!((scene.running(), scene.state.generation()), (vec!["a", "b", "c", "d"], Generation(10)));
    let is_of =
        |t: &&Tell, number| matches!(t, Tell::Generation { generation, .. } if *generation == Generation(number));
    assert!(!scene.told("d").iter().any(|t| is_of(t, 9)), "it was spoilt before it was announced");
}

#[test]
fn the_next_wake_is_when_time_alone_changes_something() {
    let mut scene = Scene::new(&[]);
    assert_eq!(scene.state.next_wake(), Some(0), "nothing was looked at yet");
    scene.at(0);
    assert_eq!(scene.state.next_wake(), Some(60_000), "nobody came");
    scene.join(&["a", "b"]);
    assert_eq!(scene.state.next_wake(), Some(1000), "nobody else comes");
    scene.at(1000);
    assert_eq!((scene.running(), scene.state.next_wake()), (vec!["a", "b"], Some(2000)), "neither says anything");
    scene.now = 1900;
    let still = Said::Heartbeat { step: Step(0), phase: String::new(), phase_ms: 0 };
    scene.says("a", still.clone()).says("b", still).at(2000);
    assert_eq!((scene.running(), scene.state.next_wake()), (vec!["a", "b"], Some(3900)));
    scene.says(
        "a",
        Said::StepDone(StepDone { generation: Generation(8), step: Step(10), step_ms: 1, compute_ms: 0, num_slots: 0 }),
    );
    scene.event(Event::CheckpointStored(Step(10), Ok("same".into()))).finish(&["a", "b"], 10);
    assert_eq!(scene.state.next_wake(), None, "it is over");
}
