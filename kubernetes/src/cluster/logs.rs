//! What a run's programs have said, and go on saying.

use std::{collections::BTreeSet, time::Duration};

use futures::{AsyncBufReadExt, StreamExt, io::Lines};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::LogParams};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    connect::Cluster,
    error::{ClusterError, chain},
};
use crate::names::{Component, INDEX_LABEL, run_selector, worker_id};

/// Between two looks for pods that have come since.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Lines that wait for whoever reads them.
const QUEUE: usize = 1024;

/// Whose logs are meant, and which part of them.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Only the coordinator's.
    pub coordinator: bool,
    /// Only those of this worker, such as `worker-3` or `3`.
    pub worker: Option<String>,
    /// Goes on with what is said from now on, also by pods that come later, until all have ended.
    pub follow: bool,
    /// So many last lines of each, instead of all.
    pub tail: Option<u32>,
    /// Of the container before, if it was restarted.
    pub previous: bool,
}

/// A line, or what keeps a pod from saying anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// `coordinator` or `worker-3`.
    pub who: String,
    /// The pod.
    pub pod: String,
    /// What was said, or why nothing can be read.
    pub said: Result<String, String>,
}

/// Lines as they come; the order is each pod's own.
pub struct Logs {
    lines: mpsc::Receiver<LogLine>,
}

impl Logs {
    /// The next line, until there are no more.
    pub async fn next(&mut self) -> Option<LogLine> {
        self.lines.recv().await
    }
}

/// A pod whose log is read.
#[derive(Debug)]
struct FollowedPod {
    who: String,
    pod: String,
}

impl Cluster {
    /// The logs of a run's pods.
    pub async fn logs(&self, run: &str, options: LogOptions) -> Result<Logs, ClusterError> {
        let selector = selector(run, &options);
        let pods = self.pods(&selector).await?;
        if pods.is_empty() {
            self.config_map(run).await?;
            return Err(ClusterError::NoPods { run: run.into(), which: which(&options) });
        }
        let (sender, lines) = mpsc::channel(QUEUE);
        let cluster = self.clone();
        tokio::spawn(async move {
            // Nobody listens any more, or the cluster is gone; the reader sees the end of the lines.
            let _ = if options.follow {
                cluster.follow(selector, pods, options, sender).await
            } else {
                cluster.read_all(pods, &options, sender).await
            };
        });
        Ok(Logs { lines })
    }

    /// One pod after the other: the coordinator, then workers by index.
    async fn read_all(&self, pods: Vec<Pod>, options: &LogOptions, sender: mpsc::Sender<LogLine>) -> Option<()> {
        for pod in in_order(pods) {
            read(self.api::<Pod>(), pod, options.clone(), sender.clone()).await?;
        }
        Some(())
    }

    /// All pods at once, and those that come, until every one has ended.
    async fn follow(
        &self,
        selector: String,
        mut pods: Vec<Pod>,
        options: LogOptions,
        sender: mpsc::Sender<LogLine>,
    ) -> Option<()> {
        let mut seen = BTreeSet::new();
        let mut readers = tokio::task::JoinSet::new();
        loop {
            let all_have_ended = pods.iter().all(has_ended);
            // One that has not begun is left for a later look.
            for pod in in_order(pods.into_iter().filter(has_begun).collect()) {
                if seen.insert(pod.pod.clone()) {
                    readers.spawn(read(self.api::<Pod>(), pod, options.clone(), sender.clone()));
                }
            }
            if all_have_ended {
                while readers.join_next().await.is_some() {}
                return Some(());
            }
            tokio::select! {
                () = sender.closed() => return None,
                () = sleep_until(Instant::now() + LOOK_EVERY) => {}
            }
            pods = self.pods(&selector).await.ok()?;
        }
    }
}

/// Reads one pod's log to its end. `None` when nobody listens any more.
async fn read(pods: Api<Pod>, pod: FollowedPod, options: LogOptions, sender: mpsc::Sender<LogLine>) -> Option<()> {
    let params = LogParams {
        follow: options.follow,
        previous: options.previous,
        tail_lines: options.tail.map(i64::from),
        ..LogParams::default()
    };
    let line = |said| LogLine { who: pod.who.clone(), pod: pod.pod.clone(), said };
    let mut lines = match open(&pods, &pod.pod, &params).await {
        Ok(lines) => lines,
        Err(problem) => return sender.send(line(Err(problem))).await.ok(),
    };
    while let Some(said) = lines.next().await {
        sender.send(line(said.map_err(|error| chain(&error)))).await.ok()?;
    }
    Some(())
}

async fn open(
    pods: &Api<Pod>,
    name: &str,
    params: &LogParams,
) -> Result<Lines<impl futures::AsyncBufRead + Unpin + use<>>, String> {
    match pods.log_stream(name, params).await {
        Ok(stream) => Ok(Box::pin(stream).lines()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => Err(chain(&error)),
    }
}

fn selector(run: &str, options: &LogOptions) -> String {
    match &options.worker {
        Some(worker) => {
            let index = worker.strip_prefix(&worker_id("")).unwrap_or(worker);
            format!("{},{INDEX_LABEL}={index}", Component::Worker.selector(run))
        }
        None if options.coordinator => Component::Coordinator.selector(run),
        None => run_selector(run),
    }
}

fn which(options: &LogOptions) -> String {
    match &options.worker {
        Some(worker) => format!("is called {worker}; `polo status --run` shows which there are"),
        None => "is there yet; look again in a moment".into(),
    }
}

fn in_order(pods: Vec<Pod>) -> Vec<FollowedPod> {
    let index = |pod: &Pod| pod.labels().get(INDEX_LABEL).and_then(|index| index.parse::<u32>().ok());
    let mut pods: Vec<_> =
        pods.into_iter().map(|pod| (index(&pod), pod.creation_timestamp(), pod.name_any())).collect();
    pods.sort();
    let who = |index: Option<u32>| index.map_or("coordinator".into(), |index| worker_id(&index.to_string()));
    pods.into_iter().map(|(index, _, pod)| FollowedPod { who: who(index), pod }).collect()
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

fn has_begun(pod: &Pod) -> bool {
    phase(pod) != "Pending"
}

fn has_ended(pod: &Pod) -> bool {
    ["Succeeded", "Failed"].contains(&phase(pod))
}
