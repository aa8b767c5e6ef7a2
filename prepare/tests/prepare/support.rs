//! What every test needs: a folder with raw text, the program, and ways to look at what it has made.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output, Stdio},
};

use polo_store::{corpus::CorpusManifest, indexed::Shard};

pub const END_OF_TEXT: i64 = 151_643;

pub fn tokenizer_path() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/tokenizer/tokenizer.json");
    assert!(path.exists(), "run `scripts/setup tokenizer` first");
    path
}

/// A folder with raw text in `raw`; corpora go beside it.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let folder = Self(tempfile::tempdir().expect("tempdir"));
        for (name, bytes) in files {
            let path = folder.path("raw").join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, bytes).expect("written");
        }
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn prepare(&self, output: &str, flags: &[&str]) -> Output {
        self.command(output, flags).output().expect("polo-prepare starts")
    }

    pub fn command(&self, output: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_polo-prepare"));
        command.arg("--input").arg(self.path("raw")).arg("--output").arg(self.path(output)).args(flags);
        if !flags.contains(&"--tokenizer") {
            command.arg("--tokenizer").arg(tokenizer_path());
        }
        command
    }

    pub fn prepared(&self, output: &str, flags: &[&str]) -> CorpusManifest {
        let ran = self.prepare(output, flags);
        self.manifest(output, &ran)
    }

    /// What a preparation that has come to its end has made.
    pub fn manifest(&self, output: &str, ran: &Output) -> CorpusManifest {
        assert!(ran.status.success(), "{}", talk(ran));
        let path = self.path(output).join("manifest.json");
        let manifest = CorpusManifest::parse("m", &fs::read(path).expect("a manifest")).expect("a good manifest");
        let line: serde_json::Value = serde_json::from_slice(&ran.stdout).expect("one JSON line");
        assert_eq!(line["corpus_digest"], serde_json::json!(manifest.digest()));
        manifest
    }

    /// What `prepare` says when it fails; no manifest may be left.
    pub fn error(&self, flags: &[&str]) -> String {
        let ran = self.prepare("failed", flags);
        assert!(!ran.status.success(), "it should fail");
        assert!(!self.path("failed/manifest.json").exists());
        talk(&ran)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("written");
    }

    /// The documents of a source, as text again.
    pub fn texts(&self, output: &str, manifest: &CorpusManifest, source: &str) -> Vec<String> {
        let stream = self.stream(output, manifest, source);
        let tokenizer = tokenizers::Tokenizer::from_file(tokenizer_path()).expect("the tokenizer");
        let documents = stream.split(|id| *id == END_OF_TEXT);
        let text = |ids: &[i64]| {
            let ids: Vec<u32> = ids.iter().map(|id| u32::try_from(*id).expect("an id")).collect();
            tokenizer.decode(&ids, false).expect("decoded")
        };
        let mut texts: Vec<String> = documents.map(text).collect();
        assert_eq!(texts.pop().as_deref(), Some(""), "the stream ends with an end of text");
        texts
    }

    /// The token stream of a source.
    pub fn stream(&self, output: &str, manifest: &CorpusManifest, source: &str) -> Vec<i64> {
        let mut ids = vec![];
        for entry in &manifest.source(source).expect("the source").shards {
            let path = |key: &str| self.path(output).join(key);
            let shard = Shard::open(&path(&entry.bin_key), &path(&entry.idx_key)).expect("a good shard");
            assert_eq!((shard.num_tokens(), shard.index().num_documents()), (entry.num_tokens, entry.num_documents));
            shard.read(0..shard.num_tokens(), &mut ids).expect("the whole shard");
        }
        ids.into_iter().map(i64::from).collect()
    }
}

/// What a program says, and the most memory that it has had resident.
#[expect(clippy::zombie_processes, reason = "wait4 waits for the child")]
pub fn measured(command: &mut Command) -> (Output, u64) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let (mut stdout, mut stderr) = (vec![], vec![]);
    child.stderr.take().expect("piped").read_to_end(&mut stderr).expect("its words");
    child.stdout.take().expect("piped").read_to_end(&mut stdout).expect("its answer");
    let (mut status, pid) = (0, child.id().try_into().expect("a process id"));
    // SAFETY: `rusage` is plain numbers, of which all zeros are some.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to places of this function; nobody else waits for the child.
    assert_eq!(unsafe { libc::wait4(pid, &mut status, 0, &mut usage) }, pid);
    let peak_bytes = u64::try_from(usage.ru_maxrss).expect("a size") * 1024;
    (Output { status: ExitStatus::from_raw(status), stdout, stderr }, peak_bytes)
}

pub fn talk(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn jsonl(texts: &[&str]) -> Vec<u8> {
    texts.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text, "id": 7 }))).collect::<String>().into()
}

pub fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(bytes).expect("packed");
    encoder.finish().expect("packed")
}

pub fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("packed")
}

pub fn all_files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            let inner = all_files(&path)
                .into_iter()
                .map(|(name, bytes)| (path.file_name().map(Path::new).expect("named").join(name), bytes));
            files.extend(inner);
        } else {
            files.insert(path.file_name().expect("named").into(), fs::read(&path).expect("read"));
        }
    }
    files
}
