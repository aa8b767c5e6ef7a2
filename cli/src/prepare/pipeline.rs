//! One thread reads, many encode, the caller takes the results in the order read: so the number of threads changes the
//! time and nothing else.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use super::{
    documents::Batch,
    encode::{Encoded, Encoder},
    error::PrepareError,
};

/// What comes out for one batch, or for a file that could not be read on.
pub type Outcome = Result<Encoded, PrepareError>;

type Job = (Batch, SyncSender<Outcome>);

/// Encodes `batches` (each with the number of its source) on `num_jobs` threads and gives every outcome to `consume`,
/// in order. At most four batches per job are in memory. The first error of `consume` stops everything.
pub fn encode_all(
    encoder: &Encoder,
    num_jobs: usize,
    batches: impl Iterator<Item = (usize, Result<Batch, PrepareError>)> + Send,
    mut consume: impl FnMut(usize, Outcome) -> Result<(), PrepareError>,
) -> Result<(), PrepareError> {
    let (jobs_in, jobs) = sync_channel::<Job>(num_jobs);
    // Each batch's answer comes through a channel of its own; the order of those channels is the order of the batches.
    let (answers_in, answers) = sync_channel::<(usize, Receiver<Outcome>)>(2 * num_jobs);
    let jobs = Arc::new(Mutex::new(jobs));
    thread::scope(|scope| {
        scope.spawn(move || read(batches, &jobs_in, &answers_in));
        for _ in 0..num_jobs {
            let jobs = Arc::clone(&jobs);
            scope.spawn(move || encode(encoder, &jobs));
        }
        drop(jobs);
        // By value: when an error ends the loop, the channel closes, and with it the threads end.
        for (source, answer) in answers {
            consume(source, answer.recv().unwrap_or(Err(PrepareError::ThreadLost)))?;
        }
        Ok(())
    })
}

fn read(
    batches: impl Iterator<Item = (usize, Result<Batch, PrepareError>)>,
    jobs: &SyncSender<Job>,
    answers: &SyncSender<(usize, Receiver<Outcome>)>,
) {
    for (source, batch) in batches {
        let (answer_in, answer) = sync_channel(1);
        if answers.send((source, answer)).is_err() {
            return;
        }
        let sent = match batch {
            Ok(batch) => jobs.send((batch, answer_in)).is_ok(),
            Err(error) => answer_in.send(Err(error)).is_ok(),
        };
        if !sent {
            return;
        }
    }
}

fn encode(encoder: &Encoder, jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((batch, answer)) = job else { return };
        // Nobody waits for the answer when another batch has failed.
        let _ = answer.send(Ok(encoder.encode(&batch)));
    }
}
