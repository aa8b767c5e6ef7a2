//! What cleaning leaves out of a corpus, and how it says so.

use std::fs;

use polo_store::corpus::{CorpusManifest, Intake};

use crate::support::{Folder, all_files, jsonl, talk};

const ENGLISH: &str = "The quick brown fox jumps over the lazy dog and runs away through the green fields of the valley until \
                       it finds the old mill by the river where nobody has lived for many years";
const GERMAN: &str = "Der schnelle braune Fuchs springt über den faulen Hund und läuft davon durch die grünen Felder des Tales, \
                      bis er die alte Mühle am Fluss findet, in der seit vielen Jahren niemand mehr wohnt";

fn prepared(folder: &Folder, output: &str, cleaning: &str, flags: &[&str]) -> CorpusManifest {
    folder.write("cleaning.toml", cleaning);
    let path = folder.path("cleaning.toml");
    folder.prepared(output, &[flags, &["--cleaning", path.to_str().expect("UTF-8")]].concat())
}

fn intake<'a>(manifest: &'a CorpusManifest, source: &str) -> &'a Intake {
    manifest.source(source).and_then(|source| source.intake.as_ref()).expect("an intake")
}

fn counts(intake: &Intake) -> Vec<(&str, u64)> {
    intake.dropped.iter().map(|(reason, dropped)| (reason.as_str(), dropped.num_documents)).collect()
}

#[test]
fn each_step_drops_what_it_should_and_says_so() {
    let repeated = &"The old mill by the river is empty. ".repeat(5);
    let symbols = format!("{ENGLISH} {}", "+".repeat(100));
    let near = ENGLISH.replace("many years", "many many years");
    let evaluation = format!("{ENGLISH}. How many moons does the planet Mars have in its orbit?");
    let texts = [ENGLISH, "short", repeated, &symbols, GERMAN, ENGLISH, &near, &evaluation, "", &format!("{ENGLISH}!")];
    let folder = Folder::new(&[("en.jsonl", jsonl(&texts)), ("code.jsonl", jsonl(&["x+=1", ENGLISH]))]);
    fs::create_dir(folder.path("evaluation")).expect("made");
    folder
        .write("evaluation/mars.jsonl", r#"{"question": "How many moons does the planet Mars have?", "answer": "2"}"#);
    let cleaning = format!(
        "[heuristics]\nexcept = ['code']\nmin_chars = 20\nmax_symbol_ratio = 0.1\nmax_repeated_ngram_ratio = 0.3\n\
         repetition_ngram = 2\n[language]\n[exact_duplicates]\nscope = 'corpus'\n[near_duplicates]\n\
         [evaluation_overlap]\ninput = '{}'\nngram = 8\n",
        folder.path("evaluation").display()
    );
    let manifest = prepared(&folder, "corpus", &cleaning, &["--language", "en=en", "--language", "code=ms"]);

    // 'code' comes before 'en', so its English text is the first of its kind.
    assert_eq!(folder.texts("corpus", &manifest, "code"), ["x+=1", ENGLISH]);
    assert_eq!(counts(intake(&manifest, "code")), []);
    assert_eq!(folder.texts("corpus", &manifest, "en"), [near.as_str()]);
    let expected = [
        ("empty", 1),
        ("evaluation_overlap", 1),
        ("exact_duplicate", 2),
        ("language", 1),
        ("min_chars", 1),
        ("near_duplicate", 1),
        ("repeated_ngrams", 1),
        ("symbols", 1),
    ];
    assert_eq!(counts(intake(&manifest, "en")), expected);
    assert_eq!(intake(&manifest, "en").num_documents, 10);
    assert_eq!(intake(&manifest, "en").dropped["language"].num_bytes_text, GERMAN.len() as u64);

    let samples =
        fs::read_to_string(folder.path("corpus").join(intake(&manifest, "en").samples_key.as_ref().expect("some")));
    let samples: Vec<serde_json::Value> =
        samples.expect("samples").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(samples.len(), 9);
    let german = samples.iter().find(|sample| sample["reason"] == "language").expect("a sample");
    assert_eq!((&german["key"], &german["place"]), (&"en.jsonl".into(), &"line 5".into()));
    assert!(GERMAN.starts_with(german["excerpt"].as_str().expect("a text")));

    folder.write("cleaning.toml", &cleaning);
    let path = folder.path("cleaning.toml");
    let path = path.to_str().expect("UTF-8");
    let ran = folder.prepare("again", &["--language", "en=en", "--language", "code=ms", "--cleaning", path]);
    for words in
        ["near_duplicate", "language identification does not know 'ms'", "2 evaluation texts, of which 1 have fewer"]
    {
        assert!(talk(&ran).contains(words), "{words}: {}", talk(&ran));
    }
}

#[test]
fn duplicates_do_not_depend_on_jobs() {
    let text = |n: usize| format!("{} {ENGLISH}", (0..40).map(|i| format!("w{} ", i * n % 977)).collect::<String>());
    let texts: Vec<String> = (0..4_000).map(|n| text(n % 1_500)).collect();
    let lines = |range: std::ops::Range<usize>| jsonl(&texts[range].iter().map(String::as_str).collect::<Vec<_>>());
    let folder = Folder::new(&[
        ("a/1.jsonl", lines(0..2_000)),
        ("a/2.jsonl", lines(2_000..4_000)),
        ("b.jsonl", [lines(0..500), jsonl(&["only here"])].concat()),
    ]);
    let cleaning = "[exact_duplicates]\n[near_duplicates]\nscope = 'corpus'\n";
    let manifest = prepared(&folder, "one", cleaning, &["--jobs", "1"]);
    assert!(intake(&manifest, "a").dropped["exact_duplicate"].num_documents >= 2_000);
    for jobs in ["2", "7"] {
        prepared(&folder, jobs, cleaning, &["--jobs", jobs]);
        assert!(all_files(&folder.path(jobs)) == all_files(&folder.path("one")), "{jobs} jobs");
    }
}

#[test]
fn an_index_beyond_its_bound_stops_the_preparation_and_a_higher_bound_goes_on() {
    let texts: Vec<String> = (0..3_000).map(|n| format!("text number {n} of many {}", n * n)).collect();
    let folder = Folder::new(&[("a.jsonl", jsonl(&texts.iter().map(String::as_str).collect::<Vec<_>>()))]);
    folder.write("cleaning.toml", "[exact_duplicates]\n");
    let path = folder.path("cleaning.toml");
    let flags = ["--shard-tokens", "2000", "--cleaning", path.to_str().expect("UTF-8")];
    let error = folder.error(&[flags.as_slice(), &["--max-index-bytes", "100000"]].concat());
    assert!(error.contains("raise --max-index-bytes"), "{error}");
    folder.prepared("failed", &flags);
    folder.prepared("at once", &flags);
    assert!(all_files(&folder.path("failed")) == all_files(&folder.path("at once")));
}

#[test]
fn a_cleaning_file_that_cannot_be_meant_is_refused() {
    let folder = Folder::new(&[("a.jsonl", jsonl(&["x"]))]);
    for (text, expected) in [
        ("[heuristic]\n", "unknown field `heuristic`"),
        ("[heuristics]\nmin_char = 1\n", "unknown field `min_char`"),
        ("[near_duplicates]\nrows = 0\n", "near_duplicates.rows is 0, and must be from 1 to 1000"),
        ("[language]\nexcept = ['b']\n", "--cleaning names 'b', which is no source"),
        ("[evaluation_overlap]\n", "missing field `input`"),
    ] {
        folder.write("cleaning.toml", text);
        let path = folder.path("cleaning.toml");
        let error = folder.error(&["--cleaning", path.to_str().expect("UTF-8")]);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_example_is_good() {
    let folder = Folder::new(&[("a.jsonl", jsonl(&[ENGLISH, ENGLISH, "short"]))]);
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/cleaning.toml");
    let text = fs::read_to_string(example).expect("the example");
    let manifest = prepared(&folder, "corpus", &text, &["--language", "a=en"]);
    assert_eq!(manifest.sources[0].num_documents, 1);
}
