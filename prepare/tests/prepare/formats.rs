//! Parquet, parallel data, and inputs that are broken, too long or too many.

use std::sync::Arc;

use parquet::{
    basic::{Compression, ZstdLevel},
    data_type::{ByteArray, ByteArrayType, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};

use crate::{
    basics::TEXTS,
    support::{Folder, gz, jsonl, talk, zst},
};

/// A file of row groups, each of some texts; `None` is null.
pub fn parquet(column: &str, groups: &[&[Option<&str>]], compression: Compression) -> Vec<u8> {
    let schema = format!("message m {{ required int64 id; optional binary {column} (UTF8); }}");
    let schema = Arc::new(parse_message_type(&schema).expect("a schema"));
    let properties = WriterProperties::builder().set_compression(compression).set_data_page_size_limit(4096).build();
    let mut bytes = vec![];
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).expect("a writer");
    for texts in groups {
        let mut group = writer.next_row_group().expect("a group");
        let mut ids = group.next_column().expect("written").expect("a column");
        let numbers: Vec<i64> = (0..texts.len() as i64).collect();
        ids.typed::<Int64Type>().write_batch(&numbers, None, None).expect("written");
        ids.close().expect("closed");
        let mut column = group.next_column().expect("written").expect("a column");
        let values: Vec<ByteArray> = texts.iter().flatten().map(|text| ByteArray::from(*text)).collect();
        let levels: Vec<i16> = texts.iter().map(|text| i16::from(text.is_some())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).expect("written");
        column.close().expect("closed");
        group.close().expect("closed");
    }
    writer.close().expect("closed");
    bytes
}

#[test]
fn parquet_gives_the_same_stream_as_json_lines() {
    let long: Vec<String> = (0..3_000).map(|n| format!("{n} is row {}", n * 7)).collect();
    let long: Vec<Option<&str>> = long.iter().map(|text| Some(text.as_str())).collect();
    let short: Vec<Option<&str>> = TEXTS.iter().map(|text| Some(*text)).collect();
    let groups = [long.as_slice(), &short, &[]];
    let texts: Vec<&str> = long.iter().chain(&short).flatten().copied().collect();
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let folder = Folder::new(&[
        ("a.parquet", parquet("text", &groups, Compression::UNCOMPRESSED)),
        ("b.parquet", parquet("text", &groups, Compression::SNAPPY)),
        ("c.parquet", parquet("text", &groups, zstd)),
        ("d.parquet", parquet("text", &groups, Compression::GZIP(Default::default()))),
        ("e.parquet", parquet("text", &groups, Compression::LZ4_RAW)),
        ("z.jsonl", jsonl(&texts)),
    ]);
    let manifest = folder.prepared("corpus", &[]);
    let expected = folder.stream("corpus", &manifest, "z");
    assert_eq!(manifest.sources.len(), 6);
    for source in &manifest.sources {
        assert!(folder.stream("corpus", &manifest, &source.name) == expected, "source {}", source.name);
    }
}

#[test]
fn parquet_that_cannot_be_used_is_told_and_can_be_left_out() {
    let good = parquet("text", &[&[Some("a"), None, Some("b")]], Compression::UNCOMPRESSED);
    let folder = Folder::new(&[
        ("s/1.parquet", parquet("body", &[&[Some("a")]], Compression::UNCOMPRESSED)),
        ("s/2.parquet", good[..good.len() - 10].to_vec()),
        ("s/3.parquet", b"PAR1 no parquet PAR1".to_vec()),
        ("s/4.parquet", good),
        ("s/5.parquet", vec![]),
    ]);
    let errors = [
        (
            "s/1.parquet",
            "s/1.parquet: no column 'text' of strings: it has id (INT64), body (BYTE_ARRAY); use --text-column",
        ),
        ("s/2.parquet", "s/2.parquet: not a Parquet file that can be read: "),
        ("s/3.parquet", "s/3.parquet: not a Parquet file that can be read: "),
        ("s/4.parquet", "s/4.parquet: row 2: no text: 'text' is null"),
        ("s/5.parquet", "source 's' has no text: nothing is left of its 1 inputs"),
    ];
    for (key, error) in errors {
        let found = folder.error(&["--source", &format!("s={key}")]);
        assert!(found.contains(error), "{found}");
    }
    let manifest = folder.prepared("skipped", &["--on-error", "skip"]);
    assert_eq!(folder.texts("skipped", &manifest, "s"), ["a", "b"]);
    let intake = manifest.sources[0].intake.as_ref().expect("an intake");
    let counts: Vec<_> =
        intake.dropped.iter().map(|(reason, dropped)| (reason.as_str(), dropped.num_documents)).collect();
    assert_eq!(counts, [("no_column", 1), ("no_text", 1), ("unreadable_file", 2)]);
    assert_eq!(
        folder.prepared("body", &["--source", "s=s/1.parquet", "--text-column", "body"]).sources[0].num_documents,
        1
    );
}

#[test]
fn broken_files_are_told_with_their_place_and_the_rest_goes_on() {
    let lines = jsonl(&["one", "two", "three"]);
    let packed = gz(&jsonl(&["a text that is long enough to be cut"; 2000]));
    let folder = Folder::new(&[
        (
            "s/1.jsonl",
            [lines.clone(), b"{\"text\": \"\xff\"}\n{\"text\": 1}\n{\"text\"\n".to_vec(), lines.clone()].concat(),
        ),
        ("s/2.jsonl.gz", packed[..packed.len() / 2].to_vec()),
        ("s/3.jsonl", vec![]),
        ("s/4.jsonl.zst", zst(&lines)[..10].to_vec()),
        ("s/_SUCCESS", vec![]),
        ("s/5.jsonl.gz", vec![]),
    ]);
    let errors = [
        ("s/1.jsonl", "s/1.jsonl: line 4: not UTF-8 at byte"),
        ("s/2.jsonl.gz", "s/2.jsonl.gz: cannot be read: "),
        ("s/4.jsonl.zst", "s/4.jsonl.zst: cannot be read: "),
    ];
    for (key, error) in errors {
        let found = folder.error(&["--source", &format!("s={key}")]);
        assert!(found.contains(error) && found.contains("--on-error skip"), "{found}");
    }
    let manifest = folder.prepared("skipped", &["--on-error", "skip"]);
    let intake = manifest.sources[0].intake.as_ref().expect("an intake");
    let counts: Vec<_> =
        intake.dropped.iter().map(|(reason, dropped)| (reason.as_str(), dropped.num_documents)).collect();
    assert_eq!(counts, [("invalid_json", 1), ("no_text", 1), ("not_utf8", 1), ("unreadable_file", 2)]);
    assert_eq!(intake.num_documents, manifest.sources[0].num_documents + 5);
    let key = intake.samples_key.as_ref().expect("samples");
    let samples = std::fs::read_to_string(folder.path("skipped").join(key)).expect("samples");
    assert_eq!(samples.lines().count(), 5);
    assert!(samples.contains("line 4: not UTF-8"), "{samples}");
}

#[test]
fn a_document_longer_than_the_bound_is_refused_or_left_out() {
    let long = "x".repeat(3_000);
    let folder = Folder::new(&[
        ("a.jsonl", jsonl(&["one", &long, "two"])),
        ("b.parquet", parquet("text", &[&[Some("one"), Some(&long), Some("two")]], Compression::SNAPPY)),
        ("c.txt.gz", gz(format!("one\n\n{long}\n\ntwo\n").as_bytes())),
    ]);
    let flags = ["--max-document-bytes", "2000", "--text-documents", "paragraph"];
    let error = folder.error(&flags);
    assert!(error.contains("a.jsonl: line 2: a document of more than 2000 bytes"), "{error}");
    let manifest = folder.prepared("skipped", &[flags.as_slice(), &["--on-error", "skip"]].concat());
    for source in ["a", "b", "c"] {
        assert_eq!(folder.texts("skipped", &manifest, source), ["one", "two"], "source {source}");
        let intake = manifest.source(source).and_then(|source| source.intake.as_ref()).expect("an intake");
        assert_eq!(intake.dropped["too_long"].num_documents, 1);
    }
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    let folder = Folder::new(&[("a.jsonl", jsonl(&["x"])), ("b.jsonl", jsonl(&["y"]))]);
    for (flags, expected) in [
        (["--source", "s=a.jsonl", "--source", "s=b.jsonl"], "source 's' is given twice with --source"),
        (["--language", "a=en", "--language", "a=de"], "source 'a' is given twice with --language"),
        (["--pairs", "a=en-de", "--pairs", "a=en-fr"], "source 'a' is given twice with --pairs"),
        (["--source", "s=a.jsonl", "--pairs", "t=en-de"], "--pairs names 't', which is no source"),
    ] {
        let error = folder.error(&flags);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn many_small_objects_are_one_source() {
    let names: Vec<String> = (0..2_000).map(|n| format!("s/{:02}/{n:05}.jsonl", n % 50)).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), jsonl(&[name]))).collect();
    let folder = Folder::new(&files);
    let manifest = folder.prepared("corpus", &[]);
    let mut expected = names.clone();
    expected.sort();
    assert_eq!(folder.texts("corpus", &manifest, "s"), expected);
}

const ENGLISH: [&str; 3] = ["one house", "two houses", "same"];
const GERMAN: [&str; 3] = ["ein Haus", "zwei Häuser", "same"];

fn lines(texts: &[&str]) -> Vec<u8> {
    texts.iter().map(|text| format!("{text}\n")).collect::<String>().into()
}

#[test]
fn pairs_of_any_form_become_the_same_documents() {
    let pairs = ENGLISH.iter().zip(GERMAN);
    let tsv: String = pairs.clone().map(|(en, de)| format!("{en}\t{de}\t0.9\n")).collect();
    let json =
        |(en, de): (&&str, &str)| serde_json::json!({ "translation": { "en": en, "de": de } }).to_string() + "\n";
    let folder = Folder::new(&[
        ("moses/x.en-de.en.gz", gz(&lines(&ENGLISH))),
        ("moses/x.en-de.de", lines(&GERMAN)),
        ("tsv/x.tsv.zst", zst(tsv.as_bytes())),
        ("json/x.jsonl", pairs.map(json).collect::<String>().into()),
    ]);
    folder.write("cleaning.toml", "[pairs]\ndrop_identical = true\nmax_length_ratio = 3.0\n");
    let cleaning = folder.path("cleaning.toml");
    let flags = ["--pairs", "moses=en-de", "--pairs", "tsv=en-de", "--pairs", "json=en-de", "--pair-seed", "5"];
    let flags = [flags.as_slice(), &["--cleaning", cleaning.to_str().expect("UTF-8")]].concat();
    let manifest = folder.prepared("corpus", &flags);
    let texts = folder.texts("corpus", &manifest, "moses");
    assert_eq!(texts.len(), 2);
    for ((text, en), de) in texts.iter().zip(ENGLISH).zip(GERMAN) {
        assert!(text.contains(en) && text.contains(de) && text.contains("German"), "{text}");
    }
    for source in ["tsv", "json"] {
        assert_eq!(folder.texts("corpus", &manifest, source), texts, "{source}");
    }
    let intake = manifest.sources[0].intake.as_ref().expect("an intake");
    assert_eq!(intake.dropped["identical_pair"].num_documents, 1);
    let joined = folder.prepared("joined", &[flags.as_slice(), &["--pairs-per-document", "2"]].concat());
    assert_eq!(folder.texts("joined", &joined, "moses"), [texts.join("\n\n")]);
}

#[test]
fn files_of_pairs_that_do_not_correspond_are_told() {
    let folder = Folder::new(&[("p/x.en", lines(&ENGLISH)), ("p/x.de", lines(&GERMAN[..2]))]);
    let error = folder.error(&["--pairs", "p=en-de"]);
    assert!(error.contains("p/x.de: ends after 2 lines, and p/x.en goes on"), "{error}");
    let error = folder.error(&["--pairs", "p=en-fr"]);
    assert!(
        error.contains("p/x.de: pairs lie in") && talk(&folder.prepare("x", &["--pairs", "p=en"])).contains("SRC-TGT"),
        "{error}"
    );
}
