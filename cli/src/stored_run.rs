//! A run as its store knows it: its recipe, its corpus when that can be reached, and so what it plans to train.

use polo_recipe::config::Recipe;
use polo_recipe::plan::Plan;
use polo_store::corpus::CorpusManifest;
use polo_store::{Digest, Store, StoreError, run};

/// Names the run that a command is about.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct RunArgs {
    /// Recipe of the run
    pub recipe: Option<std::path::PathBuf>,
    /// Store of the run: a path, s3://bucket/prefix, gs://, az:// or file:///path
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
}

/// A run's store and what is known from it.
pub struct StoredRun {
    /// The store.
    pub store: Store,
    /// The resolved recipe that the run began with.
    pub recipe: Recipe,
}

impl StoredRun {
    /// The run at `store_url`. A store without a run is an error that says so.
    pub async fn open(store_url: &str) -> Result<Self, StoreError> {
        let store = Store::open(store_url)?;
        let recipe = run::read_recipe(&store).await.map_err(|error| match error {
            error if error.is_not_found() => {
                StoreError::mismatch(store.url(), "there is no run here; give the `run.store` of a recipe that was run")
            }
            error => error,
        })?;
        Ok(Self { store, recipe })
    }

    /// What the recipe plans on its corpus; the error says why that cannot be known here.
    pub async fn planned(&self) -> Result<Planned, String> {
        let corpus = Store::open(&self.recipe.corpus.url).map_err(|e| e.to_string())?;
        let manifest = CorpusManifest::load(&corpus).await.map_err(|e| e.to_string())?;
        let plan = manifest.plan(&self.recipe).map_err(|e| e.to_string())?;
        Ok(Planned { corpus: manifest.digest(), plan })
    }
}

/// The plan of a run, and the corpus it was made on.
pub struct Planned {
    /// Digest of the corpus.
    pub corpus: Digest,
    /// The plan.
    pub plan: Plan,
}
