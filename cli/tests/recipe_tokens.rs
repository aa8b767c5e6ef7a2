//! `polo recipe show --tokens` prints the published tables of Marco-LLM (arXiv 2412.04003) from its recipe.
#![allow(missing_docs)]

mod support;

use std::{path::Path, process::Output};

use polo_store::{
    Digest,
    corpus::{CorpusManifest, FORMAT_VERSION, MANIFEST_KEY, ShardEntry, Source},
};
use serde_json::Value;
use support::{World, finish, talk};

/// Tokens that are available of each source, in billions.
const AVAILABLE: &str = "en 1459.7 zh 214.7 ar 45.8 de 442.8 es 397.8 fr 320.8 ko 41.8 ja 224.2 pt 145.3 tr 80.6 bn 6.5 \
    he 11.3 id 23.8 it 56.3 ms 2.9 nl 31.3 pl 45.3 ru 251.0 th 8.3 uk 18.4 ur 8.7 vi 24.4 cs 270.2 el 376.8 hu 214.4 \
    kk 16.8 ro 160.0 az 19.4 ne 22.6 parallel 103.0 knowledge 65.0 synthetic 6.0";

fn show(world: &World, size: &str, more: &[&str]) -> Output {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../configs/marco-{size}.toml"));
    let recipe = recipe.to_str().expect("UTF-8");
    finish(world.polo(&["recipe", "show", recipe]).args(more))
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", talk(output));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// The words of each line.
fn rows(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn manifest() -> CorpusManifest {
    let words: Vec<_> = AVAILABLE.split_whitespace().collect();
    let source = |pair: &[&str]| {
        let (name, billions) = (pair[0].to_owned(), pair[1].parse::<f64>().expect("a number"));
        let (num_tokens, num_documents, digest) = ((billions * 1e9) as u64, 1, Digest::of(b"never read"));
        let (bin_key, idx_key) = (format!("{name}.bin"), format!("{name}.idx"));
        let shard = ShardEntry { bin_key, idx_key, num_tokens, num_documents, bin_digest: digest, idx_digest: digest };
        Source { name, language: None, num_tokens, num_documents, num_bytes_text: 0, intake: None, shards: vec![shard] }
    };
    CorpusManifest {
        format_version: FORMAT_VERSION,
        tokenizer_digest: Digest::of(b"never read"),
        vocab_size: 151_646,
        eos_id: 151_643,
        sources: words.chunks(2).map(source).collect(),
    }
}

#[test]
fn all_four_recipes_are_right() {
    let world = World::new();
    for size in ["0.5b", "1.5b", "7b", "72b"] {
        let shown = text(&show(&world, size, &[]));
        assert!(shown.contains(&format!("name = \"marco-{}\"", size.replace('.', "-"))), "{shown}");
    }
}

#[test]
fn the_published_table_is_printed_without_a_corpus() {
    let world = World::new();
    let output = show(&world, "7b", &["--tokens", "--set", "corpus.url=/nowhere"]);
    assert!(talk(&output).contains("available tokens are unknown: "), "{}", talk(&output));
    let shown = text(&output);
    assert!(!shown.contains("available"), "{shown}");
    let rows = rows(&shown);
    let has = |start: &str| assert!(rows.iter().any(|row| row.starts_with(start)), "no row {start:?} in\n{shown}");
    has("stage stage-1: 38147 steps, peak learning rate 1e-5");
    has("stage stage-2: 33379 steps, peak learning rate 6e-6");
    for row in ["english 32.00 % 51.2 B", "chinese 17.00 %", "high-resource 30.00 % 48.0 B", "low-resource 9.00 %"] {
        has(row);
    }
    for row in ["parallel 6.00 %", "knowledge 5.00 %", "synthetic 1.00 %", "total 100.00 % 160.0 B 39062528"] {
        has(row);
    }
    for row in ["english 28.00 %", "chinese 15.00 %", "high-resource 26.00 %", "low-resource 15.00 %"] {
        has(row);
    }
    for row in ["parallel 8.00 %", "knowledge 6.00 %", "synthetic 2.00 %", "total 100.00 % 140.0 B"] {
        has(row);
    }
    for row in ["ko 3.75 % 6.0 B", "en 90.4 B", "zh 48.2 B", "ko 10.6 B", "ne 1.9 B", "parallel 20.8 B"] {
        has(row);
    }
    for row in ["knowledge 16.4 B", "synthetic 4.4 B", "total 300.0 B"] {
        has(row);
    }
}

#[test]
fn what_is_used_of_the_published_corpus_is_printed_with_it() {
    let world = World::new();
    world.write(&format!("published/{MANIFEST_KEY}"), &manifest().to_json());
    let corpus = format!("corpus.url={}", world.text("published"));
    let shown = text(&show(&world, "7b", &["--tokens", "--set", &corpus]));
    let rows = rows(&shown);
    assert!(rows.iter().any(|row| row.starts_with("en 90.4 B") && row.ends_with("1459.7 B 6.19 %")), "{shown}");
    assert!(rows.iter().any(|row| row.starts_with("synthetic 4.4 B") && row.ends_with("6.0 B 73.33 %")), "{shown}");

    let shown: Value =
        serde_json::from_str(&text(&show(&world, "7b", &["--tokens", "--json", "--set", &corpus]))).expect("JSON");
    let sources = shown["sources"].as_array().expect("a list");
    let used: Vec<_> = sources.iter().map(|source| source["fraction_used"].as_f64().expect("a number")).collect();
    assert_eq!(used.len(), 32);
    assert!(used.iter().all(|fraction| *fraction <= 1.0), "{used:?}");
    assert_eq!(shown["stages"][1]["groups"][3]["group"], "low-resource");
    assert_eq!(shown["stages"][0]["num_tokens"].as_u64(), Some(38_147 * 4096 * 1024));
}
