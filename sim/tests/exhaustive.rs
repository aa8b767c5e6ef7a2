//! Every order of events of a small world: how a step is decided, and what survivors of crashes make of it.
//!
//! The ranks here exchange what the step's phases exchange (pieces of gradients, norms, parameters) over queues that lose
//! any tail of what a crashed rank has sent. How a generation begins is decided by the real [`arrive`].

mod step_model;

use stateright::{Checker, Model};
use step_model::World;

fn check(world: World) {
    let checker = world.checker().threads(2).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

const SMALL: World = World { num_crashes: 1, copies: 2, num_founders: 3, has_joiner: false, checkpoint: None };

#[test]
fn with_two_copies_a_crash_at_any_moment_drops_no_decided_step_and_mixes_no_states() {
    check(SMALL);
}

#[test]
fn a_joiner_that_comes_at_any_moment_changes_nothing_about_that() {
    check(World { has_joiner: true, ..SMALL });
}

#[test]
fn after_two_crashes_at_any_moments_nobody_goes_on_from_a_mixed_state() {
    check(World { num_crashes: 2, ..SMALL });
}

#[test]
fn three_copies_survive_two_crashes_at_any_moments() {
    check(World { num_crashes: 2, copies: 3, ..SMALL });
}

#[test]
fn with_one_copy_a_lost_chunk_takes_everybody_back_together() {
    check(World { copies: 1, has_joiner: true, ..SMALL });
}

#[test]
fn whoever_has_gone_beyond_the_checkpoint_returns_to_it_with_all_others() {
    check(World { num_crashes: 2, checkpoint: Some(1), ..SMALL });
}
