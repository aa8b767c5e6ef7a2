//! Killed at any moment and started again, a preparation comes to the same corpus.

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use polo_store::{Digest, Store, corpus::CorpusManifest, testing::SeaweedFs};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::runtime::Runtime;

use crate::support::{Folder, all_files, gz, jsonl, talk, tokenizer_path};

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

/// Where a preparation reads and writes.
struct Place {
    folder: Folder,
    runtime: Runtime,
    server: Option<SeaweedFs>,
}

impl Place {
    fn local() -> Self {
        Self { folder: folder(), runtime: Runtime::new().expect("a runtime"), server: None }
    }

    /// Input and output in a bucket.
    fn bucket() -> Self {
        let local = Self::local();
        let server = local.runtime.block_on(SeaweedFs::start(&SeaweedFs::default_binary(), "bucket"));
        let place = Self { server: Some(server.expect("SeaweedFS")), ..local };
        let raw = place.store("raw");
        for (name, bytes) in all_files(&place.folder.path("raw")) {
            let key = name.to_str().expect("UTF-8");
            place.runtime.block_on(raw.put(key, bytes.into())).expect("stored");
        }
        place
    }

    fn store(&self, name: &str) -> Store {
        let store = match &self.server {
            Some(server) => server.store(name),
            None => Store::open(self.folder.path(name).to_str().expect("UTF-8")),
        };
        store.expect("a store")
    }

    fn command(&self, output: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_polo-prepare"));
        command.args(["--input", self.store("raw").url(), "--output", self.store(output).url()]).args(flags);
        command.arg("--tokenizer").arg(tokenizer_path());
        command.envs(self.server.iter().flat_map(|server| server.settings()));
        command
    }

    fn keys(&self, name: &str) -> Vec<String> {
        let entries = self.runtime.block_on(self.store(name).list("")).unwrap_or_default(); // none where there is no folder
        entries.into_iter().map(|entry| entry.key).collect()
    }

    fn objects(&self, name: &str) -> BTreeMap<String, Digest> {
        let store = self.store(name);
        let digest = |key: &String| Digest::of(&self.runtime.block_on(store.get(key)).expect("there"));
        self.keys(name).into_iter().map(|key| (key.clone(), digest(&key))).collect()
    }

    fn clear(&self, name: &str) {
        let store = self.store(name);
        self.keys(name).iter().for_each(|key| self.runtime.block_on(store.delete(key)).expect("removed"));
    }

    fn num_finished(&self) -> usize {
        let is_record =
            |key: &&String| key.starts_with(".prepare/") && key.ends_with(".json") && key.matches('/').count() > 1;
        self.keys("killed").iter().filter(is_record).count()
    }

    /// Until there are so many records more, or the preparation has ended.
    fn wait_for_records(&self, child: &mut Child, num_more: usize) {
        let enough = self.num_finished() + num_more;
        while self.num_finished() < enough && child.try_wait().expect("a child").is_none() {
            sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn twenty_kills_change_nothing() {
    kill_twenty_times(&Place::local());
}

#[test]
fn twenty_kills_change_nothing_in_a_bucket() {
    kill_twenty_times(&Place::bucket());
}

fn kill_twenty_times(place: &Place) {
    let mut rng = StdRng::seed_from_u64(seed());
    let cleaning = place.folder.path("cleaning.toml");
    let flags = [FLAGS.as_slice(), &["--cleaning", cleaning.to_str().expect("UTF-8")]].concat();
    let ran = place.command("undisturbed", &flags).output().expect("starts");
    assert!(ran.status.success(), "{}", talk(&ran));
    let manifest = place.runtime.block_on(CorpusManifest::load(&place.store("undisturbed"))).expect("a manifest");
    let intake = manifest.source("b").and_then(|source| source.intake.as_ref()).expect("an intake");
    assert!(intake.dropped["exact_duplicate"].num_documents > 100, "the case has duplicates: {intake:?}");
    let undisturbed = place.objects("undisturbed");

    let (mut num_kills, mut num_resumed) = (0, 0);
    while num_kills < NUM_KILLS {
        // A run that reaches its end is followed by one from the start.
        place.clear("killed");
        for part in 0.. {
            let command = &mut place.command("killed", &flags);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
            place.wait_for_records(&mut child, rng.random_range(0..12));
            sleep(Duration::from_micros(rng.random_range(0..20_000)));
            child.kill().expect("SIGKILL");
            let output = child.wait_with_output().expect("its words");
            num_resumed += usize::from(talk(&output).contains("going on after"));
            if output.status.success() || part == 4 {
                break;
            }
            num_kills += 1;
        }
        let ran = place.command("killed", &flags).output().expect("starts");
        assert!(ran.status.success() || talk(&ran).contains("holds a corpus already"), "{}", talk(&ran));
        assert_eq!(place.objects("killed"), undisturbed, "after {num_kills} kills");
    }
    println!("{num_kills} kills, {num_resumed} preparations that went on");
    assert!(num_resumed >= 5, "kills came amid the work: {num_resumed} went on");
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

#[test]
fn a_file_that_has_changed_undoes_what_was_made_of_it() {
    let folder = folder();
    folder.write("raw/b/2.jsonl.gz", "not gzip");
    folder.write("raw/a/3.jsonl", jsonl(&["x"]));
    let flags = &FLAGS[..4];
    assert!(talk(&folder.prepare("corpus", flags)).contains("b/2.jsonl.gz: cannot be read"));
    folder.write("raw/a/2.jsonl.gz", gz(&jsonl(&["changed"])));
    folder.write("raw/b/2.jsonl.gz", gz(&jsonl(&["repaired"])));
    let ran = folder.prepare("corpus", flags);
    assert!(ran.status.success() && talk(&ran).contains("going on after"), "{}", talk(&ran));
    assert_eq!(folder.manifest("corpus", &ran), folder.prepared("at once", flags));
}
