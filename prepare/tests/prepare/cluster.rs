//! Several machines, here processes: whoever helps, dies or comes late, the corpus is that of one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::sleep,
    time::{Duration, Instant},
};

use parquet::basic::Compression;
use polo_store::{corpus::CorpusManifest, testing::SeaweedFs};
use polo_transport::testing::Authority;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    formats::parquet,
    support::{Folder, all_files, gz, jsonl, talk, tokenizer_path},
};

/// Nothing here takes so long; whoever waits longer has failed.
const LIMIT: Duration = Duration::from_secs(240);

const CLEANING: &str = "[exact_duplicates]\nscope = \"corpus\"\n[near_duplicates]\n[pairs]\ndrop_identical = true\n";
const FLAGS: [&str; 9] = [
    "--shard-tokens",
    "100000",
    "--on-error",
    "skip",
    "--pairs",
    "pairs=en-de",
    "--pairs-per-document",
    "3",
    "--cleaning",
];

/// Four sources: lines with duplicates within and across files and with faults, pairs, and Parquet.
fn folder() -> Folder {
    let text = |n: usize| (0..300).map(|i| format!("{} ", (i * (n + 3) + n * n) % 9_973)).collect::<String>();
    let texts: Vec<String> = (0..1_010).map(|n| text(if n % 7 == 6 { n / 2 } else { n })).collect();
    let lines = |range: std::ops::Range<usize>| jsonl(&texts[range].iter().map(String::as_str).collect::<Vec<_>>());
    let mut files: Vec<(String, Vec<u8>)> = vec![];
    for number in 0..10 {
        let start = 50 * number;
        files.push((format!("a/{number}.jsonl"), lines(start..start + 100)));
        files.push((format!("b/{number}.jsonl.gz"), gz(&lines(start + 450..start + 510))));
        let pairs = |word: &str| (0..2_000).map(|n| format!("{word} {n} {}\n", number % 5)).collect::<String>();
        files.push((format!("pairs/{number}.en"), pairs("the").into()));
        files.push((format!("pairs/{number}.de.gz"), gz(pairs(if number == 3 { "the" } else { "das" }).as_bytes())));
    }
    let rows: Vec<_> = texts[..120].iter().map(|text| Some(text.as_str())).chain([None, Some("only here")]).collect();
    let rows = parquet("text", &[&rows[..80], &rows[80..]], Compression::SNAPPY);
    files.push(("rows/cut.parquet".to_owned(), rows[..rows.len() - 9].to_vec()));
    files.push(("rows/whole.parquet".to_owned(), rows));
    let cut = gz(&lines(950..1_010));
    files.push(("b/cut.jsonl.gz".to_owned(), cut[..cut.len() - 6].to_vec()));
    files.push(("a/wrong.jsonl".to_owned(), [lines(590..600), b"{\n".to_vec(), lines(0..10)].concat()));
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let folder = Folder::new(&files);
    folder.write("cleaning.toml", CLEANING);
    folder
}

fn undisturbed(folder: &Folder) -> CorpusManifest {
    let cleaning = folder.path("cleaning.toml");
    let manifest = folder.prepared("one", &[FLAGS.as_slice(), &[cleaning.to_str().expect("UTF-8")]].concat());
    let dropped = |source: &str, reason: &str| {
        let intake = manifest.source(source).and_then(|source| source.intake.as_ref()).expect("an intake");
        intake.dropped.get(reason).map_or(0, |dropped| dropped.num_documents)
    };
    assert!(dropped("a", "exact_duplicate") > 100 && dropped("b", "exact_duplicate") > 100, "there are duplicates");
    assert!(dropped("pairs", "identical_pair") == 2_000 && dropped("pairs", "exact_duplicate") > 100);
    assert_eq!((dropped("a", "invalid_json"), dropped("b", "unreadable_file")), (1, 1));
    assert_eq!((dropped("rows", "no_text"), dropped("rows", "unreadable_file")), (1, 1));
    manifest
}

/// A process whose words are listened to. Killed when it is dropped.
struct Running {
    child: Child,
    words: Receiver<String>,
    heard: Vec<String>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
        let stderr = BufReader::new(child.stderr.take().expect("its words"));
        let (sender, words) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, words, heard: vec![] }
    }

    /// The next line with all of these in it.
    fn wait_for(&mut self, parts: &[&str]) -> String {
        let end = Instant::now() + LIMIT;
        loop {
            let line = self.words.recv_timeout(end.saturating_duration_since(Instant::now()));
            let Ok(line) = line else { panic!("{parts:?} did not come after:\n{}", self.heard.join("\n")) };
            self.heard.push(line.clone());
            if parts.iter().all(|part| line.contains(part)) {
                return line;
            }
        }
    }

    fn kill(&mut self) {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("its end");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// As helpers are called.
    fn name(&self) -> String {
        format!("-{} ", self.child.id())
    }

    fn wait(&mut self) -> (ExitStatus, String) {
        let end = Instant::now() + LIMIT;
        while let Ok(line) = self.words.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.heard.push(line);
        }
        if Instant::now() >= end {
            panic!("still running after:\n{}", self.heard.join("\n"));
        }
        (self.child.wait().expect("its end"), self.heard.join("\n"))
    }

    fn succeeds(&mut self) -> String {
        let (status, words) = self.wait();
        assert!(status.success(), "{words}");
        words
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A leader's place, which it keeps when it is started again.
struct Place<'a> {
    folder: &'a Folder,
    address: String,
}

impl<'a> Place<'a> {
    fn new(folder: &'a Folder) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self { folder, address: free.local_addr().expect("bound").to_string() }
    }

    fn command(&self, flags: &[&str]) -> Command {
        let cleaning = self.folder.path("cleaning.toml");
        let cleaning = [cleaning.to_str().expect("UTF-8")];
        self.folder.command("many", &[FLAGS.as_slice(), &cleaning, flags].concat())
    }

    fn leader(&self, flags: &[&str]) -> Running {
        let mut leader =
            Running::start(&mut self.command(&[&["--listen", &self.address, "--jobs", "1"], flags].concat()));
        leader.wait_for(&["listening for helpers on"]);
        leader
    }

    fn helper(&self) -> Running {
        Running::start(&mut join(&self.address, "120"))
    }

    fn is_the_corpus_of_one(&self) -> bool {
        let mut files = all_files(&self.folder.path("many"));
        files.retain(|path, _| !path.to_string_lossy().contains('#')); // what a store has left where it was killed
        files == all_files(&self.folder.path("one"))
    }

    /// Indices of results that lie there.
    fn results(&self) -> Vec<PathBuf> {
        let found = fs::read_dir(self.folder.path("many/.prepare/.pieces")).into_iter().flatten().flatten();
        found.map(|entry| entry.path().join("index.json")).filter(|path| path.exists()).collect()
    }

    /// Until records and results have changed so often, or the leader has ended.
    fn wait_for_changes(&self, num_changes: usize, leader: &mut Running) {
        let list = || {
            let folder = self.folder.path("many/.prepare");
            if folder.exists() {
                fs::read_dir(folder.join("a")).into_iter().flatten().count() + self.results().len()
            } else {
                0
            }
        };
        let (mut before, mut num_seen) = (list(), 0);
        while num_seen < num_changes && leader.child.try_wait().expect("a child").is_none() {
            let now = list();
            num_seen += usize::from(now != before);
            before = now;
            sleep(Duration::from_millis(1));
        }
    }

    fn wait_for_results(&self, at_least: usize) {
        let end = Instant::now() + LIMIT;
        while self.results().len() < at_least {
            assert!(Instant::now() < end, "no results come");
            sleep(Duration::from_millis(1));
        }
    }
}

fn join(address: &str, timeout_s: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polo-prepare"));
    command.args(["--join", &format!("http://{address}"), "--jobs", "1", "--join-timeout-s", timeout_s]);
    command
}

#[test]
fn deaths_late_comers_and_a_new_leader_change_nothing() {
    let folder = folder();
    undisturbed(&folder);
    let place = Place::new(&folder);
    let mut leader = place.leader(&["--min-helpers", "3"]);
    let mut helpers = [place.helper(), place.helper(), place.helper()];

    let victim = helpers[0].name();
    leader.wait_for(&[&victim, "works on"]);
    helpers[1..].iter().for_each(|helper| helper.signal("-STOP")); // what they hold is waited for, and the end with it
    helpers[0].kill();
    let gone = leader.wait_for(&[&victim, "is gone (its connection ended)"]);
    assert!(!gone.ends_with(": 0"), "it had leases: {gone}");
    let mut late = place.helper();
    leader.wait_for(&[&late.name(), "has joined"]);

    place.wait_for_results(3);
    leader.kill();
    helpers[1..].iter().for_each(|helper| helper.signal("-CONT"));
    late.wait_for(&["the leader is away"]);
    let mut leader = place.leader(&[]);
    let words = leader.succeeds();
    assert!(words.contains("files were prepared ahead of their turn before"), "{words}");
    assert!(words.contains("skipped: b/cut.jsonl.gz: cannot be read"), "{words}");
    for helper in helpers[1..].iter_mut().chain([&mut late]) {
        helper.succeeds();
    }
    assert!(place.is_the_corpus_of_one());
    assert!(place.results().is_empty());
}

#[test]
fn kills_of_anybody_at_any_time_change_nothing() {
    const NUM_KILLS: usize = 12;
    let seed = std::env::var("POLO_PREPARE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("POLO_PREPARE_SEED={seed}");
    let (folder, mut rng) = (folder(), StdRng::seed_from_u64(seed));
    undisturbed(&folder);
    let (mut num_kills, mut num_leaders_killed) = (0, 0);
    while num_kills < NUM_KILLS || num_leaders_killed == 0 {
        // A preparation that comes to its end is followed by one from the start.
        let _ = fs::remove_dir_all(folder.path("many"));
        let place = Place::new(&folder);
        let mut helpers = [place.helper(), place.helper()];
        let mut leader = place.leader(&[]);
        while num_kills < NUM_KILLS || num_leaders_killed == 0 {
            place.wait_for_changes(rng.random_range(0..15), &mut leader);
            if leader.child.try_wait().expect("a child").is_some() {
                break;
            }
            num_kills += 1;
            match rng.random_range(0..3) {
                2 => {
                    num_leaders_killed += 1;
                    leader.kill();
                    leader = place.leader(&[]);
                }
                number => {
                    helpers[number].kill();
                    helpers[number] = place.helper();
                }
            }
        }
        let (status, words) = leader.wait();
        // Whoever is killed at the very end has left a corpus.
        assert!(status.success() || words.contains("holds a corpus already"), "{words}");
        assert!(place.is_the_corpus_of_one(), "after {num_kills} kills: {words}");
    }
}

#[test]
fn a_helper_that_falls_silent_is_given_up_and_sees_the_end_when_it_is_back() {
    let folder = folder();
    undisturbed(&folder);
    let place = Place::new(&folder);
    let mut leader = place.leader(&["--min-helpers", "2", "--helper-timeout-s", "2"]);
    let mut helpers = [place.helper(), place.helper()];
    leader.wait_for(&[&helpers[0].name(), "works on"]);
    helpers[0].signal("-STOP");
    leader.wait_for(&[&helpers[0].name(), "is gone (nothing was heard of it"]);
    let words = leader.succeeds();
    helpers[0].signal("-CONT");
    helpers.iter_mut().for_each(|helper| drop(helper.succeeds()));
    assert!(place.is_the_corpus_of_one(), "{words}");
}

#[test]
fn what_helpers_have_left_is_used_without_them_and_damage_is_made_good() {
    let folder = folder();
    undisturbed(&folder);
    let place = Place::new(&folder);
    let mut leader = place.leader(&["--min-helpers", "2"]);
    let helpers = [place.helper(), place.helper()];
    place.wait_for_results(4);
    leader.kill();
    drop(helpers);
    let results = place.results();
    // One piece is other bytes, one is gone, one index is none.
    let piece = |number: usize| results[number].with_file_name("000000");
    fs::write(piece(0), "other").expect("written");
    fs::remove_file(piece(1)).expect("removed");
    fs::write(&results[2], "{").expect("written");
    let ran = place.command(&[]).output().expect("runs");
    assert!(ran.status.success(), "{}", talk(&ran));
    assert!(talk(&ran).contains("files were prepared ahead of their turn before"), "{}", talk(&ran));
    assert_eq!(talk(&ran).matches("reading it here").count(), 3, "{}", talk(&ran));
    assert!(place.is_the_corpus_of_one());
}

#[test]
fn results_do_not_pile_up() {
    let folder = folder();
    undisturbed(&folder);
    let place = Place::new(&folder);
    let mut leader = place.leader(&["--min-helpers", "1", "--max-ahead-bytes", "1"]);
    let _helper = place.helper();
    let (mut seen, mut most) = (BTreeSet::new(), 0);
    while leader.child.try_wait().expect("a child").is_none() {
        let now = place.results();
        most = most.max(now.len());
        seen.extend(now);
        sleep(Duration::from_millis(1));
    }
    leader.succeeds();
    assert!(place.is_the_corpus_of_one());
    // One is ahead; some wait for the shards that their ends are in.
    assert!(seen.len() > 8 && 2 * most < seen.len(), "{} results were seen, {most} at a time", seen.len());
}

#[test]
fn a_fault_ends_the_preparation_as_it_does_alone() {
    let folder = folder();
    let cleaning = folder.path("cleaning.toml");
    // Without leave to skip.
    let flags = [&FLAGS[..2], &FLAGS[4..], &[cleaning.to_str().expect("UTF-8")]].concat();
    let alone = folder.prepare("failed", &flags);
    let expected = "a/wrong.jsonl: line 11: invalid JSON";
    assert!(!alone.status.success() && talk(&alone).contains(expected), "{}", talk(&alone));

    let place = Place::new(&folder);
    let listening = [flags.as_slice(), &["--listen", &place.address, "--min-helpers", "1"]].concat();
    let mut leader = Running::start(&mut folder.command("many", &listening));
    let mut helper = place.helper();
    let (status, words) = leader.wait();
    assert!(!status.success() && words.contains(&format!("error: {expected}")), "{words}");
    let (status, words) = helper.wait();
    assert!(!status.success() && words.contains("leads failed") && words.contains(expected), "{words}");
    assert!(!folder.path("many/manifest.json").exists());
}

#[test]
fn only_who_has_the_token_helps() {
    let folder = folder();
    undisturbed(&folder);
    let place = Place::new(&folder);
    let authority = Authority::new(&folder.path(""), "ca");
    let shown = authority.issue("leader", &["127.0.0.1"]);
    folder.write("token", "a-token-that-helpers-have");
    folder.write("wrong", "a-token-that-nobody-has");
    let text = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
    let [cert, key, token, wrong, ca] =
        [shown.cert, shown.key, folder.path("token"), folder.path("wrong"), authority.cert()].map(text);
    let protection = ["--tls-cert", &cert, "--tls-key", &key, "--token-file", &token];
    let mut leader = place.leader(&[&protection[..], &["--min-helpers", "1"]].concat());
    let helper = |token: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_polo-prepare"));
        command.args(["--join", &format!("https://{}", place.address), "--ca", &ca, "--jobs", "1"]);
        Running::start(command.args(token))
    };
    for token in [&[][..], &["--token-file", &wrong]] {
        let (status, words) = helper(token).wait();
        assert!(!status.success() && words.contains("no valid token"), "{words}");
    }
    let mut friend = helper(&["--token-file", &token]);
    leader.wait_for(&[&friend.name(), "has joined"]);
    let words = leader.succeeds();
    assert!(!words.contains("a-token-that"), "{words}");
    friend.succeeds();
    assert!(place.is_the_corpus_of_one());
}

#[test]
fn who_cannot_help_is_told_why() {
    let folder = Folder::new(&[("a.jsonl", jsonl(&["x"]))]);
    let exposed = talk(&folder.command("open", &["--listen", "0.0.0.0:0"]).output().expect("runs"));
    assert!(exposed.contains("can be reached by others") && exposed.contains("--tls-cert"), "{exposed}");

    let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").to_string();
    let nobody = talk(&join(&free, "1").output().expect("runs"));
    assert!(nobody.contains("nobody leads a preparation at http://127.0.0.1:"), "{nobody}");

    for flag in ["--shard-tokens", "--max-ahead-bytes", "--input"] {
        let both = talk(&join("127.0.0.1:1", "1").args([flag, "5"]).output().expect("runs"));
        assert!(both.contains("cannot be used with") && both.contains(flag), "{both}");
    }

    // The leader's output is in its own memory, which nobody shares.
    let folder = Folder::new(&[("a.jsonl", jsonl(&["x"]))]);
    let address = Place::new(&folder).address;
    let mut leader = Command::new(env!("CARGO_BIN_EXE_polo-prepare"));
    leader.arg("--input").arg(folder.path("raw")).args(["--output", "memory://own", "--min-helpers", "1"]);
    let mut leader = Running::start(leader.args(["--listen", &address]).arg("--tokenizer").arg(tokenizer_path()));
    leader.wait_for(&["listening"]);
    let (status, words) = Running::start(&mut join(&address, "120")).wait();
    assert!(!status.success() && words.contains("the preparation is not in memory://own here"), "{words}");
}

#[test]
fn helpers_reach_object_storage_by_the_addresses_of_their_leader() {
    let folder = folder();
    let one = undisturbed(&folder);
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let server = runtime.block_on(SeaweedFs::start(&SeaweedFs::default_binary(), "bucket")).expect("SeaweedFS");
    let (raw, corpus) = (server.store("raw").expect("store"), server.store("corpus").expect("store"));
    for (key, bytes) in keys(&folder) {
        runtime.block_on(raw.put(&key, bytes.into())).expect("stored");
    }
    let place = Place::new(&folder);
    let mut leader = Command::new(env!("CARGO_BIN_EXE_polo-prepare"));
    leader.args(["--input", raw.url(), "--output", corpus.url(), "--tokenizer"]).arg(tokenizer_path()).args(FLAGS);
    leader.arg(folder.path("cleaning.toml")).args(["--listen", &place.address, "--min-helpers", "2", "--jobs", "1"]);
    let mut leader = Running::start(leader.envs(server.settings()));
    leader.wait_for(&["listening"]);
    let mut helpers = [0, 1].map(|_| Running::start(join(&place.address, "120").envs(server.settings())));
    leader.succeeds();
    helpers.iter_mut().for_each(|helper| drop(helper.succeeds()));
    let manifest = runtime.block_on(CorpusManifest::load(&corpus)).expect("a good manifest");
    assert_eq!(manifest.digest(), one.digest());
    let left: Vec<_> = runtime.block_on(corpus.list(".prepare")).expect("listed");
    assert!(left.is_empty(), "{left:?}");
}

/// All input files by key.
fn keys(folder: &Folder) -> BTreeMap<String, Vec<u8>> {
    let files = all_files(&folder.path("raw")).into_iter();
    files.map(|(path, bytes)| (path.to_string_lossy().into_owned(), bytes)).collect()
}
