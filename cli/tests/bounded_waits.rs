//! Nothing waits without a bound: every wait ends in a message that says what was awaited and for how long.
#![allow(missing_docs)]

mod support;

use std::{net::TcpListener, time::Duration};

use polo_proto::v1::{
    self, coordination_client::CoordinationClient, session_request::Message as Up, session_response::Message as Down,
};
use polo_store::corpus::CorpusManifest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use support::{ENDLESS, LIMIT, Running, World, assert_one_error, finish, result, signal, talk, wait_for_status};

/// An address where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("http://{}", listener.local_addr().expect("its address"))
}

#[test]
fn a_run_with_too_few_workers_says_how_many_it_waited_for_and_how_long() {
    let world = World::new();
    let mut run = world.run(&["--set", "workers.min_workers=2", "--set", "workers.wait_timeout_s=2"]);
    let mut run = Running::start(&mut run);
    let address = run.address();
    let waiting = wait_for_status(&world, &address, |status| {
        let waiting = status["waiting_for"].as_str().expect("text");
        waiting.contains("2 workers, 1 here; gives up in").then(|| status["phase"].clone())
    });
    assert_eq!(waiting, "waiting");
    assert_one_error(&run.finish(), &["waited 2 s for 2 workers, 1 worker came", "lower workers.min_workers"]);
}

#[test]
fn an_absent_coordinator_is_named_with_the_time_it_was_waited_for() {
    let world = World::new();
    let address = nobody();
    for command in ["status", "checkpoint", "stop"] {
        let failed = finish(&mut world.polo(&[command, "--address", &address]));
        assert_one_error(&failed, &[&format!("no coordinator at {address}"), "Connection refused", "--address"]);
    }
    let timeout = ["--set", "workers.coordinator_timeout_s=1"];
    let failed = finish(world.worker(&["--id", "a", "--coordinator", &address]).args(timeout));
    assert_one_error(&failed, &[&format!("waited 1 s for the coordinator at {address}"), "check that it runs"]);
    let without_scheme = address.trim_start_matches("http://");
    let failed = finish(world.worker(&["--id", "a", "--coordinator", without_scheme]).args(timeout));
    assert_one_error(&failed, &["waited 1 s for the coordinator at http://127", "Connection refused"]);
}

#[test]
fn a_coordinator_that_accepts_and_never_answers_is_given_up() {
    let world = World::new();
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", silent.local_addr().expect("its address"));
    let failed = finish(&mut world.polo(&["status", "--address", &address]));
    assert_one_error(&failed, &[&format!("no coordinator at {address}"), "no answer within 5 s"]);
    let sets = ["--set", "workers.coordinator_timeout_s=1", "--set", "workers.connect_timeout_s=1"];
    let failed = finish(world.worker(&["--id", "a", "--coordinator", &address]).args(sets));
    assert_one_error(&failed, &["waited 1 s for the coordinator", "no answer within 1 s"]);
}

#[test]
fn a_coordinator_that_freezes_is_given_up_by_workers_and_watchers() {
    let world = World::new();
    let sets = ["--set", "workers.coordinator_timeout_s=1", "--set", "workers.connect_timeout_s=1"];
    let mut coordinator = world.polo(&["coordinator", "recipe.toml", "--listen", "127.0.0.1:0"]);
    let mut coordinator = Running::start(coordinator.args(ENDLESS));
    let address = coordinator.address();
    let mut worker = world.worker(&["--id", "a", "--coordinator", &address]);
    let worker = Running::start(worker.args(ENDLESS).args(sets));
    coordinator.wait_for_line("step     1 ");
    let mut watcher = Running::start(&mut world.polo(&["status", "--watch", "--address", &address]));
    watcher.wait_for_output();
    wait_for_status(&world, &address, |status| (status["step"].as_u64() > Some(1)).then_some(()));
    signal(coordinator.pid(), "STOP");
    assert_one_error(&worker.finish(), &["waited 1 s for the coordinator at http://127"]);
    assert_one_error(&watcher.finish(), &["lost the coordinator at http://127", "before the run had ended"]);
}

#[test]
fn a_frozen_worker_is_counted_out_and_the_others_go_on() {
    let world = World::new();
    let sets = ["--workers", "2", "--set", "workers.heartbeat_timeout_ms=1000"];
    let mut run = Running::start(world.run(&sets).args(ENDLESS));
    let frozen = run.wait_for("worker w1", |line| line.strip_prefix("worker w1 started (pid ").map(str::to_owned));
    let frozen: u32 = frozen.trim_end_matches(')').parse().expect("a pid");
    let address = run.address();
    run.wait_for_line("step     1 ");
    signal(frozen, "STOP");
    let lost = run.wait_for_line("lost worker w1");
    assert!(lost.contains("silent for 1"), "{lost}");
    run.wait_for_line("1 worker  sent");
    wait_for_status(&world, &address, |status| {
        let incident = &status["incidents"][0];
        incident["recovery_ms"].is_u64().then(|| assert_eq!(incident["worker_id"], "w1", "{status}"))
    });
    signal(frozen, "CONT");
    run.wait_for_line("2 workers  sent");
    assert!(finish(&mut world.polo(&["stop", "--address", &address])).status.success());
    assert_eq!(result(&run.finish())["outcome"], "stopped");
}

/// A process that joins a run and says that it lives, but whose data plane accepts connections and never answers.
async fn pretend(address: String, hello: v1::Hello) -> Option<String> {
    let mut client = CoordinationClient::connect(address).await.expect("a coordinator");
    let (up, requests) = mpsc::channel(4);
    let say = |message| v1::SessionRequest { message: Some(message) };
    up.send(say(Up::Hello(hello))).await.expect("sent");
    let mut down = client.session(ReceiverStream::new(requests)).await.expect("a session").into_inner();
    let mut heartbeat = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            message = down.message() => match message.expect("a message")?.message {
                Some(Down::Refused(refused)) => return Some(refused.reason),
                _ => continue,
            },
            _ = heartbeat.tick() => drop(up.send(say(Up::Heartbeat(v1::Heartbeat::default()))).await),
        }
    }
}

#[test]
fn a_worker_whose_data_plane_never_answers_is_dismissed() {
    let world = World::new();
    let shown = finish(world.polo(&["recipe", "show", "recipe.toml"]).args(ENDLESS));
    let corpus = CorpusManifest::parse("corpus", &world.read("corpus/manifest.json")).expect("a manifest");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let hello = v1::Hello {
        worker_id: "silent".into(),
        recipe_identity: talk(&shown).trim().trim_start_matches("identity ").into(),
        corpus_digest: corpus.digest().to_string(),
        data_address: silent.local_addr().expect("its address").to_string(),
        ..v1::Hello::default()
    };
    let mut coordinator = world.polo(&["coordinator", "recipe.toml", "--listen", "127.0.0.1:0", "--workers", "2"]);
    let mut coordinator = Running::start(coordinator.args(ENDLESS));
    let address = coordinator.address();
    let mut worker = world.worker(&["--id", "a", "--coordinator", &address, "--set", "workers.wait_timeout_s=2"]);
    let _worker = Running::start(worker.args(ENDLESS));
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let told = runtime.block_on(async { tokio::time::timeout(LIMIT, pretend(address, hello)).await });
    let told = told.expect("in time").expect("it is told why it may not take part");
    assert!(told.contains("2 times in a row") && told.contains(" ms for rank "), "{told}");
    coordinator.wait_for_line("lost worker silent: other workers waited for it");
    coordinator.wait_for_line("1 worker  sent");
}

#[test]
fn a_run_whose_workers_all_die_ends() {
    let world = World::new();
    let mut run = Running::start(world.run(&["--workers", "2"]).args(ENDLESS));
    let pids: Vec<u32> = (0..2)
        .map(|_| run.wait_for("worker", |line| line.split_once(" started (pid ").map(|(_, pid)| pid.to_owned())))
        .map(|pid| pid.trim_end_matches(')').parse().expect("a pid"))
        .collect();
    run.wait_for_line("step     1 ");
    pids.into_iter().for_each(|pid| signal(pid, "KILL"));
    assert_one_error(&run.finish(), &["all workers have exited and the run is not over"]);
}

#[test]
fn workers_that_die_at_once_are_not_started_for_ever() {
    let world = World::new();
    let failed = finish(&mut world.run(&["--workers", "2", "--respawn", "--worker-program", "/bin/false"]));
    assert_one_error(&failed, &["all workers have exited and the run is not over"]);
    for worker in ["w0", "w1"] {
        let words = format!("worker {worker} is not started again: it exited 3 times in a row within 5 s of its start");
        assert!(talk(&failed).contains(&words), "{}", talk(&failed));
    }
}
