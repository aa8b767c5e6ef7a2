//! Whether a membership fits in a GPU's memory, before anything is allocated: what it would hold is known by calculation.

use polo_recipe::footprint::{Problem, footprint, smallest_world, what_would_fit};

const GIB: f64 = (1 << 30) as f64;

/// A worker would hold more than there is.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "with {num_workers} workers one would hold {:.2} GiB, and its GPU has {:.2} GiB free; {}",
    *.total_bytes as f64 / GIB,
    *.memory_bytes as f64 / GIB,
    advice(*.smallest_num_workers, .sets)
)]
pub struct NoRoom {
    /// Of the membership.
    pub num_workers: usize,
    /// What the one that holds most would hold.
    pub total_bytes: u64,
    /// What is free.
    pub memory_bytes: u64,
    /// The fewest workers that would do, with `sets`; none if no number would.
    pub smallest_num_workers: Option<usize>,
    /// Changes to the recipe, as `--set` takes them.
    pub sets: Vec<String>,
}

fn advice(smallest_num_workers: Option<usize>, sets: &[String]) -> String {
    let sets = sets.join(" and ");
    match smallest_num_workers {
        Some(fewest) if sets.is_empty() => {
            format!("start at least {fewest}, and set workers.min_workers = {fewest} so that fewer wait for others")
        }
        Some(fewest) => format!("set {sets}: then {fewest} or more will do"),
        None => {
            "no number of workers up to batch.slots will do: take a GPU with more memory, or more batch.slots".into()
        }
    }
}

/// Refuses `num_workers` workers of which one would hold more than `memory_bytes`.
pub fn check_room(problem: &Problem, num_workers: usize, memory_bytes: u64) -> Result<(), NoRoom> {
    let total_bytes = footprint(problem, num_workers).map_or(0, |found| found.total_bytes());
    if total_bytes <= memory_bytes {
        return Ok(());
    }
    let as_it_is = || smallest_world(problem, memory_bytes).map(|fewest| (fewest, Vec::new()));
    let changed = || what_would_fit(problem, memory_bytes).map(|remedy| (remedy.num_workers, remedy.sets));
    let (smallest_num_workers, sets) = as_it_is().or_else(changed).unzip();
    Err(NoRoom { num_workers, total_bytes, memory_bytes, smallest_num_workers, sets: sets.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use polo_recipe::{
        config::{Batch, ComputeDtype, Copies, Gather},
        model::Qwen2Config,
    };

    use super::*;

    fn problem() -> Problem {
        let json = r#"{"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 128, "vocab_size": 512, "tie_word_embeddings": true}"#;
        let model: Qwen2Config = serde_json::from_str(json).expect("a config");
        let batch = Batch { seq_len: 64, samples_per_step: 8, slots: 8, micro_batch: 1, document_mask: false };
        let (copies, gather, compute_dtype) = (Copies::Number(1), Gather::Step, ComputeDtype::Float32);
        Problem { model, batch, copies, recompute: false, compute_dtype, gather, offload_moments: false }
    }

    #[test]
    fn what_fits_is_let_through_and_what_does_not_is_told_how_many_workers_would() {
        let total = |num_workers| footprint(&problem(), num_workers).expect("a share").total_bytes();
        assert_eq!(check_room(&problem(), 2, total(2)), Ok(()));
        let refused = check_room(&problem(), 2, total(4)).expect_err("too much for two");
        assert_eq!((refused.num_workers, refused.total_bytes, refused.memory_bytes), (2, total(2), total(4)));
        let fewest = smallest_world(&problem(), total(4)).expect("four do");
        assert!(fewest > 2 && refused.to_string().contains(&format!("workers.min_workers = {fewest}")), "{refused}");
    }

    #[test]
    fn where_no_number_of_workers_is_enough_the_recipe_is_what_to_change() {
        let least = (1..=8).filter_map(|num_workers| footprint(&problem(), num_workers)).map(|f| f.total_bytes()).min();
        let refused = check_room(&problem(), 2, least.expect("worlds") - 1).expect_err("too much for any");
        let (text, fewest) = (refused.to_string(), refused.smallest_num_workers.expect("a changed recipe does"));
        let sets = refused.sets.join(" and ");
        assert!(!sets.is_empty() && text.contains(&format!("set {sets}: then {fewest} or more will do")), "{text}");
        let refused = check_room(&problem(), 2, 1000).expect_err("too much for any recipe");
        assert!(refused.to_string().contains("take a GPU with more memory"), "{refused}");
    }
}
