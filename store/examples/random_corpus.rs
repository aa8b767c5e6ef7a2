//! Writes a prepared corpus of random tokens, for benchmarks of training that need no text.
//!
//!     cargo run -p polo-store --features testing --example random_corpus -- FOLDER VOCAB_SIZE NUM_TOKENS

use polo_store::{Store, testing::put_corpus};
use rand::{RngExt, SeedableRng, rngs::StdRng};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [folder, vocab_size, num_tokens] = args.as_slice() else { return Err("FOLDER VOCAB_SIZE NUM_TOKENS".into()) };
    let (vocab_size, num_tokens): (i32, usize) = (vocab_size.parse()?, num_tokens.parse()?);
    let mut random = StdRng::seed_from_u64(0);
    let tokens = (0..num_tokens).map(|_| random.random_range(0..vocab_size)).collect();
    put_corpus(&Store::open(folder)?, vocab_size as u64, &[("random", vec![vec![tokens]])]).await;
    Ok(())
}
