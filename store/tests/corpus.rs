//! The corpus manifest: round trip, digest, and an error for each way it can disagree with itself.
#![allow(missing_docs)]

use polo_store::{
    Digest,
    corpus::{CorpusManifest, FORMAT_VERSION, ManifestError, ShardEntry, Source},
};

fn shard(name: &str, num_tokens: u64) -> ShardEntry {
    ShardEntry {
        bin_key: format!("{name}.bin"),
        idx_key: format!("{name}.idx"),
        num_tokens,
        num_documents: 2,
        bin_digest: Digest::of(name.as_bytes()),
        idx_digest: Digest::of(b"idx"),
    }
}

fn manifest() -> CorpusManifest {
    let source = |name: &str, language: Option<&str>| Source {
        name: name.to_owned(),
        language: language.map(str::to_owned),
        num_tokens: 30,
        num_documents: 4,
        num_bytes_text: 100,
        intake: None,
        shards: vec![shard(&format!("{name}/0"), 10), shard(&format!("{name}/1"), 20)],
    };
    CorpusManifest {
        format_version: FORMAT_VERSION,
        tokenizer_digest: Digest::of(b"tokenizer"),
        vocab_size: 151_669,
        eos_id: 151_643,
        sources: vec![source("ne", Some("ne")), source("latin", None)],
    }
}

/// The error of the manifest after `edit`, read from its JSON.
fn error_after(edit: impl FnOnce(&mut CorpusManifest)) -> ManifestError {
    let mut edited = manifest();
    edit(&mut edited);
    CorpusManifest::parse("s3://b/manifest.json", &edited.to_json()).expect_err("the manifest is wrong")
}

#[test]
fn reads_what_it_writes() {
    let manifest = manifest();
    assert_eq!(CorpusManifest::parse("m", &manifest.to_json()).expect("a good manifest"), manifest);
    assert_eq!(manifest.source("latin").map(|source| source.shards.len()), Some(2));
    assert_eq!(manifest.source("en"), None);
}

#[test]
fn digest_covers_the_contents_and_not_the_layout_of_the_file() {
    let manifest = manifest();
    let compact = serde_json::to_vec(&manifest).expect("JSON");
    assert_eq!(CorpusManifest::parse("m", &compact).expect("a good manifest").digest(), manifest.digest());
    let mut other = manifest.clone();
    other.sources[1].shards[0].bin_digest = Digest::of(b"one bit flipped");
    assert_ne!(other.digest(), manifest.digest());
}

#[test]
fn each_contradiction_is_named() {
    use ManifestError as E;
    assert!(matches!(error_after(|m| m.format_version = 7), E::Version { found: 7, .. }));
    assert!(matches!(error_after(|m| m.sources.clear()), E::NoSources { .. }));
    assert!(
        matches!(error_after(|m| m.sources[1].name = "ne".into()), E::DuplicateSource { name, .. } if name == "ne")
    );
    assert!(matches!(error_after(|m| m.vocab_size = 5), E::EosOutsideVocabulary { vocab_size: 5, .. }));
    let tokens = error_after(|m| m.sources[1].num_tokens = 29);
    assert!(matches!(tokens, E::WrongSum { field: "num_tokens", stated: 29, summed: 30, .. }));
    let documents = error_after(|m| m.sources[0].shards[0].num_documents = u64::MAX);
    assert!(matches!(documents, E::WrongSum { field: "num_documents", summed: u64::MAX, .. }));
    let empty = error_after(|m| (m.sources[0].num_tokens, m.sources[0].shards) = (0, vec![]));
    assert!(matches!(empty, E::EmptySource { name, .. } if name == "ne"));
}

#[test]
fn foreign_json_is_refused_with_the_place() {
    for text in ["", "{}", "[1]", "not json"] {
        let error = CorpusManifest::parse("s3://b/manifest.json", text.as_bytes()).expect_err("no manifest");
        assert!(error.to_string().starts_with("s3://b/manifest.json: not a corpus manifest: "), "{error}");
    }
    let text = String::from_utf8(manifest().to_json()).expect("UTF-8").replace("\"eos_id\"", "\"end_id\"");
    let error = CorpusManifest::parse("m", text.as_bytes()).expect_err("an unknown field");
    assert!(error.to_string().contains("end_id"), "{error}");
}
