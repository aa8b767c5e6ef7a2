//! Bad inputs, each refused with one error that names the place and what to do, or left out and counted while the rest
//! goes on: too long, empty, not UTF-8, cut short, without the column, named twice; and inputs that are only very large
//! or very many.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    process::Command,
    time::Instant,
};

use futures::{StreamExt, TryStreamExt, stream};
use parquet::basic::Compression;
use polo_store::{corpus::Source, testing::SeaweedFs};
use tokio::runtime::Runtime;

use crate::{
    formats::parquet,
    support::{Folder, gz, jsonl, measured, talk, tokenizer_path, zst},
};

const GIGABYTE: u64 = 1_000_000_000;

/// One bad object among good ones.
struct Case {
    /// The object's name.
    name: &'static str,
    bytes: Vec<u8>,
    /// What the error says about it; nothing where there is none.
    error: &'static str,
    /// What is left out, by reason.
    dropped: &'static [(&'static str, u64)],
    /// What is taken from it.
    kept: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    let lines = jsonl(&["one", "two"]);
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() - 6].to_vec();
    let long = jsonl(&["a text that is long enough to be cut"; 2000]);
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    let case = |name, bytes, error, dropped, kept| Case { name, bytes, error, dropped, kept };
    let uncompressed = |column, texts: &[Option<&str>]| parquet(column, &[texts], Compression::UNCOMPRESSED);
    vec![
        case("empty.jsonl", vec![], "", &[], &[]),
        case("empty.txt", vec![], "", &[], &[]),
        case("empty.parquet", vec![], "", &[], &[]),
        case("empty.jsonl.gz", vec![], "", &[], &[]),
        case("packed-nothing.jsonl.gz", gz(b""), "", &[], &[]),
        case("packed-nothing.jsonl.zst", zst(b""), "", &[], &[]),
        case("_SUCCESS", vec![], "", &[], &[]),
        case(
            "line.jsonl",
            [&lines[..], b"{\"text\": \"\xff\"}\n", &lines].concat(),
            "line.jsonl: line 3: not UTF-8 at byte 54 of the decompressed text; convert it, or",
            &[("not_utf8", 1)],
            &["one", "two", "one", "two"],
        ),
        case(
            "text.txt.gz",
            gz(b"one\n\xc3\n"),
            "text.txt.gz: line 2: not UTF-8 at byte 4 of the decompressed text; convert it, or",
            &[("not_utf8", 1)],
            &[],
        ),
        case(
            "bytes.parquet",
            parquet("text", &[&[Some(&b"one"[..]), Some(b"\xff")]], Compression::UNCOMPRESSED),
            "bytes.parquet: row 2: not UTF-8 at byte 0",
            &[("not_utf8", 1)],
            &["one"],
        ),
        case(
            "json.jsonl",
            [&lines[..], b"{\"text\": \n"].concat(),
            "json.jsonl: line 3: invalid JSON: ",
            &[("invalid_json", 1)],
            &["one", "two"],
        ),
        case(
            "field.jsonl",
            [&lines[..], b"{\"body\": 1}\n{\"text\": 1}\n"].concat(),
            "field.jsonl: line 3: no text: 'text' is missing; use --text-column or",
            &[("no_text", 2)],
            &["one", "two"],
        ),
        case("cut.jsonl.gz", cut(gz(&lines)), "cut.jsonl.gz: cannot be read: ", &[("unreadable_file", 1)], &[]),
        case("cut.jsonl.zst", cut(zst(&lines)), "cut.jsonl.zst: cannot be read: ", &[("unreadable_file", 1)], &[]),
        case("half.jsonl.gz", half(gz(&long)), "half.jsonl.gz: cannot be read: ", &[("unreadable_file", 1)], &[]),
        case("half.jsonl.zst", half(zst(&long)), "half.jsonl.zst: cannot be read: ", &[("unreadable_file", 1)], &[]),
        case("not.jsonl.gz", b"not gzip".to_vec(), "not.jsonl.gz: cannot be read: ", &[("unreadable_file", 1)], &[]),
        case(
            "body.parquet",
            uncompressed("body", &[Some("a")]),
            "body.parquet: no column 'text' of strings: it has id (INT64), body (BYTE_ARRAY); use --text-column or",
            &[("no_column", 1)],
            &[],
        ),
        case(
            "null.parquet",
            uncompressed("text", &[Some("one"), None, Some("two")]),
            "null.parquet: row 2: no text: 'text' is null; use --text-column or",
            &[("no_text", 1)],
            &["one", "two"],
        ),
        case(
            "cut.parquet",
            cut(uncompressed("text", &[Some("a")])),
            "cut.parquet: not a Parquet file that can be read: ",
            &[("unreadable_file", 1)],
            &[],
        ),
        case(
            "not.parquet",
            b"PAR1 no parquet PAR1".to_vec(),
            "not.parquet: not a Parquet file that can be read: ",
            &[("unreadable_file", 1)],
            &[],
        ),
    ]
}

fn dropped(source: &Source) -> Vec<(&str, u64)> {
    let dropped = source.intake.iter().flat_map(|intake| &intake.dropped);
    dropped.map(|(reason, dropped)| (reason.as_str(), dropped.num_documents)).collect()
}

/// The one error that a program has ended with.
fn the_error(words: &str) -> &str {
    let errors: Vec<&str> = words.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
    assert!(errors.len() == 1 && !words.contains("panicked"), "one error: {words}");
    errors[0]
}

/// Each case is a source, with a good file after the bad one.
#[test]
fn each_bad_object_is_told_or_left_out_and_the_rest_goes_on() {
    let cases = cases();
    let names: Vec<String> = (0..cases.len()).map(|number| format!("c{number:02}")).collect();
    let good = (names.iter()).map(|name| (format!("{name}/zz.jsonl"), jsonl(&["good"])));
    let bad = names.iter().zip(&cases).map(|(name, case)| (format!("{name}/{}", case.name), case.bytes.clone()));
    let files: Vec<_> = good.chain(bad).collect();
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let folder = Folder::new(&files);

    let rule = |name: &String| ["--source".to_owned(), format!("{name}={name}")];
    let (harmless, faulty): (Vec<_>, Vec<_>) = names.iter().zip(&cases).partition(|(_, case)| case.error.is_empty());
    for (name, case) in faulty {
        let words = folder.error(&rule(name).each_ref().map(String::as_str));
        let error = the_error(&words);
        assert!(error.starts_with(&format!("{name}/{}", case.error)), "{error}");
        assert!(error.ends_with("--on-error skip"), "{error}");
    }
    let rules: Vec<String> = harmless.iter().flat_map(|(name, _)| rule(name)).collect();
    let manifest = folder.prepared("strict", &rules.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(manifest.sources.iter().all(|source| source.num_documents == 1 && source.intake.is_none()));

    let manifest = folder.prepared("skipped", &["--on-error", "skip"]);
    for (name, case) in names.iter().zip(&cases) {
        let source = manifest.source(name).expect("the source");
        assert_eq!(dropped(source), case.dropped, "{}", case.name);
        assert_eq!(folder.texts("skipped", &manifest, name), [case.kept, &["good"]].concat(), "{}", case.name);
        let Some(intake) = &source.intake else { continue };
        let num_dropped: u64 = case.dropped.iter().map(|(_, number)| number).sum();
        assert_eq!(intake.num_documents, source.num_documents + num_dropped, "{}", case.name);
        let samples = folder.path("skipped").join(intake.samples_key.as_ref().expect("samples"));
        let samples = fs::read_to_string(samples).expect("samples");
        assert_eq!(samples.lines().count() as u64, num_dropped, "{samples}");
    }
}

#[test]
fn a_source_of_empty_files_is_refused() {
    let folder = Folder::new(&[("s/a.jsonl", vec![]), ("s/b.txt", b"\n \n".to_vec()), ("s/c.jsonl.gz", gz(b""))]);
    for flags in [&[][..], &["--on-error", "skip"]] {
        let words = folder.error(flags);
        assert!(the_error(&words).starts_with("source 's' has no text: nothing is left of its 3 inputs"), "{words}");
    }
}

#[test]
fn names_given_twice_are_refused() {
    let folder = Folder::new(&[("a.jsonl", jsonl(&["x"])), ("b.jsonl", jsonl(&["y"]))]);
    for (flags, expected) in [
        (["--source", "s=a.jsonl", "--source", "s=b.jsonl"], "source 's' is given twice with --source; give all its"),
        (["--source", "s=a.jsonl", "--source", "t=*"], "a.jsonl belongs to both 's' and 't', so it would be trained"),
        (["--language", "a=en", "--language", "a=de"], "source 'a' is given twice with --language; give it once"),
        (["--pairs", "a=en-de", "--pairs", "a=en-fr"], "source 'a' is given twice with --pairs; give it once"),
    ] {
        for more in [&[][..], &["--on-error", "skip"]] {
            let words = folder.error(&[&flags, more].concat());
            assert!(the_error(&words).starts_with(expected), "{words}");
        }
    }
}

/// What `polo prepare` takes whatever its input: the tokenizer, most of all.
fn bytes_without_input() -> u64 {
    let folder = Folder::new(&[("s.jsonl", jsonl(&["one"]))]);
    let (ran, peak_bytes) = measured(&mut folder.command("corpus", &["--jobs", "1"]));
    assert!(ran.status.success(), "{}", talk(&ran));
    peak_bytes
}

/// A reader fetches two pieces of 8 MiB, and one of each of the next eight files.
const READ_AHEAD_BYTES: u64 = 10 * (8 << 20);
const DEFAULT_MAX_DOCUMENT_BYTES: u64 = 64 << 20;
/// As `--max-document-bytes` says.
const BATCHES_PER_JOB: u64 = 6;

/// A gigabyte of zeros takes no room on disk; packed are a thousand members that are the same.
fn folder_of_long_documents() -> Folder {
    let folder = Folder::new(&[("s/zz.jsonl", jsonl(&["good"]))]);
    let mut file = File::create(folder.path("raw/s/1.jsonl")).expect("made");
    file.write_all(&jsonl(&["one"])).expect("written");
    file.seek(SeekFrom::Current(GIGABYTE as i64)).expect("sought");
    file.write_all(&[b"\n".as_slice(), &jsonl(&["two"])].concat()).expect("written");
    let long = gz(&vec![b'x'; 1_000_000]).repeat((GIGABYTE / 1_000_000) as usize);
    folder.write("raw/s/2.jsonl.gz", [gz(&jsonl(&["three"])), long.clone(), gz(b"\n"), gz(&jsonl(&["four"]))].concat());
    File::create(folder.path("raw/s/3.txt")).and_then(|file| file.set_len(GIGABYTE)).expect("made");
    folder.write("raw/s/4.txt.gz", long);
    folder
}

#[test]
fn a_document_of_a_gigabyte_is_refused_or_left_out_in_bounded_memory() {
    let folder = folder_of_long_documents();
    let most_bytes = bytes_without_input() + BATCHES_PER_JOB * DEFAULT_MAX_DOCUMENT_BYTES + READ_AHEAD_BYTES;
    println!("{most_bytes} bytes are allowed");
    assert!(most_bytes < GIGABYTE, "the document would fit into {most_bytes} bytes");
    for (name, line) in [("1.jsonl", 2), ("2.jsonl.gz", 2), ("3.txt", 1), ("4.txt.gz", 1)] {
        let source = format!("s=s/{name}");
        let (ran, peak_bytes) = measured(&mut folder.command("refused", &["--jobs", "1", "--source", &source]));
        let words = talk(&ran);
        let expected = format!(
            "s/{name}: line {line}: a document of more than 67108864 bytes; cut it, raise --max-document-bytes (and see to \
             the memory), or use --on-error skip"
        );
        assert_eq!(the_error(&words), expected);
        println!("{peak_bytes} bytes to refuse {name}");
        assert!(peak_bytes < most_bytes, "{name}: {peak_bytes} bytes");
    }
    let (ran, peak_bytes) = measured(&mut folder.command("skipped", &["--jobs", "1", "--on-error", "skip"]));
    println!("{peak_bytes} bytes to leave all out");
    assert!(peak_bytes < most_bytes, "{peak_bytes} bytes");
    let manifest = folder.manifest("skipped", &ran);
    assert_eq!(folder.texts("skipped", &manifest, "s"), ["one", "two", "three", "four", "good"]);
    assert_eq!(dropped(&manifest.sources[0]), [("too_long", 4)]);
}

/// Nearly all of them are short and dropped, so that this is about reading and not the time that encoding takes.
#[test]
fn a_gigabyte_of_documents_goes_through_in_bounded_memory() {
    const LINES: usize = 2_000;
    let text = |n: usize| format!("{n} {}", "one of very many words ".repeat(if n == 1 { 30 } else { 20 }));
    let texts: Vec<String> = (0..LINES).map(text).collect();
    let lines = jsonl(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let num_members = (GIGABYTE as usize).div_ceil(lines.len());
    let folder = Folder::new(&[("s.jsonl.gz", gz(&lines).repeat(num_members))]);
    folder.write("cleaning.toml", "[heuristics]\nmin_chars = 600\n");
    let cleaning = folder.path("cleaning.toml");
    let flags = ["--jobs", "2", "--cleaning", cleaning.to_str().expect("UTF-8")];
    let (ran, peak_bytes) = measured(&mut folder.command("corpus", &flags));
    // A batch of 1 MiB lies there as it was read and as texts, and room to grow has been left for both.
    let most_bytes = bytes_without_input() + 2 * BATCHES_PER_JOB * 4 * (1 << 20) + READ_AHEAD_BYTES;
    println!("{peak_bytes} of {most_bytes} bytes that are allowed");
    assert!(peak_bytes < most_bytes, "{peak_bytes} bytes");
    let source = &folder.manifest("corpus", &ran).sources[0];
    assert_eq!(source.num_documents, num_members as u64);
    assert_eq!(dropped(source), [("min_chars", (num_members * (LINES - 1)) as u64)]);
}

const NUM_OBJECTS: usize = 100_000;

fn names_of_many(num_objects: usize) -> Vec<String> {
    let mut names: Vec<String> = (0..num_objects).map(|n| format!("s/{:02}/{n:06}.jsonl", n % 50)).collect();
    names.sort();
    names
}

/// Each file holds its name, so that what comes out shows that all were read, in order.
#[test]
fn a_hundred_thousand_files_are_one_source() {
    let names = names_of_many(NUM_OBJECTS);
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), jsonl(&[name]))).collect();
    let folder = Folder::new(&files);
    let manifest = folder.prepared("corpus", &["--source", "s=s/**/*.jsonl"]);
    assert!(folder.texts("corpus", &manifest, "s") == names, "every file once, in order of names");
}

/// More than a listing has on two pages.
#[test]
fn a_bucket_of_many_objects_is_one_source() {
    prepare_from_bucket(2_500);
}

#[test]
#[ignore = "putting 100,000 objects takes minutes; 2,500 are put by the test above, 100,000 files by the one before"]
fn a_bucket_of_a_hundred_thousand_objects_is_one_source() {
    prepare_from_bucket(NUM_OBJECTS);
}

fn prepare_from_bucket(num_objects: usize) {
    let runtime = Runtime::new().expect("a runtime");
    let server = runtime.block_on(SeaweedFs::start(&SeaweedFs::default_binary(), "bucket")).expect("SeaweedFS");
    let (raw, names, start) = (server.store("raw").expect("a store"), names_of_many(num_objects), Instant::now());
    let puts = names.iter().map(|name| raw.put(name, jsonl(&[name]).into()));
    runtime.block_on(stream::iter(puts).buffer_unordered(64).try_collect::<()>()).expect("stored");
    println!("{num_objects} objects put in {:?}", start.elapsed());

    let (folder, start) = (Folder::new(&[]), Instant::now());
    let mut command = Command::new(env!("CARGO_BIN_EXE_polo-prepare"));
    command.args(["--input", raw.url(), "--output"]).arg(folder.path("corpus")).args(["--source", "s=s/**/*.jsonl"]);
    command.arg("--tokenizer").arg(tokenizer_path()).envs(server.settings());
    let (ran, peak_bytes) = measured(&mut command);
    println!("prepared in {:?}, with {peak_bytes} bytes\n{}", start.elapsed(), talk(&ran));
    let manifest = folder.manifest("corpus", &ran);
    assert!(folder.texts("corpus", &manifest, "s") == names, "every object once, in order of keys");
}
