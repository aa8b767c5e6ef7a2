//! One way to reach bytes by key, whether they lie in a folder, in a cloud or in memory.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{
    Error as ObjectError, GetOptions, OBJECT_STORE_COALESCE_DEFAULT, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
    WriteMultipart, coalesce_ranges,
};
use tokio::time::Instant;

use crate::address::{connect, join_url};
use crate::answer::{Answer, is_transient};
use crate::create_only::{Attempt, Backoff, create_only};
use crate::digest::Digest;
use crate::error::StoreError;
use crate::hedge::Reader;
use crate::remote::{MAX_BACKOFF, RETRY_LIMIT};

/// Objects longer than this are sent in parts.
const MULTIPART_THRESHOLD_BYTES: usize = 64 << 20;
const PART_BYTES: usize = 16 << 20;
const MAX_PARTS_IN_FLIGHT: usize = 4;

/// Tries of one operation beyond those of the library, which leaves some failures alone.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), most: MAX_BACKOFF, limit: RETRY_LIMIT, salt: 0 };

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Key relative to the store that was listed.
    pub key: String,
    /// Length of the object.
    pub num_bytes: u64,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

/// A place where objects are kept under keys such as `checkpoints/000000000010.json`. Cheap to clone.
///
/// Every operation is tried again on transient failures, with jittered waits, for 30 s at most. A read of a remote store
/// that takes much longer than others of late is asked for a second time. Objects appear whole or not at all.
#[derive(Debug, Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    reader: Reader,
    single_try: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
}

impl Store {
    /// The store at `url`: a path or `file:///path` (the folder is made when missing), `s3://bucket/prefix` (settings
    /// from the `AWS_*` environment, `AWS_ENDPOINT_URL` for other servers than Amazon's), `gs://bucket/prefix`
    /// (`GOOGLE_*`), `az://container/prefix` (`AZURE_*`), or `memory://name` (one per process and name, for tests).
    /// Nothing remote is contacted yet.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        Self::open_with(url, &[])
    }

    /// As [`Store::open`], with settings such as `AWS_REGION` that go before those of the environment.
    pub fn open_with(url: &str, options: &[(String, String)]) -> Result<Self, StoreError> {
        let connected = connect(url, options)?;
        Ok(Self {
            reader: Reader::new(connected.objects.clone(), connected.is_remote),
            objects: connected.objects,
            single_try: connected.single_try,
            prefix: connected.prefix,
            url: connected.url,
        })
    }

    /// The store's address, without a final slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The full address of `key`, for messages.
    pub fn url_of(&self, key: &str) -> String {
        if key.is_empty() { self.url.clone() } else { format!("{}/{key}", self.url) }
    }

    /// The part of this store under `prefix`.
    pub fn child(&self, prefix: &str) -> Self {
        let prefix = Path::from_iter(prefix.split('/').filter(|part| !part.is_empty()));
        let url = join_url(&self.url, &prefix);
        Self { prefix: self.prefix.parts().chain(prefix.parts()).collect(), url, ..self.clone() }
    }

    /// The whole object.
    pub async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let path = self.path(key)?;
        self.tried("read", key, || async { self.reader.get(&path, GetOptions::default()).await?.bytes().await }).await
    }

    /// The bytes `range` of the object. A range that ends past the object is an error.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = self.path(key)?;
        let bytes = self.tried("read a range of", key, || self.read_range(&path, range.clone())).await?;
        self.check_length(key, &range, bytes.len())?;
        Ok(bytes)
    }

    /// As [`Store::get_range`], in the pieces in which they come: joining them would copy them all once more.
    pub async fn get_range_in_pieces(&self, key: &str, range: Range<u64>) -> Result<Vec<Bytes>, StoreError> {
        let path = self.path(key)?;
        let read = || async {
            let options = GetOptions::new().with_range(Some(range.clone()));
            self.reader.get(&path, options).await?.into_stream().try_collect::<Vec<_>>().await
        };
        let pieces = self.tried("read a range of", key, read).await?;
        self.check_length(key, &range, pieces.iter().map(Bytes::len).sum())?;
        Ok(pieces)
    }

    /// The bytes of each of `ranges`, in their order. Ranges that lie less than 1 MiB apart are read together, up to ten
    /// requests at once. A range that ends past the object is an error.
    pub async fn get_ranges(&self, key: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        let path = self.path(key)?;
        let read = || coalesce_ranges(ranges, |range| self.read_range(&path, range), OBJECT_STORE_COALESCE_DEFAULT);
        let pieces = self.tried("read ranges of", key, read).await?;
        for (range, bytes) in ranges.iter().zip(&pieces) {
            self.check_length(key, range, bytes.len())?;
        }
        Ok(pieces)
    }

    async fn read_range(&self, path: &Path, range: Range<u64>) -> Result<Bytes, ObjectError> {
        self.reader.get(path, GetOptions::new().with_range(Some(range))).await?.bytes().await
    }

    fn check_length(&self, key: &str, range: &Range<u64>, num_bytes: usize) -> Result<(), StoreError> {
        let end = range.start + num_bytes as u64;
        if end == range.end {
            return Ok(());
        }
        let reason = format!("it ends at byte {end}, but {range:?} was asked for");
        Err(StoreError::damaged(self.url_of(key), reason))
    }

    /// Length of the object.
    pub async fn size_bytes(&self, key: &str) -> Result<u64, StoreError> {
        let path = self.path(key)?;
        Ok(self.tried("look up", key, || self.objects.head(&path)).await?.size)
    }

    /// Whether the object is there.
    pub async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        match self.size_bytes(key).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Writes the object, over what was there.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let path = self.path(key)?;
        self.tried("write", key, || async {
            if bytes.len() > MULTIPART_THRESHOLD_BYTES {
                return self.put_parts(&path, bytes.clone()).await;
            }
            self.objects.put(&path, bytes.clone().into()).await.map(drop)
        })
        .await
    }

    async fn put_parts(&self, path: &Path, bytes: Bytes) -> Result<(), ObjectError> {
        let upload = self.objects.put_multipart(path).await?;
        let mut writer = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        if let Err(error) = send_parts(&mut writer, bytes).await {
            // Parts without an object cost money until someone removes them; that this fails too changes nothing.
            let _ = writer.abort().await;
            return Err(error);
        }
        writer.finish().await.map(drop)
    }

    /// Writes the object if there is none; `true` when this call made it.
    ///
    /// When an answer was lost on the way, the object is read back, and it counts as ours if its bytes are ours. Writers
    /// that must tell themselves apart therefore write bytes that differ.
    pub async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<bool, StoreError> {
        let path = self.path(key)?;
        let (path, bytes) = (&path, &bytes);
        let try_put = move || async move {
            let payload = PutPayload::from(bytes.clone());
            let put = self.single_try.put_opts(path, payload, PutMode::Create.into()).await;
            Attempt::from_put(put.map(drop))
        };
        let is_ours = move || async move { Ok(self.objects.get(path).await?.bytes().await? == *bytes) };
        let backoff = Backoff { salt: salt_of(key), ..BACKOFF };
        let start = Instant::now();
        let made = create_only(try_put, is_ours, backoff).await;
        made.map_err(|e| StoreError::from_object(e, self.url_of(key), "create", start.elapsed()))
    }

    /// All objects under the folder `prefix` ("" for all), sorted by key.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StoreError> {
        let folder = self.path(prefix)?;
        let metas: Vec<_> = self.tried("list", prefix, || self.objects.list(Some(&folder)).try_collect()).await?;
        let skip = if self.prefix.as_ref().is_empty() { 0 } else { self.prefix.as_ref().len() + 1 };
        let entry = |meta: object_store::ObjectMeta| Entry {
            key: meta.location.as_ref()[skip..].to_owned(),
            num_bytes: meta.size,
            modified: meta.last_modified.into(),
        };
        let mut entries: Vec<_> = metas.into_iter().map(entry).collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }

    /// Removes the object; fine when it is gone already.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.path(key)?;
        match self.tried("delete", key, || self.objects.delete(&path)).await {
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    }

    fn path(&self, key: &str) -> Result<Path, StoreError> {
        let bad = |e: object_store::path::Error| StoreError::BadUrl { url: self.url_of(key), reason: e.to_string() };
        let key = Path::parse(key).map_err(bad)?;
        Ok(self.prefix.parts().chain(key.parts()).collect())
    }

    /// Tries `work`, which may be done twice, until it succeeds, is refused, or the time is up.
    async fn tried<T, Work>(&self, action: &'static str, key: &str, work: impl Fn() -> Work) -> Result<T, StoreError>
    where
        Work: Future<Output = Result<T, ObjectError>>,
    {
        let start = Instant::now();
        let backoff = Backoff { salt: salt_of(key), ..BACKOFF };
        for num_failures in 0.. {
            let error = match work().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let wait = backoff.wait(num_failures);
            if !may_go_away(&error) || start.elapsed() + wait > backoff.limit {
                return Err(StoreError::from_object(error, self.url_of(key), action, start.elapsed()));
            }
            tracing::debug!(url = self.url_of(key), action, %error, "trying again");
            tokio::time::sleep(wait).await;
        }
        unreachable!("the time is up before the numbers are")
    }
}

async fn send_parts(writer: &mut WriteMultipart, mut bytes: Bytes) -> Result<(), ObjectError> {
    while !bytes.is_empty() {
        writer.wait_for_capacity(MAX_PARTS_IN_FLIGHT).await?;
        writer.put(bytes.split_to(PART_BYTES.min(bytes.len())));
    }
    Ok(())
}

/// An upload in parts whose last answer was lost has ended, well or not: it is sent anew.
fn may_go_away(error: &ObjectError) -> bool {
    is_transient(error) || Answer::of(error).is_one_of(&["NoSuchUpload"])
}

/// Follows from the key, so that simulated runs can be replayed; those that wait for the same object may wait alike.
fn salt_of(key: &str) -> u64 {
    Digest::of(key.as_bytes()).as_bytes().iter().take(8).fold(0, |salt, byte| salt << 8 | u64::from(*byte))
}
