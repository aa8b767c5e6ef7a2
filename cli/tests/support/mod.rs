//! A small world for tests that use the programs as people do: a corpus, a recipe, a store, and bounded commands.
#![allow(missing_docs, dead_code)]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use polo_store::{
    Digest,
    corpus::{CorpusManifest, FORMAT_VERSION, MANIFEST_KEY, ShardEntry, Source},
    indexed::ShardWriter,
};

/// Bounds every wait of these tests; it says nothing about how long things should take.
pub const LIMIT: Duration = Duration::from_secs(100);

pub const VOCAB_SIZE: u64 = 64;

/// `polo-worker` beside `polo`.
pub fn worker_program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_polo")).with_file_name("polo-worker");
    assert!(program.exists(), "build it: cargo build -p polo-worker");
    program
}

/// A folder with a corpus of two sources and a recipe of 3 steps for it.
pub struct World {
    folder: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        Self::with_tokens(&[("en", 700), ("ne", 710)])
    }

    /// Sources with so many tokens.
    pub fn with_tokens(sources: &[(&str, usize)]) -> Self {
        let world = Self { folder: tempfile::tempdir().expect("a folder") };
        let sources = sources.iter().map(|(name, num_tokens)| world.write_source(name, *num_tokens)).collect();
        let manifest = CorpusManifest {
            format_version: FORMAT_VERSION,
            tokenizer_digest: Digest::of(b"tokenizer"),
            vocab_size: VOCAB_SIZE,
            eos_id: 0,
            sources,
        };
        world.write(&format!("corpus/{MANIFEST_KEY}"), &manifest.to_json());
        world.write("recipe.toml", RECIPE.as_bytes());
        world
    }

    fn write_source(&self, name: &str, num_tokens: usize) -> Source {
        let mut writer = ShardWriter::new(Vec::new());
        let other = usize::from(name.as_bytes()[0]); // sources differ, and so do their digests
        let tokens: Vec<i32> = (0..num_tokens).map(|i| (i * (i + other) % 61) as i32).collect();
        writer.push_document(&tokens).expect("written");
        let (bin, index) = writer.finish();
        let idx = index.to_bytes();
        let shard = ShardEntry {
            bin_key: format!("{name}/0.bin"),
            idx_key: format!("{name}/0.idx"),
            num_tokens: index.num_tokens(),
            num_documents: index.num_documents(),
            bin_digest: Digest::of(&bin),
            idx_digest: Digest::of(&idx),
        };
        self.write(&format!("corpus/{}", shard.bin_key), &bin);
        self.write(&format!("corpus/{}", shard.idx_key), &idx);
        let (num_tokens, num_documents) = (shard.num_tokens, shard.num_documents);
        Source {
            name: name.into(),
            language: None,
            num_tokens,
            num_documents,
            num_bytes_text: 1,
            intake: None,
            shards: vec![shard],
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").into()
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("read")
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, bytes).expect("written");
    }

    /// `polo` with these arguments, in the world's folder.
    pub fn polo(&self, args: &[&str]) -> Command {
        self.command(Path::new(env!("CARGO_BIN_EXE_polo")), args)
    }

    /// `polo-worker` of the world's recipe.
    pub fn worker(&self, args: &[&str]) -> Command {
        let mut command = self.command(&worker_program(), &["recipe.toml", "--listen", "127.0.0.1:0"]);
        command.args(args);
        command
    }

    /// `polo run` of the world's recipe, on a free port.
    pub fn run(&self, args: &[&str]) -> Command {
        let mut command = self.polo(&["run", "recipe.toml", "--listen", "127.0.0.1:0"]);
        command.args(args);
        command
    }

    fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.folder.path());
        command.env("POLO_CACHE", self.path("cache")).env_remove("POLO_COORDINATOR").env_remove("POLO_LOG");
        command
    }
}

const RECIPE: &str = r#"
[run]
name = "small"
store = "run"
seed = 3

[model.qwen2]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 24
vocab_size = 64

[corpus]
url = "corpus"

[batch]
seq_len = 8
samples_per_step = 4
slots = 2

[[stages]]
name = "main"
steps = 3
schedule = { kind = "constant", peak_learning_rate = 1e-3 }
sources = [{ name = "en", weight_tokens = 1 }, { name = "ne", weight_tokens = 1 }]
"#;

/// For a run that goes on for longer than any test looks at it.
pub const ENDLESS: [&str; 4] = ["--set", "stages.0.steps=1000000", "--set", "corpus.allow_repeats=true"];

/// Runs a command to its end, within [`LIMIT`].
pub fn finish(command: &mut Command) -> Output {
    let words = format!("{command:?}");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{words}: {error}"));
    let pid = child.id();
    let (sender, ended) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    match ended.recv_timeout(LIMIT) {
        Ok(output) => output.expect("its output"),
        Err(_) => {
            signal(pid, "KILL");
            let output = ended.recv().expect("ended").expect("its output");
            panic!("{words} has not ended within {LIMIT:?}; it said:\n{}", talk(&output));
        }
    }
}

/// Sends a signal to one process.
pub fn signal(pid: u32, name: &str) {
    let killed = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(killed.expect("kill runs").success(), "no process {pid}");
}

pub fn talk(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks that a command failed as it should: exit status 1 and one line `error: ...` that has all `parts`.
pub fn assert_one_error(output: &Output, parts: &[&str]) -> String {
    let talk = talk(output);
    assert_eq!(output.status.code(), Some(1), "{talk}");
    assert!(!talk.contains("panicked"), "{talk}");
    let errors: Vec<_> = talk.lines().filter(|line| line.starts_with("error: ")).collect();
    assert!(errors.len() == 1, "one error line expected:\n{talk}");
    for part in parts {
        assert!(errors[0].contains(part), "{part:?} is not in: {}", errors[0]);
    }
    errors[0].into()
}

/// A program that runs while a test looks at it. Killed when dropped.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines, said: Vec::new() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has written something to standard output.
    pub fn wait_for_output(&mut self) {
        self.child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("output");
    }

    /// The next line on standard error for which `wanted` gives something.
    pub fn wait_for<T>(&mut self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("no {what} within {LIMIT:?}; it said:\n{}", self.said.join("\n"));
            };
            let found = wanted(&line);
            self.said.push(line);
            if let Some(found) = found {
                return found;
            }
        }
    }

    pub fn wait_for_line(&mut self, part: &str) -> String {
        self.wait_for(part, |line| line.contains(part).then(|| line.to_owned()))
    }

    /// The address that a coordinator says it listens on.
    pub fn address(&mut self) -> String {
        let address = |line: &str| line.strip_prefix("coordinator listens on ").map(|a| format!("http://{a}"));
        self.said.iter().find_map(|line| address(line)).unwrap_or_else(|| self.wait_for("address", address))
    }

    /// Waits for its end. What it said before is part of the output.
    pub fn finish(mut self) -> Output {
        let mut stderr = std::mem::take(&mut self.said);
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => stderr.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("no end within {LIMIT:?}:\n{}", stderr.join("\n")),
            }
        }
        let mut stdout = Vec::new();
        self.child.stdout.take().expect("piped").read_to_end(&mut stdout).expect("read");
        Output { status: self.child.wait().expect("ended"), stdout, stderr: stderr.join("\n").into() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks for the status of a run until `wanted` gives something.
pub fn wait_for_status<T>(world: &World, address: &str, wanted: impl Fn(&serde_json::Value) -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        let output = finish(&mut world.polo(&["status", "--json", "--address", address]));
        assert!(output.status.success(), "{}", talk(&output));
        let status = serde_json::from_slice(&output.stdout).expect("JSON");
        if let Some(found) = wanted(&status) {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {status}");
    }
}

/// The first line of a command's standard output for which `wanted` gives something. The command is killed then.
pub fn first_on_stdout<T>(command: &mut Command, wanted: impl Fn(&str) -> Option<T>) -> T {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts");
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let (deadline, mut last, mut found) = (Instant::now() + LIMIT, String::new(), None);
    while found.is_none()
        && let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        (found, last) = (wanted(&line), line);
    }
    let _ = child.kill();
    let _ = child.wait();
    found.unwrap_or_else(|| panic!("nothing of the kind within {LIMIT:?}; its last line: {last}"))
}

/// The JSON line at the end of a run that went well.
pub fn result(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", talk(output));
    serde_json::from_slice(&output.stdout).expect("a JSON line")
}
