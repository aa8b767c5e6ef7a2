use super::*;

#[test]
fn an_incident_lasts_until_the_next_completed_step() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).breaks("c").probed("c", Alive::No);
    scene.now = 400;
    let late = StepDone { generation: Generation(8), step: Step(1), step_ms: 100, compute_ms: 50, num_slots: 1 };
    scene.says("a", Said::StepDone(late));
    assert_eq!(scene.state.incidents()[0].recovery_ms, None, "a step of the generation that ended");
    scene.step_done(&["a"], 1);
    assert_eq!(scene.state.incidents()[0].recovery_ms, Some(400));
}

fn arrival(generation: u64, abort_ms: u64, transfer_ms: u64) -> Said {
    Said::Arrived(Arrival {
        generation: Generation(generation),
        step: Step(1),
        is_from_checkpoint: false,
        num_lost_chunks: 0,
        abort_ms,
        transfer_ms,
    })
}

#[test]
fn an_incident_bills_each_part_of_its_time_and_they_add_up() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]);
    scene.now = 1000;
    scene.breaks("c");
    scene.now = 1020;
    scene.probed("c", Alive::No);
    scene.now = 1100;
    scene.says("a", arrival(9, 10, 30));
    scene.now = 1120;
    scene.says("b", arrival(9, 15, 20));
    scene.now = 1200;
    scene.step_done(&["b"], 2);
    let incident = &scene.state.incidents()[0];
    let bill =
        Bill { detect_ms: Some(20), abort_ms: Some(15), reform_ms: Some(55), transfer_ms: Some(30), redo_ms: Some(80) };
    assert_eq!((incident.bill, incident.recovery_ms), (bill, Some(200)));
    let recorded = scene.actions.iter().filter_map(|a| match a {
        Action::Record(Entry::Incident(incident)) => Some((incident.number, incident.recovery_ms)),
        _ => None,
    });
    assert_eq!(recorded.collect::<Vec<_>>(), [(0, None), (0, Some(200))]);
}

#[test]
fn a_silent_worker_is_billed_from_its_last_heartbeat() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).beat_until(1000, &[("a", ""), ("b", ""), ("c", "")]);
    scene.beat_until(3000, &[("a", ""), ("b", "")]);
    assert_eq!(scene.state.incidents()[0].bill.detect_ms, Some(2000));
}

#[test]
fn a_data_plane_that_broke_because_of_a_death_is_one_incident() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]);
    scene.now = 100;
    let (generation, suspects, reason) = (Generation(8), vec![Rank(2)], "reset".to_string());
    scene.says("a", Said::PlaneLost { generation, suspects, reason, timed_out: false });
    scene.now = 130;
    scene.breaks("c").probed("c", Alive::No);
    let [incident] = scene.state.incidents() else { panic!("{:?}", scene.state.incidents()) };
    assert_eq!((&incident.cause, &incident.worker), (&LossCause::ProcessGone, &Some(id("c"))));
    assert_eq!(incident.bill.detect_ms, Some(30));
}

#[test]
fn an_incident_within_an_incident_leaves_both_open_until_a_step() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c", "d"]);
    scene.now = 100;
    scene.breaks("d").probed("d", Alive::No);
    scene.now = 300;
    scene.says("a", arrival(9, 40, 0)).breaks("c").probed("c", Alive::No);
    scene.now = 500;
    scene.says("a", arrival(10, 20, 5)).says("b", arrival(10, 20, 5)).step_done(&["a"], 2);
    let recoveries: Vec<_> = scene.state.incidents().iter().map(|i| i.recovery_ms).collect();
    assert_eq!(recoveries, [Some(400), Some(200)]);
}

#[test]
fn a_return_to_a_checkpoint_is_said_with_what_was_lost() {
    let mut scene = Scene::new(&[4]);
    scene.join(&["a", "b", "c"]).step_done(&["a"], 6).breaks("c").probed("c", Alive::No);
    let from_checkpoint = Arrival {
        generation: Generation(9),
        step: Step(4),
        is_from_checkpoint: true,
        num_lost_chunks: 3,
        abort_ms: 0,
        transfer_ms: 0,
    };
    scene.says("a", Said::Arrived(from_checkpoint)).says("b", Said::Arrived(from_checkpoint));
    let back = WentBack { to: Step(4), num_lost_chunks: 3 };
    assert_eq!(scene.state.incidents()[0].went_back, Some(back));
    assert_eq!(scene.notices().into_iter().filter(|n| **n == Notice::WentBack(back)).count(), 1);
}

#[test]
fn goodput_counts_steps_that_were_completed_for_the_first_time() {
    let mut scene = Scene::new(&[]);
    assert_eq!(scene.state.goodput().share(500), None);
    scene.now = 1000;
    scene.join(&["a", "b", "c"]).step_done(&["a", "b"], 1).step_done(&["a"], 2).step_done(&["a"], 1);
    assert_eq!(scene.state.goodput().share(1400), Some(0.5), "two steps of 100 ms in 400 ms");
}
