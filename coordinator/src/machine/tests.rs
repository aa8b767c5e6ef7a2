#![allow(clippy::unwrap_used)]

use super::*;
use polo_recipe::ids::Rank;

/// A coordinator whose journal answers at once, and what it said.
struct Scene {
    state: State,
    now: NowMs,
    actions: Vec<Action>,
}

fn settings() -> Settings {
    Settings {
        recipe_identity: "recipe".into(),
        corpus_digest: "corpus".into(),
        num_steps: Step(10),
        num_slots: 4,
        num_chunks: 2,
        min_workers: 2,
        expected_workers: 3,
        settle_ms: 1000,
        wait_timeout_ms: 60_000,
        heartbeat_timeout_ms: 2000,
    }
}

fn introduction(incarnation: u64) -> Introduction {
    Introduction {
        incarnation,
        recipe_identity: "recipe".into(),
        corpus_digest: "corpus".into(),
        data_address: format!("host:{incarnation}"),
        host: "host".into(),
        pid: 1,
    }
}

fn id(name: &str) -> WorkerId {
    WorkerId(name.into())
}

/// The incarnation of worker `name` in these tests: its letter.
fn incarnation(name: &str) -> u64 {
    u64::from(name.as_bytes()[0])
}

impl Scene {
    fn new(checkpoints: &[u64]) -> Self {
        let checkpoints = checkpoints.iter().map(|s| Step(*s)).collect();
        Self { state: State::new(settings(), Generation(7), checkpoints, 0), now: 0, actions: Vec::new() }
    }

    fn event(&mut self, event: Event) -> &mut Self {
        let mut queue = self.state.step(self.now, event);
        while !queue.is_empty() {
            let recorded = queue.iter().find_map(|a| match a {
                Action::RecordGeneration(generation, _) => Some(*generation),
                _ => None,
            });
            self.actions.append(&mut queue);
            if let Some(generation) = recorded {
                queue = self.state.step(self.now, Event::GenerationRecorded(generation, Ok(())));
            }
        }
        self
    }

    fn at(&mut self, now: NowMs) -> &mut Self {
        self.now = now;
        self.event(Event::Tick)
    }

    fn join(&mut self, names: &[&str]) -> &mut Self {
        for name in names {
            self.event(Event::Hello(id(name), introduction(incarnation(name))));
        }
        self
    }

    fn says(&mut self, name: &str, said: Said) -> &mut Self {
        self.event(Event::Said(id(name), incarnation(name), said))
    }

    fn breaks(&mut self, name: &str) -> &mut Self {
        self.event(Event::StreamBroken(id(name), incarnation(name)))
    }

    fn probed(&mut self, name: &str, alive: Alive) -> &mut Self {
        self.event(Event::Probed(id(name), incarnation(name), alive))
    }

    fn stores_last_step(&mut self, names: &[&str], step: u64, digest: &str) -> &mut Self {
        let generation = self.state.generation();
        for name in names {
            let state_digest = digest.to_string();
            self.says(name, Said::Finished { generation, step: Step(step), state_digest });
        }
        self
    }

    /// Members of the generation that runs, by name.
    fn running(&self) -> Vec<&str> {
        match self.state.formation() {
            Formation::Running { members } if !self.state.broken => members.iter().map(|w| w.0.as_str()).collect(),
            _ => Vec::new(),
        }
    }

    fn told(&self, name: &str) -> Vec<&Tell> {
        let to_it = |a: &&Action| matches!(a, Action::Tell(w, _, _) if *w == id(name));
        self.actions
            .iter()
            .filter(to_it)
            .filter_map(|a| if let Action::Tell(_, _, t) = a { Some(t) } else { None })
            .collect()
    }
}

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
        scene.says("a", Said::Heartbeat { step: Step(0), phase: "waiting".into() }).at(now);
    }
    let Some(Outcome::Failed { reason }) = scene.state.outcome() else { panic!("still waiting") };
    assert!(reason.contains("waited 60 s for 2 workers, 1 worker came"), "{reason}");
}

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
        scene.says(name, Said::Heartbeat { step: Step(0), phase: String::new() });
    }
    scene.at(2000);
    assert_eq!(scene.running(), ["a", "c"]);
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
    scene.says("a", Said::StepDone { generation: Generation(9), step: Step(1) });
    scene.says("a", in_vain(9)).probed("b", Alive::Yes);
    assert_eq!(scene.running(), ["a", "b", "c"], "between two times it took part in a step");
    scene.says("c", in_vain(10));
    assert_eq!((scene.running(), scene.state.generation()), (vec!["a", "c"], Generation(11)));
    let Some(Tell::Refused(reason)) = scene.told("b").pop() else { panic!("it is not told to leave") };
    assert!(reason.contains("2 times in a row") && reason.contains("waited 30000 ms"), "{reason}");
}

#[test]
fn a_joiner_is_taken_in_after_it_had_a_chance_of_company() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).breaks("c").probed("c", Alive::No);
    scene.now = 100;
    scene.join(&["d"]);
    assert_eq!(scene.running(), ["a", "b", "d"], "three are expected and three are here");
    assert!(scene.told("a").iter().filter(|t| matches!(t, Tell::Abort(..))).count() == 1, "joining aborts nothing");
}

#[test]
fn more_workers_than_slots_wait_outside() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c", "d", "e"]);
    assert_eq!(scene.running(), ["a", "b", "c", "d"]);
    scene.breaks("a").probed("a", Alive::No);
    assert_eq!(scene.running(), ["b", "c", "d", "e"]);
}

#[test]
fn the_wrong_recipe_and_a_second_bearer_of_a_name_are_turned_away() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a"]);
    let stranger = Introduction { recipe_identity: "other".into(), ..introduction(1) };
    scene.event(Event::Hello(id("x"), stranger)).event(Event::Hello(id("a"), introduction(2)));
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
    scene.join(&["a", "b", "c"]).breaks("a").event(Event::Hello(id("a"), introduction(2)));
    assert_eq!(scene.state.members()[&id("a")].introduction.incarnation, 2);
    assert_eq!(scene.running(), ["b", "c", "a"]);
}

#[test]
fn a_checkpoint_is_stored_when_every_chunk_is_and_parts_of_two_generations_go_together() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]);
    let part = |chunk: u32| CheckpointPart { step: Step(4), chunks: vec![(chunk, [chunk as u8; 32])], trained: vec![] };
    scene.says("a", Said::CheckpointPart(part(1))).breaks("a").probed("a", Alive::No);
    let later = CheckpointPart { step: Step(6), chunks: vec![(0, [6; 32])], trained: vec![] };
    scene.says("c", Said::CheckpointPart(later));
    scene.says("b", Said::CheckpointPart(part(0)));
    let draft =
        CheckpointDraft { step: Step(4), chunks: vec![[0; 32], [1; 32]], trained: vec![], protected: vec![[6; 32]] };
    assert_eq!(scene.actions.last(), Some(&Action::StoreCheckpoint(draft)));
    scene.event(Event::CheckpointStored(Step(4), Ok(())));
    assert_eq!(scene.state.newest_checkpoint(), Some(Step(4)));
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before() {
    let mut scene = Scene::new(&[4, 8]);
    scene.join(&["a", "b", "c"]);
    let problem = "chunk 3".to_string();
    scene.says("b", Said::CheckpointDamaged { generation: Generation(8), step: Step(8), problem });
    let offered = scene.told("a").into_iter().filter_map(|t| match t {
        Tell::Generation { generation, checkpoint, .. } => Some((*generation, *checkpoint)),
        _ => None,
    });
    assert_eq!(offered.collect::<Vec<_>>(), [(Generation(8), Some(Step(8))), (Generation(9), Some(Step(4)))]);
}

#[test]
fn the_run_completes_when_all_agree_and_the_last_checkpoint_is_stored() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).stores_last_step(&["a", "b", "c"], 10, "same");
    assert_eq!(scene.state.outcome(), None, "the state is not stored yet");
    scene.event(Event::CheckpointStored(Step(10), Ok(())));
    let completed = Outcome::Completed { step: Step(10), state_digest: "same".into() };
    assert_eq!(scene.state.outcome(), Some(&completed));
    assert_eq!(scene.told("b").last(), Some(&&Tell::Release));
}

#[test]
fn different_states_at_the_end_are_a_failure_that_names_them() {
    let mut scene = Scene::new(&[10]);
    scene.join(&["a", "b", "c"]).stores_last_step(&["a", "b"], 10, "same").stores_last_step(&["c"], 10, "other");
    let Some(Outcome::Failed { reason }) = scene.state.outcome() else { panic!("not seen") };
    assert!(reason.contains("a has same at step 10, c has other at step 10"), "{reason}");
}

#[test]
fn a_death_at_the_very_end_makes_the_survivors_finish_again() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).stores_last_step(&["a", "b"], 10, "same");
    scene.breaks("c").probed("c", Alive::No).stores_last_step(&["a"], 10, "same");
    scene.event(Event::CheckpointStored(Step(10), Ok(())));
    assert_eq!(scene.state.outcome(), None, "b has not finished in this generation");
    scene.stores_last_step(&["b"], 10, "same");
    assert!(matches!(scene.state.outcome(), Some(Outcome::Completed { .. })));
}

#[test]
fn a_stop_is_told_to_all_and_to_those_who_form_anew() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).event(Event::StopRequested).breaks("c").probed("c", Alive::No);
    assert_eq!(scene.told("a").into_iter().filter(|t| matches!(t, Tell::Stop)).count(), 2);
    scene.event(Event::CheckpointStored(Step(6), Ok(()))).stores_last_step(&["a", "b"], 6, "same");
    let stopped = Outcome::Stopped { step: Step(6), state_digest: "same".into() };
    assert_eq!(scene.state.outcome(), Some(&stopped));
}

#[test]
fn an_incident_lasts_until_the_next_completed_step() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).breaks("c").probed("c", Alive::No);
    scene.now = 400;
    scene.says("a", Said::StepDone { generation: Generation(8), step: Step(1) });
    assert_eq!(scene.state.incidents()[0].recovery_ms, None, "a step of the generation that ended");
    scene.says("a", Said::StepDone { generation: Generation(9), step: Step(1) });
    assert_eq!(scene.state.incidents()[0].recovery_ms, Some(400));
}
