//! The coordinator: one pod that comes back until the run has ended.
//!
//! It is a Job because it ends: with the run, it succeeds. Its container is restarted in its place, which takes about a
//! second; a pod that is evicted is replaced at once. Its state is in the run's store, and workers train on meanwhile.

use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::{ConfigMapKeySelector, Container, ContainerPort, EnvVar, EnvVarSource, GRPCAction, PodSpec, Probe},
};

use super::{
    WORKERS_KEY, metadata,
    pod::{self, RECIPE_PATH, leave_lost_nodes_after, quantities, resources},
};
use crate::{COORDINATOR_PORT, HEALTH_PORT, names::Component, submission::Submission};

/// Restarts and evictions together, after which the run is taken for one that cannot go on. Pauses between restarts grow
/// to 5 minutes, so it is tried for most of a day.
const MAX_RESTARTS: i32 = 200;

pub fn job(submission: &Submission) -> Job {
    let component = Component::Coordinator;
    let run = submission.run();
    let spec = JobSpec {
        backoff_limit: Some(MAX_RESTARTS),
        completions: Some(1),
        parallelism: Some(1),
        // One on a lost node may never be seen to end; the journal keeps two apart.
        pod_replacement_policy: Some("TerminatingOrFailed".into()),
        template: pod::template(submission, component, pod_spec(), container(submission)),
        ..JobSpec::default()
    };
    Job {
        metadata: metadata(submission, component.object_name(run), component.labels(run)),
        spec: Some(spec),
        status: None,
    }
}

fn pod_spec() -> PodSpec {
    PodSpec {
        restart_policy: Some("OnFailure".into()),
        termination_grace_period_seconds: Some(15),
        tolerations: Some(leave_lost_nodes_after(10)),
        ..PodSpec::default()
    }
}

fn container(submission: &Submission) -> Container {
    let [listen, health_listen] = [COORDINATOR_PORT, HEALTH_PORT].map(|port| format!("0.0.0.0:{port}"));
    let args = ["coordinator", RECIPE_PATH, "--listen", &listen, "--health-listen", &health_listen];
    let args = args.into_iter().chain(["--workers", "$(POLO_EXPECTED_WORKERS)", "--on-sigterm", "leave"]);
    let args = args.chain(submission.insecure.then_some("--insecure"));
    Container {
        command: Some(vec!["polo".into()]),
        args: Some(args.map(Into::into).collect()),
        env: Some(vec![expected_workers(submission)]),
        image: Some(submission.coordinator_image.clone()),
        liveness_probe: Some(probe(10, 6)),
        ports: Some(vec![port("grpc", COORDINATOR_PORT), port("health", HEALTH_PORT)]),
        readiness_probe: Some(probe(2, 3)),
        resources: Some(resources(
            quantities([("cpu", "250m"), ("memory", "512Mi")]),
            quantities([("cpu", "2"), ("memory", "2Gi")]),
        )),
        // It looks through corpus and journal before it serves.
        startup_probe: Some(probe(1, 600)),
        ..Container::default()
    }
}

fn port(name: &str, number: u16) -> ContainerPort {
    ContainerPort {
        name: Some(name.into()),
        container_port: number.into(),
        protocol: Some("TCP".into()),
        ..ContainerPort::default()
    }
}

/// From the ConfigMap, since a Job's pods cannot be changed and the number of workers can.
fn expected_workers(submission: &Submission) -> EnvVar {
    let key = ConfigMapKeySelector { key: WORKERS_KEY.into(), name: submission.run().into(), optional: None };
    let value_from = EnvVarSource { config_map_key_ref: Some(key), ..EnvVarSource::default() };
    EnvVar { name: "POLO_EXPECTED_WORKERS".into(), value: None, value_from: Some(value_from) }
}

/// Asks the standard health service, on a port of its own: the kubelet's probes cannot speak TLS.
fn probe(period_seconds: i32, failure_threshold: i32) -> Probe {
    Probe {
        grpc: Some(GRPCAction { port: HEALTH_PORT.into(), ..GRPCAction::default() }),
        failure_threshold: Some(failure_threshold),
        period_seconds: Some(period_seconds),
        timeout_seconds: Some(5),
        ..Probe::default()
    }
}
