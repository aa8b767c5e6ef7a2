//! From the address of a store to the client that reaches it.

use std::collections::HashMap;
use std::path::Path as FilePath;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use url::Url;

use crate::error::StoreError;
use crate::remote::{Clients, Cloud, Setting};

/// A reachable store and the place in it.
pub(crate) struct Connected {
    /// Retries by itself.
    pub objects: Arc<dyn ObjectStore>,
    /// Never retries, so that its caller knows of every try; for conditional puts.
    pub single_try: Arc<dyn ObjectStore>,
    /// Whether it is far away, so that some reads take much longer than others.
    pub is_remote: bool,
    /// Place in the store.
    pub prefix: Path,
    /// The address in its normal form, without a final slash.
    pub url: String,
}

/// Connects to `address`; `options` are settings such as `AWS_REGION` that go before the environment's.
pub(crate) fn connect(address: &str, options: &[Setting]) -> Result<Connected, StoreError> {
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
        scheme => {
            let cloud = Cloud::of_scheme(scheme).ok_or_else(|| bad(format!("the scheme {scheme:?} is unknown")))?;
            let (bucket, prefix) = (host()?, prefix()?);
            let environment =
                std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)));
            let [objects, single_try] = cloud.connect(bucket, environment, options).map_err(|e| bad(e.to_string()))?;
            let url = join_url(&format!("{scheme}://{bucket}"), &prefix);
            Ok(Connected { objects, single_try, is_remote: true, prefix, url })
        }
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
    Ok(Connected { single_try: objects.clone(), objects, is_remote: false, prefix: Path::default(), url })
}

/// By name: what retries, and what never does.
type MemoryStores = Mutex<HashMap<String, Clients>>;

fn memory_stores() -> MutexGuard<'static, HashMap<String, Clients>> {
    static STORES: LazyLock<MemoryStores> = LazyLock::new(Mutex::default);
    STORES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect_memory(name: &str, prefix: Path) -> Connected {
    let in_memory = || -> Clients {
        let objects = Arc::new(InMemory::new());
        [objects.clone(), objects]
    };
    let [objects, single_try] = memory_stores().entry(name.to_owned()).or_insert_with(in_memory).clone();
    let url = join_url(&format!("memory://{name}"), &prefix);
    Connected { single_try, objects, is_remote: false, prefix, url }
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

/// `url` followed by `path`, with one slash between them when there is a path.
pub(crate) fn join_url(url: &str, path: &Path) -> String {
    if path.as_ref().is_empty() { url.to_owned() } else { format!("{url}/{path}") }
}
