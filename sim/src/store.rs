//! An object store in memory that fails, dawdles and loses answers on demand, and looks at all that is put into it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};
use polo_store::{checkpoint::Manifest, corpus::CorpusManifest};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use crate::oracle::Oracle;

/// How long the view that retries does so: no shorter than a real store's client, and longer than any trouble here.
const RETRY_LIMIT: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(250);

struct Inner {
    objects: InMemory,
    oracle: Arc<Oracle>,
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    /// How probable trouble is.
    trouble: f64,
    /// The newest generation in the journal.
    generation: u64,
}

/// One view of the store.
#[derive(Clone)]
pub struct SimStore {
    inner: Arc<Inner>,
    retries: bool,
}

impl fmt::Debug for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimStore")
    }
}

impl fmt::Display for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated store")
    }
}

/// What becomes of one request.
enum Luck {
    Well,
    /// It is not performed.
    Fails,
    /// It is performed, and the answer is lost.
    LosesAnswer,
}

impl SimStore {
    /// A store without trouble; its two views, the one that retries first.
    pub fn new(seed: u64, oracle: Arc<Oracle>) -> [Self; 2] {
        let state = State { rng: StdRng::seed_from_u64(seed), trouble: 0.0, generation: 0 };
        let inner = Arc::new(Inner { objects: InMemory::new(), oracle, state: Mutex::new(state) });
        [true, false].map(|retries| Self { inner: inner.clone(), retries })
    }

    /// From now on, requests fail or lose their answers with this probability.
    pub fn set_trouble(&self, probability: f64) {
        self.state().trouble = probability;
    }

    /// Puts the corpus where the recipe expects it.
    pub fn put_corpus(&self, corpus: &CorpusManifest) {
        let key = Path::from("corpus/manifest.json");
        let put = self.inner.objects.put(&key, corpus.to_json().into());
        futures::executor::block_on(put).map(drop).unwrap_or_else(|error| panic!("the simulated corpus: {error}"));
    }

    /// The newest manifest.
    pub async fn newest_manifest(&self) -> Option<Bytes> {
        let listed: Vec<_> = self.inner.objects.list(Some(&Path::from("run/checkpoints"))).collect().await;
        let newest = listed.into_iter().flatten().map(|meta| meta.location).max()?;
        self.inner.objects.get(&newest).await.ok()?.bytes().await.ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn luck(&self) -> Luck {
        let (trouble, fails, latency_ms) = {
            let mut state = self.state();
            let p = state.trouble;
            let latency_ms = if p > 0.0 { state.rng.random_range(1..400) } else { 1 };
            (state.rng.random_bool(p), state.rng.random_bool(0.5), latency_ms)
        };
        tokio::time::sleep(Duration::from_millis(latency_ms)).await;
        match (trouble, fails) {
            (false, _) => Luck::Well,
            (true, true) => Luck::Fails,
            (true, false) => Luck::LosesAnswer,
        }
    }

    /// One request, or several of them for the view that retries.
    async fn perform<T, F: Future<Output = Result<T>>>(&self, request: impl Fn() -> F) -> Result<T> {
        let start = Instant::now();
        loop {
            let failure = match self.luck().await {
                Luck::Well => return request().await,
                Luck::Fails => trouble(),
                Luck::LosesAnswer => {
                    let _ = request().await;
                    trouble()
                }
            };
            if !self.retries || start.elapsed() > RETRY_LIMIT {
                return Err(failure);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Looks at an object before it is there.
    async fn inspect(&self, location: &Path, bytes: &Bytes) {
        let key = location.as_ref();
        if key.contains("/checkpoints/") {
            self.inspect_manifest(key, bytes).await;
        } else if key.contains("/journal/") {
            self.inspect_journal(key, bytes);
        }
    }

    async fn inspect_manifest(&self, key: &str, bytes: &Bytes) {
        let oracle = &self.inner.oracle;
        let manifest = match Manifest::decode(bytes) {
            Ok(manifest) => manifest,
            Err(problem) => return oracle.note(format!("{key} is no manifest: {problem}")),
        };
        let state = &oracle.states[manifest.step as usize];
        for (spec, chunk) in oracle.layout.chunks.iter().zip(&manifest.chunks) {
            if chunk.digest != state.chunk_digest(spec) {
                oracle.note(format!("{key} names a wrong chunk {}", spec.id.0));
            }
            let chunk_key = Path::from(format!("run/chunks/{}", chunk.digest));
            if self.inner.objects.head(&chunk_key).await.is_err() {
                oracle.note(format!("{key} is written before its chunk {}", spec.id.0));
            }
        }
        let num_tokens: u64 = manifest.ledger.iter().map(|entry| entry.num_trained_tokens).sum();
        let expected = manifest.step * oracle.tokens_per_step;
        if num_tokens != expected {
            oracle.note(format!("{key} counts {num_tokens} trained tokens, not {expected}"));
        }
    }

    fn inspect_journal(&self, key: &str, bytes: &Bytes) {
        let line: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
        let Some(generation) = line["entry"]["generation"]["generation"].as_u64() else { return };
        let mut state = self.state();
        if generation <= state.generation {
            self.inner.oracle.note(format!("{key} has generation {generation} after {}", state.generation));
        }
        state.generation = generation;
    }
}

fn trouble() -> Error {
    Error::Generic { store: "S3", source: "simulated trouble".into() }
}

#[async_trait]
impl ObjectStore for SimStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.perform(|| async {
            let is_new = self.inner.objects.head(location).await.is_err();
            if is_new {
                self.inspect(location, &payload.clone().into()).await;
            }
            self.inner.objects.put_opts(location, payload.clone(), opts.clone()).await
        })
        .await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.objects.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.perform(|| self.inner.objects.get_opts(location, options.clone())).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.perform(|| self.inner.objects.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.objects.copy_opts(from, to, options).await
    }
}
