//! Where the time of a step goes, as a file that Perfetto and Chrome's tracing page open.
//!
//! The format is Chrome's "JSON array" of trace events (the Trace Event Format), which may lack its closing bracket: so the
//! workers of a machine append to one file, each event by a write of its own. Times are microseconds since 1970.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use polo_recipe::ids::Step;
use serde_json::{Value, json};

/// Which line of a worker's an event is drawn in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Track {
    /// Whole steps, and how long was computed, exchanged and idle.
    Steps,
    /// What the thread that computes does, and what it waits for.
    Compute,
    /// What moves between ranks, beside the computation or after it.
    Exchange,
}

impl Track {
    const ALL: [(Self, &str); 3] = [(Self::Steps, "steps"), (Self::Compute, "compute"), (Self::Exchange, "exchange")];
}

/// Writes events, or nothing where nobody asked for a trace.
#[derive(Debug, Clone, Default)]
pub struct Trace(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    file: File,
    /// The step that is taken.
    step: AtomicU64,
    /// By track, microseconds of the step so far, without waits.
    busy_us: [AtomicI64; Track::ALL.len()],
}

/// Something that goes on until this is dropped.
#[derive(Debug)]
pub struct Span {
    trace: Trace,
    track: Track,
    name: &'static str,
    is_wait: bool,
    args: Value,
    /// By the system's clock, which workers share, and by one that only goes forward.
    began: (SystemTime, Instant),
}

impl Trace {
    /// Appends to that file, as `worker`.
    pub fn open(path: &Path, worker: &str) -> std::io::Result<Self> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        if file.metadata()?.len() == 0 {
            file.write_all(b"[\n")?;
        }
        let trace = Self(Some(Arc::new(Inner { file, step: AtomicU64::new(0), busy_us: Default::default() })));
        trace.write(Track::Steps, json!({"ph": "M", "name": "process_name", "args": {"name": worker}}));
        for (track, name) in Track::ALL {
            trace.write(track, json!({"ph": "M", "name": "thread_name", "args": {"name": name}}));
        }
        Ok(trace)
    }

    /// A step begins.
    pub fn step(&self, step: Step) -> Option<Span> {
        let inner = self.0.as_ref()?;
        inner.step.store(step.0, Ordering::Relaxed);
        inner.busy_us.iter().for_each(|busy_us| busy_us.store(0, Ordering::Relaxed));
        self.begin(Track::Steps, "step", false)
    }

    /// Something begins.
    pub fn span(&self, track: Track, name: &'static str) -> Option<Span> {
        self.begin(track, name, false)
    }

    /// The same, for one block.
    pub fn block(&self, track: Track, name: &'static str, block: usize) -> Option<Span> {
        let mut span = self.begin(track, name, false)?;
        span.args["block"] = block.into();
        Some(span)
    }

    /// The thread that computes begins to wait.
    pub fn wait(&self, name: &'static str) -> Option<Span> {
        self.begin(Track::Compute, name, true)
    }

    fn begin(&self, track: Track, name: &'static str, is_wait: bool) -> Option<Span> {
        let step = self.0.as_ref()?.step.load(Ordering::Relaxed);
        let (trace, began) = (self.clone(), (SystemTime::now(), Instant::now()));
        Some(Span { trace, track, name, is_wait, args: json!({"step": step}), began })
    }

    /// A trace that cannot be written is no reason to stop training: the event is lost.
    fn write(&self, track: Track, mut event: Value) {
        let Some(inner) = &self.0 else { return };
        event["pid"] = std::process::id().into();
        event["tid"] = (track as u32).into();
        let _ = (&inner.file).write_all(format!("{event},\n").as_bytes());
    }
}

impl Inner {
    fn add(&self, track: Track, us: i64) {
        self.busy_us[track as usize].fetch_add(us, Ordering::Relaxed);
    }

    /// What a step of so many microseconds consisted of. What is exchanged may lie beside what is computed.
    fn shares(&self, step_us: i64) -> [(&'static str, Value); 3] {
        let busy_us = |track: Track| self.busy_us[track as usize].load(Ordering::Relaxed);
        let (compute_us, exchange_us) = (busy_us(Track::Compute), busy_us(Track::Exchange));
        let ms = |us: i64| json!(us as f64 / 1000.0);
        [("compute_ms", ms(compute_us)), ("exchange_ms", ms(exchange_us)), ("idle_ms", ms(step_us - compute_us))]
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(inner) = &self.trace.0 else { return };
        let (began, since) = self.began;
        let began_us = began.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as u64);
        let us = since.elapsed().as_micros() as i64;
        match self.track {
            Track::Steps => inner.shares(us).into_iter().for_each(|(key, value)| self.args[key] = value),
            track => inner.add(track, if self.is_wait { -us } else { us }),
        }
        let event = json!({"ph": "X", "name": self.name, "ts": began_us, "dur": us, "args": self.args});
        self.trace.write(self.track, event);
    }
}
