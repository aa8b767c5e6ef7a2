//! What a corpus has in it, whatever the format, and what is refused.

use std::{fs, process::Command};

use polo_store::{Digest, corpus::CorpusManifest, testing::SeaweedFs};
use tokenizers::Tokenizer;

use crate::support::{END_OF_TEXT, Folder, all_files, gz, jsonl, talk, tokenizer_path, zst};

pub const TEXTS: [&str; 3] = ["सबै व्यक्तिहरू जन्मजात स्वतन्त्र हुन्।", "All human beings are born free.", "人人生而自由"];

#[test]
fn every_format_gives_the_same_stream() {
    let lines = jsonl(&TEXTS);
    let paragraphs = TEXTS.join("\n\n").into_bytes();
    let folder = Folder::new(&[
        ("a.jsonl", lines.clone()),
        ("b.jsonl.gz", [gz(&jsonl(&TEXTS[..1])), gz(&jsonl(&TEXTS[1..]))].concat()), // two members
        ("c.jsonl.zst", [zst(&jsonl(&TEXTS[..2])), zst(&jsonl(&TEXTS[2..]))].concat()), // two frames
        ("d.txt", paragraphs.clone()),
        ("e.txt.gz", gz(&paragraphs)),
        ("f.txt.zst", zst(&paragraphs)),
    ]);
    let manifest = folder.prepared("corpus", &["--text-documents", "paragraph", "--language", "a=mul"]);

    let tokenizer = Tokenizer::from_file(tokenizer_path()).expect("the tokenizer");
    let ids = |text: &&str| tokenizer.encode(*text, false).expect("encoded").get_ids().to_vec();
    let expected: Vec<i64> =
        TEXTS.iter().flat_map(|text| ids(text).into_iter().map(i64::from).chain([END_OF_TEXT])).collect();
    for source in &manifest.sources {
        assert_eq!(folder.stream("corpus", &manifest, &source.name), expected, "source {}", source.name);
        assert_eq!(source.num_documents, 3);
        assert_eq!(source.num_bytes_text, TEXTS.iter().map(|text| text.len() as u64).sum::<u64>());
    }
    assert_eq!(manifest.sources.len(), 6);
    assert_eq!(manifest.source("a").and_then(|source| source.language.as_deref()), Some("mul"));
    assert_eq!((manifest.vocab_size, i64::from(manifest.eos_id)), (151_669, END_OF_TEXT));
}

#[test]
fn a_text_file_is_one_document_unless_told_otherwise() {
    let folder = Folder::new(&[("a/x.txt", b"one\n\ntwo\n".to_vec()), ("a/y.txt", b"three".to_vec())]);
    assert_eq!(folder.prepared("corpus", &[]).sources[0].num_documents, 2);
}

#[test]
fn special_tokens_in_text_stay_text() {
    let folder = Folder::new(&[("a.jsonl", jsonl(&["ends <|endoftext|> not", "<|im_start|>"]))]);
    let manifest = folder.prepared("corpus", &[]);
    let stream = folder.stream("corpus", &manifest, "a");
    assert_eq!(stream.iter().filter(|id| **id >= END_OF_TEXT).count(), 2, "one per document: {stream:?}");
}

#[test]
fn any_number_of_jobs_gives_the_same_bytes() {
    let text = |seed: usize| (0..60_000).map(|i| format!("{} ", (i * 7 + seed) % 1_000)).collect::<String>();
    let texts: Vec<String> = (0..12).map(text).collect();
    let lines = |range: std::ops::Range<usize>| jsonl(&texts[range].iter().map(String::as_str).collect::<Vec<_>>());
    let folder =
        Folder::new(&[("a/1.jsonl", lines(0..7)), ("a/2.jsonl.gz", gz(&lines(7..9))), ("b.jsonl", lines(9..12))]);
    let manifest = folder.prepared("one", &["--jobs", "1", "--shard-tokens", "300000"]);
    assert!(manifest.sources.iter().all(|source| source.shards.len() > 1), "the case has several shards per source");
    for jobs in ["2", "5"] {
        folder.prepared(jobs, &["--jobs", jobs, "--shard-tokens", "300000"]);
        assert!(all_files(&folder.path(jobs)) == all_files(&folder.path("one")), "{jobs} jobs differ from one");
    }
}

#[test]
fn what_cannot_be_prepared_is_told() {
    let folder =
        Folder::new(&[("a.jsonl", jsonl(&["x"])), ("b.jsonl", b"\n".to_vec()), ("c.jsonl", jsonl(&["", " "]))]);
    for (flags, expected) in [
        (
            vec!["--source", "s=b.jsonl,c.jsonl"],
            "source 's' has no text: nothing is left of its 2 inputs (left out: 2 empty)",
        ),
        (vec!["--source", "s=nothing/*"], "source 's' matches no input object"),
        (vec!["--source", "s=a.jsonl", "--language", "t=en"], "--language names 't'"),
        (vec!["--source", "s=a.jsonl", "--pairs", "t=en-de"], "--pairs names 't', which is no source"),
        (vec!["--source", "s=a.jsonl", "--tokenizer", "/nowhere.json"], "tokenizer /nowhere.json: "),
        (vec!["--source", "s=a.jsonl", "--text-field", "body"], "'body' is missing"),
    ] {
        let error = folder.error(&flags);
        assert!(error.contains(expected), "{error}");
    }
    let error = Folder::new(&[]).error(&[]);
    assert!(error.contains("nothing to read there"), "{error}");
}

#[test]
fn a_tokenizer_without_end_of_text_is_refused() {
    let folder = Folder::new(&[("a.jsonl", jsonl(&["x"]))]);
    let tokenizer = folder.path("tokenizer.json");
    fs::write(&tokenizer, r#"{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "x"}}"#)
        .expect("written");
    let error = folder.error(&["--tokenizer", tokenizer.to_str().expect("UTF-8")]);
    assert!(error.contains("no <|endoftext|> token"), "{error}");
}

#[test]
fn a_corpus_is_replaced_only_with_force() {
    let folder = Folder::new(&[("a.jsonl", jsonl(&["x"]))]);
    let first = folder.prepared("corpus", &[]);
    fs::write(folder.path("raw/a.jsonl"), jsonl(&["y"])).expect("written");
    let ran = folder.prepare("corpus", &[]);
    assert!(!ran.status.success() && talk(&ran).contains("holds a corpus already"), "{}", talk(&ran));
    let second = folder.prepared("corpus", &["--force"]);
    assert_ne!(first.digest(), second.digest());
    folder.stream("corpus", &first, "a"); // its shards are still there for whoever reads them
}

#[test]
fn reads_and_writes_object_storage() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let server = runtime.block_on(SeaweedFs::start(&SeaweedFs::default_binary(), "bucket")).expect("SeaweedFS");
    let (raw, corpus) = (server.store("raw").expect("store"), server.store("corpus").expect("store"));
    runtime.block_on(raw.put("ne/1.jsonl.gz", gz(&jsonl(&TEXTS)).into())).expect("stored");
    let ran = Command::new(env!("CARGO_BIN_EXE_polo-prepare"))
        .args(["--input", raw.url(), "--output", corpus.url(), "--tokenizer"])
        .arg(tokenizer_path())
        .envs(server.settings())
        .output()
        .expect("polo starts");
    assert!(ran.status.success(), "{}", talk(&ran));
    let manifest = runtime.block_on(CorpusManifest::load(&corpus)).expect("a good manifest");
    let shard = &manifest.source("ne").expect("the source").shards[0];
    let bin = runtime.block_on(corpus.get(&shard.bin_key)).expect("the shard");
    assert_eq!(Digest::of(&bin), shard.bin_digest);
}
