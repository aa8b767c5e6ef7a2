use super::*;

fn drain(scene: &mut Scene, name: &str) {
    scene.event(Event::DrainRequested(id(name)));
}

fn is_drained(scene: &Scene, name: &str) -> bool {
    scene.told(name).last() == Some(&&Tell::Drained) && !scene.state.members().contains_key(&id(name))
}

#[test]
fn a_member_gives_its_chunks_in_one_more_generation_and_leaves_after_its_first_step() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).step_done(&["a"], 1).says("b", Said::Leaving);
    assert_eq!((scene.running(), scene.seated(Role::Leaving)), (vec!["a", "c"], vec!["b"]));
    assert_eq!(scene.num_aborts("a"), 0);
    let late = StepDone { generation: Generation(8), step: Step(2), step_ms: 100, compute_ms: 50, num_slots: 1 };
    scene.says("c", Said::StepDone(late));
    assert!(!is_drained(&scene, "b"), "a step of the generation before");
    scene.step_done(&["a"], 3);
    assert!(is_drained(&scene, "b"));
    scene.breaks("b").at(5);
    assert_eq!((scene.running(), scene.state.generation()), (vec!["a", "c"], Generation(9)));
    assert!(scene.state.incidents().is_empty());
}

#[test]
fn a_spare_and_a_worker_without_a_generation_leave_at_once() {
    let mut scene = Scene::with(Settings { max_members: 2, ..settings() }, &[]);
    scene.join(&["a"]);
    drain(&mut scene, "a");
    assert!(is_drained(&scene, "a"));
    scene.join(&["b", "c", "d"]);
    assert_eq!(scene.seated(Role::Spare), ["d"]);
    drain(&mut scene, "d");
    assert!(is_drained(&scene, "d"));
    assert_eq!((scene.running(), scene.seated(Role::Spare)), (vec!["b", "c"], vec![]));
}

#[test]
fn a_spare_takes_the_place_of_a_member_that_leaves() {
    let mut scene = Scene::with(Settings { max_members: 2, ..settings() }, &[]);
    scene.join(&["a", "b", "c"]).step_done(&["a"], 1);
    drain(&mut scene, "a");
    let seats = [Role::Member, Role::Spare, Role::Leaving].map(|role| scene.seated(role));
    assert_eq!(seats, [vec!["b", "c"], vec![], vec!["a"]]);
}

#[test]
fn members_without_whom_too_few_would_remain_leave_once_the_state_is_stored() {
    let mut scene = Scene::with(Settings { expected_workers: 2, ..settings() }, &[]);
    scene.join(&["a", "b"]);
    drain(&mut scene, "b");
    let is_asked = |scene: &Scene| scene.told("a").contains(&&Tell::Checkpoint);
    assert_eq!((scene.running(), is_asked(&scene)), (vec!["a", "b"], false), "nobody heeds it before a step");
    scene.step_done(&["a", "b"], 3);
    assert!(is_asked(&scene) && !is_drained(&scene, "b"));
    scene.stored(4, "state");
    assert!(is_drained(&scene, "b"));
    assert!(matches!(scene.state.formation(), Formation::Waiting { .. }));
    assert_eq!(scene.num_aborts("a"), 1);
    assert!(scene.state.incidents().is_empty());
    scene.join(&["c"]);
    assert_eq!(scene.running(), ["a", "c"]);
}

#[test]
fn company_lets_go_whoever_was_held_back() {
    let mut scene = Scene::with(Settings { expected_workers: 2, ..settings() }, &[]);
    scene.join(&["a", "b"]).step_done(&["a"], 1);
    drain(&mut scene, "b");
    scene.join(&["c"]);
    assert_eq!((scene.running(), scene.seated(Role::Leaving)), (vec!["a", "c"], vec!["b"]));
}

#[test]
fn a_leaving_worker_that_dies_before_it_gave_its_chunks_is_an_incident() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).says("b", Said::Leaving).breaks("b").probed("b", Alive::No);
    assert_eq!((scene.running(), scene.seated(Role::Leaving)), (vec!["a", "c"], vec![]));
    assert_eq!((scene.state.incidents().len(), scene.num_aborts("a")), (1, 1));
}

#[test]
fn a_leaving_worker_that_comes_back_is_still_leaving_and_its_name_is_free_afterwards() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c", "d"]).says("d", Said::Leaving).step_done(&["a"], 1);
    assert!(is_drained(&scene, "d"));
    let leaving = Standing { is_leaving: true, ..Standing::default() };
    scene.event(Event::Hello(id("d"), introduction(incarnation("d")), leaving));
    assert!(is_drained(&scene, "d"), "the word that it may go was lost");
    scene.event(Event::Hello(id("d"), introduction(2), Standing::default()));
    assert_eq!(scene.running(), ["a", "b", "c", "d"]);
}
