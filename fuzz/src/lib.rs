//! Feeds what reads bytes from outside with bytes that nobody would write, in tests.
//!
//! [`fuzz`] first replays what once broke the reader, which lies in the crate's `fuzz/NAME/`, then changes good inputs in
//! many small ways: a few thousand times in a test, or for as long as `POLO_FUZZ_SECONDS` says (`make fuzz`). What breaks it
//! is made as small as it can be and written there. It must never be a dependency of anything but tests.

mod mutation;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{Config, RngAlgorithm, RngSeed, TestCaseError, TestError, TestRunner},
};

use mutation::{Mutation, mutated};

/// Inputs of a test that is not told how long to go on.
const CASES_OF_A_TEST: u32 = 3_000;
/// Between two looks at the clock.
const CASES_OF_A_ROUND: u32 = 20_000;
/// Far longer than any input takes: whoever needs more hangs, or can be made to.
const LIMIT: Duration = Duration::from_secs(10);
const MAX_MUTATIONS: usize = 12;

/// Feeds `target`, which is to panic if it finds something wrong, with changed `seeds`. `folder` is the calling crate's
/// `CARGO_MANIFEST_DIR`; `name` says which reader it is.
///
/// # Panics
///
/// If `target` does, or takes too long.
pub fn fuzz(folder: &str, name: &str, seeds: &[Vec<u8>], target: impl Fn(&[u8])) {
    let found = Path::new(folder).join("fuzz").join(name);
    for path in inputs(&found) {
        println!("replaying {}", path.display());
        target(&fs::read(&path).expect("an input that was found"));
    }
    for seed in seeds {
        target(seed);
    }
    let seconds = std::env::var("POLO_FUZZ_SECONDS").ok().map(|s| s.parse().expect("POLO_FUZZ_SECONDS is a number"));
    let cases = if seconds.is_some() { CASES_OF_A_ROUND } else { CASES_OF_A_TEST };
    let (started, mut num_inputs) = (Instant::now(), 0);
    loop {
        round(&found, seeds, cases, &target);
        num_inputs += u64::from(cases);
        if seconds.is_none_or(|seconds| started.elapsed() >= Duration::from_secs(seconds)) {
            break;
        }
    }
    println!("{name}: {num_inputs} inputs in {:.1} s", started.elapsed().as_secs_f64());
}

fn inputs(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths
}

fn round(found: &Path, seeds: &[Vec<u8>], cases: u32, target: &impl Fn(&[u8])) {
    let seed = rand_seed();
    println!("seed {seed}");
    let config = Config {
        cases,
        failure_persistence: None,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    };
    let input = (select(seeds.to_vec()), select(seeds.to_vec()), vec(any::<Mutation>(), 1..MAX_MUTATIONS));
    let input = input.prop_map(|(seed, other, mutations)| mutated(seed, &other, &mutations));
    let judged = TestRunner::new(config).run(&input, |bytes| {
        let started = Instant::now();
        target(&bytes);
        if started.elapsed() > LIMIT {
            return Err(TestCaseError::fail(format!("it takes more than {} s", LIMIT.as_secs())));
        }
        Ok(())
    });
    if let Err(TestError::Fail(reason, bytes)) = judged {
        fs::create_dir_all(found).expect("a folder for what is found");
        let path = found.join(format!("{seed:016x}"));
        fs::write(&path, &bytes).expect("room for what is found");
        panic!("{reason}; the input is in {}: {:?}", path.display(), String::from_utf8_lossy(&bytes));
    }
}

/// Another one each time, unless `POLO_FUZZ_SEED` says which.
fn rand_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    let given = std::env::var("POLO_FUZZ_SEED").ok().map(|s| s.parse().expect("POLO_FUZZ_SEED is a number"));
    given.unwrap_or_else(|| RandomState::new().hash_one(0))
}
