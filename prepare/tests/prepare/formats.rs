//! Parquet, parallel data, and the bound of a document.

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
pub fn parquet<T: AsRef<[u8]>>(column: &str, groups: &[&[Option<T>]], compression: Compression) -> Vec<u8> {
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
        let values: Vec<ByteArray> =
            texts.iter().flatten().map(|text| ByteArray::from(text.as_ref().to_vec())).collect();
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
fn another_column_may_hold_the_text() {
    let folder = Folder::new(&[
        ("s/1.parquet", parquet("body", &[&[Some("a")]], Compression::UNCOMPRESSED)),
        ("s/2.jsonl", b"{\"text\": \"no\", \"body\": \"b\"}\n".to_vec()),
    ]);
    let manifest = folder.prepared("corpus", &["--text-column", "body"]);
    assert_eq!(folder.texts("corpus", &manifest, "s"), ["a", "b"]);
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
