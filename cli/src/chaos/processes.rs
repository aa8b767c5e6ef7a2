//! Processes by name, each with a log of its own; all are killed when they are dropped.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    sync::mpsc,
    task::JoinHandle,
};

use super::Error;

/// How much of a log is shown when something is wrong.
const LAST_LINES: usize = 15;

/// A process that has exited.
#[derive(Debug)]
pub struct Exit {
    /// Its name.
    pub name: String,
    /// How it ended; `None` if the system does not say.
    pub status: Option<ExitStatus>,
    /// For how long it had lived.
    pub lived: Duration,
}

/// Processes that live, and the logs of all that ever did.
pub struct Processes {
    folder: PathBuf,
    live: BTreeMap<String, Live>,
    exited: mpsc::UnboundedSender<Exit>,
    exits: mpsc::UnboundedReceiver<Exit>,
}

struct Live {
    pid: Option<Pid>,
    life: JoinHandle<()>,
}

impl Processes {
    /// None yet; their logs will be in `folder`.
    pub fn new(folder: &Path) -> Self {
        let (exited, exits) = mpsc::unbounded_channel();
        Self { folder: folder.to_owned(), live: BTreeMap::new(), exited, exits }
    }

    /// Starts a process under a name that no living one has. Its standard input stays open as long as this lives.
    pub fn start(&mut self, name: &str, mut command: Command) -> Result<(), Error> {
        command.stdin(Stdio::piped()).stdout(self.append(&output_name(name))?).stderr(self.append(&log_name(name))?);
        // Ctrl-C in the terminal is for this process alone. What is laid over recipes is in the resolved one already.
        command.process_group(0).kill_on_drop(true);
        for (field, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("POLO__")) {
            command.env_remove(field);
        }
        let program = PathBuf::from(command.as_std().get_program());
        let mut child = command.spawn().map_err(|source| Error::Spawn { program, source })?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let (exited, started, id) = (self.exited.clone(), Instant::now(), name.to_owned());
        let life = tokio::spawn(async move {
            let status = live(&mut child).await;
            let _ = exited.send(Exit { name: id, status, lived: started.elapsed() });
        });
        self.live.insert(name.to_owned(), Live { pid, life });
        Ok(())
    }

    /// Waits for the next exit; for ever if nothing lives.
    pub async fn next_exit(&mut self) -> Exit {
        match self.exits.recv().await {
            Some(exit) => {
                self.live.remove(&exit.name);
                exit
            }
            None => std::future::pending().await,
        }
    }

    /// Sends a signal; whoever has just exited does not hear it.
    pub fn signal(&self, name: &str, signal: Signal) {
        if let Some(pid) = self.live.get(name).and_then(|live| live.pid) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Whether that process lives.
    pub fn is_alive(&self, name: &str) -> bool {
        self.live.contains_key(name)
    }

    /// Names of all that live.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.live.keys()
    }

    /// The last line that the process wrote to its standard output.
    pub fn last_output(&self, name: &str) -> Option<String> {
        last_lines(&self.folder.join(output_name(name)), 1).pop()
    }

    /// The ends of all logs.
    pub fn last_words(&self) -> Vec<String> {
        let mut logs: Vec<_> =
            std::fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        let words = |path: &PathBuf| {
            let heading = format!("--- {}", path.display());
            std::iter::once(heading).chain(last_lines(path, LAST_LINES)).collect::<Vec<_>>()
        };
        logs.iter().flat_map(words).collect()
    }

    fn append(&self, name: &str) -> Result<File, Error> {
        let path = self.folder.join(name);
        OpenOptions::new().create(true).append(true).open(&path).map_err(Error::at(&path))
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for live in self.live.values() {
            live.life.abort();
        }
    }
}

fn log_name(name: &str) -> String {
    format!("{name}.log")
}

fn output_name(name: &str) -> String {
    format!("{name}.out")
}

async fn live(child: &mut Child) -> Option<ExitStatus> {
    let stdin = child.stdin.take();
    let status = child.wait().await.ok();
    drop(stdin);
    status
}

fn last_lines(path: &Path, num_lines: usize) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(num_lines)..].iter().map(ToString::to_string).collect()
}

/// A port at `ip` on which nobody listens. It is below those that the system gives to outgoing connections, so
/// that none takes it while the coordinator is away.
pub fn free_address(ip: IpAddr, rng: &mut impl rand::Rng) -> Result<SocketAddr, Error> {
    use rand::RngExt;
    let mut last = io::Error::other("none tried");
    for _ in 0..100 {
        let address = SocketAddr::new(ip, rng.random_range(10_000..32_000));
        match std::net::TcpListener::bind(address) {
            Ok(_) => return Ok(address),
            Err(error) => last = error,
        }
    }
    Err(Error::NoPort(last))
}
