//! Two coordinators on one journal: every order of their requests, and every way to lose two of the answers.
//!
//! The coordinators are the real journal on a store that lets one request through at a time. A search goes through all
//! choices of which one is next and what becomes of it, by running the whole again for each sequence of choices. Reads of
//! single entries are let through at once: entries never change, so it does not matter when they are read.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};
use polo_recipe::ids::{Generation, Step};
use polo_store::testing::{forget_memory, register_memory};
use tokio::{sync::oneshot, task::JoinHandle};

use super::*;
use crate::machine::{Goodput, RecordError};

const NAME: &str = "journal-exhaustive";
/// Puts whose answers are lost, at most.
const NUM_LOST_ANSWERS: usize = 2;
/// Generations that each coordinator forms.
const NUM_GENERATIONS: u64 = 2;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    /// It is carried out, but its answer is lost.
    AnswerLost,
    /// It is lost itself.
    RequestLost,
    /// It is carried out after its sender has given it up.
    Late,
}

const FATES: [Fate; 4] = [Fate::Done, Fate::AnswerLost, Fate::RequestLost, Fate::Late];

/// A request that waits to be let through.
enum Waiting {
    List(oneshot::Sender<Fate>),
    Put(oneshot::Sender<Fate>),
    /// Given up by its sender, but still on its way.
    LatePut(Path, PutPayload, PutOptions),
}

#[derive(Default)]
struct Gate {
    objects: InMemory,
    waiting: Mutex<Vec<Waiting>>,
}

impl Gate {
    async fn pass(&self, waiting: impl FnOnce(oneshot::Sender<Fate>) -> Waiting) -> Fate {
        let (sender, fate) = oneshot::channel();
        self.lock().push(waiting(sender));
        fate.await.expect("the search answers")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().expect("not poisoned")
    }

    /// All that can happen next: which request, and its fate.
    fn choices(&self, answers_to_lose: usize) -> Vec<(usize, Fate)> {
        let fates = |waiting: &Waiting| match waiting {
            Waiting::Put(_) if answers_to_lose > 0 => &FATES[..],
            _ => &FATES[..1],
        };
        let waiting = self.lock();
        let all = waiting.iter().enumerate();
        all.flat_map(|(number, waiting)| fates(waiting).iter().map(move |fate| (number, *fate))).collect()
    }

    async fn let_through(&self, number: usize, fate: Fate) {
        let waiting = self.lock().remove(number);
        match waiting {
            Waiting::List(sender) | Waiting::Put(sender) => sender.send(fate).expect("its sender waits"),
            Waiting::LatePut(path, payload, options) => drop(self.objects.put_opts(&path, payload, options).await),
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a gate")
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[async_trait::async_trait]
impl ObjectStore for Gate {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let lost = || Err(Error::Generic { store: "S3", source: "the connection was reset".into() });
        match self.pass(Waiting::Put).await {
            Fate::Done => self.objects.put_opts(path, payload, options).await,
            Fate::AnswerLost => self.objects.put_opts(path, payload, options).await.and_then(|_| lost()),
            Fate::RequestLost => lost(),
            Fate::Late => {
                self.lock().push(Waiting::LatePut(path.clone(), payload, options));
                lost()
            }
        }
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.objects.get_opts(path, options).await
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (sender, fate) = oneshot::channel();
        self.lock().push(Waiting::List(sender));
        let (objects, prefix) = (self.objects.clone(), prefix.cloned());
        let listed = async move {
            let _ = fate.await;
            objects.list(prefix.as_ref())
        };
        stream::once(listed).flatten().boxed()
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(paths)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

fn generation(number: Generation) -> Entry {
    Entry::Generation { generation: number, members: Vec::new(), step: Step(0), goodput: Goodput::default() }
}

/// Generations that coordinators had leave to announce, with who announced them.
type Announced = Arc<Mutex<Vec<(u64, Generation)>>>;

/// Takes up the run and forms generations until it is superseded.
async fn coordinate(store: Store, coordinator: u64, announced: Announced) {
    let past = read(&store).await.expect("readable");
    let holder = Holder { coordinator, ..Holder::here(([127, 0, 0, 1], 7070).into(), false) };
    let mut newest = past.restored.generation;
    let Ok(journal) = Journal::take_up(store, &past, holder, Fencing::CreateOnly).await else { return };
    for _ in 0..NUM_GENERATIONS {
        newest = newest.next();
        match journal.record(generation(newest)).await {
            Ok(()) => announced.lock().expect("not poisoned").push((coordinator, newest)),
            Err(RecordError::Superseded(_)) => return,
            Err(RecordError::Failed(problem)) => panic!("{problem}"),
        }
    }
}

/// One sequence of choices: at each place the choice, and of how many.
type Course = Vec<(usize, usize)>;

/// Follows a course as far as it goes, then takes the first choice each time. Returns the whole course.
async fn follow(course: &[(usize, usize)]) -> Course {
    let gate = Arc::new(Gate::default());
    register_memory(NAME, gate.clone(), gate.clone());
    let store = Store::open(&format!("memory://{NAME}")).expect("open");
    forget_memory(NAME);
    let announced = Announced::default();
    let coordinators =
        [1, 2].map(|coordinator| tokio::spawn(coordinate(store.clone(), coordinator, announced.clone())));
    let (mut followed, mut answers_to_lose) = (Course::new(), NUM_LOST_ANSWERS);
    loop {
        // Time stands still while anything can be done, so after this all is done that can be without another choice.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let choices = gate.choices(answers_to_lose);
        if choices.is_empty() {
            if coordinators.iter().all(JoinHandle::is_finished) {
                break;
            }
            continue;
        }
        let choice = course.get(followed.len()).map_or(0, |(choice, _)| *choice);
        followed.push((choice, choices.len()));
        let (number, fate) = choices[choice];
        answers_to_lose -= usize::from(fate != Fate::Done);
        gate.let_through(number, fate).await;
    }
    for coordinator in coordinators {
        coordinator.await.expect("no panic");
    }
    let announced = announced.lock().expect("not poisoned").clone();
    check(&gate.objects, &announced, &followed).await;
    followed
}

/// The course after this one, depth first.
fn next(mut course: Course) -> Option<Course> {
    while let Some((choice, num_choices)) = course.pop() {
        if choice + 1 < num_choices {
            course.push((choice + 1, num_choices));
            return Some(course);
        }
    }
    None
}

async fn check(objects: &InMemory, announced: &[(u64, Generation)], course: &Course) {
    register_memory(NAME, Arc::new(objects.clone()), Arc::new(objects.clone()));
    let store = Store::open(&format!("memory://{NAME}")).expect("open");
    let numbers = numbers(&store).await.expect("listed");
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "a gap after {course:?}");
    let (mut holder, mut written) = (0, Vec::new());
    for number in numbers {
        let line = line(store.clone(), number).await.expect("readable");
        match line.record {
            Record::Opened(opened) => holder = opened.coordinator,
            Record::Entry(Entry::Generation { generation, .. }) => {
                assert_eq!(line.coordinator, holder, "a superseded coordinator wrote after {course:?}");
                written.push((holder, generation));
            }
            Record::Entry(other) => panic!("nobody wrote {other:?}"),
        }
    }
    let ascending = |all: &[(u64, Generation)]| all.windows(2).all(|pair| pair[0].1 < pair[1].1);
    assert!(ascending(&written), "a generation's number was used again: {written:?} after {course:?}");
    let num_announced = announced.iter().filter(|(coordinator, _)| *coordinator == holder).count() as u64;
    assert_eq!(num_announced, NUM_GENERATIONS, "coordinator {holder} was superseded by nobody after {course:?}");
    let is_written = announced.iter().all(|one| written.contains(one));
    assert!(is_written, "{announced:?} were announced, but the journal has {written:?} after {course:?}");
}

#[tokio::test(start_paused = true)]
async fn no_order_of_events_lets_two_coordinators_announce_the_same_generation() {
    let (mut course, mut num_courses) = (Some(Course::new()), 0);
    while let Some(begun) = course {
        course = next(follow(&begun).await);
        num_courses += 1;
    }
    println!("{num_courses} courses");
    assert!(num_courses > 1000, "the search was cut short: {num_courses} courses");
}
