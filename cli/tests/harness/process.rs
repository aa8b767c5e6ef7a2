//! A `polo run` that is watched line by line, and hurt.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Nothing in these tests may take longer.
pub const LIMIT: Duration = Duration::from_secs(150);

/// What was heard from a run.
#[derive(Debug)]
pub enum Heard {
    /// A line of its standard error, the workers' included.
    Line(String),
    /// Nothing, until the moment that was given.
    Nothing,
    /// It and all of its workers have exited.
    End,
}

/// `polo run` and its workers; all are killed when this is dropped.
pub struct Running {
    polo: Child,
    log: PathBuf,
    lines: Receiver<(Instant, String)>,
    stdout: Option<JoinHandle<String>>,
    talk: Vec<String>,
    until: Instant,
    /// Names of the workers that live, by process.
    workers: BTreeMap<u32, String>,
    /// What each process was last seen doing.
    phases: BTreeMap<u32, String>,
    killed: Vec<u32>,
    /// When the last line was read.
    pub heard_at: Instant,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How `polo` exited.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Lines of standard error, without the workers' traces.
    pub talk: Vec<String>,
    /// What each worker was doing when it was killed.
    pub killed_while: Vec<String>,
}

impl Ended {
    /// The JSON line that a run ends with.
    pub fn json(&self) -> serde_json::Value {
        let line = self.stdout.lines().last();
        let line = line.unwrap_or_else(|| panic!("no last line; {}:\n{}", self.status, self.talk.join("\n")));
        serde_json::from_str(line).expect("JSON")
    }
}

/// Path of a program of this workspace: tests and examples lie in folders beside it.
fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("a path");
    let path = this.ancestors().nth(2).expect("a folder").join(name);
    assert!(path.exists(), "there is no {}: build it with `cargo build -p {name}`", path.display());
    path
}

/// `polo`, once its worker is known to be there too.
pub fn polo() -> Command {
    program("polo-worker");
    Command::new(program("polo"))
}

/// A worker without a `polo run` around it.
pub fn worker() -> Command {
    Command::new(program("polo-worker"))
}

fn kill(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    // It may have exited by itself a moment ago.
    let _ = kill_process(pid, signal);
}

impl Running {
    /// Starts the command; its standard error is kept in the file `log`.
    pub fn start(mut command: Command, log: &Path) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut polo = command.spawn().expect("polo starts");
        let stderr = polo.stderr.take().expect("piped");
        let mut stdout = polo.stdout.take().expect("piped");
        let (sender, lines) = channel();
        let mut copy = File::create(log).expect("a log");
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = writeln!(copy, "{line}");
                let _ = sender.send((Instant::now(), line));
            }
        });
        let stdout = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stdout.read_to_string(&mut text);
            text
        });
        Self {
            polo,
            log: log.to_owned(),
            lines,
            stdout: Some(stdout),
            talk: Vec::new(),
            until: Instant::now() + LIMIT,
            workers: BTreeMap::new(),
            phases: BTreeMap::new(),
            killed: Vec::new(),
            heard_at: Instant::now(),
        }
    }

    /// The next thing that happens, waiting until `moment` at most.
    pub fn hear(&mut self, moment: Instant) -> Heard {
        assert!(Instant::now() < self.until, "not over after {LIMIT:?}; the log is {}", self.log.display());
        let patience = moment.min(self.until).saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(patience) {
            Ok((at, line)) => {
                self.heard_at = at;
                self.note(&line);
                Heard::Line(line)
            }
            Err(RecvTimeoutError::Timeout) => Heard::Nothing,
            Err(RecvTimeoutError::Disconnected) => Heard::End,
        }
    }

    fn note(&mut self, line: &str) {
        if let Some((pid, phase)) = traced(line) {
            self.phases.insert(pid, phase.to_owned());
            return;
        }
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["worker", id, "started", "(pid", pid] => {
                let pid = pid.trim_end_matches(')').parse().expect("a pid");
                self.workers.insert(pid, id.to_owned());
            }
            ["worker", id, "exited:", ..] => self.workers.retain(|_, name| name != id),
            _ => {}
        }
        self.talk.push(line.to_owned());
    }

    /// Waits for a line that satisfies `is_it`, and returns it.
    pub fn wait_for(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        loop {
            match self.hear(self.until) {
                Heard::Line(line) if is_it(&line) => return line,
                Heard::Line(_) | Heard::Nothing => {}
                Heard::End => panic!("the run ended before {what}; the log is {}", self.log.display()),
            }
        }
    }

    /// Waits until that step or a later one is completed.
    pub fn wait_for_step(&mut self, step: u64) {
        self.wait_for(&format!("step {step}"), |line| step_of(line).is_some_and(|s| s >= step));
    }

    /// The address that a coordinator says it listens on.
    pub fn address(&mut self) -> String {
        let listens = "coordinator listens on ";
        self.wait_for("its address", |line| line.starts_with(listens))[listens.len()..].to_owned()
    }

    /// Waits for the trace of a worker that works on that step or a later one, and returns which.
    pub fn wait_for_traced_step(&mut self, step: u64) -> u64 {
        let is_there = |line: &str| traced_step(line).is_some_and(|(_, s)| s >= step);
        let line = self.wait_for(&format!("a trace of step {step}"), is_there);
        traced_step(&line).expect("it is one").1
    }

    /// Process of the program itself.
    pub fn pid(&self) -> u32 {
        self.polo.id()
    }

    /// Sends a signal to the program itself.
    pub fn signal(&self, signal: Signal) {
        kill(self.polo.id(), signal);
    }

    /// Where its standard error is kept.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Processes of the workers that live.
    pub fn workers(&self) -> Vec<u32> {
        self.workers.keys().copied().collect()
    }

    /// `kill -9` for one worker.
    pub fn kill_worker(&mut self, pid: u32) {
        kill(pid, Signal::KILL);
        self.killed.push(pid);
        self.workers.remove(&pid);
    }

    /// Asks one worker to leave, as Kubernetes does.
    pub fn terminate_worker(&self, pid: u32) {
        self.signal_worker(pid, Signal::TERM);
    }

    /// Sends a signal to one worker.
    pub fn signal_worker(&self, pid: u32, signal: Signal) {
        kill(pid, signal);
    }

    /// The name of a worker that lives.
    pub fn name_of(&self, pid: u32) -> &str {
        &self.workers[&pid]
    }

    /// `kill -9` for `polo run` and every worker.
    pub fn kill_all(&mut self) {
        kill(self.polo.id(), Signal::KILL);
        for pid in self.workers() {
            self.kill_worker(pid);
        }
    }

    /// What Ctrl-C does.
    pub fn interrupt(&self) {
        kill(self.polo.id(), Signal::INT);
    }

    /// Waits until everything has exited.
    pub fn finish(mut self) -> Ended {
        while !matches!(self.hear(self.until), Heard::End) {}
        let stdout = self.stdout.take().and_then(|reader| reader.join().ok()).unwrap_or_default();
        let doing = |pid: &u32| self.phases.get(pid).map_or("starting", String::as_str).to_owned();
        let killed_while = self.killed.iter().map(doing).collect();
        let status = self.polo.wait().expect("an exit");
        self.workers.clear();
        Ended { status, stdout, talk: std::mem::take(&mut self.talk), killed_while }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.polo.kill();
        for pid in self.workers() {
            kill(pid, Signal::KILL);
        }
        let _ = self.polo.wait();
    }
}

/// The process and its phase, if the line is a worker's trace of one.
pub fn traced(line: &str) -> Option<(u32, &str)> {
    let (_, fields) = line.split_once("polo_worker::desk: phase ")?;
    let pid = fields.split_once("pid=")?.1.split(' ').next()?.parse().ok()?;
    let phase = fields.split_once("phase=\"")?.1.split('"').next()?;
    Some((pid, phase))
}

/// The generation and the step that a worker's trace of a phase tells of.
pub fn traced_step(line: &str) -> Option<(u64, u64)> {
    let (_, fields) = line.split_once("polo_worker::desk: phase ")?;
    let number = |name: &str| fields.split_once(name)?.1.split(' ').next()?.parse().ok();
    Some((number(" generation=")?, number(" step=")?))
}

/// The step of which the line tells that it is completed.
pub fn step_of(line: &str) -> Option<u64> {
    line.strip_prefix("step ")?.split_whitespace().next()?.parse().ok()
}
