//! The coordinator beside a gRPC client that is not ours: grpcurl (`scripts/setup grpcurl`), which knows nothing of
//! polo.v1 but what reflection tells it.
#![allow(missing_docs)]

use std::{
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
};

use polo_store::{Store, testing::put_corpus};
use serde_json::{Value, json};

const RECIPE: &str = r#"
run = { name = "asked", store = "run" }
corpus = { url = "corpus" }
batch = { seq_len = 8, samples_per_step = 2, slots = 2 }
[model.qwen2]
hidden_size = 8
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 12
vocab_size = 20
[[stages]]
name = "main"
steps = 3
schedule = { kind = "constant", peak_learning_rate = 1e-3 }
sources = [{ name = "a", weight_tokens = 1 }]
"#;

/// A coordinator that nobody joins.
struct Coordinator {
    process: Child,
    address: String,
    /// Held open: who cannot be heard does not live long.
    _talk: BufReader<ChildStderr>,
    _folder: tempfile::TempDir,
}

impl Coordinator {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let corpus = Store::open(&folder.path().join("corpus").display().to_string()).expect("a folder");
        put_corpus(&corpus, 20, &[("a", vec![vec![(0..100).map(|n| n % 20).collect()]])]).await;
        std::fs::write(folder.path().join("recipe.toml"), RECIPE).expect("written");
        let mut process = Command::new(env!("CARGO_BIN_EXE_polo"))
            .arg("coordinator")
            .arg(folder.path().join("recipe.toml"))
            .args(["--listen", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .expect("polo starts");
        let mut talk = BufReader::new(process.stderr.take().expect("piped"));
        let mut lines = talk.by_ref().lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("coordinator listens on ").map(str::to_owned));
        let address = address.expect("it says where it listens before its output ends");
        Self { process, address, _talk: talk, _folder: folder }
    }

    fn grpcurl(&self, data: Option<Value>, method: &str) -> String {
        let grpcurl = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/grpcurl/grpcurl");
        assert!(grpcurl.exists(), "run `scripts/setup grpcurl` first");
        let mut command = Command::new(grpcurl);
        command.args(["-plaintext", "-max-time", "60", "-emit-defaults"]);
        if let Some(data) = data {
            command.arg("-d").arg(data.to_string());
        }
        let output = command.arg(&self.address).arg(method).output().expect("grpcurl starts");
        assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn call(&self, method: &str, data: Value) -> Value {
        serde_json::from_str(&self.grpcurl(Some(data), method)).expect("JSON")
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn reflection_health_and_status_answer_a_client_of_another_make() {
    let coordinator = Coordinator::start().await;
    let services = coordinator.grpcurl(None, "list");
    for service in ["polo.v1.Control", "polo.v1.Coordination", "grpc.health.v1.Health"] {
        assert!(services.lines().any(|line| line == service), "{service} is not among {services}");
    }
    for service in ["polo.v1.Control", "polo.v1.Coordination"] {
        let health = coordinator.call("grpc.health.v1.Health/Check", json!({"service": service}));
        assert_eq!(health["status"], json!("SERVING"), "{service}");
    }
    let status = &coordinator.call("polo.v1.Control/GetStatus", json!({}))["status"];
    assert_eq!((&status["run"], &status["phase"]), (&json!("asked"), &json!("RUN_PHASE_WAITING")));
    assert_eq!((&status["numSteps"], &status["step"]), (&json!("3"), &json!("0")));
    assert!(status["waitingFor"].as_str().is_some_and(|text| text.contains("worker")), "{status}");
}
