use super::*;

#[test]
fn the_expected_workers_start_at_once() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b"]);
    assert!(scene.running().is_empty());
    scene.join(&["c"]);
    assert_eq!(scene.running(), ["a", "b", "c"]);
    assert_eq!(scene.state.generation(), Generation(8), "numbers go on from the journal's");
}

#[test]
fn fewer_than_expected_start_when_nobody_else_came_for_a_while() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b"]).at(999);
    assert!(scene.running().is_empty());
    scene.at(1000);
    assert_eq!(scene.running(), ["a", "b"]);
}

#[test]
fn too_few_workers_end_in_a_message_that_says_what_was_awaited() {
    let mut scene = Scene::new(&[]);
    for now in [1000, 2000] {
        scene.now = now;
        scene.join(&["a"]);
    }
    while scene.now < 61_000 {
        let now = scene.now + 1000;
        scene.says("a", Said::Heartbeat { step: Step(0), phase: "waiting".into(), phase_ms: 0 }).at(now);
    }
    let Some(Outcome::Failed { reason }) = scene.state.outcome() else { panic!("still waiting") };
    assert!(reason.contains("waited 60 s for 2 workers, 1 worker came"), "{reason}");
}

#[test]
fn a_joiner_is_taken_in_after_it_had_a_chance_of_company() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).breaks("c").probed("c", Alive::No);
    scene.now = 100;
    scene.join(&["d"]);
    assert_eq!(scene.running(), ["a", "b", "d"], "three are expected and three are here");
    assert_eq!(scene.num_aborts("a"), 1, "joining aborts nothing");
}

#[test]
fn the_wrong_recipe_and_a_second_bearer_of_a_name_are_turned_away() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a"]);
    let stranger = Introduction { recipe_identity: "other".into(), ..introduction(1) };
    scene.event(Event::Hello(id("x"), stranger, Standing::default())).event(Event::Hello(
        id("a"),
        introduction(2),
        Standing::default(),
    ));
    let refusals = |name| match scene.told(name).last() {
        Some(Tell::Refused(reason)) => reason.clone(),
        other => panic!("{other:?}"),
    };
    assert!(refusals("x").contains("identity other, this run's has recipe"));
    assert!(refusals("a").contains("a live worker is called a already"));
    assert_eq!(scene.state.members().len(), 1);
}

#[test]
fn a_restarted_worker_replaces_the_process_whose_stream_broke() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).breaks("a").event(Event::Hello(id("a"), introduction(2), Standing::default()));
    assert_eq!(scene.state.members()[&id("a")].introduction.incarnation, 2);
    assert_eq!(scene.running(), ["b", "c", "a"]);
}

#[test]
fn a_worker_that_reattaches_in_time_keeps_its_place() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).breaks("b").probed("b", Alive::Yes).join(&["b"]);
    assert_eq!(scene.running(), ["a", "b", "c"]);
    let places = scene.told("b").into_iter().filter(|t| matches!(t, Tell::Generation { rank: Rank(1), .. })).count();
    assert_eq!(places, 2, "it is told its place again");
    assert_eq!(scene.state.generation(), Generation(8));
}
