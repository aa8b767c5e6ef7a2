//! What the pods of coordinator and workers have in common.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvFromSource, EnvVar, KeyToPath,
        LocalObjectReference, PodSecurityContext, PodSpec, PodTemplateSpec, ResourceRequirements, SeccompProfile,
        SecretEnvSource, SecurityContext, Toleration, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use super::{RECIPE_KEY, protection};
use crate::{
    names::Component,
    submission::{Account, Submission},
};

/// Where the recipe lies in a container.
pub const RECIPE_PATH: &str = "/etc/polo/recipe.toml";

/// A user that no image needs to know.
const NOBODY: i64 = 65532;

/// A pod with one container. `pod` and `container` say what is special about them.
pub fn template(submission: &Submission, component: Component, pod: PodSpec, container: Container) -> PodTemplateSpec {
    let own = |volumes: Option<Vec<Volume>>| volumes.unwrap_or_default();
    let mounts = container.volume_mounts.clone().unwrap_or_default();
    let container = Container {
        name: component.as_str().into(),
        env: Some(env(submission, component, container.env.clone().unwrap_or_default())),
        env_from: some(submission.secrets.iter().map(|secret| variables_of(secret)).collect()),
        security_context: Some(container_security()),
        // What a program says last is the reason that `kubectl describe` shows.
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        volume_mounts: Some([mounts_of_all(submission), mounts].concat()),
        ..container
    };
    let spec = PodSpec {
        automount_service_account_token: Some(false),
        containers: vec![container],
        // Else every Service of the namespace would become variables, of which `POLO_...` mean something else here.
        enable_service_links: Some(false),
        image_pull_secrets: some(submission.image_pull_secrets.iter().map(|name| reference(name)).collect()),
        security_context: Some(pod_security()),
        service_account_name: Some(account_name(submission)),
        volumes: Some([volumes_of_all(submission, component), own(pod.volumes.clone())].concat()),
        ..pod
    };
    let metadata = ObjectMeta { labels: Some(pod_labels(submission, component)), ..ObjectMeta::default() };
    PodTemplateSpec { metadata: Some(metadata), spec: Some(spec) }
}

/// Azure's webhook hands out identities to pods that ask for it by a label, Amazon's and Google's by the account alone.
fn pod_labels(submission: &Submission, component: Component) -> BTreeMap<String, String> {
    let mut labels = component.labels(submission.run());
    if let Account::Own { annotations } = &submission.account
        && annotations.keys().any(|key| key.starts_with("azure.workload.identity/"))
    {
        labels.insert("azure.workload.identity/use".into(), "true".into());
    }
    labels
}

fn account_name(submission: &Submission) -> String {
    match &submission.account {
        Account::Own { .. } => submission.run().into(),
        Account::Existing(name) => name.clone(),
    }
}

fn volumes_of_all(submission: &Submission, component: Component) -> Vec<Volume> {
    let files = submission.tls.as_ref().map(|tls| protection::volume(tls, component));
    [recipe_volume(submission), scratch("tmp", None)].into_iter().chain(files).collect()
}

fn mounts_of_all(submission: &Submission) -> Vec<VolumeMount> {
    let files = submission.tls.as_ref().map(|_| protection::volume_mount());
    [mount("recipe", "/etc/polo", true), mount("tmp", "/tmp", false)].into_iter().chain(files).collect()
}

fn env(submission: &Submission, component: Component, own: Vec<EnvVar>) -> Vec<EnvVar> {
    let files = submission.tls.iter().flat_map(|tls| protection::env(tls, component));
    let given = submission.env.iter().map(|(name, value)| variable(name, value));
    [variable("HOME", "/tmp")].into_iter().chain(own).chain(files).chain(given).collect()
}

/// An environment variable.
pub fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()), ..EnvVar::default() }
}

fn variables_of(secret: &str) -> EnvFromSource {
    let secret_ref = SecretEnvSource { name: secret.into(), ..SecretEnvSource::default() };
    EnvFromSource { secret_ref: Some(secret_ref), ..EnvFromSource::default() }
}

fn reference(name: &str) -> LocalObjectReference {
    LocalObjectReference { name: name.into() }
}

/// A volume's place in a container.
pub fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    let read_only = read_only.then_some(true);
    VolumeMount { name: volume.into(), mount_path: path.into(), read_only, ..VolumeMount::default() }
}

fn recipe_volume(submission: &Submission) -> Volume {
    let item = KeyToPath { key: RECIPE_KEY.into(), path: RECIPE_KEY.into(), ..KeyToPath::default() };
    let source = ConfigMapVolumeSource {
        name: submission.run().into(),
        items: Some(vec![item]),
        ..ConfigMapVolumeSource::default()
    };
    Volume { name: "recipe".into(), config_map: Some(source), ..Volume::default() }
}

/// A folder on the node's disk that lives as long as the pod.
pub fn scratch(name: &str, most_bytes: Option<u64>) -> Volume {
    let size_limit = most_bytes.map(|most| Quantity(bytes(most)));
    let empty_dir = EmptyDirVolumeSource { size_limit, ..EmptyDirVolumeSource::default() };
    Volume { name: name.into(), empty_dir: Some(empty_dir), ..Volume::default() }
}

/// A folder in memory; what lies there counts as the container's.
pub fn memory(name: &str) -> Volume {
    let empty_dir = EmptyDirVolumeSource { medium: Some("Memory".into()), ..EmptyDirVolumeSource::default() };
    Volume { name: name.into(), empty_dir: Some(empty_dir), ..Volume::default() }
}

/// Cores as a quantity: `8` or `500m`.
pub fn cores(millicores: u64) -> String {
    if millicores.is_multiple_of(1000) { (millicores / 1000).to_string() } else { format!("{millicores}m") }
}

/// Bytes as a quantity, in the largest unit that gives a whole number.
pub fn bytes(bytes: u64) -> String {
    let units = [("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
    let unit = units.into_iter().find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size));
    unit.map_or(bytes.to_string(), |(name, size)| format!("{}{name}", bytes / size))
}

/// Quantities by the names of resources.
pub fn quantities<const N: usize>(of: [(&str, &str); N]) -> BTreeMap<String, Quantity> {
    of.map(|(name, quantity)| (name.to_owned(), Quantity(quantity.to_owned()))).into()
}

/// What is asked for, and what is never exceeded.
pub fn resources(requests: BTreeMap<String, Quantity>, limits: BTreeMap<String, Quantity>) -> ResourceRequirements {
    ResourceRequirements { requests: Some(requests), limits: Some(limits), claims: None }
}

/// What Kubernetes calls restricted: it cannot become root, and has the system calls that every container has.
fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        fs_group: Some(NOBODY),
        run_as_group: Some(NOBODY),
        run_as_non_root: Some(true),
        run_as_user: Some(NOBODY),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// How soon a pod is given up when its node is: Kubernetes waits for 300 s by itself.
pub fn leave_lost_nodes_after(seconds: i64) -> Vec<Toleration> {
    let toleration = |condition: &str| Toleration {
        key: Some(format!("node.kubernetes.io/{condition}")),
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        toleration_seconds: Some(seconds),
        value: None,
    };
    ["not-ready", "unreachable"].map(toleration).into()
}

/// Nothing in the place of an empty list.
pub fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}
