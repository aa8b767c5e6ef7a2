//! Loss and gradients that are not finite.

use polo_recipe::{
    config::OnNonFinite,
    ids::{Rank, Step},
};
use polo_worker::{
    decision::Remedy,
    step::{StepError, Trouble},
};

use crate::{
    arithmetic::{Bad, Kind, SLOT_TOKENS},
    scene::{NUM_SLOTS, NUM_STEPS, Scene, Seen, assert_equal_ends, undisturbed},
};

const STEP: Step = Step(2);
/// A slot of rank 1 of three.
const SLOT: usize = 3;

const KINDS: [Kind; 3] = [Kind::NanGradient, Kind::InfiniteGradient, Kind::InfiniteLoss];

fn bad(policy: OnNonFinite, kind: Kind, only_on: Option<Rank>) -> Scene {
    let bad = Some(Bad { step: STEP, slot: SLOT, only_on, kind });
    Scene { on_non_finite: policy, bad, ..Scene::new(3, 2) }
}

/// What a rank said: what is done about it, and whose numbers they were.
fn said(seen: &Seen) -> Vec<(Step, Option<Remedy>, Vec<Rank>)> {
    let one = |(step, trouble): &(Step, Trouble)| match trouble {
        Trouble::NotFinite { remedy, suspects, .. } => (*step, *remedy, suspects.clone()),
        other => panic!("{other:?}"),
    };
    seen.troubles.iter().map(one).collect()
}

/// The step's decision says whose number it was: the loss or the norm.
fn assert_kind(kind: Kind, loss: f64, grad_norm: f64) {
    assert_eq!(loss.is_finite(), kind != Kind::InfiniteLoss, "loss {loss}");
    assert_eq!(grad_norm.is_finite(), kind == Kind::InfiniteLoss, "gradient norm {grad_norm}");
}

/// The end of a run of one rank that leaves the step out.
fn skipped(kind: Kind) -> Seen {
    Scene { world: 1, ..bad(OnNonFinite::Skip, kind, None) }.play().remove(0)
}

fn assert_skipped(ranks: &[Seen], kind: Kind) {
    assert_equal_ends(ranks, &skipped(kind), 2);
    for seen in ranks {
        let skips: Vec<_> = seen.done.iter().map(|done| done.decision.skip).collect();
        assert_eq!(skips, [false, false, true, false]);
        let decision = &seen.done[STEP.0 as usize].decision;
        assert_kind(kind, decision.loss(), decision.grad_norm);
    }
}

#[test]
fn stop_ends_every_rank_before_the_update_and_says_which_number_it_was() {
    let before = Scene { num_steps: STEP.0, ..Scene::new(1, 1) }.play().remove(0);
    for kind in KINDS {
        let ranks = bad(OnNonFinite::Stop, kind, None).play();
        for seen in &ranks {
            let Some(StepError::NotFinite { step, loss, grad_norm }) = seen.error else { panic!("{:?}", seen.error) };
            assert_eq!(step, STEP);
            assert_kind(kind, loss, grad_norm);
            assert_eq!(said(seen), [(STEP, Some(Remedy::Stop), vec![])]);
        }
        assert_equal_ends(&ranks, &before, 2);
    }
}

#[test]
fn a_skipped_step_changes_nothing_but_the_count_of_steps_and_tokens() {
    let end_after = |num_steps| Scene { num_steps, ..bad(OnNonFinite::Skip, Kind::NanGradient, None) }.play();
    let (before, after) = (end_after(STEP.0), end_after(STEP.0 + 1));
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((before.chunks(), before.all_params()), (after.chunks(), after.all_params()));
        assert_eq!((before.state.step, after.state.step), (Some(STEP), Some(STEP.next())));
        assert_eq!(after.num_tokens() - before.num_tokens(), NUM_SLOTS as u64 * SLOT_TOKENS);
        assert!(after.state.params_complete);
    }
}

#[test]
fn all_ranks_skip_alike_and_go_on() {
    for kind in KINDS {
        let ranks = bad(OnNonFinite::Skip, kind, None).play();
        assert_skipped(&ranks, kind);
        for seen in &ranks {
            assert_eq!(said(seen), [(STEP, Some(Remedy::Skip), vec![])]);
            assert_eq!(seen.num_tries, NUM_STEPS as usize);
        }
    }
}

#[test]
fn bad_samples_are_looked_at_by_another_rank_and_then_skipped() {
    for kind in KINDS {
        let ranks = bad(OnNonFinite::Recheck, kind, None).play();
        assert_skipped(&ranks, kind);
        for seen in &ranks {
            // The rank below takes over the slots of the one above it.
            let looks = [(STEP, Some(Remedy::Recheck), vec![Rank(1)]), (STEP, Some(Remedy::Skip), vec![Rank(0)])];
            assert_eq!(said(seen), looks);
            assert_eq!(seen.num_tries, NUM_STEPS as usize + 1);
        }
    }
}

#[test]
fn bad_hardware_is_told_by_another_rank_and_the_step_is_taken_with_good_numbers() {
    for kind in KINDS {
        let ranks = bad(OnNonFinite::Recheck, kind, Some(Rank(1))).play();
        assert_equal_ends(&ranks, &undisturbed(), 2);
        for seen in &ranks {
            let looks = [(STEP, Some(Remedy::Recheck), vec![Rank(1)]), (STEP, None, vec![Rank(1)])];
            assert_eq!(said(seen), looks);
            assert!(seen.done.iter().all(|done| !done.decision.skip));
        }
    }
}

#[test]
fn one_rank_alone_has_nobody_to_look_again_and_skips() {
    let ranks = Scene { world: 1, ..bad(OnNonFinite::Recheck, Kind::NanGradient, None) }.play();
    assert_eq!(said(&ranks[0]), [(STEP, Some(Remedy::Skip), vec![Rank(0)])]);
    assert_equal_ends(&ranks, &skipped(Kind::NanGradient), 1);
}
