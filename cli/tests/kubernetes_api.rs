//! `polo submit`, `scale`, `logs`, `status` and `delete` against an API server over HTTPS (`scripts/setup kubernetes`):
//! server-side apply with owners of fields, and every kind of refusal.
#![allow(missing_docs)]

mod kubernetes;
mod support;

use kubernetes::{ApiServer, said};
use serde_json::{Value, json};
use support::{Running, assert_one_error, talk};

const OBJECTS: [(&str, &str); 8] = [
    ("configmaps", "demo"),
    ("jobs", "demo-coordinator"),
    ("jobs", "demo-worker"),
    ("networkpolicies", "demo-coordinator"),
    ("networkpolicies", "demo-worker"),
    ("poddisruptionbudgets", "demo-worker"),
    ("serviceaccounts", "demo"),
    ("services", "demo-coordinator"),
];

/// What is there but pods.
fn objects(server: &ApiServer) -> Vec<(String, String)> {
    server.names().into_iter().filter(|(plural, _)| plural != "pods").collect()
}

fn pods(server: &ApiServer) -> Vec<String> {
    server.names().into_iter().filter(|(plural, _)| plural == "pods").map(|(_, name)| name).collect()
}

fn all_objects() -> Vec<(String, String)> {
    OBJECTS.map(|(plural, name)| (plural.to_owned(), name.to_owned())).into()
}

fn worker_pod(index: usize) -> String {
    format!("demo-worker-{index}-pod")
}

fn finished(kind: &str, message: &str) -> Value {
    json!({ "conditions": [{ "type": kind, "status": "True", "message": message }] })
}

#[test]
fn a_run_is_submitted_scaled_and_deleted() {
    let server = ApiServer::start();
    let output = server.submit(&["--workers", "3", "--max-workers", "5", "--json"]);
    let talk = said(&output);
    assert!(talk.contains("job/demo-worker created") && talk.contains("polo status --run demo"), "{talk}");
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&told["run"], &told["namespace"]), (&json!("demo"), &json!("research")));
    assert_eq!(told["objects"].as_array().map(Vec::len), Some(8));
    assert_eq!(objects(&server), all_objects());
    assert_eq!(pods(&server).len(), 1 + 3);
    let owners = &server.object("jobs", "demo-worker")["metadata"]["managedFields"];
    assert_eq!((&owners[0]["manager"], &owners[0]["operation"]), (&json!("polo"), &json!("Apply")));

    let talk = said(&server.submit(&["--workers", "3", "--max-workers", "5"]));
    assert!(talk.lines().filter(|line| line.ends_with(" unchanged")).count() == 8, "{talk}");

    let output = server.polo(&["scale", "demo", "5", "--json"]);
    assert!(said(&output).contains("run demo: 5 workers, of 3 before"), "{}", support::talk(&output));
    assert_eq!(
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON"),
        json!({ "run": "demo", "from": 3, "to": 5 })
    );
    let spec = &server.object("jobs", "demo-worker")["spec"];
    assert_eq!((&spec["parallelism"], &spec["completions"]), (&json!(5), &json!(5)));
    assert_eq!(server.object("configmaps", "demo")["data"]["workers"], "5");
    assert!(pods(&server).contains(&worker_pod(4)));

    // What the user says now goes before what they said to `polo scale`; nobody else has a say in it.
    let talk = said(&server.submit(&["--workers", "2", "--max-workers", "5"]));
    assert!(talk.contains("job/demo-worker configured"), "{talk}");
    assert_eq!(server.object("jobs", "demo-worker")["spec"]["parallelism"], 2);
    assert_eq!(server.object("poddisruptionbudgets", "demo-worker")["spec"]["minAvailable"], 1);
    said(&server.polo(&["scale", "demo", "3"]));
    assert_eq!(server.object("poddisruptionbudgets", "demo-worker")["spec"]["minAvailable"], 2);

    server.order(json!({ "do": "requests" }));
    let talk = said(&server.polo(&["delete", "demo"]));
    assert!(talk.contains("job/demo-worker deleted") && talk.contains("configmap/demo deleted"), "{talk}");
    assert_eq!(server.names(), []);
    // The coordinator hears what workers hand back: it goes after they are gone.
    let requests = server.order(json!({ "do": "requests" }));
    let place = |part: &str| {
        let found =
            requests.as_array().expect("a list").iter().position(|r| r.as_str().expect("text").starts_with(part));
        found.unwrap_or_else(|| panic!("no {part} in {requests}"))
    };
    let jobs = "/apis/batch/v1/namespaces/research/jobs";
    let waited = place(&format!("GET {jobs}/demo-worker"));
    assert!(
        place(&format!("DELETE {jobs}/demo-worker")) < waited
            && waited < place(&format!("DELETE {jobs}/demo-coordinator"))
    );
}

#[test]
fn a_run_is_deleted_without_waiting() {
    let server = ApiServer::start();
    said(&server.submit(&["--workers", "2"]));
    let output = server.polo(&["delete", "demo", "--no-wait", "--json"]);
    said(&output);
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told["objects"].as_array().map(Vec::len), Some(8));
    assert_eq!(objects(&server), []);
}

#[test]
fn what_is_not_gone_in_time_is_named() {
    let server = ApiServer::start();
    said(&server.submit(&["--workers", "2"]));
    let output = server.polo(&["delete", "demo", "--timeout-s", "0"]);
    assert_one_error(&output, &["not gone after 0 s: job/demo-worker", "--timeout-s"]);
    // The rest is there for the next try.
    assert_eq!(server.object("configmaps", "demo")["kind"], "ConfigMap");
    said(&server.polo(&["delete", "demo"]));
    assert_eq!(objects(&server), []);
}

#[test]
fn what_others_have_set_is_taken_only_by_force() {
    let server = ApiServer::start();
    said(&server.submit(&["--workers", "4"]));
    let patch = json!({ "spec": { "parallelism": 2, "completions": 2 } });
    server.order(
        json!({ "do": "patch", "key": ["jobs", "research", "demo-worker"], "manager": "kueue", "patch": patch }),
    );
    let output = server.submit(&["--workers", "4"]);
    let parts = ["job/demo-worker", "spec.parallelism is kueue's", "spec.completions is kueue's", "--force"];
    assert_one_error(&output, &parts);
    assert_eq!(server.object("jobs", "demo-worker")["spec"]["parallelism"], 2);
    let talk = said(&server.submit(&["--workers", "4", "--force"]));
    assert!(talk.contains("job/demo-worker configured"), "{talk}");
    assert_eq!(server.object("jobs", "demo-worker")["spec"]["parallelism"], 4);
    said(&server.submit(&["--workers", "4"]));
}

#[test]
fn kueue_keeps_the_say_over_when_workers_start() {
    let server = ApiServer::start();
    let submit = || said(&server.submit(&["--workers", "4", "--queue", "research"]));
    submit();
    let job = server.object("jobs", "demo-worker");
    assert_eq!(
        (&job["spec"]["suspend"], &job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]),
        (&json!(true), &json!("research"))
    );
    assert_eq!(pods(&server).len(), 1);
    submit();
    assert_eq!(server.object("jobs", "demo-worker")["spec"]["suspend"], true);
    let start = json!({ "spec": { "suspend": false } });
    server.order(
        json!({ "do": "patch", "key": ["jobs", "research", "demo-worker"], "manager": "kueue", "patch": start }),
    );
    submit();
    assert_eq!(server.object("jobs", "demo-worker")["spec"]["suspend"], false);
    assert_eq!(pods(&server).len(), 1 + 4);
}

#[test]
fn whoever_may_not_is_told_what_is_missing() {
    let server = ApiServer::start();
    let forbidden = |args: &[&str], verb: &str, resource: &str| {
        let output = server.polo(&[args, &["--context", "viewer"]].concat());
        assert_one_error(
            &output,
            &[&format!("you may not {verb} {resource} in namespace research"), "User \"viewer\"", "Role"],
        );
    };
    let submit = ["submit", "recipe.toml", "--image", "polo", "--workers", "2", "--insecure"];
    forbidden(&submit, "patch", "serviceaccounts");
    assert_eq!(server.names(), []);
    said(&server.submit(&["--workers", "2"]));
    forbidden(&["scale", "demo", "3"], "patch", "jobs.batch");
    forbidden(&["delete", "demo"], "delete", "jobs.batch");
    forbidden(&["status", "--run", "demo"], "create", "pods/portforward");
    assert_eq!(objects(&server), all_objects());
    let output = server.submit(&["--workers", "2", "--context", "stranger"]);
    assert_one_error(&output, &["does not know who you are", "--context"]);
    let output = server.submit(&["--workers", "2", "--context", "nobody"]);
    assert_one_error(&output, &["cannot tell which cluster is meant", "nobody"]);
}

#[test]
fn rules_of_the_cluster_are_said_as_they_are() {
    let server = ApiServer::start();
    let message = "exceeded quota: gpus, requested: 8, used: 4, limited: 8";
    server.order(json!({ "do": "deny", "verb": "patch", "plural": "jobs", "message": message }));
    assert_one_error(&server.submit(&["--workers", "2"]), &["job/demo-coordinator", "rules refuse it", message]);
}

#[test]
fn what_is_fixed_in_a_job_is_named() {
    let server = ApiServer::start();
    said(&server.submit(&["--workers", "2"]));
    let output = server.submit(&["--workers", "2", "--worker-image", "registry.example/polo:0.2.0"]);
    assert_one_error(&output, &["job/demo-worker", "spec.template is immutable", "delete the run and submit it again"]);
}

#[test]
fn another_run_or_someone_elses_object_is_left_alone() {
    let server = ApiServer::start();
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "demo" }, "data": { "a": "b" } });
    let key = json!(["configmaps", "research", "demo"]);
    server.order(json!({ "do": "apply", "key": key, "manager": "someone", "obj": map }));
    assert_one_error(&server.submit(&["--workers", "2"]), &["configmap/demo is there already and is not of this run"]);
    assert_eq!(server.names(), [("configmaps".to_owned(), "demo".to_owned())]);
    said(&server.submit(&["--workers", "2", "--set", "run.name=other"]));
    let output = server.submit(&["--workers", "2", "--set", "run.name=other", "--set", "run.seed=7"]);
    assert_one_error(&output, &["run other is there already with another recipe", "run.name"]);
    // What does not decide the trained numbers may change.
    let talk = said(&server.submit(&["--workers", "2", "--set", "run.name=other", "--set", "checkpoint.keep=9"]));
    assert!(talk.contains("configmap/other configured") && talk.contains("job/other-worker unchanged"), "{talk}");
}

#[test]
fn a_run_that_has_ended_is_not_submitted_over() {
    let server = ApiServer::start();
    said(&server.submit(&["--workers", "2"]));
    let key = json!(["jobs", "research", "demo-coordinator"]);
    server.order(json!({ "do": "status", "key": key, "status": finished("Complete", "") }));
    assert_one_error(&server.submit(&["--workers", "2"]), &["run demo has ended here (completed)", "delete it"]);
    let failed = finished("Failed", "Job has reached the specified backoff limit");
    server.order(json!({ "do": "status", "key": key, "status": failed }));
    assert_one_error(&server.submit(&["--workers", "2"]), &["failed: Job has reached the specified backoff limit"]);
}

#[test]
fn a_scale_out_of_bounds_and_a_run_that_is_not_there_are_named() {
    let server = ApiServer::start();
    said(&server.submit(&["--workers", "3", "--max-workers", "5"]));
    for workers in ["1", "6"] {
        assert_one_error(&server.polo(&["scale", "demo", workers]), &["run demo can have from 2 to 5"]);
    }
    assert_eq!(server.object("jobs", "demo-worker")["spec"]["parallelism"], 3);
    for args in [&["scale", "dmeo", "3"][..], &["delete", "dmeo"], &["logs", "dmeo"], &["status", "--run", "dmeo"]] {
        assert_one_error(&server.polo(args), &["no run dmeo in namespace research", "runs there: demo"]);
    }
    let output = server.polo(&["delete", "demo", "--namespace", "elsewhere"]);
    assert_one_error(&output, &["no run demo in namespace elsewhere; there are none at all"]);
}

#[test]
fn logs_are_those_of_all_or_of_one() {
    let server = ApiServer::start();
    said(&server.submit(&["--workers", "2"]));
    let logs = |args: &[&str]| {
        let output = server.polo(&[&["logs", "demo"], args].concat());
        said(&output);
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let last = "coordinator  coordinator says three\nworker-0  worker says three\nworker-1  worker says three\n";
    assert_eq!(logs(&["--tail", "1"]), last);
    assert_eq!(logs(&["--coordinator"]).lines().count(), 3);
    assert_eq!(logs(&["--worker", "worker-1", "--tail", "1"]), "worker-1  worker says three\n");
    assert_eq!(logs(&["--worker", "1", "--tail", "1"]), "worker-1  worker says three\n");
    let json: Value = serde_json::from_str(&logs(&["--coordinator", "--tail", "1", "--json"])).expect("JSON");
    assert_eq!((&json["who"], &json["line"]), (&json!("coordinator"), &json!("coordinator says three")));
    assert_one_error(&server.polo(&["logs", "demo", "--worker", "9"]), &["no pod of run demo is called 9"]);
    let waiting = json!({ "phase": "Pending" });
    server.order(json!({ "do": "status", "key": ["pods", "research", worker_pod(0)], "status": waiting }));
    let output = server.polo(&["logs", "demo", "--worker", "0"]);
    assert!(said(&output).contains("waiting to start: ContainerCreating"), "{}", talk(&output));
}

#[test]
fn followed_logs_go_on_until_all_have_ended() {
    let server = ApiServer::start();
    said(&server.submit(&["--workers", "2"]));
    let following = server.command(&["logs", "demo", "--follow", "--tail", "1"]);
    let following = std::thread::spawn(move || support::finish(&mut { following }));
    // A worker that comes later is heard, too.
    said(&server.polo(&["scale", "demo", "3"]));
    server.order(json!({ "do": "say", "pod": worker_pod(2), "line": "last words" }));
    let ended = json!({ "phase": "Succeeded" });
    for pod in pods(&server) {
        server.order(json!({ "do": "status", "key": ["pods", "research", pod], "status": ended }));
    }
    let output = following.join().expect("ended");
    said(&output);
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    for line in ["coordinator  coordinator says three", "worker-1  worker says three", "worker-2  last words"] {
        assert!(lines.contains(line), "{line:?} is not in:\n{lines}");
    }
}

#[test]
fn a_coordinator_that_does_not_run_is_explained() {
    let server = ApiServer::start();
    said(&server.submit(&["--workers", "2"]));
    let pending = json!({
        "phase": "Pending",
        "conditions": [{ "type": "PodScheduled", "status": "False", "message": "0/3 nodes are available" }],
    });
    let pod = json!(["pods", "research", "demo-coordinator-0-pod"]);
    server.order(json!({ "do": "status", "key": pod, "status": pending }));
    let output = server.polo(&["status", "--run", "demo"]);
    assert_one_error(
        &output,
        &["coordinator of run demo", "demo-coordinator-0-pod is pending", "0/3 nodes are available"],
    );
    let job = json!(["jobs", "research", "demo-coordinator"]);
    server.order(json!({ "do": "status", "key": job, "status": finished("Complete", "") }));
    assert_one_error(&server.polo(&["status", "--run", "demo"]), &["run demo has ended here (completed)"]);
}

#[test]
fn a_coordinator_that_does_not_listen_yet_is_no_riddle() {
    let server = ApiServer::start();
    said(&server.submit(&["--workers", "2"]));
    let output = server.polo(&["status", "--run", "demo"]);
    assert_one_error(
        &output,
        &["coordinator of run demo", "pod/demo-coordinator-0-pod does not listen yet (error forwarding"],
    );
}

#[test]
fn status_and_orders_reach_the_coordinator_through_the_api_server() {
    let server = ApiServer::start();
    said(&server.submit(&["--workers", "2"]));
    let world = support::World::new();
    let mut coordinator = Running::start(&mut world.polo(&["coordinator", "recipe.toml", "--listen", "127.0.0.1:0"]));
    let address = coordinator.address().trim_start_matches("http://").to_owned();
    server.order(json!({ "do": "coordinator", "address": address }));
    let output = server.polo(&["status", "--run", "demo", "--json"]);
    said(&output);
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&status["run"], &status["phase"]), (&json!("small"), &json!("waiting")));
    assert_one_error(
        &server.polo(&["drain", "worker-7", "--run", "demo"]),
        &["run demo in namespace research answered"],
    );
    let talk = said(&server.polo(&["stop", "--run", "demo"]));
    assert!(talk.contains("the run stops"), "{talk}");
    coordinator.finish();
}
