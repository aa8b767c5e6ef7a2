//! `polo plan` says what a worker would hold, what fits, and what is wrong with the question.
#![allow(missing_docs)]

mod support;

use std::process::Output;

use support::{World, assert_one_error, finish, talk};

fn plan(world: &World, gpus: &str, memory: &str, more: &[&str]) -> Output {
    finish(world.polo(&["plan", "recipe.toml", "--gpus", gpus, "--gpu-memory", memory]).args(more))
}

fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", talk(output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", talk(output));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

#[test]
fn questions_with_a_mistake_say_what_would_be_right() {
    let world = World::new();
    assert_one_error(&plan(&world, "0", "1GiB", &[]), &["--gpus is 0", "at least 1"]);
    assert_one_error(&plan(&world, "3", "1GiB", &[]), &["--gpus is 3", "at most batch.slots = 2 workers"]);
    assert_one_error(&plan(&world, "1", "1GiB", &["--set", "batch.slots=3"]), &["recipe.toml: ", "`batch.slots`"]);
    for (memory, more, parts) in [
        ("80", &[][..], ["--gpu-memory", "no unit; write it like 80GiB"]),
        ("80gigs", &[], ["--gpu-memory", "no unit \"gigs\""]),
        ("80GiB", &["--bandwidth", "50GB"], ["--bandwidth", "write it like 50GB/s"]),
        ("80GiB", &["--flops", "400GB"], ["--flops", "write it like 400TFLOPS"]),
        ("80GiB", &["--gather", "layer"], ["--gather", "neither step nor block"]),
    ] {
        let failed = plan(&world, "1", memory, more);
        assert!(!failed.status.success() && failed.stdout.is_empty());
        assert!(parts.iter().all(|part| talk(&failed).contains(part)), "{}", talk(&failed));
    }
}

#[test]
fn the_smallest_number_that_fits_is_named_and_what_to_change_where_none_does() {
    let world = World::new();
    // One copy, so that each of two workers holds less than one alone.
    let [one, two] = ["1", "2"].map(|gpus| {
        let report = json(&plan(&world, gpus, "1GiB", &["--json", "--set", "workers.copies=1"]));
        report["total_bytes"].as_u64().expect("a number")
    });
    assert!(two < one, "{two} and {one} bytes");
    for (memory, fewest, fits) in [(one, Some(1), true), (one - 1, Some(2), false), (two - 1, None, false)] {
        let shown = json(&plan(&world, "1", &format!("{memory}B"), &["--json", "--set", "workers.copies=1"]));
        assert_eq!(shown["smallest_num_workers"].as_u64(), fewest, "{shown}");
        assert_eq!(shown["fits"], fits, "{shown}");
    }
    let shown = text(&plan(&world, "2", &format!("{two}B"), &[]));
    assert!(shown.contains("does not fit") && shown.contains("with workers.copies=1 it does from 2 on"), "{shown}");
    let shown = text(&plan(&world, "2", "1B", &[]));
    assert!(shown.contains("more batch.slots"), "{shown}");
}

#[test]
fn a_steps_time_is_estimated_only_from_given_rates() {
    let world = World::new();
    let shown = text(&plan(&world, "2", "1GiB", &["--bandwidth", "1GB/s"]));
    assert!(shown.contains("fp32") && shown.contains("It fits") && !shown.contains("Estimate"), "{shown}");
    let in_bf16 = text(&plan(&world, "2", "1GiB", &["--set", "model.compute_dtype=bfloat16"]));
    assert!(in_bf16.contains("activations bf16, all else fp32:") && !shown.contains("bf16"), "{in_bf16}");
    let shown = text(&plan(&world, "2", "1GiB", &["--bandwidth", "1GB/s", "--flops", "1TFLOPS"]));
    assert!(shown.contains("Estimate of a step from the given"), "{shown}");
    let shown = text(&plan(&world, "2", "1GiB", &["--gather", "block"]));
    assert!(shown.contains("parameters gathered"), "{shown}");
}
