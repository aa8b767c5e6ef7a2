//! One thread reads; documents are examined and encoded on many; between the two, one thread decides in the order read,
//! and the caller takes the results in that order too. So the number of threads changes the time and nothing else.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
};

use crate::error::PrepareError;

/// The three kinds of work between reading and storing. A batch is an `A`, then a `B`, then a `C`.
pub struct Stages<'a, A, B, C> {
    /// Looks at a batch by itself.
    pub examine: &'a (dyn Fn(A) -> B + Sync),
    /// Decides what depends on the batches before.
    pub decide: &'a mut (dyn FnMut(B) -> B + Send),
    /// Encodes what is left of a batch.
    pub encode: &'a (dyn Fn(B) -> C + Sync),
}

type Job<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Takes `inputs` through `stages`, with `num_jobs` threads for what can be done in any order, and gives every result to
/// `consume`. At most six batches per job are in memory. The first error of `consume` stops everything.
pub fn run<A: Send, B: Send, C: Send>(
    num_jobs: usize,
    inputs: impl Iterator<Item = A> + Send,
    stages: Stages<'_, A, B, C>,
    mut consume: impl FnMut(C) -> Result<(), PrepareError>,
) -> Result<(), PrepareError> {
    let Stages { examine, decide, encode } = stages;
    let (pool, jobs) = channel::<Job<'_>>();
    let jobs = Arc::new(Mutex::new(jobs));
    // Each batch's answer comes through a channel of its own; the order of those channels is the order of the batches.
    // Their number is bounded, and with it that of jobs, so workers never wait to hand something on.
    let (examined_in, examined) = sync_channel::<Receiver<B>>(2 * num_jobs);
    let (encoded_in, encoded) = sync_channel::<Receiver<C>>(2 * num_jobs);
    thread::scope(|scope| {
        let pool_of_deciding = pool.clone();
        scope.spawn(move || feed(inputs, &pool, &examined_in, examine));
        scope.spawn(move || {
            let decided = examined.into_iter().map_while(|answer| answer.recv().ok()).map(decide);
            feed(decided, &pool_of_deciding, &encoded_in, encode);
        });
        for _ in 0..num_jobs {
            let jobs = Arc::clone(&jobs);
            scope.spawn(move || work(&jobs));
        }
        // By value: when an error ends the loop, the channel closes, and with it the threads end.
        for answer in encoded {
            consume(answer.recv().map_err(|_| PrepareError::ThreadLost)?)?;
        }
        Ok(())
    })
}

/// Has `work` done to each of `inputs`, and hands on where the answers will come.
fn feed<'a, A: Send + 'a, B: Send + 'a>(
    inputs: impl Iterator<Item = A>,
    pool: &Sender<Job<'a>>,
    answers: &SyncSender<Receiver<B>>,
    work: &'a (dyn Fn(A) -> B + Sync),
) {
    for input in inputs {
        let (answer_in, answer) = sync_channel(1);
        // Nobody waits for the answer when another batch has failed.
        let job = Box::new(move || drop(answer_in.send(work(input))));
        if answers.send(answer).is_err() || pool.send(job).is_err() {
            return;
        }
    }
}

fn work(jobs: &Mutex<Receiver<Job<'_>>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        job();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(num_jobs: usize, last: u64) -> Result<Vec<u64>, PrepareError> {
        let mut sum = 0;
        let mut decide = |number: u64| {
            sum += number;
            sum
        };
        let stages =
            Stages { examine: &|number: u64| number + 1, decide: &mut decide, encode: &|number: u64| 2 * number };
        let mut found = vec![];
        run(num_jobs, 0..1_000, stages, |number| {
            found.push(number);
            if found.len() as u64 == last { Err(PrepareError::ThreadLost) } else { Ok(()) }
        })?;
        Ok(found)
    }

    #[test]
    fn results_come_in_order_and_decisions_are_made_in_order() {
        let expected: Vec<u64> = (0..1_000).map(|number| (number + 1) * (number + 2)).collect();
        for num_jobs in [1, 2, 7] {
            assert_eq!(through(num_jobs, 2_000).expect("all pass"), expected, "{num_jobs} jobs");
        }
    }

    #[test]
    fn an_error_ends_all_threads() {
        for num_jobs in [1, 3] {
            assert!(matches!(through(num_jobs, 10), Err(PrepareError::ThreadLost)));
        }
    }
}
