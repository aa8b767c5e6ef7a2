//! `polo run --trace`: a file that Perfetto opens, with what each worker did in each step.
#![allow(missing_docs)]

mod harness;

use std::collections::{BTreeMap, BTreeSet};

use harness::{Lab, Shape, drawn_seed};
use serde_json::Value;

const NUM_STEPS: u64 = 9;
const NUM_WORKERS: usize = 2;
/// Embedding, two layers, head.
const NUM_BLOCKS: u64 = 4;

/// Complete events of a run, by process and step.
fn events(lab: &mut Lab, sets: &[&str]) -> BTreeMap<(u64, u64), Vec<Value>> {
    let trace = lab.path("trace.json");
    let flags = [&["--trace", trace.to_str().expect("UTF-8")], sets].concat();
    lab.digest_with("run", NUM_WORKERS, &flags);
    let text = std::fs::read_to_string(&trace).expect("a trace");
    let closed = format!("{}]", text.trim_end().trim_end_matches(','));
    let all: Vec<Value> = serde_json::from_str(&closed).unwrap_or_else(|error| panic!("{error}: {text}"));
    let names: BTreeSet<_> = all.iter().filter_map(|event| event["args"]["name"].as_str()).collect();
    assert_eq!(names, BTreeSet::from(["w0", "w1", "steps", "compute", "exchange"]));
    let mut by_step: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for event in all.into_iter().filter(|event| event["ph"] == "X") {
        let number = |value: &Value| value.as_u64().expect("a number");
        by_step.entry((number(&event["pid"]), number(&event["args"]["step"]))).or_default().push(event);
    }
    assert_eq!(by_step.len(), NUM_WORKERS * NUM_STEPS as usize);
    by_step
}

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["name"] == name).collect()
}

fn blocks(events: &[Value], name: &str) -> Vec<u64> {
    let mut blocks: Vec<_> = named(events, name).iter().filter_map(|event| event["args"]["block"].as_u64()).collect();
    blocks.sort_unstable();
    blocks
}

#[test]
fn each_step_of_each_worker_says_what_it_consisted_of() {
    let mut lab = Lab::new(drawn_seed(), Shape { num_steps: NUM_STEPS, hidden_size: 32 });
    for (of, events) in events(&mut lab, &["--set", "workers.gather=block"]) {
        let [step] = named(&events, "step")[..] else { panic!("{of:?}: {events:?}") };
        let number = |key: &str| step["args"][key].as_f64().expect("a number");
        let (whole_ms, compute_ms) = (step["dur"].as_f64().expect("a number") / 1000.0, number("compute_ms"));
        assert!(compute_ms > 0.0 && compute_ms <= whole_ms && number("exchange_ms") > 0.0, "{of:?}: {step}");
        assert!((compute_ms + number("idle_ms") - whole_ms).abs() < 0.01, "{of:?}: {step}");
        assert_eq!(blocks(&events, "reduce"), (0..NUM_BLOCKS).collect::<Vec<_>>(), "{of:?}");
        // Layers are gathered for the forward and for the backward.
        assert_eq!(blocks(&events, "gather"), [0, 1, 1, 2, 2, 3], "{of:?}");
    }
}

#[test]
fn parameters_that_are_handed_out_are_not_gathered() {
    let mut lab = Lab::new(drawn_seed(), Shape { num_steps: NUM_STEPS, hidden_size: 32 });
    for (of, events) in events(&mut lab, &[]) {
        assert_eq!((named(&events, "gather").len(), named(&events, "hand out").len()), (0, 1), "{of:?}");
    }
}
