//! `polo samples` names the documents whose tokens a step is trained on.
#![allow(missing_docs)]

mod harness;

use std::{collections::BTreeSet, fs, process::Output};

use harness::{Lab, Shape, drawn_seed, process};
use polo_store::{
    Digest,
    corpus::CorpusManifest,
    indexed::{Shard, pair_paths},
};

const SHAPE: Shape = Shape { num_steps: 9, hidden_size: 16 };

fn samples(lab: &Lab, flags: &[&str]) -> Output {
    process::polo().arg("samples").arg(lab.path("recipe.toml")).args(flags).output().expect("polo starts")
}

fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// All tokens of a shard.
fn shard_tokens(lab: &Lab, bin_key: &str) -> Vec<i32> {
    let prefix = lab.path("corpus").join(bin_key.trim_end_matches(".bin"));
    let (bin, idx) = pair_paths(&prefix);
    let shard = Shard::open(&bin, &idx).expect("a shard");
    let mut tokens = Vec::new();
    shard.read(0..shard.num_tokens(), &mut tokens).expect("its tokens");
    tokens
}

/// The tokens that a part names, found by the zeros that end documents here.
fn named_tokens(lab: &Lab, part: &serde_json::Value) -> Vec<i32> {
    let number = |value: &serde_json::Value| usize::try_from(value.as_u64().expect("a number")).expect("small");
    let tokens = shard_tokens(lab, part["shard"].as_str().expect("a key"));
    let documents: Vec<_> = tokens.split_inclusive(|token| *token == 0).collect();
    let document = documents[number(&part["document"])];
    document[number(&part["tokens"]["start"])..number(&part["tokens"]["end"])].to_vec()
}

#[test]
fn the_documents_of_a_sample_have_the_tokens_of_its_window() {
    let lab = Lab::new(drawn_seed(), SHAPE);
    let mut seen = BTreeSet::new();
    for step in 0..SHAPE.num_steps {
        let report = json(&samples(&lab, &["--json", "--step", &step.to_string()]));
        assert_eq!(report["stage"], if step < 6 { "first" } else { "second" });
        let slots = report["slots"].as_array().expect("a list");
        let of_step: Vec<_> = slots.iter().flat_map(|slot| slot["samples"].as_array().expect("a list")).collect();
        assert_eq!((slots.len(), of_step.len()), (6, 12));
        for sample in of_step {
            let source = sample["source"].as_str().expect("a name");
            let stream = [0, 1].map(|n| shard_tokens(&lab, &format!("{source}-{n}.bin"))).concat();
            let start = sample["window"].as_u64().expect("a number") as usize * 48;
            let parts = sample["documents"].as_array().expect("a list");
            let named: Vec<_> = parts.iter().flat_map(|part| named_tokens(&lab, part)).collect();
            assert_eq!(named, stream[start..start + 49], "{sample}");
            assert!(seen.insert((source.to_owned(), start)), "trained twice: {sample}");
        }
    }
}

#[test]
fn a_step_that_is_not_there_is_refused_with_those_that_are() {
    let lab = Lab::new(drawn_seed(), SHAPE);
    let output = samples(&lab, &["--step", "9"]);
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(words, "error: there is no step 9; the recipe has the steps 0 to 8\n");
    assert!(!output.status.success());
}

#[test]
fn text_is_decoded_with_the_corpuss_own_tokenizer_only() {
    let lab = Lab::new(drawn_seed(), SHAPE);
    let vocab: serde_json::Map<_, _> = (0..500).map(|id| (format!("t{id}"), id.into())).collect();
    let tokenizer = serde_json::json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}});
    let tokenizer = tokenizer.to_string();
    fs::write(lab.path("tokenizer.json"), &tokenizer).expect("written");
    let file = format!("tokenizer = {:?}\n        allow_repeats", lab.path("tokenizer.json"));
    let recipe = fs::read_to_string(lab.path("recipe.toml")).expect("read");
    fs::write(lab.path("recipe.toml"), recipe.replace("allow_repeats", &file)).expect("written");

    let other = samples(&lab, &["--step", "3", "--text"]);
    let words = String::from_utf8_lossy(&other.stderr);
    assert!(!other.status.success() && words.contains("the corpus was prepared with"), "{words}");

    let path = lab.path("corpus/manifest.json");
    let manifest = CorpusManifest::parse("manifest", &fs::read(&path).expect("read")).expect("a manifest");
    let manifest = CorpusManifest { tokenizer_digest: Digest::of(tokenizer.as_bytes()), ..manifest };
    fs::write(&path, manifest.to_json()).expect("written");
    let report = json(&samples(&lab, &["--step", "3", "--text", "--json"]));
    let part = &report["slots"][0]["samples"][0]["documents"][0];
    let words: Vec<_> = named_tokens(&lab, part).iter().map(|token| format!("t{token}")).collect();
    assert_eq!(part["text"], words.join(" "));
}
