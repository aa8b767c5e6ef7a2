//! A whole run on S3: raw text, corpus, run and export lie in a bucket of a real server (`scripts/setup seaweedfs
//! tokenizer`), and only the recipe is a file.
#![allow(missing_docs)]

use std::{
    path::Path,
    process::{Command, Output},
};

use polo_recipe::layout::Layout;
use polo_store::{
    Store,
    checkpoint::{self, ParamReader},
    hf,
    testing::SeaweedFs,
};
use serde_json::{Value, json};

const RECIPE: &str = r#"
run = { name = "on-s3", store = "s3://bucket/run" }
corpus = { url = "s3://bucket/corpus", tokenizer = "TOKENIZER" }
batch = { seq_len = 16, samples_per_step = 4, slots = 2 }
checkpoint = { every_steps = 2, keep = 2 }
workers = { wait_timeout_s = 60 }
[model.qwen2]
hidden_size = 8
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 12
vocab_size = 151936
tie_word_embeddings = true
[[stages]]
name = "main"
steps = 6
schedule = { kind = "constant", peak_learning_rate = 1e-3 }
sources = [{ name = "en", weight_tokens = 1 }, { name = "ne", weight_tokens = 1 }]
"#;

/// A bucket, and a folder for what is not in it.
struct Place {
    server: SeaweedFs,
    folder: tempfile::TempDir,
}

impl Place {
    async fn new() -> Self {
        let server = SeaweedFs::start(&SeaweedFs::default_binary(), "bucket").await.expect("SeaweedFS");
        let folder = tempfile::tempdir().expect("tempdir");
        let recipe = RECIPE.replace("TOKENIZER", &tokenizer());
        std::fs::write(folder.path().join("recipe.toml"), recipe).expect("written");
        Self { server, folder }
    }

    /// Runs `polo`, which must succeed.
    fn polo(&self, args: &[&str]) -> Output {
        let output = Command::new(env!("CARGO_BIN_EXE_polo"))
            .args(args)
            .envs(self.server.settings())
            .env("POLO_CACHE", self.folder.path().join("cache"))
            .output()
            .expect("polo starts");
        assert!(output.status.success(), "polo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.polo(args);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("polo {args:?}: {e}"))
    }

    fn store(&self, prefix: &str) -> Store {
        self.server.store(prefix).expect("a store")
    }
}

fn tokenizer() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/tokenizer/tokenizer.json");
    path.canonicalize().expect("run `scripts/setup tokenizer` first").display().to_string()
}

/// Lines of raw text that differ.
fn text(sentence: &str) -> String {
    (0..120).map(|n| format!("{}\n", json!({"text": format!("{sentence} {n}, {}.", n * n)}))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_but_the_recipe_lies_in_a_bucket() {
    let worker = Path::new(env!("CARGO_BIN_EXE_polo")).with_file_name("polo-worker");
    assert!(worker.exists(), "build it: cargo build -p polo-worker");
    let place = Place::new().await;
    let raw = place.store("raw");
    raw.put("en.jsonl", text("All human beings are born free").into()).await.expect("stored");
    raw.put("ne/1.jsonl", text("सबै व्यक्तिहरू जन्मजात स्वतन्त्र हुन्").into()).await.expect("stored");

    let (recipe, tokenizer) = (place.folder.path().join("recipe.toml").display().to_string(), tokenizer());
    place.polo(&["prepare", "--input", raw.url(), "--output", "s3://bucket/corpus", "--tokenizer", &tokenizer]);
    let ended = place.json(&["run", &recipe, "--workers", "2", "--listen", "127.0.0.1:0"]);
    assert_eq!((&ended["outcome"], &ended["step"]), (&json!("completed"), &json!(6)));

    let report = place.json(&["verify", &recipe, "--json"]);
    let kept = report["checkpoints"].as_array().expect("a list");
    let steps: Vec<_> = kept.iter().map(|c| (c["step"].as_u64(), c["ok"].as_bool())).collect();
    assert_eq!(steps, [(Some(4), Some(true)), (Some(6), Some(true))], "the newest two");
    assert_eq!(kept[1]["state_digest"], ended["state_digest"]);
    let trained: u64 =
        report["tokens"].as_array().expect("a list").iter().filter_map(|t| t["num_trained_tokens"].as_u64()).sum();
    assert_eq!(trained, 6 * 4 * 16);

    place.polo(&["export", &recipe, "--to", "s3://bucket/model"]);
    exported_is_the_last_checkpoint(&place).await;
}

async fn exported_is_the_last_checkpoint(place: &Place) {
    let (run, model) = (place.store("run"), place.store("model"));
    let (config, _) = hf::import(&model).await.expect("config.json");
    let layout = Layout::qwen2(&config);
    let mut exported = vec![f32::NAN; layout.num_params];
    hf::read_params(&model, &layout, &mut exported).await.expect("weights");
    let manifest = checkpoint::read_manifest(&run, 6).await.expect("the last checkpoint");
    let trained = ParamReader::new(&run, &manifest).read(0..layout.num_params).await.expect("parameters");
    assert!(exported == trained, "the export differs from the checkpoint");
    assert!(model.exists("tokenizer.json").await.expect("asked"));
}
