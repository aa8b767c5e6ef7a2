//! What follows a run beside it, read by programs of another make: TensorBoard, a collector of traces, and whoever reads
//! logs as JSON (`scripts/setup tensorboard rotel`).
#![allow(missing_docs)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{LIMIT, World, finish, result, talk};

fn third_party(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party").join(path);
    assert!(path.exists(), "run `scripts/setup tensorboard rotel` first");
    path
}

/// Curves as TensorBoard has them: by tag, steps and values.
fn curves(folder: &Path) -> BTreeMap<String, Vec<(u64, f64)>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/read_event_files.py");
    let output = finish(Command::new(third_party("tensorboard/bin/python")).arg(script).arg(folder));
    assert!(output.status.success(), "{}", talk(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn steps(points: &[(u64, f64)]) -> Vec<u64> {
    points.iter().map(|(step, _)| *step).collect()
}

#[test]
fn tensorboard_reads_the_curves_of_a_run() {
    let world = World::new();
    result(&finish(&mut world.run(&["--tensorboard", "--set", "stages.0.steps=2"])));
    let first = curves(&world.path("run/tensorboard"));
    for tag in ["loss", "loss/en", "loss/ne", "learning_rate", "grad_norm", "speed/tokens_per_second"] {
        assert_eq!(steps(&first[tag]), [1, 2], "{tag}");
    }
    let plain = World::new();
    let ended = result(&finish(&mut plain.run(&["--set", "stages.0.steps=2"])));
    assert!((first["loss"][1].1 - ended["loss"].as_f64().expect("a loss")).abs() < 1e-4);
    assert!(!plain.path("run/tensorboard").exists());
}

/// A collector that writes what it gets to a file, in words.
struct Collector {
    process: Child,
    folder: tempfile::TempDir,
    endpoint: String,
}

impl Collector {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [grpc, http] = sockets.map(|socket| socket.local_addr().expect("an address").to_string());
        let mut command = Command::new(third_party("rotel/rotel"));
        command.args([
            "start",
            "--exporter",
            "blackhole",
            "--debug-log",
            "traces",
            "--debug-log-verbosity",
            "detailed",
        ]);
        command.args(["--otlp-grpc-endpoint", &grpc, "--otlp-http-endpoint", &http]);
        let log = fs::File::create(folder.path().join("log")).expect("a file");
        let process = command.stdout(log).stderr(Stdio::null()).spawn().expect("rotel starts");
        let collector = Self { process, folder, endpoint: format!("http://{grpc}") };
        collector.wait_for("rotel listens", || TcpStream::connect(&grpc).is_ok());
        collector
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).expect("its log")
    }

    fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !is_so() {
            assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}; {}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Each span's text, by name.
    fn spans(&self) -> BTreeMap<String, Vec<String>> {
        let mut spans = BTreeMap::<_, Vec<_>>::new();
        for span in self.log().split("\nSpan #").skip(1) {
            let (_, name) = span.split_once("Name           : ").expect("a name");
            spans.entry(name.lines().next().unwrap_or_default().to_owned()).or_default().push(span.to_owned());
        }
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_collector_gets_steps_generations_and_checkpoints() {
    let world = World::new();
    let collector = Collector::start();
    let mut run = world.run(&["--workers", "2", "--otlp-endpoint", &collector.endpoint]);
    result(&finish(run.args(["--set", "checkpoint.every_steps=2"])));
    collector.wait_for("the generation, which is sent last", || collector.spans().contains_key("generation"));
    let spans = collector.spans();
    assert_eq!((spans["step"].len(), spans["checkpoint"].len(), spans["generation"].len()), (3, 2, 1), "{spans:?}");
    let id =
        spans["generation"][0].lines().find_map(|line| line.trim().strip_prefix("ID             : ")).expect("an id");
    for (number, step) in (1..).zip(&spans["step"]) {
        assert!(
            step.contains(&format!("polo.step: Int({number})")) && step.contains(&format!("-> ID: {id}")),
            "{step}"
        );
    }
    assert!(spans["generation"][0].contains("polo.num_workers: Int(2)"), "{spans:?}");
    assert!(collector.log().contains("service.name: Str(polo)") && collector.log().contains("polo.run: Str(small)"));
}

#[test]
fn a_collector_that_is_not_there_is_reported_and_holds_nothing_up() {
    let world = World::new();
    let output = finish(&mut world.run(&["--otlp-endpoint", "http://127.0.0.1:1"]));
    result(&output);
    assert!(
        talk(&output).contains("WARN opentelemetry") || talk(&output).contains("ERROR opentelemetry"),
        "{}",
        talk(&output)
    );
}

#[test]
fn every_line_of_json_says_where_in_the_run_it_was_said() {
    let world = World::new();
    let mut run = world.run(&["--workers", "2"]);
    let output = finish(run.env("POLO_LOG_FORMAT", "json").env("POLO_LOG", "info"));
    assert!(output.status.success(), "{}", talk(&output));
    let told = String::from_utf8(output.stderr).expect("UTF-8");
    let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    for line in &lines {
        for key in ["time", "level", "target", "message", "run", "generation", "rank", "step"] {
            assert!(line.get(key).is_some(), "{key} is not in {line}");
        }
    }
    let of_step = |step: u64| {
        lines.iter().find(|line| line["message"].as_str().is_some_and(|m| m.starts_with(&format!("step {step:>5} "))))
    };
    let third = of_step(3).expect("the line of step 3");
    assert_eq!((&third["run"], &third["generation"], &third["step"]), (&"small".into(), &1.into(), &3.into()));
    let failed = finish(world.polo(&["run", "nowhere.toml"]).env("POLO_LOG_FORMAT", "json"));
    let line: Value = serde_json::from_slice(&failed.stderr).expect("one line");
    assert_eq!(line["level"], "ERROR");
}
