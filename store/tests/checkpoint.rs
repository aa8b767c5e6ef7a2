//! A checkpoint's life: written, damaged in every way, skipped, retained.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use polo_recipe::layout::Layout;
use polo_recipe::model::Qwen2Config;
use polo_recipe::plan::LedgerEntry;
use polo_store::checkpoint::{
    Depth, Manifest, chunk_num_bytes, get_chunk, list_steps, newest_good, put_chunk, put_manifest, read_manifest,
    retain, state_digest, verify,
};
use polo_store::testing::SeaweedFs;
use polo_store::{Digest, Store, StoreError};

fn layout() -> Layout {
    let json = serde_json::json!({
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 12, "vocab_size": 20, "tie_word_embeddings": true
    });
    let config: Qwen2Config = serde_json::from_value(json).expect("a config");
    Layout::with_chunk_params(&config, 100)
}

fn store(name: &str) -> Store {
    Store::open(&format!("memory://checkpoint-{name}")).expect("open")
}

/// Chunk objects of a made-up state.
fn chunks(step: u64) -> Vec<Bytes> {
    let object =
        |(n, num_bytes): (usize, u64)| (0..num_bytes).map(move |i| (i as usize * 7 + n * 31) as u8 ^ step as u8);
    let sizes = layout().chunks.into_iter().map(|c| chunk_num_bytes(c.range.len() as u64));
    sizes.enumerate().map(|sized| object(sized).collect()).collect()
}

fn manifest(step: u64, digests: &[Digest]) -> Manifest {
    let entry = LedgerEntry {
        stage: "main".into(),
        source: "chinese".into(),
        num_planned_tokens: 6400,
        num_trained_tokens: step * 64,
        samples: 0..step,
        num_epoch_tokens: 6400,
    };
    Manifest::new(step, "recipe".into(), Digest::of(b"corpus"), &layout(), digests, vec![entry])
}

async fn put_chunks(store: &Store, step: u64) -> Vec<Digest> {
    let mut digests = Vec::new();
    for chunk in chunks(step) {
        digests.push(put_chunk(store, chunk).await.expect("put chunk"));
    }
    digests
}

async fn put_checkpoint(store: &Store, step: u64) -> Manifest {
    let manifest = manifest(step, &put_chunks(store, step).await);
    put_manifest(store, &manifest).await.expect("put manifest");
    manifest
}

async fn good_steps(store: &Store) -> Vec<u64> {
    let mut good = Vec::new();
    for step in list_steps(store).await.expect("list") {
        if verify(store, step, Depth::Deep).await.expect("verify").is_good() {
            good.push(step);
        }
    }
    good
}

async fn keep(store: &Store, num: usize) -> Vec<u64> {
    let keep = NonZeroUsize::new(num).expect("positive");
    retain(store, keep, &HashSet::new(), Duration::ZERO).await.expect("retain").steps
}

async fn comes_back_whole(store: &Store) {
    let written = put_checkpoint(store, 10).await;
    put_checkpoint(store, 20).await;
    assert_eq!(list_steps(store).await.expect("list"), [10, 20]);
    assert_eq!(read_manifest(store, 10).await.expect("read"), written);
    assert!(written.fits(&layout()));
    for (chunk, expected) in written.chunks.iter().zip(chunks(10)) {
        let read = get_chunk(store, &chunk.digest, chunk_num_bytes(chunk.num_params)).await.expect("get chunk");
        assert_eq!(read, expected);
    }
    let (newest, damaged) = newest_good(store, Depth::Deep).await.expect("newest");
    assert_eq!((newest.map(|m| m.step), damaged.len()), (Some(20), 0));
    assert_eq!(keep(store, 1).await, [10]);
    assert_eq!(good_steps(store).await, [20]);
}

#[tokio::test]
async fn comes_back_whole_from_memory() {
    comes_back_whole(&store("whole")).await;
}

#[tokio::test]
async fn comes_back_whole_from_a_folder() {
    let folder = tempfile::tempdir().expect("tempdir");
    comes_back_whole(&Store::open(folder.path().to_str().expect("utf-8")).expect("open")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn comes_back_whole_from_s3() {
    let server = SeaweedFs::start(&SeaweedFs::default_binary(), "polo").await.expect("seaweedfs");
    comes_back_whole(&server.store("run").expect("open")).await;
}

#[tokio::test]
async fn the_state_digest_is_blake3_over_step_and_chunk_digests() {
    let digests = [Digest::of(b"a"), Digest::of(b"b")];
    let bytes = [&7u64.to_le_bytes()[..], digests[0].as_bytes(), digests[1].as_bytes()].concat();
    assert_eq!(state_digest(7, &digests), Digest::of(&bytes));
}

#[tokio::test]
async fn any_flipped_bit_of_a_manifest_is_seen() {
    let store = store("manifest-bits");
    put_checkpoint(&store, 10).await;
    let key = "checkpoints/000000000010.json";
    let good = store.get(key).await.expect("get");
    for bit in 0..good.len() * 8 {
        let mut bad = good.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        store.put(key, bad.into()).await.expect("put");
        let error = read_manifest(&store, 10).await.expect_err("damaged").to_string();
        assert!(error.contains(key), "bit {bit}: {error}");
    }
    for len in [0, 1, good.len() - 1] {
        store.put(key, good.slice(..len)).await.expect("put");
        assert!(read_manifest(&store, 10).await.is_err(), "cut to {len} bytes");
    }
    store.put("checkpoints/000000000011.json", good).await.expect("put");
    let error = read_manifest(&store, 11).await.expect_err("another step's").to_string();
    assert!(error.contains("step 10"), "{error}");
}

#[tokio::test]
async fn damaged_chunks_are_all_reported_and_the_one_before_is_taken() {
    let store = store("chunk-damage");
    put_checkpoint(&store, 10).await;
    let newer = put_checkpoint(&store, 20).await;
    let key = |n: usize| format!("chunks/{}", newer.chunks[n].digest);
    let mut flipped = store.get(&key(0)).await.expect("get").to_vec();
    flipped[5] ^= 4;
    store.put(&key(0), flipped.into()).await.expect("flip");
    let (newest, damaged) = newest_good(&store, Depth::Shallow).await.expect("newest");
    assert_eq!((newest.map(|m| m.step), damaged.len()), (Some(20), 0), "a shallow look reads no chunk");
    store.put(&key(1), Bytes::from_static(b"short")).await.expect("cut");
    store.delete(&key(2)).await.expect("delete");

    let (newest, damaged) = newest_good(&store, Depth::Deep).await.expect("newest");
    assert_eq!((newest.map(|m| m.step), damaged.len()), (Some(10), 1));
    let words: Vec<_> = damaged[0].problems.iter().map(ToString::to_string).collect();
    assert_eq!((damaged[0].step, words.len()), (20, 3), "{words:?}");
    for (n, reason) in ["digest", "5 bytes instead of", "missing"].into_iter().enumerate() {
        assert!(words[n].contains(&key(n)) && words[n].contains(reason), "{words:?}");
    }
    let (newest, damaged) = newest_good(&store, Depth::Shallow).await.expect("newest");
    assert_eq!((newest.map(|m| m.step), damaged[0].problems.len()), (Some(10), 2));
}

#[tokio::test]
async fn a_step_can_be_written_twice_but_not_differently() {
    let store = store("twice");
    let mut first = put_checkpoint(&store, 10).await;
    put_checkpoint(&store, 10).await;
    first.ledger[0].num_trained_tokens += 1;
    let error = put_manifest(&store, &first).await.expect_err("another content");
    assert!(matches!(error, StoreError::ConflictingCheckpoint { step: 10, .. }), "{error:?}");
}

#[tokio::test]
async fn no_manifest_is_written_before_its_chunks() {
    let store = store("order");
    let digests: Vec<_> = chunks(10).iter().map(|chunk| Digest::of(chunk)).collect();
    let error = put_manifest(&store, &manifest(10, &digests)).await.expect_err("no chunk is there").to_string();
    assert!(error.contains("missing") && error.contains(&digests[0].to_string()), "{error}");
    assert!(list_steps(&store).await.expect("list").is_empty());
}

#[tokio::test]
async fn retention_keeps_shared_and_protected_chunks() {
    let store = store("shared");
    let shared = put_chunks(&store, 7).await;
    for step in [10, 20, 30] {
        let mut digests = put_chunks(&store, step).await;
        digests[0] = shared[0];
        put_manifest(&store, &manifest(step, &digests)).await.expect("put manifest");
    }
    let in_flight: HashSet<_> = put_chunks(&store, 40).await.into_iter().collect();
    let removed = retain(&store, NonZeroUsize::MIN, &in_flight, Duration::ZERO).await.expect("retain");
    assert_eq!(removed.steps, [20, 10]);
    assert_eq!(good_steps(&store).await, [30]);
    let left: HashSet<_> = store.list("chunks").await.expect("list").into_iter().map(|e| e.key).collect();
    assert!(in_flight.iter().all(|d| left.contains(&format!("chunks/{d}"))), "a protected chunk is gone");
    assert_eq!(left.len(), in_flight.len() + shared.len(), "one checkpoint's chunks and the protected ones stay");
}

#[tokio::test]
async fn retention_leaves_an_upload_that_it_was_not_told_of() {
    let store = store("upload");
    put_checkpoint(&store, 10).await;
    put_checkpoint(&store, 20).await;
    let under_way = put_chunks(&store, 30).await;
    let removed = retain(&store, NonZeroUsize::MIN, &HashSet::new(), Duration::from_secs(3600)).await.expect("retain");
    assert_eq!((removed.steps, removed.num_chunks), (vec![10], under_way.len()));
    put_manifest(&store, &manifest(30, &under_way)).await.expect("no chunk of it is gone");
}

#[tokio::test]
async fn damaged_checkpoints_never_push_out_a_good_one() {
    let store = store("push-out");
    put_checkpoint(&store, 10).await;
    let newer = put_checkpoint(&store, 20).await;
    store.delete(&format!("chunks/{}", newer.chunks[0].digest)).await.expect("delete");
    store.put("checkpoints/000000000030.json", Bytes::from_static(b"{}")).await.expect("put");
    let unnamed = put_chunk(&store, Bytes::from_static(b"perhaps of step 30")).await.expect("put");
    assert!(keep(&store, 1).await.is_empty());
    assert!(get_chunk(&store, &unnamed, 18).await.is_ok(), "step 30 cannot be read, so it may need any chunk");
    assert_eq!(good_steps(&store).await, [10]);
    assert!(keep(&store, 2).await.is_empty());
    put_checkpoint(&store, 40).await;
    assert_eq!(keep(&store, 1).await, [30, 20, 10]);
    assert_eq!(good_steps(&store).await, [40]);
    assert!(get_chunk(&store, &unnamed, 18).await.is_err(), "nothing needs it now");
}

#[tokio::test]
async fn redoing_a_step_mends_its_damaged_checkpoint() {
    let store = store("mend");
    let manifest = put_checkpoint(&store, 10).await;
    for key in ["checkpoints/000000000010.json", &format!("chunks/{}", manifest.chunks[1].digest)] {
        let mut flipped = store.get(key).await.expect("get").to_vec();
        flipped[20] ^= 1;
        store.put(key, flipped.into()).await.expect("flip");
        assert!(good_steps(&store).await.is_empty());
        put_checkpoint(&store, 10).await;
        assert_eq!(good_steps(&store).await, [10], "{key} is still damaged");
    }
}
