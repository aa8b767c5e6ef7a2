//! From the address of a store to the client that reaches it.

use std::collections::HashMap;
use std::path::Path as FilePath;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::error::StoreError;

/// How long one operation goes on trying before it reports the store as unreachable.
pub(crate) const RETRY_LIMIT: Duration = Duration::from_secs(30);

/// So many that time is the bound, not their number.
const MAX_RETRIES: usize = 1000;

/// How long a single request may take, its body included.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);

/// A reachable store and the place in it.
pub(crate) struct Connected {
    /// Retries by itself.
    pub objects: Arc<dyn ObjectStore>,
    /// Never retries, so that its caller knows of every try; for conditional puts.
    pub single_try: Arc<dyn ObjectStore>,
    /// Place in the store.
    pub prefix: Path,
    /// The address in its normal form, without a final slash.
    pub url: String,
}

/// Connects to `address`; `options` are `AWS_*` settings that go before the environment's.
pub(crate) fn connect(address: &str, options: &[(String, String)]) -> Result<Connected, StoreError> {
    if !address.contains("://") {
        return connect_file(address, FilePath::new(address));
    }
    let bad = |reason: String| StoreError::BadUrl { url: address.to_owned(), reason };
    let url = Url::parse(address).map_err(|e| bad(e.to_string()))?;
    let prefix = || Path::from_url_path(url.path()).map_err(|e| bad(e.to_string()));
    let host = || url.host_str().filter(|h| !h.is_empty()).ok_or_else(|| bad("the name after :// is missing".into()));
    match url.scheme() {
        "file" => {
            let path = url.to_file_path().map_err(|()| bad("a file address needs an absolute path".into()))?;
            connect_file(address, &path)
        }
        "memory" => Ok(connect_memory(host()?, prefix()?)),
        "s3" => connect_s3(address, host()?, prefix()?, options),
        other => Err(bad(format!("the scheme {other:?} is unknown"))),
    }
}

fn connect_file(address: &str, path: &FilePath) -> Result<Connected, StoreError> {
    let bad = |reason: String| StoreError::BadUrl { url: address.to_owned(), reason };
    let path = std::path::absolute(path).map_err(|e| bad(e.to_string()))?;
    std::fs::create_dir_all(&path).map_err(|e| bad(format!("the folder cannot be made: {e}")))?;
    let url = Url::from_directory_path(&path).map_err(|()| bad("the path is no address".into()))?;
    // A manifest must not survive a power cut that its chunks did not survive.
    let files = LocalFileSystem::new_with_prefix(&path).map_err(|e| bad(e.to_string()))?.with_fsync(true);
    let objects: Arc<dyn ObjectStore> = Arc::new(files);
    let url = url.as_str().trim_end_matches('/').to_owned();
    Ok(Connected { single_try: objects.clone(), objects, prefix: Path::default(), url })
}

/// By name: what retries, and what never does.
type MemoryStores = Mutex<HashMap<String, [Arc<dyn ObjectStore>; 2]>>;

fn memory_stores() -> MutexGuard<'static, HashMap<String, [Arc<dyn ObjectStore>; 2]>> {
    static STORES: LazyLock<MemoryStores> = LazyLock::new(Mutex::default);
    STORES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect_memory(name: &str, prefix: Path) -> Connected {
    let in_memory = || -> [Arc<dyn ObjectStore>; 2] {
        let objects = Arc::new(InMemory::new());
        [objects.clone(), objects]
    };
    let [objects, single_try] = memory_stores().entry(name.to_owned()).or_insert_with(in_memory).clone();
    let url = join_url(&format!("memory://{name}"), &prefix);
    Connected { single_try, objects, prefix, url }
}

/// Puts a store behind `memory://name`, for tests that want one with faults. `single_try` must never retry.
#[cfg(feature = "testing")]
pub fn register_memory(name: &str, objects: Arc<dyn ObjectStore>, single_try: Arc<dyn ObjectStore>) {
    memory_stores().insert(name.to_owned(), [objects, single_try]);
}

/// Forgets the store behind `memory://name`.
#[cfg(feature = "testing")]
pub fn forget_memory(name: &str) {
    memory_stores().remove(name);
}

fn connect_s3(
    address: &str,
    bucket: &str,
    prefix: Path,
    options: &[(String, String)],
) -> Result<Connected, StoreError> {
    let bad = |e: object_store::Error| StoreError::BadUrl { url: address.to_owned(), reason: e.to_string() };
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    for (name, value) in options {
        let key: AmazonS3ConfigKey = name.to_ascii_lowercase().parse().map_err(bad)?;
        builder = builder.with_config(key, value);
    }
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint).unwrap_or_default();
    let client = ClientOptions::new().with_timeout(REQUEST_LIMIT).with_allow_http(endpoint.starts_with("http://"));
    let builder = builder.with_client_options(client);
    let objects = builder.clone().with_retry(retries(MAX_RETRIES)).build().map_err(bad)?;
    let single_try = builder.with_retry(retries(0)).build().map_err(bad)?;
    let url = join_url(&format!("s3://{bucket}"), &prefix);
    Ok(Connected { objects: Arc::new(objects), single_try: Arc::new(single_try), prefix, url })
}

fn retries(max_retries: usize) -> RetryConfig {
    let backoff = BackoffConfig { max_backoff: Duration::from_secs(2), ..BackoffConfig::default() };
    RetryConfig { backoff, max_retries, retry_timeout: RETRY_LIMIT }
}

/// `url` followed by `path`, with one slash between them when there is a path.
pub(crate) fn join_url(url: &str, path: &Path) -> String {
    if path.as_ref().is_empty() { url.to_owned() } else { format!("{url}/{path}") }
}
