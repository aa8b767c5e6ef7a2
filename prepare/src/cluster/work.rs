//! Files that were leased, on all cores: read, taken apart, judged and encoded, and their results stored.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
};

use polo_store::Digest;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc::UnboundedSender},
};

use super::{
    packing::pack,
    pieces::{PieceWriter, Pieces, Work},
};
use crate::{
    error::PrepareError,
    inputs::Input,
    pipeline::{self, Stages},
    reading::{FileBatches, Opened, Reading},
    stages::{Examined, Material, Origin, Read, examine},
    tools::Tools,
};

/// Results whose ends are stored at the same time.
const MAX_UPLOADS: u32 = 8;

/// A file to be worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasedFile {
    /// What its result is called.
    pub work: Work,
    /// Number of its source.
    pub source: usize,
    /// The file.
    pub input: Input,
}

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Its result is stored; with the digest of its index.
    Done(Work, Digest),
    /// It cannot be done here.
    Failed(Work, String),
    /// Nothing more will be done: this is a fault of the program.
    Lost,
}

/// What a worker is made of.
pub struct Workshop {
    /// What makes documents of text.
    pub tools: Arc<Tools>,
    /// How files are read.
    pub reading: Reading,
    /// Where results go.
    pub pieces: Pieces,
    /// Threads that examine and encode.
    pub num_jobs: usize,
}

/// Threads that work on leased files, in the order in which they were leased.
pub struct Worker {
    leases: Option<Sender<Arc<Task>>>,
    /// What is leased and not done.
    tasks: HashMap<Work, Arc<Task>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A lease. A file that is leased again after it was forgotten is another task.
struct Task {
    file: LeasedFile,
    is_forgotten: AtomicBool,
}

#[derive(Default)]
struct Shared {
    num_batches: AtomicU64,
    is_stopped: AtomicBool,
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    fn wants(&self, task: &Task) -> bool {
        !self.is_stopped() && !task.is_forgotten()
    }
}

impl Task {
    fn is_forgotten(&self) -> bool {
        self.is_forgotten.load(Ordering::Relaxed)
    }
}

impl Worker {
    /// Starts the threads; what becomes of files is given to `reports`. To be called in a runtime.
    pub fn start(workshop: Workshop, reports: UnboundedSender<Report>) -> Self {
        let (leases, leased) = channel();
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let runtime = Handle::current();
        let thread = thread::spawn(move || {
            let _farewell = Farewell(reports.clone());
            workshop.work(&own, leased, reports, &runtime);
        });
        Self { leases: Some(leases), tasks: HashMap::new(), shared, thread: Some(thread) }
    }

    /// Has a file worked on after those before it.
    pub fn lease(&mut self, file: LeasedFile) {
        let work = file.work;
        let task = Arc::new(Task { file, is_forgotten: AtomicBool::new(false) });
        if let (None, Some(leases)) = (self.tasks.insert(work, Arc::clone(&task)), &self.leases) {
            let _ = leases.send(task); // if the thread is gone, it has said so
        }
    }

    /// Drops a file.
    pub fn forget(&mut self, work: Work) {
        if let Some(task) = self.tasks.remove(&work) {
            task.is_forgotten.store(true, Ordering::Relaxed);
        }
    }

    /// What is leased, for as long as nothing was reported of it and [`Worker::forget`] has not been called.
    pub fn held(&self) -> impl Iterator<Item = Work> {
        self.tasks.keys().copied()
    }

    /// Takes note that a file was reported.
    pub fn settle(&mut self, work: Work) {
        self.tasks.remove(&work);
    }

    /// Grows while there is progress.
    pub fn progress(&self) -> u64 {
        self.shared.num_batches.load(Ordering::Relaxed)
    }

    /// Drops everything. Nothing more is written once the thread that is given has ended.
    pub fn stop(&mut self) -> Option<JoinHandle<()>> {
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        self.leases = None;
        self.thread.take()
    }
}

/// Waits for a worker that was stopped.
pub async fn joined(thread: Option<JoinHandle<()>>) {
    // A panic of the thread has been told.
    let _ = tokio::task::spawn_blocking(|| thread.map(JoinHandle::join)).await;
}

/// Says at its end, however that comes, that nothing more will be done.
struct Farewell(UnboundedSender<Report>);

impl Drop for Farewell {
    fn drop(&mut self) {
        let _ = self.0.send(Report::Lost); // perhaps nobody listens any more
    }
}

/// What goes through the stages: the batches of a file, then its end.
enum Step<T> {
    Batch(Arc<Task>, T),
    End(Arc<Task>),
}

impl<T> Step<T> {
    fn map<U>(self, work: impl FnOnce(&Task, T) -> U) -> Step<U> {
        match self {
            Self::Batch(task, batch) => {
                let batch = work(&task, batch);
                Step::Batch(task, batch)
            }
            Self::End(task) => Step::End(task),
        }
    }
}

impl Workshop {
    fn work(&self, shared: &Shared, leased: Receiver<Arc<Task>>, reports: UnboundedSender<Report>, runtime: &Handle) {
        let Tools { encoder, cleaner, options, .. } = &*self.tools;
        let max_document_bytes = options.max_document_bytes.get();
        let stages = Stages {
            examine: &|step: Step<Read>| {
                step.map(|task, read| shared.wants(task).then(|| examine(cleaner, encoder, max_document_bytes, read)))
            },
            decide: &mut |step| step,
            encode: &|step: Step<Option<Examined>>| {
                step.map(|_, examined| examined.map(|examined| pack(encoder, examined)))
            },
        };
        let steps = Steps { reading: &self.reading, leased, opened: VecDeque::new(), shared };
        let uploads = Arc::new(Semaphore::new(MAX_UPLOADS as usize));
        let mut results =
            Results { pieces: &self.pieces, runtime, shared, open: None, uploads: uploads.clone(), reports };
        let _ = pipeline::run(self.num_jobs, steps.flatten(), stages, |step| results.take(step)); // it was stopped
        // Nothing is written any more once all are free.
        let _ = runtime.block_on(uploads.acquire_many(MAX_UPLOADS));
    }
}

/// Leased files, each opened as soon as it is known.
struct Steps<'a> {
    reading: &'a Reading,
    leased: Receiver<Arc<Task>>,
    opened: VecDeque<(Arc<Task>, Opened)>,
    shared: &'a Shared,
}

impl Steps<'_> {
    fn open(&mut self, task: Arc<Task>) {
        let opened = self.reading.open(&task.file.input);
        self.opened.push_back((task, opened));
    }
}

impl<'a> Iterator for Steps<'a> {
    type Item = Box<dyn Iterator<Item = Step<Read>> + Send + 'a>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Ok(task) = self.leased.try_recv() {
            self.open(task);
        }
        if self.opened.is_empty() {
            let task = self.leased.recv().ok()?;
            self.open(task);
        }
        let (task, opened) = self.opened.pop_front()?;
        let source = task.file.source;
        let batches: FileBatches = self.reading.batches_of(source, &task.file.input, opened);
        let (shared, wanted, last) = (self.shared, Arc::clone(&task), Arc::clone(&task));
        let steps = (0..).zip(batches).take_while(move |_| shared.wants(&wanted)).map(move |(batch, read)| {
            let origin = Origin { source, file: 0, batch };
            Step::Batch(Arc::clone(&task), (origin, read.map(Material::Raw)))
        });
        Some(Box::new(steps.chain([Step::End(last)])))
    }
}

/// Takes what comes out of the stages, file after file.
struct Results<'a> {
    pieces: &'a Pieces,
    runtime: &'a Handle,
    shared: &'a Shared,
    /// The result of the file that comes; nothing in it if the file has failed.
    open: Option<Option<PieceWriter>>,
    /// Results whose ends are being stored: of small files several at a time.
    uploads: Arc<Semaphore>,
    reports: UnboundedSender<Report>,
}

impl Results<'_> {
    fn take(&mut self, step: Step<Option<Result<Vec<u8>, PrepareError>>>) -> Result<(), PrepareError> {
        if self.shared.is_stopped() {
            return Err(PrepareError::ThreadLost);
        }
        self.shared.num_batches.fetch_add(1, Ordering::Relaxed);
        match step {
            Step::Batch(task, Some(packed)) => self.push(&task, packed),
            Step::Batch(_, None) => {} // forgotten, and its end will see that
            Step::End(task) => self.end(&task),
        }
        Ok(())
    }

    fn push(&mut self, task: &Task, packed: Result<Vec<u8>, PrepareError>) {
        let open = self.open.get_or_insert_with(|| Some(self.pieces.writer(task.file.work)));
        if let Some(writer) = open
            && let Err(error) = packed.and_then(|packed| writer.push(&packed))
        {
            *open = None;
            let _ = self.reports.send(Report::Failed(task.file.work, error.to_string()));
        }
    }

    fn end(&mut self, task: &Task) {
        let work = task.file.work;
        let open = self.open.take().unwrap_or_else(|| Some(self.pieces.writer(work)));
        let Some(writer) = open.filter(|_| !task.is_forgotten()) else { return };
        let Ok(permit) = self.runtime.block_on(self.uploads.clone().acquire_owned()) else { return };
        let reports = self.reports.clone();
        self.runtime.spawn(async move {
            let _ = reports.send(match writer.finish().await {
                Ok(result) => Report::Done(work, result),
                Err(error) => Report::Failed(work, error.to_string()),
            });
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path, thread::yield_now};

    use clap::Parser;
    use polo_store::Store;
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    use tokio::{
        runtime::Runtime,
        sync::mpsc::{UnboundedReceiver, unbounded_channel},
    };

    use super::*;
    use crate::{
        args::CorpusOptions,
        encode::Encoder,
        inputs::{Compression, Format},
    };

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        options: CorpusOptions,
    }

    fn tools(runtime: &Runtime) -> Arc<Tools> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/tokenizer/tokenizer.json");
        let encoder = Encoder::from_file(&path).expect("run `scripts/setup tokenizer` first");
        let options = Options::parse_from(["options"]).options;
        let tools = Tools::new(options, vec!["s".to_owned()], encoder, Default::default());
        Arc::new(runtime.block_on(tools).expect("nothing to fail").0)
    }

    fn file(number: u8, num_bytes: u64) -> LeasedFile {
        let (key, format, compression) = (number.to_string(), Format::Jsonl, Compression::None);
        let input = Input { key, num_bytes, format, compression, aligned: None };
        LeasedFile { work: Work(Digest::of(&[number])), source: 0, input }
    }

    fn start(
        runtime: &Runtime,
        tools: &Arc<Tools>,
        store: &Store,
        result: &str,
    ) -> (Worker, UnboundedReceiver<Report>) {
        let _entered = runtime.enter();
        let (report, reports) = unbounded_channel();
        let pieces = Pieces::new(&store.child(result));
        let reading = tools.reading(store, Arc::default());
        let workshop = Workshop { tools: tools.clone(), reading, pieces, num_jobs: 2 };
        (Worker::start(workshop, report), reports)
    }

    /// Files are forgotten and leased again amid the work: a result that is reported is that of the whole file.
    #[test]
    fn no_result_is_reported_of_a_part_of_a_file() {
        let seed = rand::rng().random();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let (runtime, store) = (Runtime::new().expect("a runtime"), Store::open("memory://work").expect("a store"));
        // Six lines a batch, and without a text, which is quickly told.
        let (line, mut files) = (format!("{{\"no\": \"{}\"}}\n", "x".repeat(180_000)), vec![]);
        for number in 0..4 {
            let lines = line.repeat(20 + usize::from(number));
            files.push(file(number, lines.len() as u64));
            runtime.block_on(store.put(&number.to_string(), lines.into())).expect("stored");
        }
        let tools = tools(&runtime);
        let (mut worker, mut reports) = start(&runtime, &tools, &store, "undisturbed");
        files.iter().for_each(|file| worker.lease(file.clone()));
        let told = |report: Report| match report {
            Report::Done(work, result) => (work, result),
            other => panic!("{other:?}"),
        };
        let expected: BTreeMap<_, _> = (0..files.len()).filter_map(|_| reports.blocking_recv()).map(told).collect();
        runtime.block_on(joined(worker.stop()));

        let (mut worker, mut reports) = start(&runtime, &tools, &store, "disturbed");
        for _ in 0..60 {
            let file = &files[rng.random_range(0..files.len())];
            if rng.random_bool(0.5) {
                worker.lease(file.clone());
            } else {
                worker.forget(file.work);
            }
            // Until something has happened; not for ever, since there may be nothing to do.
            let before = worker.progress();
            let is_moved = |_: &u32| {
                yield_now();
                worker.progress() != before
            };
            (0..rng.random_range(0..2_000)).find(is_moved);
            while let Ok(report) = reports.try_recv() {
                let (work, result) = told(report);
                assert_eq!(expected[&work], result);
                worker.settle(work);
            }
        }
        let held: Vec<_> = worker.held().collect();
        for (work, result) in (0..held.len()).filter_map(|_| reports.blocking_recv()).map(told) {
            assert_eq!(expected[&work], result);
        }
        runtime.block_on(joined(worker.stop()));
        assert_eq!(reports.blocking_recv(), Some(Report::Lost));
        assert_eq!(reports.blocking_recv(), None);
    }
}
