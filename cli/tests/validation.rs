//! What people are told of held-out samples, by the real coordinator; the worker is this test and says what it likes.
#![allow(missing_docs)]

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Output, Stdio},
};

use polo_proto::v1::{
    self, SessionRequest, SessionResponse, coordination_client::CoordinationClient, session_request::Message,
    session_response,
};
use polo_recipe::layout::Layout;
use polo_store::{Store, checkpoint::put_chunk, recipe_file, testing::put_corpus};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

const RECIPE: &str = r#"
run = { name = "watched", store = "run" }
corpus = { url = "corpus" }
batch = { seq_len = 8, samples_per_step = 2, slots = 1 }
validation = { every_steps = 2, watch = ["en"] }
workers = { heartbeat_timeout_ms = 600000 }
[model.qwen2]
hidden_size = 8
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 12
vocab_size = 20
[[stages]]
name = "main"
steps = 4
schedule = { kind = "constant", peak_learning_rate = 1e-3 }
sources = [{ name = "en", weight_tokens = 1 }]
"#;

/// A folder with a corpus and a recipe.
struct Lab {
    folder: tempfile::TempDir,
    corpus_digest: String,
}

impl Lab {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let corpus = Store::open(&folder.path().join("corpus").display().to_string()).expect("a folder");
        let manifest = put_corpus(&corpus, 20, &[("en", vec![vec![(0..1000).map(|n| n % 20).collect()]])]).await;
        std::fs::write(folder.path().join("recipe.toml"), RECIPE).expect("written");
        Self { folder, corpus_digest: manifest.digest().to_string() }
    }

    fn coordinator(&self, arguments: &[&str]) -> Coordinator {
        let mut process = Command::new(env!("CARGO_BIN_EXE_polo"))
            .arg("coordinator")
            .arg(self.folder.path().join("recipe.toml"))
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("polo starts");
        let mut talk = BufReader::new(process.stderr.take().expect("piped"));
        let mut lines = talk.by_ref().lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("coordinator listens on ").map(str::to_owned));
        Coordinator { process, talk, address: address.expect("it says where it listens before its output ends") }
    }

    fn hello(&self) -> Message {
        let recipe = recipe_file::load(&self.folder.path().join("recipe.toml"), &[]).expect("a recipe");
        Message::Hello(v1::Hello {
            worker_id: "w0".into(),
            incarnation: 1,
            recipe_identity: recipe.identity(),
            corpus_digest: self.corpus_digest.clone(),
            data_address: "127.0.0.1:1".into(),
            ..Default::default()
        })
    }

    /// Stores a state of zeros as that of the step.
    async fn checkpoint(&self, generation: u64, step: u64) -> Message {
        let recipe = recipe_file::load(&self.folder.path().join("recipe.toml"), &[]).expect("a recipe");
        let store = Store::open(&recipe.run.store).expect("a folder");
        let mut chunks = Vec::new();
        for (chunk, spec) in (0..).zip(&Layout::qwen2(&recipe.model.qwen2).chunks) {
            // A parameter and its two moments, of 4 bytes each.
            let digest = put_chunk(&store, vec![0; 12 * spec.range.len()].into()).await.expect("stored");
            chunks.push(v1::ChunkDigest { chunk, digest: digest.0.to_vec() });
        }
        Message::CheckpointPart(v1::CheckpointPart { generation, step, chunks, ..Default::default() })
    }
}

struct Coordinator {
    process: Child,
    talk: BufReader<std::process::ChildStderr>,
    address: String,
}

impl Coordinator {
    fn status(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_polo"));
        command.args(["status", "--address", &self.address]).args(arguments);
        command
    }

    /// The first status that says so, of those that are told until the run ends.
    fn await_status(&self, says_so: impl Fn(&Value) -> bool) -> Value {
        let mut watching = self.status(&["--watch", "--json"]).stdout(Stdio::piped()).spawn().expect("polo starts");
        let lines = BufReader::new(watching.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let mut statuses = lines.map(|line| serde_json::from_str::<Value>(&line).expect("JSON"));
        let found = statuses.find(says_so).expect("it is said before the run ends");
        let _ = watching.kill();
        let _ = watching.wait();
        found
    }

    /// What it said to people, and its last words.
    fn end(mut self) -> (String, Output) {
        let (mut said, mut stdout) = (String::new(), Vec::new());
        self.talk.read_to_string(&mut said).expect("UTF-8");
        self.process.stdout.take().expect("piped").read_to_end(&mut stdout).expect("read");
        let status = self.process.wait().expect("it ends");
        (said, Output { status, stdout, stderr: Vec::new() })
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The only worker of a run.
struct Worker {
    words: mpsc::UnboundedSender<SessionRequest>,
    told: Streaming<SessionResponse>,
    generation: u64,
}

impl Worker {
    async fn join(lab: &Lab, coordinator: &Coordinator) -> Self {
        let mut client =
            CoordinationClient::connect(format!("http://{}", coordinator.address)).await.expect("it listens");
        let (words, said) = mpsc::unbounded_channel();
        words.send(SessionRequest { message: Some(lab.hello()) }).expect("open");
        let told = client.session(UnboundedReceiverStream::new(said)).await.expect("a session").into_inner();
        let mut worker = Self { words, told, generation: 0 };
        while let Some(message) = worker.hear().await {
            if let session_response::Message::Generation(generation) = message {
                worker.generation = generation.generation;
                return worker;
            }
        }
        panic!("no generation")
    }

    async fn hear(&mut self) -> Option<session_response::Message> {
        self.told.message().await.expect("no error").and_then(|response| response.message)
    }

    fn say(&self, message: Message) {
        self.words.send(SessionRequest { message: Some(message) }).expect("open");
    }

    fn validated(&self, step: u64, loss: f64) {
        let bits_per_byte = Some(loss / 4.0);
        let sources = vec![v1::ValidationLoss { source: "en".into(), loss, num_tokens: 128, bits_per_byte }];
        self.say(Message::Validated(v1::Validated { generation: self.generation, step, sources }));
    }

    async fn finish(mut self, lab: &Lab, step: u64) {
        self.say(lab.checkpoint(self.generation, step).await);
        let generation = self.generation;
        self.say(Message::Finished(v1::Finished { generation, step, state_digest: String::new() }));
        while self.hear().await.is_some() {}
    }
}

// What waits for the coordinator's processes blocks its thread.
#[tokio::test(flavor = "multi_thread")]
async fn a_watched_source_that_ends_worse_is_shown_and_fails_the_command_if_that_is_wanted() {
    let lab = Lab::new().await;
    let coordinator = lab.coordinator(&["--fail-on-worse"]);
    let worker = Worker::join(&lab, &coordinator).await;
    worker.validated(0, 2.0);
    worker.validated(2, 2.5);
    let status = coordinator.await_status(|status| status["validation"]["en"]["last"]["step"] == 2);
    let en = &status["validation"]["en"];
    assert_eq!((&en["baseline"]["loss"], &en["last"]["bits_per_byte"]), (&json!(2.0), &json!(0.625)));
    assert_eq!((&en["watched"], &en["worse"], &status["num_alarms"]), (&json!(true), &json!(true), &json!(1)));
    let text = coordinator.status(&[]).output().expect("polo starts").stdout;
    let text = String::from_utf8(text).expect("UTF-8");
    let line = "  held-out en: 0.6250 bits/byte at step 2, +25.00 % since 0.5000 bits/byte at step 0  ALARM: worse than allowed";
    assert!(text.lines().any(|l| l == line), "{text}");
    worker.validated(4, 2.4);
    worker.finish(&lab, 4).await;
    let (said, ended) = coordinator.end();
    assert_eq!(ended.status.code(), Some(3), "{said}");
    let last: Value = serde_json::from_slice(&ended.stdout).expect("a line of JSON");
    assert_eq!((&last["outcome"], &last["num_alarms"]), (&json!("completed"), &json!(1)));
    assert_eq!(
        (&last["validation"]["en"]["last"]["step"], &last["validation"]["en"]["worse"]),
        (&json!(4), &json!(true))
    );
    for words in ["validation at step 4: en loss 2.4", "alarm: source en is worse at step 2", "0.6000 bits/byte  alarm"]
    {
        assert!(said.contains(words), "`{words}` is not in {said}");
    }
    let again = lab.coordinator(&[]).end().1;
    assert_eq!(again.status.code(), Some(0), "nobody asked for a failure");
    let again: Value = serde_json::from_slice(&again.stdout).expect("a line of JSON");
    assert_eq!(again["validation"], last["validation"], "the journal knows it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_source_that_is_good_again_fails_nothing() {
    let lab = Lab::new().await;
    let coordinator = lab.coordinator(&["--fail-on-worse"]);
    let worker = Worker::join(&lab, &coordinator).await;
    for (step, loss) in [(0, 2.0), (2, 2.5), (4, 1.9)] {
        worker.validated(step, loss);
    }
    worker.finish(&lab, 4).await;
    let (said, ended) = coordinator.end();
    assert_eq!(ended.status.code(), Some(0), "{said}");
    assert!(said.contains("the alarm is over: source en has loss 1.9000 at step 4"), "{said}");
}
