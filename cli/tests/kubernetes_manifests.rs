//! The manifests of k8s/ are what `polo submit` prints, and what API servers take (`scripts/setup kubernetes checkov`).
#![allow(missing_docs)]

mod kubernetes;
mod support;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use kubernetes::{said, tool};
use serde_json::{Value, json};
use support::{assert_one_error, finish, talk};

const SUBMIT: [&str; 12] = [
    "submit",
    "k8s/recipe.toml",
    "--image",
    "registry.example/polo:0.1.0",
    "--workers",
    "8",
    "--max-workers",
    "16",
    "--tls-secret",
    "example-coordinator-tls",
    "--worker-tls-secret",
    "example-worker-tls",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn polo(args: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polo"));
    command.args(SUBMIT).args(args).current_dir(root());
    // Nothing may be asked of a cluster.
    command.env("KUBECONFIG", "/nowhere").env_remove("KUBERNETES_SERVICE_HOST");
    finish(&mut command)
}

/// What `polo submit` with these options would apply.
fn rendered(args: &[&str]) -> Vec<Value> {
    let output = polo(&[args, &["--dry-run", "--json"]].concat());
    said(&output);
    let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    sorted(list["items"].as_array().expect("a list").clone())
}

/// What kustomize makes of a folder of k8s/, held against the schemas.
fn built(folder: &str) -> Vec<Value> {
    let mut kubectl = Command::new(tool("bin/kubectl"));
    kubectl.arg("kustomize").arg(root().join("k8s").join(folder)).stdout(Stdio::piped());
    let mut kubectl = kubectl.spawn().expect("kubectl starts");
    let mut validate = Command::new(tool("bin/python"));
    validate.arg(root().join("kubernetes/tests/validate.py")).args(["PodMonitor", "Certificate", "Issuer"]);
    let output = validate.stdin(kubectl.stdout.take().expect("piped")).output().expect("python starts");
    assert!(kubectl.wait().expect("ended").success(), "{folder}");
    assert!(output.status.success(), "{folder}: {}", talk(&output));
    sorted(serde_json::from_slice(&output.stdout).expect("JSON"))
}

fn sorted(mut objects: Vec<Value>) -> Vec<Value> {
    objects.sort_by_key(|object| (object["kind"].to_string(), object["metadata"]["name"].to_string()));
    objects
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    objects.iter().find(is_it).unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[test]
fn the_base_is_what_submit_prints() {
    let output = polo(&["--dry-run"]);
    said(&output);
    let base = std::fs::read_to_string(root().join("k8s/base/run.yaml")).expect("the base");
    let (_, base) = base.split_once('\n').expect("a first line that says where it comes from");
    assert!(
        String::from_utf8(output.stdout).expect("UTF-8") == base,
        "k8s/base/run.yaml is old; its README says how to write it anew"
    );
    assert_eq!(built("base"), rendered(&[]));
}

#[test]
fn overlays_do_what_options_do() {
    let secret = ["--secret", "s3-credentials", "--env", "AWS_REGION=eu-central-1"];
    assert_eq!(built("overlays/s3-credentials"), rendered(&secret));
    assert_eq!(built("overlays/kueue"), rendered(&["--queue", "research"]));
}

#[test]
fn the_overlay_for_gpus_differs_from_options_only_in_who_says_it() {
    let options = ["--set", "run.device=cuda", "--worker-image", "registry.example/polo-cuda:0.1.0"];
    let mut expected = rendered(&[&options[..], &["--node-selector", "cloud.example/gpu=h100"]].concat());
    let mut found = built("overlays/gpu-nodes");
    for job in found.iter_mut().filter(|object| object["kind"] == "Job") {
        let env = job.pointer_mut("/spec/template/spec/containers/0/env").and_then(Value::as_array_mut).expect("env");
        assert_eq!(env.pop(), Some(json!({ "name": "POLO__RUN__DEVICE", "value": "cuda" })));
    }
    for objects in [&mut found, &mut expected] {
        objects.retain(|object| object["kind"] != "ConfigMap");
    }
    assert_eq!(found, expected);
}

/// Replicated Jobs of a set by name, and the Jobs of the base that they are.
fn check_replicated_jobs(jobs: &Value, names: [&str; 2], rename: impl Fn(Value) -> Value) {
    let base = rendered(&[]);
    for (job, (name, of)) in
        jobs.as_array().expect("a list").iter().zip(names.into_iter().zip(["coordinator", "worker"]))
    {
        assert_eq!((&job["name"], &job["replicas"]), (&json!(name), &json!(1)));
        let expected = find(&base, "Job", &format!("example-{of}"))["spec"].clone();
        let expected = if name == of { expected } else { rename(expected) };
        assert_eq!(job["template"]["spec"], expected, "{name}");
    }
}

/// All but the Jobs are those of the base.
fn check_others(objects: &[Value], kinds: &[&str]) {
    let others = |objects: &[Value]| -> Vec<Value> {
        let is_other = |object: &&Value| object["kind"] != "Job" && !kinds.iter().any(|kind| object["kind"] == *kind);
        objects.iter().filter(is_other).cloned().collect()
    };
    assert!(!objects.iter().any(|object| object["kind"] == "Job"));
    assert_eq!(others(objects), others(&rendered(&[])));
}

#[test]
fn a_job_set_has_the_jobs_of_the_base_and_succeeds_with_the_coordinator() {
    let objects = built("overlays/jobset");
    check_others(&objects, &["JobSet"]);
    let spec = &find(&objects, "JobSet", "example")["spec"];
    assert_eq!(spec["successPolicy"], json!({ "operator": "All", "targetReplicatedJobs": ["coordinator"] }));
    check_replicated_jobs(&spec["replicatedJobs"], ["coordinator", "worker"], |spec| spec);
}

#[test]
fn a_training_runtime_has_the_jobs_of_the_base_and_calls_workers_nodes() {
    let objects = built("overlays/kubeflow-trainer");
    check_others(&objects, &["TrainingRuntime", "TrainJob"]);
    let runtime = &find(&objects, "TrainingRuntime", "example")["spec"];
    assert_eq!(runtime["mlPolicy"], json!({ "numNodes": 8 }));
    let jobs = &runtime["template"]["spec"]["replicatedJobs"];
    assert_eq!(jobs[1]["template"]["metadata"]["labels"]["trainer.kubeflow.org/trainjob-ancestor-step"], "trainer");
    check_replicated_jobs(jobs, ["coordinator", "node"], |mut spec| {
        spec["template"]["spec"]["containers"][0]["name"] = json!("node");
        for rule in [1, 2] {
            spec["podFailurePolicy"]["rules"][rule]["onExitCodes"]["containerName"] = json!("node");
        }
        spec
    });
    let job = &find(&objects, "TrainJob", "example")["spec"];
    assert_eq!(job["runtimeRef"]["name"], "example");
}

#[test]
fn prometheus_reaches_the_port_that_its_monitor_names() {
    let objects = built("overlays/prometheus");
    let monitor = &find(&objects, "PodMonitor", "example-coordinator")["spec"];
    let job = find(&objects, "Job", "example-coordinator");
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&monitor["selector"]["matchLabels"], labels);
    let ports = job.pointer("/spec/template/spec/containers/0/ports").and_then(Value::as_array).expect("ports");
    let port = ports.iter().find(|port| port["name"] == monitor["podMetricsEndpoints"][0]["port"]).expect("its port");
    let rules = &find(&objects, "NetworkPolicy", "example-coordinator")["spec"]["ingress"];
    assert_eq!(rules[1]["ports"][0]["port"], port["containerPort"]);
}

#[test]
fn cert_manager_makes_every_certificate_that_is_asked_for() {
    let objects = built("overlays/cert-manager");
    let certificates: Vec<_> = objects.iter().filter(|object| object["kind"] == "Certificate").collect();
    for (secret, host) in [
        ("example-coordinator-tls", "example-coordinator"),
        ("example-worker-tls", "worker.polo"),
        ("example-operator-tls", "operator.polo"),
    ] {
        let certificate = certificates.iter().find(|it| it["spec"]["secretName"] == secret).expect(secret);
        assert_eq!(certificate["spec"]["dnsNames"], json!([host]));
        assert_eq!(certificate["spec"]["issuerRef"]["name"], "example-authority");
    }
    let monitor = built("overlays/prometheus");
    let tls = &find(&monitor, "PodMonitor", "example-coordinator")["spec"]["podMetricsEndpoints"][0]["tlsConfig"];
    assert_eq!(
        (&tls["serverName"], &tls["keySecret"]["name"]),
        (&json!("example-coordinator"), &json!("example-operator-tls"))
    );
}

#[test]
fn checkov_objects_to_nothing_that_is_not_answered() {
    let checkov = root().join("third_party/checkov/bin/python");
    assert!(checkov.exists(), "run `scripts/setup checkov` first");
    let mut command = Command::new(checkov);
    command.args(["-m", "checkov.main", "--config-file", "k8s/checkov.yaml", "-f", "k8s/base/run.yaml"]);
    let output = finish(command.args(["-o", "json"]).current_dir(root()));
    let review: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(review["summary"]["passed"].as_u64() > Some(100), "{review}");
    assert_eq!(review["summary"]["failed"], 0, "{review}");
}

#[test]
fn a_submission_that_cannot_work_says_so_without_a_cluster() {
    let refused = |args: &[&str], parts: &[&str]| assert_one_error(&polo(args), parts);
    refused(&["--set", "run.store=run"], &["run.store is", "only this machine can reach", "s3://"]);
    refused(&["--set", "run.store=memory://run"], &["only one process can reach"]);
    refused(&["--set", "corpus.url=corpus"], &["corpus.url is"]);
    refused(&["--set", "run.name=Marco_7B"], &["run.name is \"Marco_7B\"", "no DNS label", "--set run.name=marco-7b"]);
    refused(&["--set", "batch.slots=8"], &["--max-workers is 16", "batch.slots = 8"]);
    refused(&["--set", "workers.min_workers=9"], &["--workers is 8", "workers.min_workers = 9"]);
    refused(&["--env", "AWS_SECRET_ACCESS_KEY=hush"], &["--env AWS_SECRET_ACCESS_KEY", "--secret"]);
    refused(&[], &["cannot tell which cluster is meant", "KUBECONFIG"]);
    let usage = polo(&["--env", "NOTHING"]);
    assert_eq!(usage.status.code(), Some(2), "{}", talk(&usage));
}

#[test]
fn a_tokenizer_of_this_machine_is_left_out_and_that_is_said() {
    let output = polo(&["--dry-run", "--set", "corpus.tokenizer=/here/tokenizer.json"]);
    assert!(said(&output).contains("/here/tokenizer.json"), "{}", talk(&output));
    assert!(!String::from_utf8(output.stdout).expect("UTF-8").contains("tokenizer.json"));
}
