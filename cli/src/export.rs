//! `polo export`: a checkpoint as a Hugging Face folder.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use polo_log::say;
use polo_recipe::config::Recipe;
use polo_recipe::layout::Layout;
use polo_store::checkpoint::{self, Checked, Depth, Manifest, ParamReader};
use polo_store::hf::{self, Dtype};
use polo_store::{Store, StoreError};

use crate::stored_run::{RunArgs, StoredRun};

/// Write a checkpoint as a Hugging Face folder
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The run.
    #[command(flatten)]
    pub run: RunArgs,
    /// Step of the checkpoint; the newest good one when not given
    #[arg(long)]
    pub step: Option<u64>,
    /// Empty folder to write: a path, s3://bucket/prefix, gs://, az:// or file:///path
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// Element type of the weights: f32 (as trained), bf16 or f16
    #[arg(long, default_value = "f32")]
    pub dtype: Dtype,
    /// The tokenizer.json to put beside the weights; the recipe's when not given
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
}

/// Why a checkpoint could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store or something in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tokenizer file.
    #[error("cannot read the tokenizer {}: {source}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The checkpoint asked for is damaged.
    #[error("the checkpoint of step {step} is damaged ({problem}); leave out --step for the newest good one")]
    Damaged {
        /// Its step.
        step: u64,
        /// The first thing wrong with it.
        problem: StoreError,
    },
    /// There is no good checkpoint.
    #[error("there is no good checkpoint in {url}; `polo verify` says what is there")]
    NoCheckpoint {
        /// Address of the run's store.
        url: String,
    },
}

/// Writes the folder and prints its address to stdout. `recipe` is the one that `args` names, if it names one.
pub async fn run(args: Args, recipe: Option<Recipe>) -> Result<(), Error> {
    let url = args.run.store.clone().or(recipe.map(|r| r.run.store)).unwrap_or_default();
    let run = StoredRun::open(&url).await?;
    let manifest = choose(&run.store, args.step).await?;
    let out = Store::open(&args.to)?;
    let tokenizer = tokenizer(args.tokenizer.as_deref(), run.recipe.corpus.tokenizer.as_deref())?;
    say(format_args!(
        "exporting step {} ({} parameters, {}) to {}",
        manifest.step,
        manifest.num_params,
        args.dtype,
        out.url()
    ));
    write(&run, &manifest, &out, args.dtype, tokenizer).await?;
    println!("{}", out.url());
    Ok(())
}

/// The checkpoint to export, with every byte checked before the first is written.
async fn choose(store: &Store, step: Option<u64>) -> Result<Manifest, Error> {
    let Some(step) = step else {
        let (newest, damaged) = checkpoint::newest_good(store, Depth::Deep).await?;
        for problem in damaged.iter().flat_map(|c| &c.problems) {
            say(format_args!("skipping a damaged checkpoint: {problem}"));
        }
        return newest.ok_or_else(|| Error::NoCheckpoint { url: store.url().to_owned() });
    };
    let Checked { manifest, problems, .. } = checkpoint::verify(store, step, Depth::Deep).await?;
    match (manifest, problems.into_iter().next()) {
        (Some(manifest), None) => Ok(manifest),
        (_, Some(StoreError::NotFound { url, action })) => Err(StoreError::NotFound { url, action }.into()),
        (_, Some(problem)) => Err(Error::Damaged { step, problem }),
        (None, None) => Err(Error::NoCheckpoint { url: store.url().to_owned() }),
    }
}

/// The content of the tokenizer file. One that the recipe names may be gone by now, one that was asked for may not.
fn tokenizer(asked: Option<&Path>, of_recipe: Option<&str>) -> Result<Option<Bytes>, Error> {
    let read = |path: &Path| {
        std::fs::read(path).map(Bytes::from).map_err(|source| Error::Tokenizer { path: path.to_owned(), source })
    };
    match (asked, of_recipe) {
        (Some(path), _) => read(path).map(Some),
        (None, Some(path)) => {
            Ok(read(Path::new(path)).map_err(|e| say(format_args!("exporting without tokenizer: {e}"))).ok())
        }
        (None, None) => Ok(None),
    }
}

async fn write(
    run: &StoredRun,
    manifest: &Manifest,
    out: &Store,
    dtype: Dtype,
    tokenizer: Option<Bytes>,
) -> Result<(), StoreError> {
    let config = &run.recipe.model.qwen2;
    let layout = Layout::qwen2(config);
    if !manifest.fits(&layout) {
        let reason = format!("the checkpoint of step {} is not of the model in recipe.toml", manifest.step);
        return Err(StoreError::mismatch(run.store.url(), reason));
    }
    let reader = ParamReader::new(&run.store, manifest);
    let extra: Vec<_> = tokenizer.into_iter().flat_map(tokenizer_files).collect();
    hf::export(out, config, &layout, |range| reader.read(range), dtype, hf::MAX_SHARD_BYTES, &extra).await
}

/// What `AutoTokenizer` needs beside the tokenizer itself.
fn tokenizer_files(tokenizer: Bytes) -> [(String, Bytes); 2] {
    let config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": false,
        // A tokenizer whose class is not Qwen2's own would add `token_type_ids`, which the model does not take.
        "model_input_names": ["input_ids", "attention_mask"],
    });
    [
        ("tokenizer.json".to_owned(), tokenizer),
        ("tokenizer_config.json".to_owned(), format!("{config:#}\n").into_bytes().into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_run::{finished_run, param};

    fn args(run: &StoredRun, step: Option<u64>, to: &str) -> Args {
        let run = RunArgs { recipe: None, store: Some(run.store.url().to_owned()) };
        Args { run, step, to: to.into(), dtype: Dtype::F32, tokenizer: None }
    }

    async fn exported(args: Args) -> (f32, f32) {
        let to = args.to.clone();
        run(args, None).await.expect("export");
        let folder = Store::open(&to).expect("open");
        let (config, dtype) = hf::import(&folder).await.expect("import");
        let layout = Layout::qwen2(&config);
        let mut params = vec![0.0; layout.num_params];
        hf::read_params(&folder, &layout, &mut params).await.expect("read");
        assert_eq!(dtype, Dtype::F32);
        (params[0], params[layout.num_params - 1])
    }

    #[tokio::test]
    async fn the_newest_good_checkpoint_or_the_one_asked_for_is_exported() {
        let (run, _) = finished_run("export").await;
        let last = Layout::qwen2(&run.recipe.model.qwen2).num_params - 1;
        let of_step = |step| (param(step, 0), param(step, last));
        assert_eq!(exported(args(&run, None, "memory://export-newest")).await, of_step(4));
        assert_eq!(exported(args(&run, Some(2), "memory://export-asked")).await, of_step(2));

        run.store.put("checkpoints/000000000004.json", Bytes::from_static(b"{}")).await.expect("spoil");
        assert_eq!(exported(args(&run, None, "memory://export-before")).await, of_step(2));
        let error = super::run(args(&run, Some(4), "memory://export-damaged"), None).await.expect_err("damaged");
        assert!(error.to_string().contains("step 4"), "{error}");
        let error = super::run(args(&run, Some(3), "memory://export-none"), None).await.expect_err("absent");
        assert!(error.to_string().contains("000000000003.json"), "{error}");
    }

    #[test]
    fn a_tokenizer_that_was_asked_for_has_to_be_there() {
        let error = tokenizer(Some(Path::new("/no/such/tokenizer.json")), None).expect_err("absent").to_string();
        assert!(error.contains("/no/such/tokenizer.json"), "{error}");
        assert_eq!(tokenizer(None, Some("/no/such/tokenizer.json")).expect("goes without"), None);
    }
}
