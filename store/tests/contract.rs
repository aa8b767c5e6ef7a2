//! What every store must do, run on memory, a folder and real servers.

use bytes::Bytes;
use polo_store::testing::{Azurite, Moto, Rclone, SeaweedFs, TranslatedGcs, settings};
use polo_store::{Dishonesty, Store, StoreError};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn keeps_the_contract(store: &Store) {
    reads_back_what_was_written(store).await;
    reads_many_ranges(store).await;
    names_missing_objects(store).await;
    lists_in_order(store).await;
    creates_once(store).await;
    one_of_ten_creators_wins(store).await;
    is_found_honest(store).await;
    sends_large_objects(store).await;
}

async fn reads_back_what_was_written(store: &Store) {
    store.put("a/data", bytes("0123456789")).await.expect("put");
    assert_eq!(store.get("a/data").await.expect("get"), "0123456789");
    assert_eq!(store.get_range("a/data", 2..5).await.expect("range"), "234");
    assert_eq!(store.size_bytes("a/data").await.expect("size"), 10);
    let past_the_end = store.get_range("a/data", 8..12).await.expect_err("ends at 10").to_string();
    assert!(past_the_end.contains("a/data"), "{past_the_end}");
    store.put("a/data", bytes("new")).await.expect("overwrite");
    assert_eq!(store.child("a").get("data").await.expect("get through a child"), "new");
    store.put("empty", Bytes::new()).await.expect("put nothing");
    assert_eq!(store.get("empty").await.expect("get nothing"), "");
}

async fn reads_many_ranges(store: &Store) {
    let object: Bytes = (0..3u32 << 20).map(|i| (i * 7 / 64) as u8).collect();
    store.put("ranges", object.clone()).await.expect("put");
    let far = 3 << 20;
    let ranges = [far - 10..far, 5..9, 0..1, 7..7, 8..2000, far / 2..far / 2 + 3];
    let pieces = store.get_ranges("ranges", &ranges).await.expect("ranges");
    for (range, piece) in ranges.iter().zip(pieces) {
        assert!(piece == object[range.start as usize..range.end as usize], "the bytes {range:?} came back changed");
    }
    assert_eq!(store.get_ranges("ranges", &[]).await.expect("no ranges"), Vec::<Bytes>::new());
    let past_the_end = store.get_ranges("ranges", &[0..4, far - 1..far + 1]).await.expect_err("too far").to_string();
    assert!(past_the_end.contains("/ranges"), "{past_the_end}");
}

async fn names_missing_objects(store: &Store) {
    for result in [store.get("no/such").await.map(drop), store.size_bytes("no/such").await.map(drop)] {
        let error = result.expect_err("missing");
        assert!(error.is_not_found() && error.to_string().contains(&store.url_of("no/such")), "{error}");
    }
    assert!(!store.exists("no/such").await.expect("exists"));
    store.put("gone", bytes("x")).await.expect("put");
    store.delete("gone").await.expect("delete");
    store.delete("gone").await.expect("delete again");
    assert!(!store.exists("gone").await.expect("exists"));
}

async fn lists_in_order(store: &Store) {
    for key in ["list/b", "list/a/2", "list/a/10", "list/c", "listed"] {
        store.put(key, bytes(key)).await.expect("put");
    }
    let entries = store.list("list").await.expect("list");
    let keys: Vec<_> = entries.iter().map(|e| (e.key.as_str(), e.num_bytes)).collect();
    assert_eq!(keys, [("list/a/10", 9), ("list/a/2", 8), ("list/b", 6), ("list/c", 6)]);
    let through_child = store.child("list").list("a").await.expect("list a child");
    assert_eq!(through_child.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(), ["a/10", "a/2"]);
    assert_eq!(store.list("nothing/here").await.expect("list"), []);
}

async fn creates_once(store: &Store) {
    assert!(store.put_if_absent("once", bytes("first")).await.expect("create"));
    assert!(!store.put_if_absent("once", bytes("first")).await.expect("create again"));
    assert!(!store.put_if_absent("once", bytes("second")).await.expect("create another"));
    assert_eq!(store.get("once").await.expect("get"), "first");
}

async fn one_of_ten_creators_wins(store: &Store) {
    let race = |n: usize| {
        let store = store.clone();
        tokio::spawn(async move { store.put_if_absent("race", bytes(&n.to_string())).await.expect("create") })
    };
    let racers: Vec<_> = (0..10).map(race).collect();
    let mut winners = Vec::new();
    for (n, racer) in racers.into_iter().enumerate() {
        if racer.await.expect("no panic") {
            winners.push(n.to_string());
        }
    }
    assert_eq!(winners.len(), 1, "winners: {winners:?}");
    assert_eq!(store.get("race").await.expect("get"), winners[0]);
}

async fn is_found_honest(store: &Store) {
    let before = store.list("").await.expect("list");
    assert_eq!(store.find_dishonesty().await.expect("tried"), None);
    assert_eq!(store.list("").await.expect("list"), before, "what it was tried with is left behind");
}

async fn sends_large_objects(store: &Store) {
    let large: Bytes = (0..(65usize << 20)).map(|i| (i * 31 / 128) as u8).collect();
    store.put("large", large.clone()).await.expect("put in parts");
    assert!(store.get("large").await.expect("get") == large, "a large object came back changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_contract() {
    keeps_the_contract(&Store::open("memory://contract/deep/er").expect("open")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_keeps_the_contract() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("with a space");
    keeps_the_contract(&Store::open(path.to_str().expect("utf-8")).expect("open")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_keeps_the_contract() {
    let server = SeaweedFs::start(&SeaweedFs::default_binary(), "polo").await.expect("seaweedfs");
    keeps_the_contract(&server.store("runs/one").expect("open")).await;
    names_a_missing_bucket("s3", &server.settings()).await;
    says_when_access_is_denied(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_s3_keeps_the_contract() {
    let server = Moto::start(&Moto::default_python(), "polo").await.expect("moto");
    keeps_the_contract(&server.store("runs/one").expect("open")).await;
    names_a_missing_bucket("s3", &server.settings()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gcs_keeps_the_contract() {
    let server = TranslatedGcs::start(&Moto::default_python(), "polo").await.expect("moto and its relay");
    keeps_the_contract(&server.store("runs/one").expect("open")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_keeps_the_contract() {
    let server = Azurite::start(&Azurite::default_binary(), "polo").await.expect("azurite");
    keeps_the_contract(&server.store("runs/one").expect("open")).await;
    names_a_missing_bucket("az", &server.settings()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ignores_the_condition_is_found_dishonest() {
    let server = Rclone::start(&Rclone::default_binary(), "polo").await.expect("rclone");
    let store = server.store("runs/one").expect("open");
    let dishonesty = store.find_dishonesty().await.expect("tried").expect("it overwrites whatever is there");
    assert!(matches!(dishonesty, Dishonesty::ManyWinners(2..)), "{dishonesty}");
}

async fn says_when_access_is_denied(server: &SeaweedFs) {
    let mut settings = server.settings();
    settings.push(("AWS_SECRET_ACCESS_KEY".into(), "wrong".into()));
    let store = Store::open_with("s3://polo/runs", &settings).expect("open");
    let error = store.put("k", bytes("v")).await.expect_err("the secret is wrong");
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    assert!(error.to_string().contains("s3://polo/runs/k") && !error.to_string().contains("wrong"), "{error}");
}

async fn names_a_missing_bucket(scheme: &str, settings: &[(String, String)]) {
    let url = format!("{scheme}://absent/x");
    let store = Store::open_with(&url, settings).expect("open");
    let answers =
        [store.get("k").await.map(drop), store.list("").await.map(drop), store.put("k", bytes("v")).await.map(drop)];
    for answer in answers {
        let error = answer.expect_err("the bucket is missing");
        assert!(matches!(error, StoreError::MissingBucket { .. }), "{error:?}");
        assert!(error.to_string().contains(&url), "{error}");
    }
}

#[tokio::test]
async fn addresses_are_understood_or_refused_by_name() {
    let opened = |url: &str| Store::open_with(url, &settings("http://127.0.0.1:1")).map(|s| s.url().to_owned());
    assert_eq!(opened("s3://bucket/a/b/").expect("s3"), "s3://bucket/a/b");
    assert_eq!(opened("memory://addresses").expect("memory"), "memory://addresses");
    let folder = tempfile::tempdir().expect("tempdir");
    let url = format!("file://{}/new", folder.path().display());
    assert_eq!(opened(&url).expect("file"), url);
    assert!(folder.path().join("new").is_dir());
    for bad in ["gopher://x/y", "s3://", "file://host/relative", "memory://"] {
        let error = opened(bad).expect_err("refused").to_string();
        assert!(error.contains(bad), "{error}");
    }
}

#[tokio::test]
async fn stores_with_one_memory_name_are_one() {
    let (a, b) = (Store::open("memory://one").expect("open"), Store::open("memory://one/x").expect("open"));
    a.put("x/k", bytes("v")).await.expect("put");
    assert_eq!(b.get("k").await.expect("get"), "v");
}
