//! Whatever saves memory leaves the state as it is, to the bit: recomputed activations, parameters gathered block by block,
//! moments kept elsewhere, and masks where a sample is of one document.
#![allow(missing_docs)]

mod harness;

use harness::{Documents, Lab, Shape, drawn_seed};

const SHAPE: Shape = Shape { num_steps: 12, hidden_size: 32 };
const WORLDS: [usize; 4] = [1, 2, 3, 5];

const RECOMPUTE: &str = "model.recompute=true";
const BLOCK: &str = "workers.gather=block";
const OFFLOAD: &str = "workers.offload_moments=true";
const MASK: &str = "batch.document_mask=true";
/// As `lm_head.weight` has gradients of its own then.
const UNTIED: &str = "model.qwen2.tie_word_embeddings=false";

/// The state's digest with these settings, in each world.
fn digests(lab: &mut Lab, sets: &[&str]) -> [String; WORLDS.len()] {
    let flags: Vec<_> = sets.iter().flat_map(|set| ["--set", set]).collect();
    WORLDS.map(|world| lab.digest_with(&format!("{}-{world}", sets.join("-")), world, &flags))
}

fn assert_all_are(wanted: &str, digests: &[String], sets: &[&str]) {
    assert!(digests.iter().all(|digest| digest == wanted), "{sets:?}, {WORLDS:?} workers: {digests:?}, not {wanted}");
}

#[test]
fn recomputing_gathering_and_offloading_change_nothing_at_any_world_size() {
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let plain = lab.digest_of("plain", 2);
    for sets in [&[RECOMPUTE][..], &[BLOCK], &[OFFLOAD], &[RECOMPUTE, BLOCK, OFFLOAD]] {
        assert_all_are(&plain, &digests(&mut lab, sets), sets);
    }
}

#[test]
fn nor_do_they_where_documents_are_masked_and_embeddings_are_not_tied() {
    let mut lab = Lab::new(drawn_seed(), SHAPE);
    let plain = digests(&mut lab, &[MASK, UNTIED]);
    assert_all_are(&plain[0], &plain, &[MASK, UNTIED]);
    let all = [MASK, UNTIED, RECOMPUTE, BLOCK, OFFLOAD];
    assert_all_are(&plain[0], &digests(&mut lab, &all), &all);
    assert_ne!(lab.digest_with("unmasked", 1, &["--set", UNTIED]), plain[0], "samples of several documents");
}

#[test]
fn masks_change_nothing_where_each_sample_is_of_one_document() {
    let documents = Documents { num_shards: 1, num_per_shard: 1, num_tokens: 20_000..30_000 };
    let mut lab = Lab::with_documents(drawn_seed(), SHAPE, documents);
    let plain = lab.digest_of("plain", 1);
    assert_all_are(&plain, &digests(&mut lab, &[MASK]), &[MASK]);
}
