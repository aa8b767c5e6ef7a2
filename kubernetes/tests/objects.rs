//! The objects of a run, as an API server would take them, and what they promise.
#![allow(missing_docs)]

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use polo_kubernetes::{Account, Submission, SubmissionError, TlsSecrets, WorkerSize, render, to_yaml};
use polo_recipe::config::{Device, Recipe};
use serde_json::{Value, json};

const RECIPE: &str = r#"
    run = { name = "small", store = "s3://bucket/run" }
    corpus = { url = "s3://bucket/corpus" }
    batch = { seq_len = 8, samples_per_step = 16, slots = 16 }
    [model.qwen2]
    hidden_size = 8
    num_hidden_layers = 1
    num_attention_heads = 2
    num_key_value_heads = 1
    intermediate_size = 12
    vocab_size = 20
    [[stages]]
    name = "one"
    steps = 5
    schedule = { kind = "constant", peak_learning_rate = 1e-3 }
    sources = [{ name = "en", weight_tokens = 1 }]
"#;

fn submission() -> Submission {
    let recipe = Recipe::from_resolved(RECIPE).expect("a recipe");
    Submission {
        worker: WorkerSize::of(&recipe, 8),
        recipe,
        namespace: None,
        coordinator_image: "registry.example/polo:0.1.0".into(),
        worker_image: "registry.example/polo:0.1.0".into(),
        image_pull_secrets: Vec::new(),
        workers: 8,
        max_workers: 16,
        env: BTreeMap::new(),
        secrets: Vec::new(),
        account: Account::Own { annotations: BTreeMap::new() },
        node_selector: BTreeMap::new(),
        queue: None,
        tls: None,
        insecure: true,
    }
}

fn map<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.map(|(key, value)| (key.into(), value.into())).into()
}

/// On GPUs, with all that can be asked for.
fn rich_submission() -> Submission {
    let mut submission = submission();
    submission.recipe.run.device = Device::Cuda;
    submission.recipe.workers.min_workers = 4;
    submission.recipe.workers.drain_timeout_s = 45;
    submission.namespace = Some("research".into());
    submission.worker_image = "registry.example/polo-cuda:0.1.0".into();
    submission.image_pull_secrets = vec!["registry".into()];
    submission.worker = WorkerSize { millicores: 7500, memory_bytes: 100_000_000_000, cache_bytes: Some(200 << 30) };
    submission.env = map([("AWS_ENDPOINT_URL", "http://minio.storage:9000"), ("POLO_LOG", "info"), ("LOOKS", "true")]);
    submission.secrets = vec!["s3-credentials".into(), "more".into()];
    submission.node_selector = map([("cloud.example/gpu", "h100")]);
    submission.queue = Some("research".into());
    submission.tls = Some(TlsSecrets {
        coordinator: "small-coordinator-tls".into(),
        worker: Some("small-worker-tls".into()),
        tokens: Some("small-tokens".into()),
    });
    submission.insecure = false;
    submission
}

fn with_identity() -> Submission {
    let annotations = map([("azure.workload.identity/client-id", "00000000-0000-0000-0000-000000000000")]);
    Submission { account: Account::Own { annotations }, ..submission() }
}

fn with_account_of_others() -> Submission {
    Submission { account: Account::Existing("trainer".into()), workers: 1, max_workers: 1, ..submission() }
}

/// What an independent reader of YAML and schemas makes of it.
fn checked(yaml: &str) -> Result<Vec<Value>, String> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/kubernetes/bin/python");
    assert!(python.exists(), "run `scripts/setup kubernetes` first");
    let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/validate.py"].iter().collect();
    let mut command = Command::new(python);
    command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("python starts");
    child.stdin.take().expect("piped").write_all(yaml.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("python ends");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&output.stdout).expect("JSON"))
}

fn objects(submission: &Submission) -> Vec<Value> {
    render(submission).into_iter().map(|object| object.value).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    objects.iter().find(is_it).unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[test]
fn all_objects_pass_strict_validation_and_their_yaml_says_the_same() {
    for submission in [submission(), rich_submission(), with_identity(), with_account_of_others()] {
        assert_eq!(submission.check(), Ok(()));
        let rendered = render(&submission);
        let found = checked(&to_yaml(&rendered)).unwrap_or_else(|problem| panic!("{problem}"));
        assert_eq!(found, rendered.into_iter().map(|object| object.value).collect::<Vec<_>>());
    }
}

#[test]
fn validation_would_notice_a_field_that_does_not_exist() {
    let yaml = to_yaml(&render(&submission())).replace("completionMode:", "completionModes:");
    let problem = checked(&yaml).expect_err("an unknown field");
    assert!(problem.contains("completionModes"), "{problem}");
}

#[test]
fn the_recipe_comes_back_whole() {
    let submission = rich_submission();
    let objects = checked(&to_yaml(&render(&submission))).expect("valid");
    let text = find(&objects, "ConfigMap", "small")["data"]["recipe.toml"].as_str().expect("text").to_owned();
    assert_eq!(Recipe::from_resolved(&text).expect("a recipe"), submission.recipe);
}

#[test]
fn workers_that_are_evicted_come_back_and_do_not_count_as_failures() {
    let objects = objects(&rich_submission());
    let spec = &find(&objects, "Job", "small-worker")["spec"];
    assert_eq!(
        (&spec["completionMode"], &spec["parallelism"], &spec["completions"]),
        (&json!("Indexed"), &json!(8), &json!(8))
    );
    let rules = json!([
        { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
        { "action": "Ignore", "onExitCodes": { "containerName": "worker", "operator": "In", "values": [75] } },
        { "action": "FailIndex", "onExitCodes": { "containerName": "worker", "operator": "In", "values": [2] } },
    ]);
    assert_eq!(spec["podFailurePolicy"]["rules"], rules);
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["containers"][0]["args"], json!(["/etc/polo/recipe.toml", "--sigterm-exit-code", "75"]));
    // Longer than the 45 s that a drain may take.
    assert_eq!(pod["terminationGracePeriodSeconds"], 75);
    assert_eq!(find(&objects, "PodDisruptionBudget", "small-worker")["spec"]["minAvailable"], 4);
}

#[test]
fn a_budget_never_keeps_the_last_worker_from_being_evicted() {
    let mut submission = rich_submission();
    submission.workers = 4;
    let objects = objects(&submission);
    assert_eq!(find(&objects, "PodDisruptionBudget", "small-worker")["spec"]["minAvailable"], 3);
}

#[test]
fn pods_are_restricted_and_have_no_token() {
    for submission in [submission(), rich_submission()] {
        for job in objects(&submission).iter().filter(|object| object["kind"] == "Job") {
            let pod = &job["spec"]["template"]["spec"];
            assert_eq!(pod["automountServiceAccountToken"], false);
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            let container = &pod["containers"][0]["securityContext"];
            assert_eq!(container["allowPrivilegeEscalation"], false);
            assert_eq!(container["readOnlyRootFilesystem"], true);
            assert_eq!(container["capabilities"], json!({ "drop": ["ALL"] }));
        }
    }
}

#[test]
fn secrets_are_named_and_never_written() {
    let objects = objects(&rich_submission());
    assert!(!objects.iter().any(|object| object["kind"] == "Secret"));
    for name in ["small-coordinator", "small-worker"] {
        let container = &find(&objects, "Job", name)["spec"]["template"]["spec"]["containers"][0];
        let from = json!([{ "secretRef": { "name": "s3-credentials" } }, { "secretRef": { "name": "more" } }]);
        assert_eq!(container["envFrom"], from);
    }
}

/// Whom pods of a component may reach, as `port/protocol`, by whether the destination is pods, an address or anything.
fn egress(objects: &[Value], name: &str) -> Vec<(String, Vec<u64>)> {
    let rules = find(objects, "NetworkPolicy", name)["spec"]["egress"].as_array().expect("rules").clone();
    let whom = |rule: &Value| match &rule["to"] {
        Value::Null => "anybody".to_owned(),
        to if to[0].get("ipBlock").is_some() => to[0]["ipBlock"]["cidr"].as_str().expect("text").into(),
        to => to[0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"].as_str().expect("text").into(),
    };
    let ports =
        |rule: &Value| rule["ports"].as_array().into_iter().flatten().filter_map(|p| p["port"].as_u64()).collect();
    rules.iter().map(|rule| (whom(rule), ports(rule))).collect()
}

#[test]
fn pods_reach_each_other_names_and_the_store_and_nobody_else() {
    let plain = objects(&submission());
    let of_metadata = [("169.254.169.254/32", 80), ("169.254.169.252/32", 988), ("169.254.170.23/32", 80)];
    let of_metadata = of_metadata.map(|(address, port)| (address.to_owned(), vec![port]));
    let outside = [("anybody".to_owned(), vec![53, 53]), ("anybody".into(), vec![443])];
    let expected = [
        vec![("coordinator".into(), vec![7070]), ("worker".into(), vec![7100])],
        outside.to_vec(),
        of_metadata.to_vec(),
    ];
    assert_eq!(egress(&plain, "small-worker"), expected.concat());
    // With credentials from Secrets no machine's identity is needed; NCCL takes any port; the store listens on its own.
    let rich = objects(&rich_submission());
    let expected = [
        ("coordinator".to_owned(), vec![7070]),
        ("worker".into(), vec![]),
        ("anybody".into(), vec![53, 53]),
        ("anybody".into(), vec![443, 9000]),
    ];
    assert_eq!(egress(&rich, "small-worker"), expected);
}

#[test]
fn what_cannot_work_is_refused() {
    let refused = |change: &dyn Fn(&mut Submission)| {
        let mut submission = submission();
        change(&mut submission);
        submission.check().expect_err("refused")
    };
    let said = |change: &dyn Fn(&mut Submission)| refused(change).to_string();
    for (name, problem, proposal) in [
        ("Marco_7B", "a-z, 0-9 and - only", "run.name=marco-7b"),
        ("7b", "begin with a letter", "run.name=b"),
        ("marco-", "not end with -", "run.name=marco"),
        (&"m".repeat(51), "more than 50 characters", &format!("run.name={}", "m".repeat(50))),
    ] {
        let error = said(&|s| s.recipe.run.name = name.into());
        assert!(error.contains(problem) && error.ends_with(proposal), "{error}");
    }
    for (location, reach) in
        [("/data/run", "this machine"), ("file:///data", "this machine"), ("memory://a", "one process")]
    {
        let error = said(&|s| s.recipe.run.store = location.into());
        assert!(error.contains("run.store") && error.contains(location) && error.contains(reach), "{error}");
    }
    assert!(said(&|s| s.recipe.corpus.url = "corpus".into()).contains("corpus.url"));
    assert!(said(&|s| s.recipe.model.init = "weights".to_owned().into()).contains("model.init"));
    assert_eq!(refused(&|s| s.workers = 0), SubmissionError::NoWorkers);
    assert_eq!(refused(&|s| s.workers = 17), SubmissionError::MoreThanMost { workers: 17, max_workers: 16 });
    assert_eq!(refused(&|s| s.max_workers = 17), SubmissionError::MoreThanSlots { max_workers: 17, slots: 16 });
    assert_eq!(refused(&|s| s.recipe.workers.min_workers = 9), SubmissionError::TooFew { workers: 8, min_workers: 9 });
    for (name, problem) in [
        ("AWS_SECRET_ACCESS_KEY", "--secret"),
        ("AZURE_STORAGE_SAS_TOKEN", "--secret"),
        ("POLO_CACHE", "by polo itself"),
        ("NO NAME", "no name of"),
    ] {
        let error = said(&|s| s.env = map([(name, "value")]));
        assert!(error.contains(problem) && !error.contains("value"), "{error}");
    }
}

#[test]
fn names_of_the_longest_run_are_still_names_of_hosts() {
    let mut submission = submission();
    submission.recipe.run.name = "m".repeat(50);
    assert_eq!(submission.check(), Ok(()));
    for object in objects(&submission) {
        let name = object["metadata"]["name"].as_str().expect("a name");
        // The host of a worker's pod is its Job's name and its index.
        let index = if object["kind"] == "Job" && name.ends_with("-worker") { "-99999" } else { "" };
        assert!(name.len() + index.len() <= 63, "{name}{index}");
    }
}

#[test]
fn nobody_runs_unprotected_without_saying_so() {
    let unprotected = Submission { insecure: false, ..submission() };
    let error = unprotected.check().expect_err("refused").to_string();
    assert!(error.contains("--tls-secret") && error.contains("--insecure"), "{error}");
    let tls = TlsSecrets { coordinator: "tls".into(), ..TlsSecrets::default() };
    let error = Submission { tls: Some(tls), ..unprotected }.check().expect_err("refused").to_string();
    assert!(error.contains("--worker-tls-secret") && error.contains("--token-secret"), "{error}");
}

/// Which file comes from which Secret, and which variables say where it is.
fn protection(objects: &[Value], name: &str) -> (Vec<String>, BTreeMap<String, String>) {
    let pod = &find(objects, "Job", name)["spec"]["template"]["spec"];
    let volumes = pod["volumes"].as_array().expect("volumes");
    let volume = volumes.iter().find(|volume| volume["name"] == "protection").expect("the volume");
    let sources = volume["projected"]["sources"].as_array().expect("sources").iter();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let files = |source: &Value| {
        let name = text(&source["secret"]["name"]);
        let items = source["secret"]["items"].as_array().expect("items").clone();
        items.into_iter().map(move |item| format!("{name}/{}", text(&item["path"])))
    };
    let env = pod["containers"][0]["env"].as_array().expect("variables").iter();
    let paths =
        env.filter(|variable| variable["value"].as_str().is_some_and(|v| v.starts_with("/etc/polo-protection/")));
    (sources.flat_map(files).collect(), paths.map(|v| (text(&v["name"]), text(&v["value"]))).collect())
}

#[test]
fn a_worker_gets_neither_the_key_of_the_coordinator_nor_the_token_of_people() {
    let objects = objects(&rich_submission());
    let (files, paths) = protection(&objects, "small-coordinator");
    let of_coordinator =
        ["small-coordinator-tls/tls.crt", "small-coordinator-tls/tls.key", "small-coordinator-tls/ca.crt"];
    assert_eq!(files, [&of_coordinator[..], &["small-tokens/worker-token", "small-tokens/operator-token"]].concat());
    assert_eq!(paths["POLO_CLIENT_CA"], "/etc/polo-protection/ca.crt");
    let (files, paths) = protection(&objects, "small-worker");
    let of_worker = ["small-coordinator-tls/ca.crt", "small-worker-tls/tls.crt", "small-worker-tls/tls.key"];
    assert_eq!(files, [&of_worker[..], &["small-tokens/worker-token"]].concat());
    assert_eq!(paths["POLO_CERT"], "/etc/polo-protection/tls.crt");
    let worker = find(&objects, "Job", "small-worker").to_string();
    assert!(worker.contains("https://small-coordinator:7070"), "{worker}");
    assert!(!objects.iter().any(|object| object.to_string().contains("--insecure")));
}
