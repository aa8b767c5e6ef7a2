//! A run whose coordinator asks for certificates or tokens: friends train and steer, strangers and the wrong friends are
//! refused, by our own programs and by clients of another make (`scripts/setup grpcurl grpcio`).
#![allow(missing_docs)]

mod support;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use polo_transport::testing::{Authority, Issued};
use support::{ENDLESS, Running, World, assert_one_error, finish, result, talk};

const WORKER_TOKEN: &str = "a-token-that-workers-have";
const OPERATOR_TOKEN: &str = "a-token-that-operators-have";

/// Certificates and tokens of one run.
struct Papers {
    world: World,
    authority: Authority,
    server: Issued,
    worker: Issued,
    operator: Issued,
}

impl Papers {
    fn new() -> Self {
        let world = World::new();
        let authority = Authority::new(&world.path(""), "ca");
        let server = authority.issue("server", &["localhost", "127.0.0.1"]);
        let worker = authority.issue("worker", &["worker.polo"]);
        let operator = authority.issue("operator", &["operator.polo"]);
        world.write("worker-token", WORKER_TOKEN.as_bytes());
        world.write("operator-token", OPERATOR_TOKEN.as_bytes());
        Self { world, authority, server, worker, operator }
    }

    /// A coordinator over TLS, with these options; and its address.
    fn coordinator(&self, options: &[&str]) -> (Running, String) {
        let mut command = self.world.polo(&["coordinator", "recipe.toml", "--listen", "127.0.0.1:0"]);
        command.arg("--tls-cert").arg(&self.server.cert).arg("--tls-key").arg(&self.server.key).args(options);
        let mut running = Running::start(&mut command);
        let address = running.address().replace("http://", "https://");
        (running, address)
    }

    fn mutual(&self) -> [String; 2] {
        ["--client-ca".into(), self.authority.cert().display().to_string()]
    }

    fn command(&self, words: &[&str], address: &str, shown: &[&Path]) -> Command {
        let mut command = self.world.polo(words);
        command.args(["--address", address]).arg("--ca").arg(self.authority.cert());
        if let [cert, key] = shown {
            command.arg("--cert").arg(cert).arg("--key").arg(key);
        } else if let [token] = shown {
            command.arg("--token-file").arg(token);
        }
        command
    }

    fn worker(&self, id: &str, address: &str, shown: &[&Path]) -> Command {
        let mut command = self.world.worker(&["--id", id, "--coordinator", address]);
        command.arg("--ca").arg(self.authority.cert());
        if let [cert, key] = shown {
            command.arg("--cert").arg(cert).arg("--key").arg(key);
        } else if let [token] = shown {
            command.arg("--token-file").arg(token);
        }
        command
    }
}

fn files(issued: &Issued) -> [&Path; 2] {
    [&issued.cert, &issued.key]
}

fn third_party(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party").join(path);
    assert!(path.exists(), "run `scripts/setup grpcurl grpcio` first");
    path
}

#[test]
fn a_run_over_mutual_tls_ends_in_the_same_state() {
    let papers = Papers::new();
    let plain = result(&finish(&mut papers.world.run(&["--set", "run.store=plain"])));
    let mutual = papers.mutual();
    let (coordinator, address) = papers.coordinator(&[&mutual[0], &mutual[1], "--workers", "2"]);
    let workers = ["w0", "w1"].map(|id| Running::start(&mut papers.worker(id, &address, &files(&papers.worker))));
    assert_eq!(result(&coordinator.finish())["state_digest"], plain["state_digest"]);
    for worker in workers {
        let output = worker.finish();
        assert!(output.status.success(), "{}", talk(&output));
    }
}

#[test]
fn a_run_with_tokens_ends_in_the_same_state_and_shows_them_nowhere() {
    let papers = Papers::new();
    let plain = result(&finish(&mut papers.world.run(&["--set", "run.store=plain"])));
    let mut run = papers.world.run(&["--workers", "2", "--worker-token-file", "worker-token"]);
    run.args(["--operator-token-file", "operator-token"]).env("POLO_LOG", "debug");
    let output = finish(&mut run);
    assert_eq!(result(&output)["state_digest"], plain["state_digest"]);
    for token in [WORKER_TOKEN, OPERATOR_TOKEN] {
        assert!(!talk(&output).contains(token));
    }
}

#[test]
fn strangers_and_the_wrong_friends_are_refused() {
    let papers = Papers::new();
    let tokens = ["--worker-token-file", "worker-token", "--operator-token-file", "operator-token"];
    let mutual = papers.mutual();
    let (_coordinator, address) = papers.coordinator(&[&tokens[..], &[&mutual[0], &mutual[1]]].concat());
    let [worker_token, operator_token] = ["worker-token", "operator-token"].map(|name| papers.world.path(name));
    let status = |shown: &[&Path]| finish(&mut papers.command(&["status"], &address, shown));
    for shown in [&files(&papers.operator)[..], &[&operator_token]] {
        let output = status(shown);
        assert!(output.status.success(), "{}", talk(&output));
    }
    assert_one_error(&status(&[]), &[&address, "no valid token or certificate was shown", "--token-file"]);
    papers.world.write("wrong", b"a-token-that-nobody-has");
    assert_one_error(&status(&[&papers.world.path("wrong")]), &["no valid token or certificate was shown"]);
    for shown in [&files(&papers.worker)[..], &[&worker_token]] {
        let output = finish(&mut papers.command(&["stop"], &address, shown));
        assert_one_error(&output, &["needs the role of Operator"]);
    }
    let unencrypted = address.replace("https://", "http://");
    assert_one_error(&finish(&mut papers.command(&["status"], &unencrypted, &[])), &[&unencrypted]);
    let mut joins = papers.worker("w0", &address, &[&operator_token]);
    let output = finish(joins.args(["--set", "workers.coordinator_timeout_s=1"]));
    assert_one_error(&output, &["needs the role of Worker"]);
}

#[test]
fn an_address_for_others_is_not_served_without_protection() {
    let papers = Papers::new();
    let serve = |options: &[&str]| {
        let mut command = papers.world.polo(&["coordinator", "recipe.toml", "--listen", "0.0.0.0:0"]);
        command.args(options);
        command
    };
    assert_one_error(&finish(&mut serve(&[])), &["0.0.0.0:0 can be reached by others", "--tls-cert", "--insecure"]);
    Running::start(&mut serve(&["--insecure"])).address();
}

#[test]
fn clients_of_another_make_watch_and_drain_with_the_right_token_only() {
    let papers = Papers::new();
    let tokens = ["--worker-token-file", "worker-token", "--operator-token-file", "operator-token"];
    let options = [&tokens[..], &ENDLESS, &["--workers", "2", "--health-listen", "127.0.0.1:0"]].concat();
    let (mut coordinator, address) = papers.coordinator(&options);
    let probes = coordinator.wait_for_line("probes are answered on ").replace("probes are answered on ", "");
    let token = papers.world.path("worker-token");
    let workers = ["w0", "w1"].map(|id| {
        let mut command = papers.worker(id, &address, &[&token]);
        Running::start(command.args(ENDLESS))
    });
    coordinator.wait_for_line("2 workers");
    let authority = address.trim_start_matches("https://");
    let grpcurl = |arguments: &[&str]| -> Output {
        let mut command = Command::new(third_party("grpcurl/grpcurl"));
        command.arg("-cacert").arg(papers.authority.cert()).args(["-max-time", "60"]);
        finish(command.args(arguments))
    };
    let bearer = format!("authorization: Bearer {OPERATOR_TOKEN}");
    let refused = grpcurl(&[authority, "polo.v1.Control/GetStatus"]);
    assert!(!refused.status.success() && talk(&refused).contains("no valid token"), "{}", talk(&refused));
    let listed = grpcurl(&["-H", &bearer, authority, "list"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("polo.v1.Control"), "{}", talk(&listed));
    let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grpc_client.py");
    let mut python = Command::new(third_party("grpcio/bin/python"));
    python.arg(client).arg(authority).arg(papers.authority.cert()).args([OPERATOR_TOKEN, WORKER_TOKEN, "w1", &probes]);
    let output = finish(&mut python);
    assert!(output.status.success(), "{}", talk(&output));
    let [_, drained] = workers;
    let output = drained.finish();
    assert!(output.status.success(), "{}", talk(&output));
}
