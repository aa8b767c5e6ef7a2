//! Perplexity as a cleaning step, against KenLM itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use polo_store::corpus::CorpusManifest;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;
use tokenizers::Tokenizer;

use crate::support::{Folder, gz, jsonl, talk, tokenizer_path};

/// Reads a model, and JSON strings by line; writes the perplexity of each as CCNet has it, lines without words left out. A
/// word is what KenLM takes for one, which white space of ASCII parts.
const KENLM: &str = "
import json, sys, kenlm
model = kenlm.Model(sys.argv[1])
for document in open(sys.argv[2]):
    lines = [line for line in json.loads(document).split('\\n') if line.split()]
    score = sum(model.score(line) for line in lines)
    words = sum(len(line.encode().split()) + 1 for line in lines)
    print(repr(10 ** (-score / words)))
";

fn perplexities_of_kenlm(folder: &Folder, model: &str, texts: &[String]) -> Vec<f64> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/kenlm/bin/python");
    assert!(python.exists(), "run `scripts/setup kenlm` first");
    folder.write("texts.jsonl", texts.iter().map(|text| json!(text).to_string() + "\n").collect::<String>());
    folder.write("model.arpa", model);
    let ran = Command::new(python)
        .args(["-c", KENLM])
        .args([folder.path("model.arpa"), folder.path("texts.jsonl")])
        .output()
        .expect("Python starts");
    assert!(ran.status.success(), "{}", talk(&ran));
    String::from_utf8(ran.stdout).expect("UTF-8").lines().map(|line| line.parse().expect("a number")).collect()
}

/// A model of random weights for the n-grams of `sentences`, most of them.
fn model_of(sentences: &[Vec<&str>], order: usize, rng: &mut StdRng) -> String {
    let mut ngrams: Vec<BTreeSet<Vec<&str>>> = vec![BTreeSet::from([vec!["<unk>"]]); 1];
    ngrams.resize(order, BTreeSet::new());
    for sentence in sentences {
        let words: Vec<&str> = [&["<s>"], &sentence[..], &["</s>"]].concat();
        for n in 1..=order {
            for ngram in words.windows(n) {
                // KenLM wants the beginning of each n-gram to be there; that its end is there too is usual.
                let has = |part: &[&str]| n == 1 || ngrams[n - 2].contains(part);
                if has(&ngram[..n - 1]) && has(&ngram[1..]) && (n == 1 || rng.random_bool(0.8)) {
                    ngrams[n - 1].insert(ngram.to_vec());
                }
            }
        }
    }
    let mut model = "\\data\\\n".to_owned();
    (1..).zip(&ngrams).for_each(|(n, ngrams)| model += &format!("ngram {n}={}\n", ngrams.len()));
    for (n, ngrams) in (1..).zip(&ngrams) {
        model += &format!("\n\\{n}-grams:\n");
        for ngram in ngrams {
            let weights: (f32, f32) = (-4.0 * rng.random::<f32>(), rng.random::<f32>() - 0.7);
            let backoff = if n == order { String::new() } else { format!("\t{}", weights.1) };
            model += &format!("{}\t{}{backoff}\n", weights.0, ngram.join(" "));
        }
    }
    model + "\n\\end\\\n"
}

fn words() -> Vec<String> {
    ["house", "the", "of", "घर", "人人", "Über", "«", "x\u{a0}y", "1", "and", "it", "is"].map(str::to_owned).to_vec()
}

/// Documents of one to four lines; some words are in no model.
fn documents(words: &[String], rng: &mut StdRng) -> Vec<String> {
    let unknown = ["unheard-of".to_owned(), "ÜBER".to_owned()];
    let known: Vec<&String> = words.iter().chain(&unknown).collect();
    let mut line = |_| {
        let num_words = rng.random_range(0..9);
        let words: Vec<&str> = (0..num_words).filter_map(|_| known.choose(rng).map(|word| word.as_str())).collect();
        words.join([" ", "  ", "\t"][rng.random_range(0..3)])
    };
    let documents = (0..300).map(|n| (0..=n % 4).map(&mut line).collect::<Vec<_>>().join("\n"));
    documents.filter(|text| !text.trim().is_empty()).collect::<BTreeSet<_>>().into_iter().collect()
}

fn prepared(folder: &Folder, output: &str, cleaning: &str, flags: &[&str]) -> CorpusManifest {
    folder.write("cleaning.toml", cleaning);
    let path = folder.path("cleaning.toml");
    folder.prepared(output, &[flags, &["--cleaning", path.to_str().expect("UTF-8")]].concat())
}

fn rng() -> StdRng {
    let seed = std::env::var("POLO_PREPARE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("POLO_PREPARE_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// What lies within a margin of the limits may be on either side of them: KenLM adds up in 32 bits.
fn check(folder: &Folder, manifest: &CorpusManifest, texts: &[String], perplexities: &[f64], limits: (f64, f64)) {
    let kept: BTreeSet<String> = folder.texts("corpus", manifest, "s").into_iter().collect();
    let mut counts = BTreeMap::<&str, u64>::new();
    for (text, perplexity) in texts.iter().zip(perplexities) {
        assert!(
            [limits.0, limits.1].iter().all(|limit| (perplexity / limit - 1.0).abs() > 1e-4),
            "{perplexity}: {text}"
        );
        let is_within = (limits.0..=limits.1).contains(perplexity);
        assert_eq!(kept.contains(text), is_within, "{perplexity} within {limits:?}: {text}");
        if !is_within {
            *counts.entry(if *perplexity > limits.1 { "high_perplexity" } else { "low_perplexity" }).or_default() += 1;
        }
    }
    let intake = manifest.source("s").and_then(|source| source.intake.as_ref()).expect("an intake");
    let dropped = intake.dropped.iter().map(|(reason, dropped)| (reason.as_str(), dropped.num_documents));
    assert_eq!(dropped.collect::<BTreeMap<_, _>>(), counts);
    assert!(counts.len() == 2 && kept.len() > 20, "all three kinds: {counts:?}, {} kept", kept.len());
}

/// Limits with a third of the documents below, and a third above, each half-way between two of them.
fn limits(perplexities: &[f64]) -> (f64, f64) {
    let mut sorted = perplexities.to_vec();
    sorted.sort_by(f64::total_cmp);
    let gap = |at: usize| sorted[at + 1] / sorted[at];
    let widest = |range: std::ops::Range<usize>| range.max_by(|a, b| gap(*a).total_cmp(&gap(*b))).expect("some");
    let between = |at: usize| (sorted[at] * sorted[at + 1]).sqrt();
    let third = sorted.len() / 3;
    (between(widest(third..third + 20)), between(widest(2 * third..2 * third + 20)))
}

fn config(model: &Path, limits: (f64, f64), more: &str) -> String {
    format!(
        "[perplexity]\n{more}\nmodels.en = {{ file = '{}', min = {:?}, max = {:?} }}\n",
        model.display(),
        limits.0,
        limits.1
    )
}

#[test]
fn documents_stay_by_the_perplexity_that_kenlm_gives() {
    let (mut rng, words) = (rng(), words());
    let texts = documents(&words, &mut rng);
    let sentences: Vec<Vec<&str>> = (0..60)
        .map(|_| (0..rng.random_range(1..10)).filter_map(|_| words.choose(&mut rng).map(String::as_str)).collect())
        .collect();
    let folder = Folder::new(&[("s.jsonl", jsonl(&texts.iter().map(String::as_str).collect::<Vec<_>>()))]);
    for (order, name) in [(2, "model.arpa"), (5, "packed.arpa.gz")] {
        let model = model_of(&sentences, order, &mut rng);
        folder.write("packed.arpa.gz", gz(model.as_bytes()));
        let perplexities = perplexities_of_kenlm(&folder, &model, &texts);
        let limits = limits(&perplexities);
        let cleaning = config(&folder.path(name), limits, "");
        let manifest = prepared(&folder, "corpus", &cleaning, &["--language", "s=en", "--force"]);
        check(&folder, &manifest, &texts, &perplexities, limits);
    }
}

#[test]
fn models_may_be_of_lower_case_and_of_tokens() {
    let (mut rng, words) = (rng(), words());
    let texts = documents(&words, &mut rng);
    let tokenizer = Tokenizer::from_file(tokenizer_path()).expect("the tokenizer");
    let cut = |text: &String| {
        let line = |line: &str| tokenizer.encode(line, false).expect("encoded").get_tokens().join(" ");
        text.to_lowercase().lines().map(line).collect::<Vec<_>>().join("\n")
    };
    // KenLM is given what the model was made of; lines of spaces only have tokens, and are none here.
    let in_tokens: Vec<String> = texts
        .iter()
        .map(|text| cut(&text.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("\n")))
        .collect();
    let sentences: Vec<Vec<&str>> =
        in_tokens.iter().step_by(5).flat_map(|text| text.lines()).map(|line| line.split(' ').collect()).collect();
    let folder = Folder::new(&[("s.jsonl", jsonl(&texts.iter().map(String::as_str).collect::<Vec<_>>()))]);
    let model = model_of(&sentences, 3, &mut rng);
    let perplexities = perplexities_of_kenlm(&folder, &model, &in_tokens);
    let limits = limits(&perplexities);
    let cleaning = config(&folder.path("model.arpa"), limits, "units = 'tokens'\nlowercase = true");
    let manifest = prepared(&folder, "corpus", &cleaning, &["--language", "s=en-GB"]);
    check(&folder, &manifest, &texts, &perplexities, limits);
}

const TINY: &str = "\\data\\\nngram 1=4\n\n\\1-grams:\n-3\t<unk>\n-99\t<s>\n-1\t</s>\n-0.5\tgood\n\n\\end\\\n";

/// "good good" has (0.5 + 0.5 + 1) / 3 in its exponent, "bad" (3 + 1) / 2.
#[test]
fn only_sources_in_a_language_with_a_model_are_looked_at() {
    let texts = ["good good", "bad"];
    let names = ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"];
    let folder = Folder::new(&names.map(|name| (name, jsonl(&texts))));
    folder.write("tiny.arpa", TINY);
    let cleaning = format!(
        "[perplexity]\nexcept = ['b']\n[perplexity.models]\nen = {{ file = '{}', max = 99.0 }}\nde = {{ file = '/no', min = 1 }}\n",
        folder.path("tiny.arpa").display()
    );
    folder.write("cleaning.toml", cleaning);
    let path = folder.path("cleaning.toml");
    let flags =
        ["--language", "a=en", "--language", "b=en", "--language", "d=fr", "--cleaning", path.to_str().expect("UTF-8")];
    let ran = folder.prepare("corpus", &flags);
    let words = talk(&ran);
    for note in [
        "source 'c' has no --language, so its documents' perplexity is not looked at",
        "source 'd': perplexity.models has no model for 'fr'",
        "tiny.arpa: 4 n-grams of up to 1 words",
    ] {
        assert!(words.contains(note), "{note}: {words}");
    }
    let manifest = folder.manifest("corpus", &ran);
    for source in ["b", "c", "d"] {
        assert_eq!(folder.texts("corpus", &manifest, source), texts, "{source}");
    }
    assert_eq!(folder.texts("corpus", &manifest, "a"), ["good good"]);
    let samples = manifest.source("a").and_then(|source| source.intake.as_ref()?.samples_key.clone()).expect("samples");
    let samples = fs::read_to_string(folder.path("corpus").join(samples)).expect("samples");
    assert!(
        samples.contains(r#""reason":"high_perplexity","key":"a.jsonl","place":"line 2","excerpt":"bad""#),
        "{samples}"
    );
}

#[test]
fn another_model_is_another_preparation() {
    let faulty = [jsonl(&["good", "bad"]), b"{\n".to_vec()].concat();
    let folder = Folder::new(&[("finished.jsonl", jsonl(&["good"])), ("s.jsonl", faulty)]);
    folder.write("tiny.arpa", TINY);
    folder.write("cleaning.toml", config(&folder.path("tiny.arpa"), (1.0, 99.0), ""));
    let path = folder.path("cleaning.toml");
    let flags = ["--language", "s=en", "--cleaning", path.to_str().expect("UTF-8")];
    assert!(folder.error(&flags).contains("s.jsonl: line 3: invalid JSON"));
    folder.write("tiny.arpa", TINY.replace("-3\t<unk>", "-0.5\t<unk>"));
    let skip = [&flags[..], &["--on-error", "skip"]].concat();
    let words = folder.error(&skip);
    assert!(words.contains("an unfinished preparation with other models of perplexity"), "{words}");
    let manifest = folder.prepared("failed", &[&skip[..], &["--force"]].concat());
    assert_eq!(folder.texts("failed", &manifest, "s"), ["good", "bad"]);
}

#[test]
fn a_model_that_cannot_be_used_is_told() {
    let folder = Folder::new(&[("s.jsonl", jsonl(&["good"]))]);
    let limits = (1.0, 99.0);
    for (name, bytes, expected) in [
        (
            "cut.arpa",
            TINY.as_bytes()[..37].to_vec(),
            "cut.arpa: line 6: the file ends before \\end\\; fetch or make it again",
        ),
        ("cut.arpa.gz", gz(TINY.as_bytes())[..40].to_vec(), ": cannot be read: "),
        ("not.arpa.gz", TINY.into(), "not.arpa.gz: line 1: cannot be read: "),
        ("binary.bin", b"mmap lm http://kheafield.com/code\0".to_vec(), "binary.bin: a binary of KenLM's build_binary"),
    ] {
        folder.write(name, bytes);
        folder.write("cleaning.toml", config(&folder.path(name), limits, ""));
        let path = folder.path("cleaning.toml");
        let error = folder.error(&["--language", "s=en", "--cleaning", path.to_str().expect("UTF-8")]);
        assert!(error.contains(expected), "{error}");
    }
    let nowhere = config(&folder.path("nowhere.arpa"), limits, "");
    for (text, expected) in [
        (nowhere.as_str(), "nowhere.arpa"),
        ("[perplexity]\n", "missing field `models`"),
        ("[perplexity]\nmodels = {}\n", "perplexity.models is empty"),
        ("[perplexity]\nmodels.en = { file = 'a' }\n", "perplexity.models.en needs a min or a max"),
        ("[perplexity]\nmodels.en = { file = 'a', min = 3, max = 2 }\n", "perplexity.models.en needs a min or a max"),
        ("[perplexity]\nunits = 'bytes'\nmodels.en = { file = 'a', max = 2 }\n", "unknown variant `bytes`"),
    ] {
        folder.write("cleaning.toml", text);
        let path = folder.path("cleaning.toml");
        let error = folder.error(&["--language", "s=en", "--cleaning", path.to_str().expect("UTF-8")]);
        assert!(error.contains(expected), "{error}");
    }
}
