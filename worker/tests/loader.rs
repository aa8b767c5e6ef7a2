//! Windows, the shard cache and the loader on corpora made here.
#![allow(missing_docs)]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use bytes::Bytes;
use futures::executor::block_on;
use polo_store::{Cache, CacheError, Digest, Store, corpus::MANIFEST_KEY, testing::put_corpus};
use polo_worker::{
    corpus::{Corpus, CorpusError, Window},
    loader::Loader,
};
use proptest::prelude::*;
use tokio::runtime::Runtime;

const VOCAB_SIZE: usize = 1_000;

/// A corpus in `folder` with one source, "ne", of shards of documents.
struct Made {
    folder: tempfile::TempDir,
    runtime: Runtime,
}

impl Made {
    fn new(shards: &[Vec<Vec<i32>>]) -> Self {
        let made = Self {
            folder: tempfile::tempdir().expect("tempdir"),
            runtime: tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime"),
        };
        made.runtime.block_on(put_corpus(&made.store(), VOCAB_SIZE as u64, &[("ne", shards.to_vec())]));
        made
    }

    fn store(&self) -> Store {
        Store::open(self.folder.path().join("store").to_str().expect("UTF-8")).expect("a folder")
    }

    fn cache_folder(&self) -> std::path::PathBuf {
        self.folder.path().join("cache")
    }

    /// Objects in the cache, and what is on its way: all files but the one that is locked while room is made.
    fn num_cached(&self) -> usize {
        let files = std::fs::read_dir(self.cache_folder()).expect("cache");
        files.filter(|file| file.as_ref().expect("a file").file_name() != "lock").count()
    }

    fn cache(&self) -> Cache {
        Cache::open(&self.cache_folder(), u64::MAX).expect("a folder")
    }

    fn open(&self) -> Result<Corpus, CorpusError> {
        self.runtime.block_on(Corpus::open(self.store(), self.cache(), VOCAB_SIZE))
    }

    fn window(&self, corpus: &Corpus, window: u64, seq_len: usize) -> Result<Vec<i32>, CorpusError> {
        let mut tokens = vec![];
        self.runtime.block_on(corpus.window(Window { source: 0, window }, seq_len, &mut tokens))?;
        Ok(tokens)
    }

    fn flip_byte(path: &Path, at: usize) {
        let mut bytes = std::fs::read(path).expect("read");
        bytes[at] ^= 1;
        std::fs::write(path, bytes).expect("written");
    }
}

/// Shards of one document each, of these lengths, with ids 0, 1, 2 ... along the stream.
fn counting(lengths: &[usize]) -> Vec<Vec<Vec<i32>>> {
    let mut next = 0;
    let mut document = |length: &usize| {
        (0..*length)
            .map(|_| {
                next += 1;
                next - 1
            })
            .collect()
    };
    lengths.iter().map(|length| vec![document(length)]).collect()
}

#[test]
fn windows_overlap_by_one_and_cross_shards() {
    let made = Made::new(&counting(&[3, 4, 2, 5]));
    let corpus = made.open().expect("a good corpus");
    assert_eq!(corpus.num_windows(0, 6), 2); // 13 of the 14 tokens are targets; a third window would need 19
    assert_eq!(made.window(&corpus, 0, 6).expect("there"), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(made.window(&corpus, 1, 6).expect("there"), [6, 7, 8, 9, 10, 11, 12]);
    let error = made.window(&corpus, 2, 6).expect_err("past the end");
    assert!(matches!(error, CorpusError::NoSuchWindow { window: 2, num_windows: 2, .. }), "{error}");
    assert!(matches!(corpus.source_number("ne"), Ok(0)));
    let error = corpus.source_number("xx").expect_err("no such source").to_string();
    assert!(error.contains("no source 'xx'; it has ne"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_window_is_a_piece_of_the_stream(
        lengths in prop::collection::vec(1usize..30, 1..8),
        seq_len in 1usize..40,
    ) {
        let made = Made::new(&counting(&lengths));
        let corpus = made.open().expect("a good corpus");
        let num_tokens: usize = lengths.iter().sum();
        prop_assert_eq!(corpus.num_windows(0, seq_len), ((num_tokens - 1) / seq_len) as u64);
        for window in 0..corpus.num_windows(0, seq_len) {
            let start = (window as usize * seq_len) as i32;
            let expected: Vec<i32> = (start..=start + seq_len as i32).collect();
            prop_assert_eq!(made.window(&corpus, window, seq_len).expect("there"), expected);
        }
    }
}

#[test]
fn a_model_with_fewer_ids_than_the_tokenizer_is_refused() {
    let made = Made::new(&counting(&[10]));
    let open = |vocab_size| made.runtime.block_on(Corpus::open(made.store(), made.cache(), vocab_size));
    let error = open(VOCAB_SIZE - 1).expect_err("too small a model");
    assert!(matches!(error, CorpusError::Vocabulary { corpus: 1_000, model: 999, .. }), "{error}");
    assert!(open(VOCAB_SIZE + 64).is_ok(), "padded vocabularies are usual");
}

#[test]
fn an_id_outside_the_vocabulary_is_told_with_its_place() {
    for bad in [1_000, -1] {
        let made = Made::new(&[vec![vec![1, 2, 3]], vec![vec![4, bad, 5]]]);
        let corpus = made.open().expect("the manifest is good");
        assert!(made.window(&corpus, 0, 3).is_ok());
        let error = made.window(&corpus, 1, 2).expect_err("a bad id");
        let CorpusError::BadToken { name, url, offset, id, .. } = &error else { panic!("{error}") };
        assert_eq!((name.as_str(), *offset, *id), ("ne", 1, bad));
        assert!(url.ends_with("ne/1.bin"), "{url}");
    }
}

#[test]
fn a_damaged_shard_is_refused_and_leaves_nothing_in_the_cache() {
    for file in ["ne/0.bin", "ne/0.idx"] {
        let made = Made::new(&counting(&[10]));
        Made::flip_byte(&made.folder.path().join("store").join(file), 5);
        let corpus = made.open().expect("the manifest is good");
        let error = made.window(&corpus, 0, 4).expect_err("damaged");
        assert!(matches!(error, CorpusError::Damaged(CacheError::Damaged { .. })), "{error}");
        assert!(error.to_string().contains(file), "{error}");
        assert_eq!(made.num_cached(), if file.ends_with("bin") { 0 } else { 1 });
    }
}

#[test]
fn a_missing_shard_is_named() {
    let made = Made::new(&counting(&[10]));
    made.runtime.block_on(made.store().delete("ne/0.idx")).expect("deleted");
    let corpus = made.open().expect("the manifest is good");
    let error = made.window(&corpus, 0, 4).expect_err("missing").to_string();
    assert!(error.contains("ne/0.idx"), "{error}");
}

#[test]
fn the_cache_spares_the_store_and_heals_itself() {
    let made = Made::new(&counting(&[10]));
    let expected = made.window(&made.open().expect("opened"), 0, 4).expect("fetched");
    let bin = made
        .cache_folder()
        .join(Digest::of(&std::fs::read(made.folder.path().join("store/ne/0.bin")).expect("bin")).to_string());
    Made::flip_byte(&bin, 3);
    assert_eq!(made.window(&made.open().expect("opened"), 0, 4).expect("fetched again"), expected);
    for key in ["ne/0.bin", "ne/0.idx"] {
        made.runtime.block_on(made.store().delete(key)).expect("deleted");
    }
    assert_eq!(made.window(&made.open().expect("opened"), 0, 4).expect("from the cache"), expected);
}

#[test]
fn processes_that_fetch_at_once_share_a_cache() {
    let made = Made::new(&counting(&[100, 200]));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let corpus = made.open().expect("opened");
                made.runtime.block_on(corpus.fetch(&windows(&[0, 1, 2]), 99)).expect("fetched");
            });
        }
    });
    assert_eq!(made.num_cached(), 4, "two pairs and no scratch files");
}

fn windows(numbers: &[u64]) -> Vec<Window> {
    numbers.iter().map(|window| Window { source: 0, window: *window }).collect()
}

fn start(made: &Made, num_ahead: usize, plan: impl Iterator<Item = Vec<Window>> + Send + 'static) -> Loader {
    let corpus = Arc::new(made.open().expect("opened"));
    Loader::start(corpus, 4, num_ahead, made.runtime.handle().clone(), plan).expect("a thread")
}

#[test]
fn batches_come_in_the_order_of_the_plan() {
    let made = Made::new(&counting(&[30, 30]));
    let plan = vec![windows(&[7, 1]), windows(&[0]), windows(&[13, 6])];
    let mut loader = start(&made, 2, plan.clone().into_iter());
    for asked in plan {
        let batch = block_on(loader.next_batch()).expect("a batch").expect("read");
        let rows: Vec<i32> = asked.iter().flat_map(|w| (0..5).map(|i| w.window as i32 * 4 + i)).collect();
        assert_eq!((batch.windows, batch.tokens), (asked, rows));
    }
    assert!(block_on(loader.next_batch()).is_none());
}

#[test]
fn an_error_reaches_the_consumer_in_its_place_and_ends_the_batches() {
    let made = Made::new(&counting(&[30]));
    let mut loader = start(&made, 4, vec![windows(&[0]), windows(&[99]), windows(&[1])].into_iter());
    assert!(block_on(loader.next_batch()).expect("a batch").is_ok());
    let error = block_on(loader.next_batch()).expect("an error").expect_err("no such window");
    assert!(matches!(error, CorpusError::NoSuchWindow { window: 99, .. }), "{error}");
    assert!(block_on(loader.next_batch()).is_none());
}

#[test]
fn reads_no_further_ahead_than_asked_and_stops_when_dropped() {
    let made = Made::new(&counting(&[30]));
    let num_taken = Arc::new(AtomicUsize::new(0));
    let (taken, wait_taken) = mpsc::channel();
    let counter = Arc::clone(&num_taken);
    let endless = std::iter::repeat_with(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        let _ = taken.send(());
        windows(&[0])
    });
    let mut loader = start(&made, 3, endless);
    for _ in 0..10 {
        block_on(loader.next_batch()).expect("a batch").expect("read");
    }
    // 10 were given out, 3 wait, one is in the thread's hands: it must get that far, and no further.
    (0..14).for_each(|_| wait_taken.recv().expect("the thread lives"));
    drop(loader); // joins the thread, or this test never ends
    assert_eq!(num_taken.load(Ordering::SeqCst), 14);
}

#[test]
fn a_manifest_that_is_not_there_is_named() {
    let made = Made::new(&counting(&[30]));
    made.runtime.block_on(made.store().delete(MANIFEST_KEY)).expect("deleted");
    let error = made.open().expect_err("no manifest").to_string();
    assert!(error.contains("manifest.json"), "{error}");
    made.runtime.block_on(made.store().put(MANIFEST_KEY, Bytes::from_static(b"{}"))).expect("stored");
    assert!(matches!(made.open(), Err(CorpusError::Manifest(_))));
}
