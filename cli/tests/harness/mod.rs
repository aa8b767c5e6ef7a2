//! Runs of a tiny model with real processes: the corpus, the recipe, and what is drawn at random.
#![allow(dead_code, clippy::unwrap_used, reason = "each test and example uses a part of it")]

pub mod process;

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
};

use polo_store::{
    Digest,
    corpus::{CorpusManifest, FORMAT_VERSION, ShardEntry, Source},
    indexed::ShardWriter,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use process::{Ended, Running};

const VOCAB_SIZE: i32 = 500;
const SOURCES: [&str; 3] = ["en", "ne", "zh"];

/// The seed in `POLO_TEST_SEED`, or a new one; printed either way.
pub fn drawn_seed() -> u64 {
    let given = std::env::var("POLO_TEST_SEED").ok();
    let seed = given.map_or_else(rand::random, |seed| seed.parse().expect("POLO_TEST_SEED is a number"));
    eprintln!("the random choices of this test come from POLO_TEST_SEED={seed}");
    seed
}

/// Of the recipe of every lab.
pub const SAMPLES_PER_STEP: u64 = 12;

/// How long and how heavy a run is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Steps of the run.
    pub num_steps: u64,
    /// Width of the model; steps take longer with it.
    pub hidden_size: usize,
}

/// What a corpus consists of.
#[derive(Debug, Clone)]
pub struct Documents {
    /// Shards of each source.
    pub num_shards: usize,
    /// Documents of each shard.
    pub num_per_shard: usize,
    /// Their lengths, without their ends.
    pub num_tokens: Range<usize>,
}

/// A folder with a corpus and a recipe. Runs of it have stores of their own, and must all end in one state.
pub struct Lab {
    folder: Option<tempfile::TempDir>,
    /// Where this test's random choices come from.
    pub rng: StdRng,
    shape: Shape,
    num_runs: usize,
}

impl Lab {
    /// Makes the corpus and the recipe from the seed.
    pub fn new(seed: u64, shape: Shape) -> Self {
        Self::with_documents(seed, shape, Documents { num_shards: 2, num_per_shard: 150, num_tokens: 100..600 })
    }

    /// The same, of such documents.
    pub fn with_documents(seed: u64, shape: Shape, documents: Documents) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().expect("a folder");
        write_corpus(&folder.path().join("corpus"), &documents, &mut rng);
        fs::write(folder.path().join("recipe.toml"), recipe(rng.random(), shape)).expect("the recipe");
        Self { folder: Some(folder), rng, shape, num_runs: 0 }
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.as_ref().expect("there until the end").path().join(name)
    }

    /// Steps of every run.
    pub fn num_steps(&self) -> u64 {
        self.shape.num_steps
    }

    /// Starts `polo run` on the store of that name.
    pub fn start(&mut self, store: &str, num_workers: usize, flags: &[&str]) -> Running {
        let mut command = process::polo();
        command.arg("run").arg(self.path("recipe.toml")).args(["--listen", "127.0.0.1:0"]);
        command.args(["--workers", &num_workers.to_string()]).args(flags);
        self.begin(command, store, "run")
    }

    /// Starts `polo coordinator` on the store of that name, listening at `address`.
    pub fn start_coordinator(&mut self, store: &str, address: &str, flags: &[&str]) -> Running {
        let mut command = process::polo();
        command.arg("coordinator").arg(self.path("recipe.toml")).args(["--listen", address]).args(flags);
        self.begin(command, store, "coordinator")
    }

    /// Starts a worker of the coordinator at `address`.
    pub fn start_worker(&mut self, store: &str, id: &str, address: &str) -> Running {
        let mut command = process::worker();
        command.arg(self.path("recipe.toml")).args(["--listen", "127.0.0.1:0"]);
        command.args(["--id", id, "--coordinator", address]);
        self.begin(command, store, id)
    }

    fn begin(&mut self, mut command: Command, store: &str, name: &str) -> Running {
        self.num_runs += 1;
        let log = self.path(&format!("{name}-{}-{store}.log", self.num_runs));
        command.arg("--set").arg(format!("run.store={}", self.path(store).display()));
        command.env("POLO_CACHE", self.path("cache")).env("POLO_LOG", "warn,polo_worker::desk=trace");
        Running::start(command, &log)
    }

    /// Runs on the store of that name until the run is completed; returns the state's digest.
    pub fn digest_of(&mut self, store: &str, num_workers: usize) -> String {
        self.digest_with(store, num_workers, &[])
    }

    /// The same, with flags.
    pub fn digest_with(&mut self, store: &str, num_workers: usize, flags: &[&str]) -> String {
        let run = self.start(store, num_workers, flags);
        self.completed(&run.finish())
    }

    /// The state's digest of a run that has to be completed.
    pub fn completed(&self, ended: &Ended) -> String {
        let line = ended.json();
        assert_eq!((&line["outcome"], &line["step"]), (&"completed".into(), &self.num_steps().into()), "{line}");
        line["state_digest"].as_str().expect("a digest").to_owned()
    }

    /// What `polo verify --json` says of a store, and whether it is content.
    pub fn verify(&self, store: &str) -> (bool, serde_json::Value) {
        let output = process::polo().args(["verify", "--json", "--store"]).arg(self.path(store)).output();
        let output = output.expect("polo starts");
        let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("no report: {error}; {}", String::from_utf8_lossy(&output.stderr));
        });
        (output.status.success(), report)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("logs and stores of the failed test stay in {}", folder.keep().display());
        }
    }
}

/// Text that can be learnt: most tokens follow from the one before, by a rule of the source's own.
fn document(source: usize, num_tokens: Range<usize>, rng: &mut StdRng) -> Vec<i32> {
    let factor = [7, 11, 13][source];
    let num_tokens = rng.random_range(num_tokens);
    let mut token = rng.random_range(1..VOCAB_SIZE);
    let mut tokens: Vec<i32> = Vec::with_capacity(num_tokens + 1);
    for _ in 0..num_tokens {
        tokens.push(token);
        let is_surprise = rng.random_bool(0.2);
        token = if is_surprise { rng.random_range(1..VOCAB_SIZE) } else { 1 + token * factor % (VOCAB_SIZE - 1) };
    }
    tokens.push(0);
    tokens
}

fn write_corpus(folder: &Path, documents: &Documents, rng: &mut StdRng) {
    fs::create_dir_all(folder).expect("a folder");
    let sources = SOURCES.iter().enumerate().map(|(number, name)| {
        let shards: Vec<_> = (0..documents.num_shards)
            .map(|n| write_shard(folder, &format!("{name}-{n}"), number, documents, rng))
            .collect();
        Source {
            name: (*name).into(),
            language: None,
            num_tokens: shards.iter().map(|s| s.num_tokens).sum(),
            num_documents: shards.iter().map(|s| s.num_documents).sum(),
            num_bytes_text: 0,
            intake: None,
            shards,
        }
    });
    let manifest = CorpusManifest {
        format_version: FORMAT_VERSION,
        tokenizer_digest: Digest::of(b"no tokenizer"),
        vocab_size: VOCAB_SIZE as u64,
        eos_id: 0,
        sources: sources.collect(),
    };
    fs::write(folder.join("manifest.json"), manifest.to_json()).expect("the manifest");
}

fn write_shard(folder: &Path, name: &str, source: usize, documents: &Documents, rng: &mut StdRng) -> ShardEntry {
    let mut writer = ShardWriter::new(Vec::new());
    for _ in 0..documents.num_per_shard {
        writer.push_document(&document(source, documents.num_tokens.clone(), rng)).expect("in memory");
    }
    let num_tokens = writer.num_tokens();
    let (bin, index) = writer.finish();
    let (bin_key, idx_key, idx) = (format!("{name}.bin"), format!("{name}.idx"), index.to_bytes());
    fs::write(folder.join(&bin_key), &bin).expect("a shard");
    fs::write(folder.join(&idx_key), &idx).expect("its index");
    let (bin_digest, idx_digest, num_documents) = (Digest::of(&bin), Digest::of(&idx), index.num_documents());
    ShardEntry { bin_key, idx_key, num_tokens, num_documents, bin_digest, idx_digest }
}

/// 6 slots of 2 samples, so that 5 workers have unequal shares.
fn recipe(seed: u32, Shape { num_steps, hidden_size }: Shape) -> String {
    let intermediate_size = hidden_size * 2;
    let second_steps = num_steps / 3;
    let first_steps = num_steps - second_steps;
    format!(
        r#"
        [run]
        name = "tiny"
        store = "run"
        seed = {seed}
        [model.qwen2]
        hidden_size = {hidden_size}
        num_hidden_layers = 2
        num_attention_heads = 4
        num_key_value_heads = 2
        intermediate_size = {intermediate_size}
        vocab_size = 512
        tie_word_embeddings = true
        [corpus]
        url = "corpus"
        allow_repeats = true
        [batch]
        seq_len = 48
        samples_per_step = {SAMPLES_PER_STEP}
        slots = 6
        micro_batch = 2
        [checkpoint]
        every_steps = 7
        [workers]
        wait_timeout_s = 90
        settle_ms = 300
        heartbeat_timeout_ms = 10000
        [[stages]]
        name = "first"
        steps = {first_steps}
        schedule = {{ kind = "cosine", peak_learning_rate = 3e-3, warmup_steps = 5, floor = 0.1 }}
        sources = [{{ name = "en", weight_tokens = 3 }}, {{ name = "ne", weight_tokens = 2 }}]
        [[stages]]
        name = "second"
        steps = {second_steps}
        schedule = {{ kind = "linear", peak_learning_rate = 1e-3, floor = 0.1 }}
        sources = [{{ name = "zh", weight_tokens = 4 }}, {{ name = "en", weight_tokens = 1 }}]
        "#
    )
}
