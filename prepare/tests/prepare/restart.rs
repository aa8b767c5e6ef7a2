//! Killed at any moment and started again, a preparation comes to the same corpus.

use std::{
    fs,
    process::{Child, Stdio},
    thread::sleep,
    time::Duration,
};

use polo_store::Digest;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::support::{Folder, all_files, gz, jsonl, talk};

const FLAGS: [&str; 6] = ["--shard-tokens", "20000", "--jobs", "2", "--on-error", "skip"];
const NUM_KILLS: usize = 20;

/// Two sources of several files, with duplicates far apart, so that a restart must know what was kept before.
fn folder() -> Folder {
    let text = |n: usize| (0..300).map(|i| format!("{} ", (i * (n + 3) + n * n) % 9_973)).collect::<String>();
    let texts: Vec<String> = (0..900).map(|n| text(if n % 7 == 6 { n / 2 } else { n })).collect();
    let lines = |range: std::ops::Range<usize>| jsonl(&texts[range].iter().map(String::as_str).collect::<Vec<_>>());
    let folder = Folder::new(&[
        ("a/1.jsonl", lines(0..200)),
        ("a/2.jsonl.gz", gz(&lines(200..400))),
        ("a/3.jsonl", [lines(400..500), b"{\n".to_vec()].concat()),
        ("b/1.jsonl", lines(300..700)),
        ("b/2.jsonl.gz", gz(&lines(700..900))),
    ]);
    folder.write("cleaning.toml", "[exact_duplicates]\nscope = \"corpus\"\n[near_duplicates]\n");
    folder
}

fn seed() -> u64 {
    let seed = std::env::var("POLO_PREPARE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("POLO_PREPARE_SEED={seed}");
    seed
}

#[test]
fn twenty_kills_change_nothing() {
    let (folder, mut rng) = (folder(), StdRng::seed_from_u64(seed()));
    let cleaning = folder.path("cleaning.toml");
    let flags = [FLAGS.as_slice(), &["--cleaning", cleaning.to_str().expect("UTF-8")]].concat();
    let undisturbed = folder.prepared("undisturbed", &flags);
    let intake = undisturbed.source("b").and_then(|source| source.intake.as_ref()).expect("an intake");
    assert!(intake.dropped["exact_duplicate"].num_documents > 100, "the case has duplicates: {intake:?}");

    let (mut num_kills, mut num_resumed) = (0, 0);
    while num_kills < NUM_KILLS {
        // A run that reaches its end is followed by one from the start.
        let _ = fs::remove_dir_all(folder.path("killed"));
        for part in 0.. {
            let command = &mut folder.command("killed", &flags);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
            wait_for_records(&folder, &mut child, rng.random_range(0..12));
            sleep(Duration::from_micros(rng.random_range(0..20_000)));
            child.kill().expect("SIGKILL");
            let output = child.wait_with_output().expect("its words");
            num_resumed += usize::from(talk(&output).contains("going on after"));
            if output.status.success() || part == 4 {
                break;
            }
            num_kills += 1;
        }
        let ran = folder.prepare("killed", &flags);
        assert!(ran.status.success() || talk(&ran).contains("holds a corpus already"), "{}", talk(&ran));
        assert!(same_corpus(&folder), "after {num_kills} kills");
    }
    assert!(num_resumed >= 5, "kills came amid the work: {num_resumed} went on");
}

/// Until there are so many records more, or the preparation has ended.
fn wait_for_records(folder: &Folder, child: &mut Child, num_more: usize) {
    let enough = num_finished(folder) + num_more;
    while num_finished(folder) < enough && child.try_wait().expect("a child").is_none() {
        sleep(Duration::from_millis(1));
    }
}

fn num_finished(folder: &Folder) -> usize {
    let records = ["a", "b"].map(|source| folder.path("killed/.prepare").join(source));
    let names = records.iter().filter_map(|path| fs::read_dir(path).ok()).flatten().flatten();
    names.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json")).count()
}

/// All objects are the same; a store may have left other files where it was killed.
fn same_corpus(folder: &Folder) -> bool {
    let mut killed = all_files(&folder.path("killed"));
    killed.retain(|path, _| !path.to_string_lossy().contains('#'));
    killed == all_files(&folder.path("undisturbed"))
}

#[test]
fn finished_shards_are_not_made_again_and_what_has_changed_is() {
    let folder = folder();
    folder.write("raw/b/2.jsonl.gz", "not gzip");
    let flags = &FLAGS[..4];
    // It stops at the malformed line of the third file, and goes on when that may pass.
    let stopped = folder.prepare("corpus", flags);
    assert!(talk(&stopped).contains("a/3.jsonl: line 101: invalid JSON"), "{}", talk(&stopped));
    let ran = folder.prepare("corpus", &FLAGS);
    assert!(ran.status.success() && talk(&ran).contains("going on after"), "{}", talk(&ran));

    let other = folder.prepare("other", &["--shard-tokens", "10000"]);
    assert!(!other.status.success());
    let refused = folder.prepare("other", &FLAGS);
    assert!(talk(&refused).contains("an unfinished preparation with other --shard-tokens"), "{}", talk(&refused));
    let forced = folder.prepare("other", &[FLAGS.as_slice(), &["--force"]].concat());
    assert!(forced.status.success(), "{}", talk(&forced));
    let digests =
        ["corpus", "other"].map(|name| Digest::of(&fs::read(folder.path(name).join("manifest.json")).expect("there")));
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn a_file_that_is_repaired_undoes_only_what_comes_after_it() {
    let folder = folder();
    folder.write("raw/b/2.jsonl.gz", "not gzip");
    folder.write("raw/a/3.jsonl", jsonl(&["x"]));
    let flags = &FLAGS[..4];
    assert!(talk(&folder.prepare("corpus", flags)).contains("b/2.jsonl.gz: cannot be read"));
    folder.write("raw/b/2.jsonl.gz", gz(&jsonl(&["repaired"])));
    let ran = folder.prepare("corpus", flags);
    assert!(ran.status.success() && talk(&ran).contains("going on after"), "{}", talk(&ran));
    folder.prepared("at once", flags);
    assert!(all_files(&folder.path("corpus")) == all_files(&folder.path("at once")));
}
