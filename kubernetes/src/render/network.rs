//! Who reaches whom: workers each other and the coordinator, all of them the object store and names, and nobody else them.
//! Probes and port-forwards come from the pod's own node, which no policy keeps out.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        networking::v1::{
            IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
            NetworkPolicyPort, NetworkPolicySpec,
        },
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use polo_recipe::config::Device;
use url::Url;

use super::{metadata, pod::some};
use crate::{COORDINATOR_PORT, DATA_PORT, names::Component, submission::Submission};

const HTTPS: u16 = 443;
const DNS: u16 = 53;

/// Where pods learn who they are in a cloud: machines of all clouds, Google's and Amazon's agents on a node.
const METADATA_SERVERS: [(&str, u16); 3] =
    [("169.254.169.254/32", 80), ("169.254.169.252/32", 988), ("169.254.170.23/32", 80)];

/// The coordinator's name. It has no address of its own, and is there before the coordinator is ready, since that decides
/// itself whom it serves.
pub fn service(submission: &Submission) -> Service {
    let (component, run) = (Component::Coordinator, submission.run());
    let app_protocol = if submission.tls.is_some() { "https" } else { "kubernetes.io/h2c" };
    let port = ServicePort {
        name: Some("grpc".into()),
        app_protocol: Some(app_protocol.into()),
        port: COORDINATOR_PORT.into(),
        protocol: Some("TCP".into()),
        target_port: Some(IntOrString::String("grpc".into())),
        ..ServicePort::default()
    };
    let spec = ServiceSpec {
        cluster_ip: Some("None".into()),
        ports: Some(vec![port]),
        publish_not_ready_addresses: Some(true),
        selector: Some(component.labels(run)),
        ..ServiceSpec::default()
    };
    let metadata = metadata(submission, component.object_name(run), component.labels(run));
    Service { metadata, spec: Some(spec), status: None }
}

pub fn policies(submission: &Submission) -> impl Iterator<Item = NetworkPolicy> {
    let run = submission.run();
    let [coordinator, worker] = [Component::Coordinator, Component::Worker].map(|component| pods(run, component));
    let data = data_ports(submission);
    let data = || data.clone();
    let coordination = || some(vec![tcp(COORDINATOR_PORT)]);
    let accepts_workers = vec![from(vec![worker.clone()], coordination())];
    // The coordinator knocks at a worker's data plane to find out whether it is gone.
    let accepts_all = vec![from(vec![worker.clone(), coordinator.clone()], data())];
    let knocks = to(vec![worker.clone()], data());
    let joins = vec![to(vec![coordinator], coordination()), to(vec![worker], data())];
    [
        policy(submission, Component::Coordinator, accepts_workers, vec![knocks]),
        policy(submission, Component::Worker, accepts_all, joins),
    ]
    .into_iter()
}

fn policy(
    submission: &Submission,
    component: Component,
    ingress: Vec<NetworkPolicyIngressRule>,
    egress: Vec<NetworkPolicyEgressRule>,
) -> NetworkPolicy {
    let labels = component.labels(submission.run());
    let spec = NetworkPolicySpec {
        pod_selector: Some(selector(submission.run(), component)),
        policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
        ingress: Some(ingress),
        egress: Some(egress.into_iter().chain(outside(submission)).collect()),
    };
    let metadata = metadata(submission, component.object_name(submission.run()), labels);
    NetworkPolicy { metadata, spec: Some(spec) }
}

/// Names, the object store, and who says under which identity a pod reaches it when no Secret does.
fn outside(submission: &Submission) -> Vec<NetworkPolicyEgressRule> {
    let names = to_anywhere(vec![port("UDP", DNS), tcp(DNS)]);
    let store = to_anywhere(store_ports(submission).into_iter().map(tcp).collect());
    let identity = METADATA_SERVERS.map(|(address, port)| {
        let ip_block = Some(IPBlock { cidr: address.into(), except: None });
        to(vec![NetworkPolicyPeer { ip_block, ..NetworkPolicyPeer::default() }], Some(vec![tcp(port)]))
    });
    let identity = identity.into_iter().filter(|_| submission.secrets.is_empty());
    [names, store].into_iter().chain(identity).collect()
}

/// That of clouds, and those of the servers that the environment names.
fn store_ports(submission: &Submission) -> BTreeSet<u16> {
    let urls = submission.env.values().filter_map(|value| Url::parse(value).ok());
    let servers =
        urls.filter(|url| ["http", "https"].contains(&url.scheme())).filter_map(|url| url.port_or_known_default());
    servers.chain([HTTPS]).collect()
}

/// NCCL takes any ports.
fn data_ports(submission: &Submission) -> Option<Vec<NetworkPolicyPort>> {
    (submission.recipe.run.device == Device::Cpu).then(|| vec![tcp(DATA_PORT)])
}

fn selector(run: &str, component: Component) -> LabelSelector {
    LabelSelector { match_labels: Some(component.labels(run)), match_expressions: None }
}

fn pods(run: &str, component: Component) -> NetworkPolicyPeer {
    NetworkPolicyPeer { pod_selector: Some(selector(run, component)), ..NetworkPolicyPeer::default() }
}

fn from(peers: Vec<NetworkPolicyPeer>, ports: Option<Vec<NetworkPolicyPort>>) -> NetworkPolicyIngressRule {
    NetworkPolicyIngressRule { from: Some(peers), ports }
}

fn to(peers: Vec<NetworkPolicyPeer>, ports: Option<Vec<NetworkPolicyPort>>) -> NetworkPolicyEgressRule {
    NetworkPolicyEgressRule { to: Some(peers), ports }
}

fn to_anywhere(ports: Vec<NetworkPolicyPort>) -> NetworkPolicyEgressRule {
    NetworkPolicyEgressRule { to: None, ports: Some(ports) }
}

fn tcp(number: u16) -> NetworkPolicyPort {
    port("TCP", number)
}

fn port(protocol: &str, number: u16) -> NetworkPolicyPort {
    let port = Some(IntOrString::Int(number.into()));
    NetworkPolicyPort { port, protocol: Some(protocol.into()), end_port: None }
}
