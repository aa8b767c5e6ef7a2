//! Shards against Megatron-LM's own code: what Polo writes it reads, and the reverse.
//!
//! Needs `scripts/setup python megatron`.
#![allow(missing_docs)]

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use polo_store::indexed::{Shard, ShardWriter, TokenType, pair_paths};

/// Documents of sequences of token ids.
type Documents = Vec<Vec<Vec<i64>>>;

fn megatron(arguments: &[&str], stdin: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (python, site) = (root.join("third_party/python/bin/python"), root.join("third_party/megatron"));
    assert!(python.exists() && site.exists(), "run `scripts/setup python megatron` first");
    let mut child = Command::new(python)
        .arg(root.join("store/tests/megatron_pair.py"))
        .args(arguments)
        .env("PYTHONPATH", site)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start python");
    child.stdin.take().expect("piped").write_all(stdin.as_bytes()).expect("write to python");
    let output = child.wait_with_output().expect("wait for python");
    assert!(output.status.success(), "python failed: {}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn open(prefix: &Path) -> Shard {
    let (bin, idx) = pair_paths(prefix);
    Shard::open(&bin, &idx).expect("a good shard")
}

/// Ids up to `vocab_size`, documents of 1 to 97 tokens; fixed, as the point is the format.
fn documents(vocab_size: i64, sequences_per_document: usize) -> Documents {
    let mut id = 0;
    let mut sequence = |num_tokens: usize| {
        (0..num_tokens)
            .map(|_| {
                id = (id * 31 + 7919) % vocab_size;
                id
            })
            .collect::<Vec<_>>()
    };
    (1..98).map(|num_tokens| (0..sequences_per_document).map(|extra| sequence(num_tokens + extra)).collect()).collect()
}

#[test]
fn megatron_reads_what_polo_writes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let prefix: PathBuf = dir.path().join("ours");
    let written = documents(151_936, 1);
    let (bin_path, idx_path) = pair_paths(&prefix);
    let mut writer = ShardWriter::new(std::fs::File::create(bin_path).expect("create"));
    for document in &written {
        let ids: Vec<i32> = document[0].iter().map(|id| *id as i32).collect();
        writer.push_document(&ids).expect("written");
    }
    let (_, index) = writer.finish();
    std::fs::write(idx_path, index.to_bytes()).expect("written");

    let read: Documents =
        serde_json::from_str(&megatron(&["read", prefix.to_str().expect("UTF-8")], "")).expect("JSON");
    assert_eq!(read, written);
}

#[test]
fn polo_reads_what_megatron_writes() {
    for (vocab_size, token_type) in [(151_936, TokenType::Int32), (32_000, TokenType::Uint16)] {
        let dir = tempfile::tempdir().expect("tempdir");
        let prefix = dir.path().join("theirs");
        let written = documents(vocab_size, 2);
        let text = serde_json::to_string(&written).expect("JSON");
        megatron(&["write", prefix.to_str().expect("UTF-8"), &vocab_size.to_string()], &text);

        let shard = open(&prefix);
        assert_eq!(shard.index().token_type(), token_type);
        assert_eq!(shard.index().num_documents(), written.len() as u64);
        let mut ids = Vec::new();
        shard.read(0..shard.num_tokens(), &mut ids).expect("the whole shard");
        assert_eq!(ids.into_iter().map(i64::from).collect::<Vec<_>>(), written.concat().concat());
    }
}
