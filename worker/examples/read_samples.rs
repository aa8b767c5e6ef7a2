//! Reads the first source of a prepared corpus as a worker does, in training's order, as fast as it can. Beside it runs
//! bench/peer_loader.py.
//!
//! ```text
//! read_samples CORPUS_URL CACHE_FOLDER SEQ_LEN BATCH SECONDS
//! ```
//! With SECONDS 0 every sample is read once. Prints one JSON line: tokens and seconds after the first batch, and how long
//! that one took.

use std::{env, error::Error, path::Path, sync::Arc, time::Instant};

use futures::executor::block_on;
use polo_recipe::order::Permutation;
use polo_store::{Cache, Store};
use polo_worker::{
    corpus::{Corpus, Window},
    loader::{Loader, NUM_AHEAD},
};
use serde_json::json;

/// Batches of window numbers, epoch after epoch.
fn plan(corpus: &Corpus, seq_len: usize, batch: usize) -> impl Iterator<Item = Vec<Window>> + Send + 'static {
    let (num_windows, source) = (corpus.num_windows(0, seq_len), corpus.manifest().sources[0].name.clone());
    (0..).flat_map(move |epoch| {
        let order = Permutation::new(0, &source, epoch, num_windows);
        let starts = (0..num_windows).step_by(batch);
        starts.map(move |start| {
            let window = |position| Window { source: 0, window: order.at(position) };
            (start..num_windows.min(start + batch as u64)).map(window).collect()
        })
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = env::args().skip(1).collect();
    let [url, cache, seq_len, batch, seconds] = args.as_slice() else {
        return Err("CORPUS_URL CACHE_FOLDER SEQ_LEN BATCH SECONDS".into());
    };
    let (seq_len, batch, seconds): (usize, usize, f64) = (seq_len.parse()?, batch.parse()?, seconds.parse()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let opened = Instant::now();
    let (store, cache) = (Store::open(url)?, Cache::open(Path::new(cache), u64::MAX)?);
    let corpus = Arc::new(runtime.block_on(Corpus::open(store, cache, i32::MAX as usize))?);
    let num_batches = corpus.num_windows(0, seq_len).div_ceil(batch as u64) as usize;
    let limit = if seconds == 0.0 { num_batches } else { usize::MAX };
    let plan = plan(&corpus, seq_len, batch).take(limit);
    let mut loader = Loader::start(corpus, seq_len, NUM_AHEAD, runtime.handle().clone(), plan)?;

    let mut first_batch = None;
    let (mut num_tokens, mut check) = (0, 0_i64);
    while let Some(batch) = block_on(loader.next_batch()).transpose()? {
        let Some((_, started)) = first_batch else {
            first_batch = Some((opened.elapsed(), Instant::now()));
            continue;
        };
        num_tokens += batch.windows.len() * seq_len;
        check += i64::from(batch.tokens[0]);
        if seconds > 0.0 && started.elapsed().as_secs_f64() > seconds {
            break;
        }
    }
    let (first, started) = first_batch.ok_or("no batch")?;
    let taken = started.elapsed().as_secs_f64();
    let figures = json!({
        "num_tokens": num_tokens, "seconds": taken, "tokens_per_s": num_tokens as f64 / taken,
        "first_batch_seconds": first.as_secs_f64(), "total_seconds": opened.elapsed().as_secs_f64(), "check": check,
    });
    println!("{figures}");
    Ok(())
}
