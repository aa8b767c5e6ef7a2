use super::*;

#[test]
fn a_checkpoint_is_stored_when_every_chunk_is_and_parts_of_two_generations_go_together() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]);
    let part = |chunk: u32| CheckpointPart {
        step: Step(4),
        chunks: vec![(chunk, [chunk as u8; 32])],
        witnessed: vec![],
        trained: vec![],
    };
    scene.says("a", Said::CheckpointPart(part(1))).breaks("a").probed("a", Alive::No);
    let later = CheckpointPart { step: Step(6), chunks: vec![(0, [6; 32])], witnessed: vec![], trained: vec![] };
    scene.says("c", Said::CheckpointPart(later));
    scene.says("b", Said::CheckpointPart(part(0)));
    let draft =
        CheckpointDraft { step: Step(4), chunks: vec![[0; 32], [1; 32]], trained: vec![], protected: vec![[6; 32]] };
    assert_eq!(scene.actions.last(), Some(&Action::StoreCheckpoint(draft)));
    scene.stored(4, "state");
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
fn a_damaged_checkpoint_that_is_known_to_be_so_still_ends_a_generation_that_was_sent_to_it() {
    let mut scene = Scene::new(&[4, 8]);
    scene.join(&["a", "b", "c", "d"]);
    assert_eq!(scene.state.generation(), Generation(9));
    let damaged = |generation| Said::CheckpointDamaged {
        generation: Generation(generation),
        step: Step(8),
        problem: "chunk 3".into(),
    };
    scene.says("b", damaged(8));
    assert_eq!(scene.state.generation(), Generation(9), "the report of the one before says nothing of this one");
    scene.says("a", damaged(9)).says("b", damaged(9));
    assert_eq!((scene.state.generation(), scene.state.newest_checkpoint()), (Generation(10), Some(Step(4))));
    let num_skipped = scene.notices().iter().filter(|n| matches!(n, Notice::CheckpointSkipped(..))).count();
    assert_eq!(num_skipped, 1);
}

fn held(stored: &[(u32, u8)], witnessed: &[(u32, u8)]) -> Said {
    let digests = |chunks: &[(u32, u8)]| chunks.iter().map(|(chunk, byte)| (*chunk, [*byte; 32])).collect();
    let (chunks, witnessed) = (digests(stored), digests(witnessed));
    Said::CheckpointPart(CheckpointPart { step: Step(4), chunks, witnessed, trained: vec![] })
}

fn is_being_stored(scene: &Scene) -> bool {
    scene.actions.iter().any(|a| matches!(a, Action::StoreCheckpoint(_)))
}

#[test]
fn what_others_hold_of_a_chunk_must_be_what_was_stored() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).says("a", held(&[(0, 1)], &[(1, 2)])).says("b", held(&[(1, 9)], &[]));
    scene.says("c", held(&[], &[(0, 1)]));
    assert!(!is_being_stored(&scene));
    assert_eq!(scene.running(), ["a", "b", "c"], "it is not clear who is right");
    assert_eq!(scene.state.incidents()[0].cause, LossCause::StatesDiffer(Step(4), 1));
    assert_eq!(scene.notices().iter().filter(|n| matches!(n, Notice::CheckpointFailed(..))).count(), 1);
    scene.says("c", held(&[], &[(1, 2)]));
    assert_eq!(scene.running(), ["a", "c"], "two against one");
    let [incident] = scene.state.incidents() else { panic!("{:?}", scene.state.incidents()) };
    assert_eq!(incident.cause, LossCause::CorruptCopies { chunk: 1, step: Step(4) });
    scene.says("a", held(&[(0, 1)], &[(1, 2)])).says("c", held(&[(1, 2)], &[(0, 1)]));
    assert!(is_being_stored(&scene), "those who agree store it again");
}

#[test]
fn equal_witnesses_are_no_trouble() {
    let mut scene = Scene::new(&[]);
    scene.join(&["a", "b", "c"]).says("a", held(&[(0, 1)], &[(1, 2)])).says("b", held(&[(1, 2)], &[(0, 1)]));
    assert!(is_being_stored(&scene) && scene.state.incidents().is_empty());
}
