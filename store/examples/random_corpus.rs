//! Writes a prepared corpus of random tokens, for benchmarks of training that need no text.
//!
//!     cargo run -p polo-store --features testing --example random_corpus -- FOLDER VOCAB_SIZE NUM_TOKENS [NUM_SHARDS]

use polo_store::{Store, testing::put_corpus};
use rand::{RngExt, SeedableRng, rngs::StdRng};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [folder, vocab_size, num_tokens, num_shards @ ..] = args.as_slice() else {
        return Err("FOLDER VOCAB_SIZE NUM_TOKENS [NUM_SHARDS]".into());
    };
    let (vocab_size, num_tokens): (i32, usize) = (vocab_size.parse()?, num_tokens.parse()?);
    let num_shards: usize = num_shards.first().map_or(Ok(1), |number| number.parse())?;
    let mut random = StdRng::seed_from_u64(0);
    let mut shard = || vec![(0..num_tokens / num_shards).map(|_| random.random_range(0..vocab_size)).collect()];
    let shards = (0..num_shards).map(|_| shard()).collect();
    put_corpus(&Store::open(folder)?, vocab_size as u64, &[("random", shards)]).await;
    Ok(())
}
