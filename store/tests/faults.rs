//! What stores do under faults: a relay between the library and real servers throttles, resets, truncates, loses answers
//! and lets credentials expire. Operations live through what passes, and name what does not.

use std::time::Duration;

use bytes::Bytes;
use polo_store::testing::{Azurite, Fault, Moto, Proxy, SeaweedFs, TranslatedGcs};
use polo_store::{Store, StoreError};

/// Far longer than anything here takes that does what it should.
const LIMIT: Duration = Duration::from_secs(120);

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn large(num_bytes: usize) -> Bytes {
    (0..num_bytes).map(|i| (i * 31 / 128) as u8).collect()
}

/// Does everything that a store does, with `fault` in the way of each request in turn. `delete` is what a request to
/// delete begins with.
async fn lives_through(store: &Store, proxy: &Proxy, delete: &'static str, fault: Fault, num_requests: usize) {
    let inject = |what| proxy.inject(what, fault, num_requests);
    inject("PUT ");
    store.put("k", bytes("0123456789")).await.expect("put");
    inject("GET ");
    assert_eq!(store.get("k").await.expect("get"), "0123456789", "{fault:?}");
    inject("GET ");
    assert_eq!(store.get_range("k", 2..5).await.expect("range"), "234", "{fault:?}");
    inject("HEAD ");
    assert_eq!(store.size_bytes("k").await.expect("head"), 10, "{fault:?}");
    inject("GET ");
    assert_eq!(store.list("").await.expect("list").len(), 1, "{fault:?}");
    inject("PUT ");
    assert!(store.put_if_absent("new", bytes("ours")).await.expect("create"), "{fault:?}");
    for key in ["k", "new"] {
        inject(delete);
        store.delete(key).await.expect("delete");
    }
    assert_eq!(store.list("").await.expect("list"), [], "{fault:?}");
    assert!(proxy.is_done(), "{fault:?} did not happen");
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_lives_through_faults() {
    let server = SeaweedFs::start(&SeaweedFs::default_binary(), "polo").await.expect("seaweedfs");
    let proxy = Proxy::start(server.port()).await.expect("proxy");
    let store = |prefix| server.store_through(proxy.port(), prefix).expect("open");
    lives_through(&store("throttled"), &proxy, "POST ", Fault::Answer(503, "SlowDown"), 3).await;
    lives_through(&store("too-many"), &proxy, "POST ", Fault::Answer(429, "TooManyRequests"), 2).await;
    lives_through(&store("reset"), &proxy, "POST ", Fault::Reset, 2).await;
    lives_through(&store("lost"), &proxy, "POST ", Fault::LoseAnswer, 2).await;
    lives_through(&store("truncated"), &proxy, "POST ", Fault::Truncate, 1).await;
    knows_its_own_object_from_anothers(&store("ambiguous"), &server.store("ambiguous").expect("open"), &proxy).await;
    resumes_a_truncated_read(&store("resumed"), &proxy).await;
    sends_parts_until_all_are_there(&store("parts"), &proxy).await;
    names_what_does_not_pass("s3://polo/named", &store("named"), &proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_lives_through_faults() {
    let server = Azurite::start(&Azurite::default_binary(), "polo").await.expect("azurite");
    let proxy = Proxy::start(server.port()).await.expect("proxy");
    let store = |prefix| server.store_through(proxy.port(), prefix).expect("open");
    lives_through(&store("throttled"), &proxy, "POST ", Fault::Answer(503, "ServerBusy"), 2).await;
    lives_through(&store("reset"), &proxy, "POST ", Fault::Reset, 2).await;
    lives_through(&store("lost"), &proxy, "POST ", Fault::LoseAnswer, 2).await;
    lives_through(&store("truncated"), &proxy, "POST ", Fault::Truncate, 1).await;
    knows_its_own_object_from_anothers(&store("ambiguous"), &server.store("ambiguous").expect("open"), &proxy).await;
    resumes_a_truncated_read(&store("resumed"), &proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gcs_lives_through_faults() {
    let server = TranslatedGcs::start(&Moto::default_python(), "polo").await.expect("moto and its relay");
    let store = |prefix| server.store(prefix).expect("open");
    lives_through(&store("throttled"), server.relay(), "DELETE ", Fault::Answer(503, "SlowDown"), 2).await;
    lives_through(&store("reset"), server.relay(), "DELETE ", Fault::Reset, 2).await;
    lives_through(&store("lost"), server.relay(), "DELETE ", Fault::LoseAnswer, 2).await;
    knows_its_own_object_from_anothers(&store("ambiguous"), &store("ambiguous"), server.relay()).await;
    resumes_a_truncated_read(&store("resumed"), server.relay()).await;
}

/// The answers to both of its tries are lost, so only the object itself can tell.
async fn knows_its_own_object_from_anothers(store: &Store, rival: &Store, proxy: &Proxy) {
    proxy.inject("PUT ", Fault::LoseAnswer, 2);
    assert!(store.put_if_absent("ours", bytes("ours")).await.expect("create"));
    assert_eq!(rival.get("ours").await.expect("get"), "ours");

    assert!(rival.put_if_absent("theirs", bytes("theirs")).await.expect("create"));
    proxy.inject("PUT ", Fault::LoseAnswer, 2);
    assert!(!store.put_if_absent("theirs", bytes("ours")).await.expect("create"));
    assert_eq!(rival.get("theirs").await.expect("get"), "theirs");
    assert!(proxy.is_done());
}

async fn resumes_a_truncated_read(store: &Store, proxy: &Proxy) {
    let object = large(5 << 20);
    store.put("large", object.clone()).await.expect("put");
    proxy.inject("GET ", Fault::Truncate, 3);
    assert!(store.get("large").await.expect("get") == object, "the object came back changed");
    proxy.inject("GET ", Fault::Truncate, 2);
    let range = store.get_range("large", 1000..4_000_000).await.expect("range");
    assert!(range == object[1000..4_000_000], "the range came back changed");
    assert!(proxy.is_done());
}

async fn sends_parts_until_all_are_there(store: &Store, proxy: &Proxy) {
    let object = large((64 << 20) + 1);
    for fault in [Fault::LoseAnswer, Fault::Answer(503, "SlowDown"), Fault::Truncate] {
        // The upload is begun and ended by a POST, and its parts are put.
        proxy.inject("POST ", fault, 2);
        proxy.inject("PUT ", fault, 2);
        store.put("large", object.clone()).await.unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        assert!(store.get("large").await.expect("get") == object, "{fault:?}: the object came back changed");
        store.delete("large").await.expect("delete");
    }
    // The upload's end was not heard of, and the upload is gone when it is asked for again.
    proxy.inject("POST /polo/parts/large?uploadId", Fault::LoseAnswer, 1);
    proxy.inject("POST /polo/parts/large?uploadId", Fault::Answer(404, "NoSuchUpload"), 1);
    store.put("large", object.clone()).await.expect("put");
    assert!(store.get("large").await.expect("get") == object, "the object came back changed");
    assert!(proxy.is_done());
}

async fn names_what_does_not_pass(url: &str, store: &Store, proxy: &Proxy) {
    let expired = [Fault::Answer(400, "ExpiredToken"), Fault::Answer(403, "ExpiredToken")];
    let elsewhere = [Fault::Answer(400, "AuthorizationHeaderMalformed"), Fault::Answer(301, "PermanentRedirect")];
    for fault in [&expired[..], &elsewhere[..]].concat() {
        let before = proxy.num_requests("");
        proxy.inject("GET ", fault, 1);
        proxy.inject("PUT ", fault, 2);
        let answers = [
            store.get("a/k").await.map(drop),
            store.put("a/k", bytes("v")).await,
            store.put_if_absent("a/k", bytes("v")).await.map(drop),
        ];
        assert_eq!(proxy.num_requests("") - before, 3, "{fault:?} was tried again, which does not help");
        for answer in answers {
            let error = answer.expect_err("refused");
            let words = error.to_string();
            assert!(words.contains(&format!("{url}/a/k")), "{words}");
            match fault {
                _ if expired.contains(&fault) => {
                    assert!(matches!(error, StoreError::Expired { .. }), "{error:?}");
                    assert!(words.contains("AWS_SESSION_TOKEN"), "{words}");
                }
                _ => {
                    assert!(matches!(error, StoreError::WrongRegion { .. }), "{error:?}");
                    assert!(words.contains("AWS_REGION"), "{words}");
                }
            }
        }
    }
}

/// A store with one object, whose connections may be silent for longer than any test lasts.
async fn patient(server: &SeaweedFs, proxy: &Proxy) -> Store {
    let mut settings = server.settings_through(proxy.port());
    settings.extend([("AWS_READ_TIMEOUT", "1 hour"), ("AWS_TIMEOUT", "1 hour")].map(|(n, v)| (n.into(), v.into())));
    let store = Store::open_with("s3://polo/patient", &settings).expect("open");
    store.put("k", bytes("v")).await.expect("put");
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_stalls_is_asked_for_a_second_time() {
    let server = SeaweedFs::start(&SeaweedFs::default_binary(), "polo").await.expect("seaweedfs");
    let proxy = Proxy::start(server.port()).await.expect("proxy");
    let store = patient(&server, &proxy).await;
    // On a busy machine some of these are slow too and use up second requests; so many without any earn the next.
    let mut num_quick = 0;
    while num_quick < 20 {
        let before = proxy.num_requests("GET ");
        store.get("k").await.expect("get");
        num_quick = if proxy.num_requests("GET ") - before == 1 { num_quick + 1 } else { 0 };
    }
    let before = proxy.num_requests("GET ");
    proxy.inject("GET ", Fault::Stall, 1);
    let read = tokio::time::timeout(LIMIT, store.get("k")).await.expect("the first request is not waited for");
    assert_eq!(read.expect("get"), "v");
    assert_eq!(proxy.num_requests("GET ") - before, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_are_bounded() {
    let server = SeaweedFs::start(&SeaweedFs::default_binary(), "polo").await.expect("seaweedfs");
    let proxy = Proxy::start(server.port()).await.expect("proxy");
    let store = patient(&server, &proxy).await;
    proxy.inject("GET ", Fault::Stall, usize::from(u8::MAX));
    let read = |_| {
        let store = store.clone();
        tokio::spawn(async move { store.get("k").await })
    };
    let mut reads: Vec<_> = (0..200).map(read).collect();
    let at_least = async |num_requests| {
        while proxy.num_requests("GET ") < num_requests {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(LIMIT, at_least(64)).await.expect("64 at once");
    reads.drain(..10).for_each(|read| read.abort());
    tokio::time::timeout(LIMIT, at_least(74)).await.expect("as many as have ended go on");
    assert_eq!(proxy.num_requests("GET "), 74);
    reads.iter().for_each(|read| read.abort());
}
