//! What coordinator and workers do when Kubernetes ends their pods: they say by their exit code that somebody has to take
//! their place.
#![allow(missing_docs)]

mod support;

use std::process::Command;

use support::{ENDLESS, Running, World, finish, signal, talk, wait_for_status};

/// So that whoever leaves takes nothing with it that others do not have.
const TWO_COPIES: [&str; 2] = ["--set", "workers.copies=2"];

fn coordinator(world: &World, args: &[&str]) -> Running {
    let anywhere = if args.contains(&"--listen") { &[][..] } else { &["--listen", "127.0.0.1:0"] };
    Running::start(world.polo(&["coordinator", "recipe.toml"]).args(anywhere).args(ENDLESS).args(TWO_COPIES).args(args))
}

fn worker(world: &World, id: &str, address: &str) -> Running {
    let named = ["--id", id, "--coordinator", address, "--sigterm-exit-code", "75"];
    Running::start(world.worker(&named).args(ENDLESS).args(TWO_COPIES))
}

/// A command that must go well.
fn done(command: &mut Command) {
    let output = finish(command);
    assert!(output.status.success(), "{}", talk(&output));
}

/// The step that the run has come to, when it is past `step`.
fn past(step: u64) -> impl Fn(&serde_json::Value) -> Option<u64> {
    move |status| status["step"].as_u64().filter(|now| *now > step)
}

#[test]
fn a_coordinator_that_is_terminated_leaves_the_run_to_the_next_one() {
    let world = World::new();
    let mut first = coordinator(&world, &["--on-sigterm", "leave"]);
    first.address();
    signal(first.pid(), "TERM");
    let output = first.finish();
    assert_eq!(output.status.code(), Some(75), "{}", talk(&output));
    let mut second = coordinator(&world, &["--on-sigterm", "leave"]);
    let address = second.address();
    wait_for_status(&world, &address, |status| (status["phase"] == "waiting").then_some(()));
    // Ctrl-C still means the run.
    signal(second.pid(), "INT");
    assert!(talk(&second.finish()).contains("stopping after the step in progress"));
}

#[test]
fn workers_train_on_while_a_coordinator_is_replaced() {
    let world = World::new();
    let expected = ["--workers", "2", "--on-sigterm", "leave"];
    let mut first = coordinator(&world, &expected);
    let address = first.address();
    let workers = ["worker-0", "worker-1"].map(|id| worker(&world, id, &address));
    let (before, generation) =
        wait_for_status(&world, &address, |status| Some((past(1)(status)?, status["generation"].clone())));
    signal(first.pid(), "TERM");
    assert_eq!(first.finish().status.code(), Some(75));
    let port = address.rsplit(':').next().expect("a port").to_owned();
    let mut second = coordinator(&world, &[&expected[..], &["--listen", &format!("127.0.0.1:{port}")]].concat());
    second.address();
    let status = wait_for_status(&world, &address, |status| past(before)(status).map(|_| status.clone()));
    assert_eq!((&status["generation"], &status["incidents"]), (&generation, &serde_json::json!([])), "{status}");
    done(&mut world.polo(&["stop", "--address", &address]));
    for worker in workers {
        assert_eq!(worker.finish().status.code(), Some(0));
    }
    assert_eq!(second.finish().status.code(), Some(0));
}

#[test]
fn a_worker_that_comes_when_the_run_has_been_completed_has_nothing_to_do() {
    let world = World::new();
    support::result(&finish(&mut world.run(&[])));
    let output = finish(&mut world.worker(&["--id", "late", "--coordinator", "http://127.0.0.1:1"]));
    assert!(output.status.success() && talk(&output).contains("has been completed"), "{}", talk(&output));
}

#[test]
fn a_run_whose_end_was_not_written_down_is_ended_by_workers_that_come_later() {
    let world = World::new();
    let completed = support::result(&finish(&mut world.run(&[])));
    let journal =
        std::fs::read_dir(world.path("run/journal")).expect("a journal").map(|entry| entry.expect("one").path());
    let last = journal.filter(|path| path.extension().is_some_and(|it| it == "json")).max().expect("entries");
    assert!(std::fs::read_to_string(&last).expect("text").contains("ended"), "{}", last.display());
    std::fs::remove_file(last).expect("removed");
    let again = support::result(&finish(&mut world.run(&[])));
    assert_eq!(again["state_digest"], completed["state_digest"]);
}

#[test]
fn a_coordinator_stops_the_run_on_sigterm_unless_told_otherwise() {
    let world = World::new();
    let mut coordinator = coordinator(&world, &[]);
    coordinator.address();
    signal(coordinator.pid(), "TERM");
    let output = coordinator.finish();
    assert_ne!(output.status.code(), Some(75), "{}", talk(&output));
    assert!(talk(&output).contains("stopping after the step in progress"), "{}", talk(&output));
}

#[test]
fn a_worker_that_is_terminated_exits_otherwise_than_one_that_is_drained() {
    let world = World::new();
    let mut coordinator = coordinator(&world, &["--workers", "2"]);
    let address = coordinator.address();
    let [evicted, drained] = ["worker-0", "worker-1"].map(|id| worker(&world, id, &address));
    wait_for_status(&world, &address, past(1));
    signal(evicted.pid(), "TERM");
    let output = evicted.finish();
    assert_eq!(output.status.code(), Some(75), "{}", talk(&output));
    let replaced = worker(&world, "worker-0", &address);
    let members = |status: &serde_json::Value| {
        let members = status["members"].as_array()?;
        let trains = |m: &&serde_json::Value| m["role"] == "member";
        assert_eq!(status["incidents"], serde_json::json!([]), "nothing is done again");
        (members.iter().filter(trains).count() == 2).then(|| status["step"].as_u64())
    };
    wait_for_status(&world, &address, members);
    done(&mut world.polo(&["drain", "worker-1", "--address", &address]));
    let output = drained.finish();
    assert_eq!(output.status.code(), Some(0), "{}", talk(&output));
    done(&mut world.polo(&["stop", "--address", &address]));
    assert_eq!(replaced.finish().status.code(), Some(0));
    assert_eq!(coordinator.finish().status.code(), Some(0));
}
