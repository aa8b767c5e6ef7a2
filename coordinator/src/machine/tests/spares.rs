use super::*;

fn with_two_members() -> Scene {
    Scene::with(Settings { max_members: 2, min_workers: 1, expected_workers: 3, ..settings() }, &[])
}

fn roles_told(scene: &Scene, name: &str) -> Vec<Role> {
    let last = scene.told(name).into_iter().rev().find_map(|t| match t {
        Tell::Generation { peers, .. } => Some(peers.iter().map(|p| p.role).collect()),
        _ => None,
    });
    last.unwrap_or_default()
}

#[test]
fn workers_beyond_the_most_members_are_spares_of_the_generation() {
    let mut scene = with_two_members();
    scene.join(&["a", "b", "c"]);
    assert_eq!((scene.running(), scene.seated(Role::Spare)), (vec!["a", "b"], vec!["c"]));
    assert_eq!(roles_told(&scene, "c"), [Role::Member, Role::Member, Role::Spare]);
}

#[test]
fn a_spare_takes_over_before_a_worker_that_was_not_there() {
    let mut scene = with_two_members();
    scene.join(&["a", "b", "c"]);
    scene.journal_is_slow = true;
    scene.breaks("a").event(Event::Hello(id("d"), introduction(incarnation("d")), Standing::default()));
    scene.probed("a", Alive::No).journal_answers();
    assert_eq!((scene.running(), scene.seated(Role::Spare)), (vec!["b", "c"], vec!["d"]));
}

#[test]
fn a_spare_that_joins_while_others_train_aborts_nothing() {
    let mut scene = with_two_members();
    scene.join(&["a", "b", "c", "d"]);
    assert_eq!((scene.running(), scene.seated(Role::Spare)), (vec!["a", "b"], vec!["c", "d"]));
    assert_eq!((scene.state.generation(), scene.num_aborts("a")), (Generation(9), 0));
}

#[test]
fn a_lost_spare_costs_a_change_over_and_no_incident() {
    let mut scene = with_two_members();
    scene.join(&["a", "b", "c"]).step_done(&["a", "b"], 1).breaks("c").probed("c", Alive::No);
    assert_eq!((scene.running(), scene.seated(Role::Spare)), (vec!["a", "b"], vec![]));
    assert_eq!((scene.state.generation(), scene.num_aborts("a")), (Generation(9), 0));
    assert!(scene.state.incidents().is_empty());
}

#[test]
fn no_generation_is_formed_for_a_shuffle() {
    let mut scene = with_two_members();
    scene.join(&["a", "b", "c"]).step_done(&["a", "b"], 1).breaks("c").probed("c", Alive::Yes).join(&["c"]);
    scene.beat_until(9000, &[("a", "forward"), ("b", "forward"), ("c", "waiting")]);
    assert_eq!(scene.state.generation(), Generation(8));
}
