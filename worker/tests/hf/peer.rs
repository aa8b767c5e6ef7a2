//! transformers in a process of its own (peer.py).

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

/// Answers requests until it is dropped.
pub struct Peer {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    pub fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let python = root.join("third_party/python/bin/python");
        assert!(python.exists(), "run `scripts/setup python` first");
        let mut process = Command::new(python)
            .arg(root.join("worker/tests/hf/peer.py"))
            .env("HF_HUB_OFFLINE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let requests = process.stdin.take().expect("piped");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        Self { process, requests, answers }
    }

    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.requests, "{request}").expect("python reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("python answers");
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("no answer to {request}; see python's error above"))
    }

    /// Writes a random model to `folder`.
    pub fn make(&mut self, folder: &Path, config: &Value, dtype: &str, max_shard_bytes: usize) {
        let (do_, folder) = ("make", path(folder));
        let request = json!({"do": do_, "folder": folder, "config": config, "dtype": dtype,
            "max_shard_bytes": max_shard_bytes});
        self.ask(&request);
    }

    /// The flat logits of the model in `folder`.
    pub fn logits(&mut self, folder: &Path, input_ids: &[Vec<i64>]) -> Vec<f64> {
        let answer = self.ask(&json!({"do": "logits", "folder": path(folder), "input_ids": input_ids}));
        serde_json::from_value(answer).expect("numbers")
    }

    /// Type, shape and digest of every tensor in the files of `folder`, by name.
    pub fn tensors(&mut self, folder: &Path) -> Value {
        self.ask(&json!({"do": "tensors", "folder": path(folder)}))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
