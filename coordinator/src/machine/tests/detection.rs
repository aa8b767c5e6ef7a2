use super::*;

fn long() -> Settings {
    Settings { num_steps: Step(1000), ..settings() }
}

fn refusal(scene: &Scene, name: &str) -> String {
    match scene.told(name).last() {
        Some(Tell::Refused(reason)) => reason.clone(),
        other => panic!("{name} was told {other:?}"),
    }
}

#[test]
fn a_member_at_work_of_its_own_long_after_a_step_was_due_is_stuck() {
    let mut scene = Scene::with(long(), &[]);
    scene.join(&["a", "b", "c"]).step_done(&["a", "b", "c"], 1);
    let busy = [("a", "exchange"), ("b", "backward"), ("c", "exchange")];
    scene.beat_until(19_000, &busy);
    assert_eq!(scene.running(), ["a", "b", "c"]);
    scene.beat_until(23_000, &[("a", "exchange"), ("c", "exchange")]);
    assert_eq!(scene.running(), ["a", "c"]);
    assert!(matches!(scene.state.incidents()[0].cause, LossCause::HeartbeatLapsed(_)), "silence is not the same");

    let mut scene = Scene::with(long(), &[]);
    scene.join(&["a", "b", "c"]).step_done(&["a", "b", "c"], 1).beat_until(22_000, &busy);
    assert_eq!(scene.running(), ["a", "c"]);
    let LossCause::Stuck { phase, limit_ms, .. } = &scene.state.incidents()[0].cause else { panic!("another cause") };
    assert_eq!((phase.as_str(), *limit_ms), ("backward", 20_000));
    assert!(refusal(&scene, "b").contains("start it again"));
}

#[test]
fn slow_steps_make_the_patience_longer_and_nothing_is_stuck_before_the_first() {
    let mut scene = Scene::with(long(), &[]);
    let busy = [("a", "exchange"), ("b", "backward"), ("c", "exchange")];
    scene.join(&["a", "b", "c"]).beat_until(100_000, &busy);
    assert_eq!(scene.running(), ["a", "b", "c"], "the first step may load and warm up");
    let generation = scene.state.generation();
    let slow = StepDone { generation, step: Step(1), step_ms: 5000, compute_ms: 0, num_slots: 0 };
    scene.says("a", Said::StepDone(slow)).beat_until(149_000, &busy);
    assert_eq!(scene.running(), ["a", "b", "c"]);
    scene.beat_until(210_000, &busy);
    assert_eq!(scene.running(), ["a", "c"]);
}

#[test]
fn a_change_of_members_gives_time_anew() {
    let mut scene = Scene::with(long(), &[]);
    let busy = [("a", "exchange"), ("b", "backward"), ("c", "exchange"), ("d", "moving state to joiners")];
    scene.join(&["a", "b", "c"]).step_done(&["a", "b", "c"], 1).beat_until(15_000, &busy);
    scene.join(&["d"]).beat_until(34_000, &busy);
    assert_eq!(scene.running(), ["a", "b", "c", "d"]);
}

/// Steps in which `slow` takes `slow_ms` for its slot and the others 50 ms each.
fn steps(scene: &mut Scene, names: &[&str], range: std::ops::Range<u64>, slow: &str, slow_ms: u64) {
    for step in range {
        for name in names {
            let compute_ms = if *name == slow { slow_ms } else { 50 };
            let generation = scene.state.generation();
            let done = StepDone { generation, step: Step(step), step_ms: 200, compute_ms, num_slots: 1 };
            scene.says(name, Said::StepDone(done));
        }
    }
}

#[test]
fn a_worker_that_is_consistently_slower_is_named_once_and_not_for_less() {
    let names = ["a", "b", "c"];
    let mut scene = Scene::with(long(), &[]);
    scene.join(&names);
    let named = |scene: &Scene| scene.notices().iter().filter(|n| matches!(n, Notice::Straggles(..))).count();
    steps(&mut scene, &names, 1..15, "b", 110);
    assert_eq!(named(&scene), 0, "fourteen times are not enough");
    steps(&mut scene, &names, 15..30, "b", 110);
    assert_eq!(named(&scene), 1);
    let slowdown = scene.state.members()[&id("b")].slowness.slowdown().unwrap();
    assert!((slowdown - 2.2).abs() < 0.01, "{slowdown}");
    assert_eq!(scene.running(), names, "nobody asked for more");
    steps(&mut scene, &names, 30..60, "b", 90);
    assert_eq!(scene.state.members()[&id("b")].slowness.slowdown(), None);
}

#[test]
fn a_straggler_gives_its_place_to_a_spare_and_becomes_one() {
    let settings = Settings { evict_stragglers: true, max_members: 3, expected_workers: 4, ..long() };
    let mut scene = Scene::with(settings, &[]);
    scene.join(&["a", "b", "c", "d"]);
    steps(&mut scene, &["a", "b", "c"], 1..16, "b", 200);
    assert_eq!((scene.running(), scene.seated(Role::Spare)), (vec!["a", "c", "d"], vec!["b"]));
    assert_eq!(scene.num_aborts("a"), 0);
    assert!(matches!(scene.state.incidents()[0].cause, LossCause::Straggler { slowdown_percent: 400 }));
    scene.breaks("d").probed("d", Alive::No);
    assert_eq!(scene.running(), ["a", "c", "b"], "better than nobody");
}

#[test]
fn whoever_is_outvoted_about_a_chunk_is_sent_away_and_without_a_majority_people_are_told() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]);
    let differ = |suspects: &[u32], is_certain| Said::CopiesDiffer {
        generation: Generation(8),
        step: Step(3),
        chunk: 5,
        suspects: suspects.iter().map(|r| Rank(*r)).collect(),
        is_certain,
    };
    scene.says("a", differ(&[0, 1], false)).says("b", differ(&[0, 1], false));
    assert_eq!(scene.running(), ["a", "b", "c"]);
    let said = Notice::CopiesDiffer(Step(3), 5, vec![id("a"), id("b")]);
    assert_eq!(scene.notices().into_iter().filter(|n| **n == said).count(), 1);
    scene.says("a", differ(&[1], true)).says("c", differ(&[1], true));
    assert_eq!(scene.running(), ["a", "c"]);
    assert!(refusal(&scene, "b").contains("memory or processor may be faulty"));
    assert_eq!(scene.state.incidents().len(), 1);
}

#[test]
fn ranks_of_the_generation_before_are_still_known() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).says("a", Said::Leaving);
    assert_eq!(scene.running(), ["b", "c"]);
    let (generation, step, chunk, suspects) = (Generation(8), Step(3), 5, vec![Rank(2)]);
    scene.says("b", Said::CopiesDiffer { generation, step, chunk, suspects, is_certain: true });
    refusal(&scene, "c");
}

#[test]
fn bad_numbers_are_said_and_whoever_is_blamed_leaves() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]);
    let trouble =
        |remedy| Said::NumericalTrouble { generation: Generation(8), step: Step(3), remedy, suspects: vec![Rank(2)] };
    scene.says("a", trouble(Remedy::Recheck)).says("b", trouble(Remedy::Recheck));
    assert_eq!((scene.running().len(), scene.notices().len()), (3, 5), "four of joining and forming, one of this");
    scene.says("a", trouble(Remedy::Blame));
    assert_eq!(scene.running(), ["a", "b"]);
    assert!(refusal(&scene, "c").contains("not finite"));
}
