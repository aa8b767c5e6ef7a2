//! A cache on the local disk: what outlives a process, what is checked, and what several processes share.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use polo_store::testing::{Proxy, SeaweedFs};
use polo_store::{Cache, CacheError, Digest, Store};

const ROOMY: u64 = 1 << 40;

fn object(name: &str, num_bytes: usize) -> (Digest, Bytes) {
    let bytes: Bytes = name.bytes().cycle().take(num_bytes).collect();
    (Digest::of(&bytes), bytes)
}

async fn stored(store: &Store, name: &str, num_bytes: usize) -> (Digest, Bytes) {
    let (digest, bytes) = object(name, num_bytes);
    store.put(name, bytes.clone()).await.expect("put");
    (digest, bytes)
}

fn files(folder: &Path) -> Vec<String> {
    let names =
        fs::read_dir(folder).expect("listed").map(|e| e.expect("entry").file_name().into_string().expect("utf-8"));
    let mut names: Vec<_> = names.filter(|name| name != "lock").collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_object_is_fetched_once_and_survives_its_process() {
    let (store, folder) = (Store::open("memory://cache-once").expect("open"), tempfile::tempdir().expect("tempdir"));
    // Several pieces, and the last one is not whole.
    let (digest, bytes) = stored(&store, "shard", (20 << 20) + 7).await;
    let cached = Cache::open(folder.path(), ROOMY).expect("open").fetch(&store, "shard", digest).await.expect("fetch");
    assert!(fs::read(cached.path()).expect("read") == bytes);
    drop(cached);
    store.delete("shard").await.expect("delete");
    let cached =
        Cache::open(folder.path(), ROOMY).expect("open").fetch(&store, "shard", digest).await.expect("it is here");
    assert!(fs::read(cached.path()).expect("read") == bytes);
}

#[tokio::test]
async fn a_damaged_file_is_fetched_again() {
    let (store, folder) = (Store::open("memory://cache-damage").expect("open"), tempfile::tempdir().expect("tempdir"));
    let (digest, bytes) = stored(&store, "shard", 1000).await;
    let cache = Cache::open(folder.path(), ROOMY).expect("open");
    let path = cache.fetch(&store, "shard", digest).await.expect("fetch").path().to_owned();
    let mut damaged = bytes.to_vec();
    damaged[500] ^= 1;
    fs::write(&path, damaged).expect("damage");
    let cached = cache.fetch(&store, "shard", digest).await.expect("fetch again");
    assert!(fs::read(cached.path()).expect("read") == bytes);
}

#[tokio::test]
async fn other_bytes_than_the_manifests_are_refused_and_not_kept() {
    let (store, folder) = (Store::open("memory://cache-other").expect("open"), tempfile::tempdir().expect("tempdir"));
    stored(&store, "shard", 1000).await;
    let cache = Cache::open(folder.path(), ROOMY).expect("open");
    let error = cache.fetch(&store, "shard", Digest::of(b"another")).await.expect_err("refused");
    assert!(matches!(error, CacheError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains(&store.url_of("shard")), "{error}");
    let error = cache.fetch(&store, "absent", Digest::of(b"x")).await.expect_err("refused");
    assert!(matches!(&error, CacheError::Store(e) if e.is_not_found()), "{error:?}");
    assert_eq!(files(folder.path()), Vec::<String>::new());
}

#[tokio::test]
async fn the_longest_unused_object_makes_room_unless_it_is_held() {
    let (store, folder) = (Store::open("memory://cache-room").expect("open"), tempfile::tempdir().expect("tempdir"));
    let cache = Cache::open(folder.path(), 3000).expect("open");
    let mut digests = Vec::new();
    for name in ["a", "b", "c"] {
        let (digest, _) = stored(&store, name, 1000).await;
        cache.fetch(&store, name, digest).await.expect("fetch");
        digests.push(digest.to_string());
    }
    let (digest_a, _) = object("a", 1000);
    let held = cache.fetch(&store, "a", digest_a).await.expect("use again");
    let (digest_d, _) = stored(&store, "d", 1500).await;
    cache.fetch(&store, "d", digest_d).await.expect("fetch");
    let mut left = vec![digests[0].clone(), digest_d.to_string()];
    left.sort();
    assert_eq!(files(folder.path()), left, "b and c were used longest ago");

    let (digest_e, _) = stored(&store, "e", 2001).await;
    let error = cache.fetch(&store, "e", digest_e).await.expect_err("a is held");
    assert!(matches!(error, CacheError::Full { in_use_bytes: 1000, num_bytes: 2001, .. }), "{error:?}");
    drop(held);
    cache.fetch(&store, "e", digest_e).await.expect("a is free");
    assert_eq!(files(folder.path()), [digest_e.to_string()]);
}

/// A file that another process is fetching, or was.
fn part_of_another(folder: &Path, digest: Digest, modified: SystemTime) -> File {
    let file = File::create(folder.join(format!("{digest}.other.part"))).expect("create");
    file.set_modified(modified).expect("set");
    file
}

#[tokio::test]
async fn what_a_process_left_behind_is_removed_and_one_that_has_stopped_is_not_waited_for() {
    let (store, folder) = (Store::open("memory://cache-left").expect("open"), tempfile::tempdir().expect("tempdir"));
    let cache = Cache::open(folder.path(), ROOMY).expect("open");
    let (digest_a, _) = stored(&store, "a", 10).await;
    part_of_another(folder.path(), digest_a, SystemTime::now());
    cache.fetch(&store, "a", digest_a).await.expect("nobody fetches it");
    assert_eq!(files(folder.path()), [digest_a.to_string()]);

    let (digest_b, _) = stored(&store, "b", 10).await;
    let stopped = part_of_another(folder.path(), digest_b, SystemTime::now() - Duration::from_secs(61));
    stopped.lock().expect("lock");
    cache.fetch(&store, "b", digest_b).await.expect("it is fetched twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_of_one_folder_fetch_an_object_once() {
    let server = SeaweedFs::start(&SeaweedFs::default_binary(), "polo").await.expect("seaweedfs");
    let proxy = Proxy::start(server.port()).await.expect("proxy");
    let store = server.store_through(proxy.port(), "").expect("open");
    let folder = tempfile::tempdir().expect("tempdir");
    let (digest, bytes) = stored(&store, "shard", 4 << 20).await;
    let fetch = |_| {
        // Locks belong to open files, not to processes: each of these is to the others as another process is.
        let (store, cache) = (store.clone(), Cache::open(folder.path(), ROOMY).expect("open"));
        tokio::spawn(async move { cache.fetch(&store, "shard", digest).await.expect("fetch") })
    };
    for fetching in (0..8).map(fetch).collect::<Vec<_>>() {
        assert!(fs::read(fetching.await.expect("no panic").path()).expect("read") == bytes);
    }
    assert_eq!(proxy.num_requests("GET /polo/shard"), 1);
}
