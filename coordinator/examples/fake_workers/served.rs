//! The coordinator under measurement: a recipe with as many slots as workers, and the process that serves it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use polo_proto::v1;
use polo_store::{Store, recipe_file, testing::put_corpus};

use crate::Failure;

/// What the kernel counts processor time in; it has been 100 a second on every Linux for user programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// A folder with a corpus and a recipe.
pub struct Lab {
    folder: tempfile::TempDir,
    recipe_identity: String,
    corpus_digest: String,
}

impl Lab {
    /// A recipe with so many slots.
    pub async fn new(num_slots: usize, heartbeat_timeout_ms: u64) -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        let corpus = Store::open(&folder.path().join("corpus").to_string_lossy())?;
        let tokens = (0..1000).map(|n| n % 60).collect();
        let manifest = put_corpus(&corpus, 64, &[("counting", vec![vec![tokens]])]).await;
        let path = folder.path().join("recipe.toml");
        fs::write(&path, recipe(num_slots, heartbeat_timeout_ms))?;
        let recipe_identity = recipe_file::load(&path, &[])?.identity();
        Ok(Self { folder, recipe_identity, corpus_digest: manifest.digest().to_string() })
    }

    fn recipe(&self) -> PathBuf {
        self.folder.path().join("recipe.toml")
    }

    /// What a worker of that name says first.
    pub fn hello(&self, worker_id: String, incarnation: u64, data_address: String) -> v1::Hello {
        v1::Hello {
            worker_id,
            incarnation,
            recipe_identity: self.recipe_identity.clone(),
            corpus_digest: self.corpus_digest.clone(),
            data_address,
            host: "fake".into(),
            pid: std::process::id(),
            ..Default::default()
        }
    }
}

/// Nobody trains by it, so the model is as small as one can be. The first generation waits for every worker.
fn recipe(num_slots: usize, heartbeat_timeout_ms: u64) -> String {
    format!(
        r#"
        [run]
        name = "fake-workers"
        store = "run"
        [model.qwen2]
        hidden_size = 8
        num_hidden_layers = 1
        num_attention_heads = 2
        num_key_value_heads = 1
        intermediate_size = 16
        vocab_size = 64
        tie_word_embeddings = true
        [corpus]
        url = "corpus"
        allow_repeats = true
        [batch]
        seq_len = 8
        samples_per_step = {num_slots}
        slots = {num_slots}
        [workers]
        settle_ms = 300000
        heartbeat_timeout_ms = {heartbeat_timeout_ms}
        [[stages]]
        name = "only"
        steps = 100
        schedule = {{ kind = "constant", peak_learning_rate = 1e-3 }}
        sources = [{{ name = "counting", weight_tokens = 1 }}]
        "#
    )
}

/// A coordinator process on a core of its own; killed when this is dropped.
pub struct Served {
    process: Child,
    /// `host:port`.
    pub address: String,
}

impl Served {
    /// Starts `polo coordinator` and waits until it listens.
    pub fn start(lab: &Lab, num_workers: usize, core: usize) -> Result<Self, Failure> {
        let this = std::env::current_exe()?;
        let polo = this.ancestors().nth(2).ok_or("no folder with programs")?.join("polo");
        if !polo.exists() {
            return Err(format!("there is no {}: build it with `cargo build -p polo-cli`", polo.display()).into());
        }
        let mut command = Command::new("taskset");
        command.arg("--cpu-list").arg(core.to_string()).arg(polo).arg("coordinator").arg(lab.recipe());
        command.args(["--listen", "127.0.0.1:0", "--workers"]).arg(num_workers.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let process = command.spawn().map_err(|e| format!("cannot start taskset (of util-linux): {e}"))?;
        let mut served = Self { process, address: String::new() };
        served.address = served.listening_address()?;
        Ok(served)
    }

    /// Reads what the coordinator says until it says where it listens; the rest is read too, so that it never blocks.
    fn listening_address(&mut self) -> Result<String, Failure> {
        let stderr = self.process.stderr.take().ok_or("the coordinator's standard error is not here")?;
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        let mut said = Vec::new();
        for line in lines.by_ref() {
            if let Some(address) = line.strip_prefix("coordinator listens on ") {
                let address = address.to_owned();
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(address);
            }
            said.push(line);
        }
        Err(format!("the coordinator ended: {}", said.join("\n")).into())
    }

    /// Share of one core that the coordinator uses over so long.
    pub async fn core_share(&self, time: Duration) -> Result<f64, Failure> {
        let pid = self.process.id();
        let (before, started) = (processor_seconds(pid)?, std::time::Instant::now());
        tokio::time::sleep(time).await;
        Ok((processor_seconds(pid)? - before) / started.elapsed().as_secs_f64())
    }

    /// The most memory that it has had resident.
    pub fn peak_mib(&self) -> Result<u64, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmHWM in /proc")?;
        Ok(kib.parse::<u64>()? / 1024)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Processor time that a process has used so far.
pub fn processor_seconds(pid: u32) -> Result<f64, Failure> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may have spaces in it; user and system time are the 12th and 13th field after it.
    let (_, fields) = stat.rsplit_once(')').ok_or("no name in /proc/PID/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Keeps this process off the coordinator's core, where there is another.
pub fn leave_core(core: usize) -> Result<(), Failure> {
    let num_cores = std::thread::available_parallelism()?.get();
    let others: Vec<_> = (0..num_cores).filter(|c| *c != core).map(|c| c.to_string()).collect();
    if others.is_empty() {
        return Ok(());
    }
    let pid = std::process::id().to_string();
    let mut taskset = Command::new("taskset");
    taskset.args(["--pid", "--cpu-list", &others.join(","), &pid]).stdout(Stdio::null());
    let status = taskset.status().map_err(|e| format!("cannot start taskset (of util-linux): {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("taskset: {status}").into()) }
}
