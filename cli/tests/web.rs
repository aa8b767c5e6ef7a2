//! What a browser and Prometheus get from a coordinator, on the port that speaks gRPC.
#![allow(missing_docs)]

mod support;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use serde_json::Value;
use support::{ENDLESS, LIMIT, Running, World, finish, talk};

/// Sends a request; what comes is read until the server closes.
fn request(address: &str, path: &str, header: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address.trim_start_matches("http://")).expect("connected");
    stream.set_read_timeout(Some(LIMIT)).expect("set");
    write!(stream, "GET {path} HTTP/1.0\r\n{header}\r\n").expect("sent");
    stream
}

/// Head and body of the answer.
fn get(address: &str, path: &str, header: &str) -> (String, String) {
    let mut answer = String::new();
    request(address, path, header).read_to_string(&mut answer).expect("UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_ascii_lowercase(), body.to_owned())
}

fn json(address: &str, path: &str) -> Value {
    let (head, body) = get(address, path, "");
    assert!(head.starts_with("http/1.0 200") && head.contains("content-type: application/json"), "{head}");
    serde_json::from_str(&body).expect("JSON")
}

fn training(world: &World) -> (Running, String) {
    let mut run = Running::start(world.run(&["--workers", "2"]).args(ENDLESS));
    let address = run.address();
    run.wait_for_line("step     5 ");
    (run, address)
}

#[test]
fn the_page_is_whole_and_may_run_nothing_but_its_own() {
    let world = World::new();
    let (_run, address) = training(&world);
    let (head, body) = get(&address, "/", "");
    assert!(head.starts_with("http/1.0 200") && head.contains("content-type: text/html"), "{head}");
    let (_, nonce) = head.split_once("script-src 'nonce-").expect("a policy");
    let nonce = &nonce[..32];
    assert_eq!(body.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "of the style and of the script");
    assert!(!body.contains("{{") && body.contains("new ReadableStream") | body.contains("getReader"), "{body}");
    assert!(!get(&address, "/", "").0.contains(nonce), "each answer has another one");
    assert!(get(&address, "/nowhere", "").0.starts_with("http/1.0 404"));
}

#[test]
fn in_a_browser_the_page_shows_what_the_coordinator_says() {
    let world = World::new();
    let (_run, address) = training(&world);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = here.join("../third_party/browser/bin/python");
    assert!(python.exists(), "run `scripts/setup browser` first");
    let screenshot = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page.png");
    let mut check = Command::new(python);
    check.arg(here.join("tests/page/page_check.py")).arg(&address).arg("--screenshot").arg(&screenshot);
    let output = finish(&mut check);
    assert!(output.status.success(), "{}", talk(&output));
    assert!(screenshot.exists(), "it is kept at {}", screenshot.display());
}

#[test]
fn status_history_and_events_tell_of_the_run() {
    let world = World::new();
    let (_run, address) = training(&world);
    let status = json(&address, "/api/status");
    assert_eq!((&status["run"], &status["phase"]), (&"small".into(), &"training".into()));
    let steps = json(&address, "/api/history")["steps"].as_array().expect("steps").clone();
    assert!(steps.len() >= 5 && steps[0]["step"] == 1 && steps[0]["loss_by_source"]["en"].is_number(), "{steps:?}");
    let mut lines = BufReader::new(request(&address, "/api/events", "")).lines().map_while(Result::ok);
    let mut next = || {
        let data = lines.find_map(|line| line.strip_prefix("data: ").map(str::to_owned)).expect("an event");
        serde_json::from_str::<Value>(&data).expect("JSON")["step"].as_u64().expect("a step")
    };
    let first = next();
    assert!(next() > first);
}

#[test]
fn metrics_satisfy_promtool_and_agree_with_the_status() {
    let world = World::new();
    let (_run, address) = training(&world);
    let (head, metrics) = get(&address, "/metrics", "");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    let promtool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/prometheus/promtool");
    assert!(promtool.exists(), "run `scripts/setup prometheus` first");
    let mut check = Command::new(promtool);
    let mut check =
        check.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    check.stdin.take().expect("piped").write_all(metrics.as_bytes()).expect("written");
    let output = check.wait_with_output().expect("ended");
    assert!(output.status.success() && output.stderr.is_empty(), "{}\n{metrics}", talk(&output));
    for line in [
        "polo_members{role=\"member\",run=\"small\"} 2",
        "polo_run_phase{phase=\"training\",run=\"small\"} 1",
        "polo_run_phase{phase=\"failed\",run=\"small\"} 0",
        "polo_planned_steps{run=\"small\"} 1000000",
        "polo_planned_tokens{source=\"en\",stage=\"main\",run=\"small\"} 16000000",
    ] {
        assert!(metrics.lines().any(|it| it == line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn with_tokens_only_operators_are_told() {
    let world = World::new();
    world.write("worker", b"a-token-that-workers-have");
    world.write("operator", b"a-token-that-operators-have");
    let tokens = ["--worker-token-file", "worker", "--operator-token-file", "operator"];
    let mut run = Running::start(world.run(&["--workers", "1"]).args(ENDLESS).args(tokens));
    let address = run.address();
    let code = |path, token: &str| {
        let header = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
        let (head, _) = get(&address, path, &header);
        head["http/1.0 ".len()..][..3].to_owned()
    };
    for path in ["/api/status", "/api/history", "/metrics"] {
        assert_eq!(code(path, ""), "401", "{path}");
        assert_eq!(code(path, "a-token-that-nobody-has"), "401", "{path}");
        assert_eq!(code(path, "a-token-that-workers-have"), "403", "{path}");
        assert_eq!(code(path, "a-token-that-operators-have"), "200", "{path}");
    }
    assert_eq!(code("/", ""), "200");
    for path in ["/", "/api/status", "/api/history", "/metrics"] {
        let (head, body) = get(&address, path, "Authorization: Bearer a-token-that-operators-have\r\n");
        assert!(!format!("{head}{body}").contains("a-token-that"), "{path}");
    }
}

#[test]
fn so_many_may_watch_and_one_who_leaves_makes_room() {
    let world = World::new();
    let (_run, address) = training(&world);
    let watch = || {
        let mut answer = BufReader::new(request(&address, "/api/events", ""));
        let mut first = String::new();
        answer.read_line(&mut first).expect("an answer");
        (first.split(' ').nth(1).map(str::to_owned), answer)
    };
    let mut watching: Vec<_> = (0..100).map(|_| watch()).collect();
    assert!(watching.iter().all(|(code, _)| code.as_deref() == Some("200")));
    let (code, mut refused) = watch();
    let mut words = String::new();
    refused.read_to_string(&mut words).expect("UTF-8");
    assert!(code.as_deref() == Some("503") && words.contains("100 others watch"), "{code:?} {words}");
    watching.clear();
    // The coordinator sees that they are gone when it has something to tell them.
    let deadline = Instant::now() + LIMIT;
    while watch().0.as_deref() != Some("200") {
        assert!(Instant::now() < deadline, "no room within {LIMIT:?}");
    }
}

#[test]
fn utilization_is_shown_if_the_recipe_says_what_a_device_can_do() {
    let world = World::new();
    let with_peak = finish(&mut world.run(&["--set", "run.device_peak_tflops=0.05"]));
    assert!(
        talk(&with_peak).lines().any(|line| line.starts_with("step") && line.contains("  MFU ")),
        "{}",
        talk(&with_peak)
    );
    let refused = finish(&mut world.run(&["--set", "run.device_peak_tflops=0"]));
    support::assert_one_error(&refused, &["run.device_peak_tflops"]);
}
