//! A run that begins with a folder of transformers and ends in one, through the real programs.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use polo_recipe::layout::Layout;
use polo_store::{
    Store,
    checkpoint::{self, ParamReader},
    testing::put_corpus,
};
use serde_json::{Value, json};

use crate::{Peer, VOCAB_SIZE, assert_close, input_ids, logits, path, small_config};

const RECIPE: &str = r#"
run = { name = "folder", store = "run" }
model = { config = "model/config.json", init = "model" }
corpus = { url = "corpus" }
batch = { seq_len = 16, samples_per_step = 4, slots = 4 }
workers = { wait_timeout_s = 60 }
[[stages]]
name = "main"
steps = 3
schedule = { kind = "constant", peak_learning_rate = 1e-2 }
sources = [{ name = "a", weight_tokens = 1 }]
"#;

/// A folder with a model of transformers, a corpus and a recipe.
struct Place(tempfile::TempDir);

impl Place {
    async fn new(peer: &mut Peer) -> Self {
        let place = Self(tempfile::tempdir().expect("tempdir"));
        peer.make(&place.path("model"), &small_config(false, 2), "float32", 1 << 20);
        let ids = (0..2000).map(|n| n * n % VOCAB_SIZE as i32).collect();
        let corpus = Store::open(path(&place.path("corpus"))).expect("a folder");
        put_corpus(&corpus, VOCAB_SIZE as u64, &[("a", vec![vec![ids]])]).await;
        std::fs::write(place.path("recipe.toml"), RECIPE).expect("written");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn polo(&self, args: &[&str]) -> String {
        let polo = Path::new(env!("CARGO_BIN_EXE_polo-worker")).with_file_name("polo");
        assert!(polo.exists(), "build it: cargo build -p polo-cli");
        let output = Command::new(polo).args(args).env("POLO_CACHE", self.path("cache")).output().expect("polo starts");
        assert!(output.status.success(), "polo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Runs the recipe into the store `name`, and returns its state's digest.
    fn run(&self, name: &str, num_workers: usize, sets: &[&str]) -> Value {
        let (recipe, store) = (self.path("recipe.toml"), format!("run.store={name}"));
        let workers = num_workers.to_string();
        let mut args = vec!["run", path(&recipe), "--workers", &workers, "--listen", "127.0.0.1:0", "--set", &store];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let stdout = self.polo(&args);
        let last: Value = serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON");
        assert_eq!(last["outcome"], json!("completed"));
        last["state_digest"].clone()
    }

    /// Exports the newest checkpoint of the store `name`.
    fn export(&self, name: &str) -> PathBuf {
        let (store, to) = (self.path(name), self.path(&format!("{name}-exported")));
        self.polo(&["export", "--store", path(&store), "--to", path(&to)]);
        to
    }
}

#[tokio::test]
async fn a_run_begins_with_a_folder_and_its_export_computes_what_its_checkpoint_does() {
    let mut peer = Peer::start();
    let place = Place::new(&mut peer).await;

    // An update too small for fp32 leaves the imported weights as they were.
    place.run("still", 1, &["stages.0.schedule.peak_learning_rate=1e-30"]);
    assert_eq!(peer.tensors(&place.export("still")), peer.tensors(&place.path("model")));

    let digest = place.run("one", 1, &[]);
    assert_eq!(place.run("two", 2, &[]), digest, "1 and 2 workers");
    let exported = place.export("two");
    assert_ne!(peer.tensors(&exported), peer.tensors(&place.path("model")), "it was trained");

    let store = Store::open(path(&place.path("two"))).expect("a store");
    let manifest = checkpoint::read_manifest(&store, 3).await.expect("the last checkpoint");
    let config = crate::import(&exported).await.0;
    let num_params = Layout::qwen2(&config).num_params;
    let params = ParamReader::new(&store, &manifest).read(0..num_params).await.expect("parameters");
    assert_close("exported", &logits(&config, &params, &input_ids()), &peer.logits(&exported, &input_ids()));
}
