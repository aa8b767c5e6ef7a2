//! The workers: an Indexed Job with as many pods as it has completions, both of which `polo scale` changes together.
//!
//! A worker's index is its name in the run, and stays with the pod that replaces it. It exits 0 when the run lets it go,
//! or a person drains it: its index is done. One that Kubernetes terminates (an eviction, a drained node, a smaller scale)
//! hands back what it holds and exits with another code, since 0 would mean that nobody has to take its place; that is not
//! counted as a failure.

use k8s_openapi::{
    api::{
        batch::v1::{
            Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
            PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
        },
        core::v1::{
            Container, ContainerPort, EnvVar, EnvVarSource, ObjectFieldSelector, PodSpec, Toleration,
            TopologySpreadConstraint,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector},
};
use polo_recipe::config::Device;

use super::{
    metadata,
    pod::{
        self, RECIPE_PATH, bytes, cores, leave_lost_nodes_after, memory, mount, quantities, resources, scratch,
        variable,
    },
};
use crate::{
    COORDINATOR_PORT, DATA_PORT, TERMINATED_EXIT_CODE,
    names::{Component, INDEX_LABEL, coordinator_host, worker_id},
    submission::Submission,
};

/// Failures of one index, with growing pauses between them, after which it is not tried again; others go on.
const MAX_FAILURES_PER_INDEX: i32 = 20;

/// What clap exits with: another try would be the same.
const USAGE_EXIT_CODE: i32 = 2;

/// Beyond the time that a worker has to hand back what it holds.
const SPARE_GRACE_SECONDS: i64 = 30;

const CACHE: &str = "/var/cache/polo";

pub fn job(submission: &Submission) -> Job {
    let component = Component::Worker;
    let run = submission.run();
    let mut metadata = metadata(submission, component.object_name(run), component.labels(run));
    wait_in_queue(submission, &mut metadata);
    let spec = JobSpec {
        backoff_limit_per_index: Some(MAX_FAILURES_PER_INDEX),
        completion_mode: Some("Indexed".into()),
        completions: Some(submission.workers as i32),
        parallelism: Some(submission.workers as i32),
        pod_failure_policy: Some(PodFailurePolicy { rules: failure_rules() }),
        // The only one that goes with a failure policy: an index has one pod at a time.
        pod_replacement_policy: Some("Failed".into()),
        suspend: submission.queue.is_some().then_some(true),
        template: pod::template(submission, component, pod_spec(submission), container(submission)),
        ..JobSpec::default()
    };
    Job { metadata, spec: Some(spec), status: None }
}

/// Kueue starts the Job when there is room, with fewer workers if the run can do with fewer.
fn wait_in_queue(submission: &Submission, metadata: &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) {
    let Some(queue) = &submission.queue else { return };
    let min_workers = submission.recipe.workers.min_workers.to_string();
    let annotations = [
        ("kueue.x-k8s.io/job-completions-equal-parallelism", "true".to_owned()),
        ("kueue.x-k8s.io/job-min-parallelism", min_workers),
    ];
    metadata.annotations = Some(annotations.map(|(key, value)| (key.into(), value)).into());
    metadata.labels.get_or_insert_default().insert("kueue.x-k8s.io/queue-name".into(), queue.clone());
}

/// What a pod's end means; whatever no rule names counts as a failure of its index.
fn failure_rules() -> Vec<PodFailurePolicyRule> {
    let exit_code = |code: i32, action: &str| PodFailurePolicyRule {
        action: action.into(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            container_name: Some(Component::Worker.as_str().into()),
            operator: "In".into(),
            values: vec![code],
        }),
        on_pod_conditions: None,
    };
    let disrupted =
        PodFailurePolicyOnPodConditionsPattern { type_: "DisruptionTarget".into(), status: Some("True".into()) };
    let disrupted =
        PodFailurePolicyRule { action: "Ignore".into(), on_exit_codes: None, on_pod_conditions: Some(vec![disrupted]) };
    vec![disrupted, exit_code(TERMINATED_EXIT_CODE.into(), "Ignore"), exit_code(USAGE_EXIT_CODE, "FailIndex")]
}

fn is_on_gpu(submission: &Submission) -> bool {
    submission.recipe.run.device == Device::Cuda
}

fn pod_spec(submission: &Submission) -> PodSpec {
    let selector = submission.node_selector.clone();
    let mut tolerations = leave_lost_nodes_after(30);
    if is_on_gpu(submission) {
        tolerations.push(Toleration {
            key: Some("nvidia.com/gpu".into()),
            operator: Some("Exists".into()),
            ..Toleration::default()
        });
    }
    PodSpec {
        node_selector: Some(selector).filter(|selector| !selector.is_empty()),
        restart_policy: Some("Never".into()),
        termination_grace_period_seconds: Some(submission.recipe.workers.drain_timeout_s as i64 + SPARE_GRACE_SECONDS),
        tolerations: Some(tolerations),
        topology_spread_constraints: Some(vec![apart(submission)]),
        volumes: Some(vec![scratch("cache", submission.worker.cache_bytes), memory("shm")]),
        ..PodSpec::default()
    }
}

/// Workers go to different nodes while they can, so that a node takes few of them along.
fn apart(submission: &Submission) -> TopologySpreadConstraint {
    let match_labels = Some(Component::Worker.labels(submission.run()));
    TopologySpreadConstraint {
        label_selector: Some(LabelSelector { match_labels, match_expressions: None }),
        max_skew: 1,
        topology_key: "kubernetes.io/hostname".into(),
        when_unsatisfiable: "ScheduleAnyway".into(),
        ..TopologySpreadConstraint::default()
    }
}

fn container(submission: &Submission) -> Container {
    let program = if is_on_gpu(submission) { "polo-worker-cuda" } else { "polo-worker" };
    let exit_code = TERMINATED_EXIT_CODE.to_string();
    Container {
        command: Some(vec![program.into()]),
        args: Some([RECIPE_PATH, "--sigterm-exit-code", &exit_code].map(Into::into).into()),
        env: Some(env(submission)),
        image: Some(submission.worker_image.clone()),
        ports: Some(vec![ContainerPort {
            name: Some("data".into()),
            container_port: DATA_PORT.into(),
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]),
        resources: Some(size(submission)),
        volume_mounts: Some(vec![mount("cache", CACHE, false), mount("shm", "/dev/shm", false)]),
        ..Container::default()
    }
}

fn env(submission: &Submission) -> Vec<EnvVar> {
    let (scheme, coordinator) =
        (if submission.tls.is_some() { "https" } else { "http" }, coordinator_host(submission.run()));
    let mut env = vec![
        index(),
        variable("POLO_WORKER_ID", &worker_id("$(POLO_WORKER_INDEX)")),
        variable("POLO_COORDINATOR", &format!("{scheme}://{coordinator}:{COORDINATOR_PORT}")),
        variable("POLO_LISTEN", &format!("0.0.0.0:{DATA_PORT}")),
        variable("POLO_CACHE", CACHE),
    ];
    // A pod that fills its volume is evicted, so some of it stays free for what is being fetched.
    let cache_bytes = submission.worker.cache_bytes.map(|bytes| (bytes / 10 * 9).to_string());
    env.extend(cache_bytes.map(|bytes| variable("POLO_CACHE_BYTES", &bytes)));
    env
}

fn index() -> EnvVar {
    let field_path = format!("metadata.labels['{INDEX_LABEL}']");
    let field = ObjectFieldSelector { field_path, api_version: None };
    let value_from = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    EnvVar { name: "POLO_WORKER_INDEX".into(), value: None, value_from: Some(value_from) }
}

/// No limit on cores: a worker that is throttled holds up all others, and one that is idle takes from nobody.
fn size(submission: &Submission) -> k8s_openapi::api::core::v1::ResourceRequirements {
    let (cpu, memory) = (cores(submission.worker.millicores), bytes(submission.worker.memory_bytes));
    let mut requests = quantities([("cpu", &cpu), ("memory", &memory)]);
    let mut limits = quantities([("memory", &memory)]);
    if is_on_gpu(submission) {
        for resources in [&mut requests, &mut limits] {
            resources.insert("nvidia.com/gpu".into(), Quantity("1".into()));
        }
    }
    resources(requests, limits)
}
