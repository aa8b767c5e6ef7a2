//! Hedged reads: a second request when the first has taken much longer than others of late.
//!
//! The tail of a store's latencies is mostly the bad luck of one request, and another one rarely shares it (Dean and
//! Barroso, "The Tail at Scale", 2013). What is timed is how long a store takes to begin its answer, which does not
//! depend on how much was asked for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::select_ok;
use object_store::path::Path;
use object_store::{GetOptions, GetResult, ObjectStore, Result};
use tokio::time::{Instant, timeout};

/// Reads that are remembered.
const WINDOW: usize = 128;
/// Reads that must be known before any is called slow.
const MIN_READS: usize = 20;
/// Slow is so many times what this share of reads takes at most.
const SLOW_FACTOR: u32 = 2;
const SLOW_PERCENTILE: usize = 95;
/// Below this, a second request costs more than it saves.
const MIN_WAIT: Duration = Duration::from_millis(20);
/// A second request for so many reads at most.
const READS_PER_HEDGE: u32 = 20;
/// Second requests that may be saved up for a bad moment.
const MAX_SAVED_HEDGES: u32 = 8;

/// Whether a read gets a second request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hedge {
    /// When the first has not been answered for so long.
    After(Duration),
    /// Too few reads are known to call one slow.
    NotYet,
    /// Second requests have had their share of all.
    SharedOut,
}

/// How long reads took of late, and how many second requests they have earned.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    recent: VecDeque<Duration>,
    /// In reads; a second request costs [`READS_PER_HEDGE`].
    saved_reads: u32,
}

impl Pace {
    /// Notes a read whose answer began after `wait`.
    pub(crate) fn note(&mut self, wait: Duration) {
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(wait);
        self.saved_reads = (self.saved_reads + 1).min(MAX_SAVED_HEDGES * READS_PER_HEDGE);
    }

    /// What becomes of a read that begins now.
    pub(crate) fn decide(&self) -> Hedge {
        if self.recent.len() < MIN_READS {
            return Hedge::NotYet;
        }
        if self.saved_reads < READS_PER_HEDGE {
            return Hedge::SharedOut;
        }
        let mut sorted: Vec<_> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        let usual = sorted[(sorted.len() - 1) * SLOW_PERCENTILE / 100];
        Hedge::After((usual * SLOW_FACTOR).max(MIN_WAIT))
    }

    /// Pays for a second request; `false` when others have used up what there was.
    pub(crate) fn pay(&mut self) -> bool {
        let left = self.saved_reads.checked_sub(READS_PER_HEDGE);
        self.saved_reads = left.unwrap_or(self.saved_reads);
        left.is_some()
    }
}

/// Reads of one store. Cheap to clone; clones share their pace.
#[derive(Debug, Clone)]
pub(crate) struct Reader {
    objects: Arc<dyn ObjectStore>,
    /// None where a second request would meet the same disk.
    pace: Option<Arc<Mutex<Pace>>>,
}

impl Reader {
    pub(crate) fn new(objects: Arc<dyn ObjectStore>, hedges: bool) -> Self {
        Self { objects, pace: hedges.then(Arc::default) }
    }

    /// The beginning of an answer: of the first request's, or of the second's where there is one.
    pub(crate) async fn get(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let Some(pace) = &self.pace else { return self.objects.get_opts(path, options).await };
        let start = Instant::now();
        let result = self.get_hedged(path, options, pace).await;
        if result.is_ok() {
            with(pace, |pace| pace.note(start.elapsed()));
        }
        result
    }

    async fn get_hedged(&self, path: &Path, options: GetOptions, pace: &Mutex<Pace>) -> Result<GetResult> {
        let mut first = self.objects.get_opts(path, options.clone());
        let Hedge::After(wait) = with(pace, |pace| pace.decide()) else { return first.await };
        if let Ok(result) = timeout(wait, &mut first).await {
            return result;
        }
        if !with(pace, Pace::pay) {
            return first.await;
        }
        tracing::debug!(%path, wait_ms = wait.as_millis() as u64, "a read is slow; asking a second time");
        let second = self.objects.get_opts(path, options);
        select_ok([first.boxed(), second.boxed()]).await.map(|(result, _)| result)
    }
}

fn with<T>(pace: &Mutex<Pace>, work: impl FnOnce(&mut Pace) -> T) -> T {
    work(&mut pace.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn pace_of(waits: impl IntoIterator<Item = u64>) -> Pace {
        let mut pace = Pace::default();
        waits.into_iter().for_each(|wait| pace.note(ms(wait)));
        pace
    }

    #[test]
    fn few_reads_call_none_slow() {
        assert_eq!(pace_of(vec![30; MIN_READS - 1]).decide(), Hedge::NotYet);
        assert_eq!(pace_of(vec![30; MIN_READS]).decide(), Hedge::After(ms(60)));
    }

    #[test]
    fn slow_is_measured_by_the_slowest_but_a_few() {
        let with_tail = |num_slow: usize| (0..WINDOW).map(move |n| if n % (WINDOW / num_slow) == 0 { 900 } else { 40 });
        assert_eq!(pace_of(with_tail(4)).decide(), Hedge::After(ms(80)), "a tail of 3 % is slow");
        assert_eq!(pace_of(with_tail(16)).decide(), Hedge::After(ms(1800)), "12 % are how this store is");
        assert_eq!(pace_of(vec![1; 50]).decide(), Hedge::After(MIN_WAIT));
    }

    #[test]
    fn old_reads_are_forgotten() {
        assert_eq!(pace_of([vec![900; WINDOW], vec![40; WINDOW]].concat()).decide(), Hedge::After(ms(80)));
    }

    #[test]
    fn second_requests_keep_to_their_share() {
        let mut pace = pace_of(vec![30; 10_000]);
        let burst = (0..1000).filter(|_| pace.pay()).count();
        assert_eq!(burst as u32, MAX_SAVED_HEDGES);
        assert_eq!(pace.decide(), Hedge::SharedOut);
        let mut num_hedges = 0;
        for _ in 0..1000 {
            pace.note(ms(30));
            num_hedges += u32::from(pace.pay());
        }
        assert_eq!(num_hedges, 1000 / READS_PER_HEDGE);
    }
}
