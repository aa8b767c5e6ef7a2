//! The API server of api_server.py beside a test, and `polo` that talks to it.
#![allow(missing_docs, dead_code)]

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
    sync::Mutex,
};

use serde_json::{Value, json};

use crate::support::{finish, talk};

pub const RECIPE: &str = r#"
run = { name = "demo", store = "s3://bucket/run" }
corpus = { url = "s3://bucket/corpus" }
batch = { seq_len = 8, samples_per_step = 16, slots = 16 }
workers = { min_workers = 2 }
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

pub const IMAGE: [&str; 2] = ["--image", "registry.example/polo:0.1.0"];

/// A file of the part `kubernetes` of scripts/setup.
pub fn tool(path: &str) -> PathBuf {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/kubernetes").join(path);
    assert!(tool.exists(), "run `scripts/setup kubernetes` first");
    tool
}

/// An API server with one namespace, `research`. Gone when dropped.
pub struct ApiServer {
    process: Child,
    talk: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    folder: tempfile::TempDir,
}

impl ApiServer {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("recipe.toml"), RECIPE).expect("written");
        let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/kubernetes/api_server.py"].iter().collect();
        let mut command = Command::new(tool("bin/python"));
        // Where it lies is not this process's to write in.
        command.arg("-B").arg(script).arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("python starts");
        let orders = process.stdin.take().expect("piped");
        let mut answers = BufReader::new(process.stdout.take().expect("piped"));
        answers.read_line(&mut String::new()).expect("it says that it listens");
        Self { process, talk: Mutex::new((orders, answers)), folder }
    }

    /// Has it do what only a test may.
    pub fn order(&self, order: Value) -> Value {
        let mut talk = self.talk.lock().expect("no other has panicked");
        writeln!(talk.0, "{order}").expect("it listens");
        let mut line = String::new();
        talk.1.read_line(&mut line).expect("it answers");
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no answer to {order}: {line}"));
        answer["answer"].clone()
    }

    /// An object, or null.
    pub fn object(&self, plural: &str, name: &str) -> Value {
        self.order(json!({ "do": "get", "key": [plural, "research", name] }))
    }

    /// Kinds and names of all that is there.
    pub fn names(&self) -> Vec<(String, String)> {
        let keys = self.order(json!({ "do": "list" }));
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        keys.as_array().expect("a list").iter().map(|key| (text(&key[0]), text(&key[2]))).collect()
    }

    /// `polo` with a kubeconfig for this server, in a folder with `recipe.toml`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_polo"));
        command.args(args).current_dir(self.folder.path()).env("KUBECONFIG", self.folder.path().join("kubeconfig"));
        command.env_remove("POLO_COORDINATOR").env_remove("POLO_LOG").env_remove("KUBERNETES_SERVICE_HOST");
        command
    }

    pub fn polo(&self, args: &[&str]) -> Output {
        finish(&mut self.command(args))
    }

    /// `polo submit` of the recipe.
    pub fn submit(&self, args: &[&str]) -> Output {
        self.polo(&[&["submit", "recipe.toml", "--insecure"], &IMAGE[..], args].concat())
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Checks that a command went well, and gives what it said.
pub fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", talk(output));
    talk(output)
}
