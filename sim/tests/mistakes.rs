//! Each of five old mistakes, put back, is found by the simulation.
#![allow(missing_docs)]

use polo_recipe::mistakes::{Mistake, put_back};
use polo_sim::{run::simulate, scenario::Scenario};

/// By then, each has been met many times over.
const MOST_RUNS: u64 = 3000;

/// Some run shows the symptom with the mistake, and nothing wrong without it. Other runs may merely never end.
fn assert_found(mistake: Mistake, symptom: &str) {
    for seed in 0..MOST_RUNS {
        put_back(Some(mistake));
        let wrong = simulate(&Scenario::new(seed)).wrong;
        put_back(None);
        if wrong.iter().any(|what| what.contains(symptom)) {
            println!("{mistake:?}: seed {seed}: {}", wrong[0]);
            let without = simulate(&Scenario::new(seed)).wrong;
            assert!(without.is_empty(), "seed {seed} fails without the mistake as well: {without:?}");
            return;
        }
    }
    panic!("{MOST_RUNS} runs did not find {mistake:?}");
}

#[test]
fn an_old_generation_that_is_accepted_is_found() {
    assert_found(Mistake::OldGenerationAccepted, "again");
}

#[test]
fn a_decided_step_that_is_dropped_is_found() {
    assert_found(Mistake::DecidedStepDropped, "wrong");
}

#[test]
fn a_manifest_before_its_chunks_is_found() {
    assert_found(Mistake::ManifestBeforeChunks, "before its chunk");
}

#[test]
fn a_generation_number_that_is_used_twice_is_found() {
    assert_found(Mistake::GenerationReused, "generation");
}

#[test]
fn a_joiner_in_the_middle_of_a_step_is_found() {
    assert_found(Mistake::JoinerInMidStep, "wrong parameter");
}
