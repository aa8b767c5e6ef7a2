//! A run as Kubernetes objects, and the way to them through the API server.
//!
//! [`render`] is pure: a [`Submission`] becomes typed objects, and those become YAML. [`Cluster`] is a thin shell over the
//! `kube` crate that applies, scales, deletes and finds them, reads logs, and reaches the coordinator by port-forward.
//!
//! It must never put the value of a secret into an object, change an object that is not the run's, or wait without a bound
//! for anything but a log that is followed.
//!
//! Start with [`submission`](Submission), then `render/mod.rs`.

mod cluster;
mod names;
mod render;
mod submission;

pub use cluster::{
    Change, Cluster, ClusterError, ClusterOptions, Deletion, Forward, LogLine, LogOptions, Logs, Scaled,
};
pub use names::coordinator_host;
pub use render::{Object, render, to_yaml};
pub use submission::{Account, Submission, SubmissionError, TlsSecrets, WorkerSize};

/// What polo's programs exit with when they were terminated, and their work is not done: `EX_TEMPFAIL` of sysexits.h.
pub const TERMINATED_EXIT_CODE: u8 = 75;

/// Where the coordinator listens in its pod.
pub const COORDINATOR_PORT: u16 = 7070;

/// Where it answers, in its pod, whether it serves, and nothing else: without TLS, and to everybody.
pub const HEALTH_PORT: u16 = 7071;

/// Where a worker's data plane listens in its pod.
pub const DATA_PORT: u16 = 7100;
