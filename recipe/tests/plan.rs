//! What a plan promises: every planned token once, countable at any step.

use std::collections::{HashMap, HashSet};

use polo_recipe::config::Recipe;
use polo_recipe::error::{RecipeError, Shortage};
use polo_recipe::ids::{SourceId, Step};
use polo_recipe::order::Permutation;
use polo_recipe::plan::{LedgerEntry, Plan, PlanNote, SampleRef, SourceSamples, SourceTokens};
use proptest::prelude::*;

const SEQ_LEN: u64 = 16;
const SAMPLES_PER_STEP: u64 = 12;

/// A recipe with stages of so many steps, each over sources with these weights.
fn recipe(stages: &[(u64, &[(&str, u64)])], sets: &[&str]) -> Recipe {
    let mut text = format!(
        "[run]\nname = 'small'\nstore = 'store'\nseed = 5\n[model.qwen2]\nhidden_size = 64\nnum_hidden_layers = 2\n\
         num_attention_heads = 4\nnum_key_value_heads = 2\nintermediate_size = 96\nvocab_size = 300\n\
         [corpus]\nurl = 'corpus'\n\
         [batch]\nseq_len = {SEQ_LEN}\nsamples_per_step = {SAMPLES_PER_STEP}\nslots = 6\nmicro_batch = 2\n"
    );
    for (number, (steps, sources)) in stages.iter().enumerate() {
        let schedule = "schedule = { kind = 'linear', peak_learning_rate = 0.5, warmup_steps = 1 }";
        text += &format!("[[stages]]\nname = 's{number}'\nsteps = {steps}\n{schedule}\n");
        for (name, weight) in *sources {
            text += &format!("[[stages.sources]]\nname = '{name}'\nweight_tokens = {weight}\n");
        }
    }
    let sets: Vec<String> = sets.iter().map(|&set| set.into()).collect();
    Recipe::resolve(&text, std::iter::empty(), &sets, |_| unreachable!()).expect("a right recipe")
}

fn tokens(name: &str, num_tokens: u64) -> SourceTokens {
    SourceTokens { name: name.into(), num_tokens }
}

fn windows(name: &str, num_windows: u64) -> SourceTokens {
    tokens(name, num_windows * SEQ_LEN + 1)
}

fn shortage(name: &str, available: u64, planned: u64) -> Shortage {
    Shortage { source_name: name.into(), available, max_epochs: 1.0, planned, seq_len: SEQ_LEN }
}

fn step_samples(plan: &Plan, step: u64) -> Vec<SampleRef> {
    plan.samples(Step(step), 0..SAMPLES_PER_STEP as usize)
}

/// Stage, source and samples trained of samples planned.
type Row = (String, String, u64, u64);

fn row(stage: &str, source: &str, trained: u64, planned: u64) -> Row {
    (stage.into(), source.into(), trained, planned)
}

fn ledger(plan: &Plan, step: u64) -> Vec<Row> {
    let row = |entry: LedgerEntry| {
        assert_eq!(entry.samples.end - entry.samples.start, entry.num_trained_tokens / SEQ_LEN, "{entry:?}");
        (entry.stage, entry.source, entry.num_trained_tokens / SEQ_LEN, entry.num_planned_tokens / SEQ_LEN)
    };
    plan.ledger(Step(step)).into_iter().map(row).collect()
}

proptest! {
    #[test]
    fn every_planned_token_is_trained_once_and_counted_at_every_step(
        steps in (1u64..8, 1u64..8), weights in prop::array::uniform4(1u64..1000), seed: u64,
    ) {
        let [a, b, c, d] = weights;
        let seed = format!("run.seed={seed}");
        let recipe = recipe(&[(steps.0, &[("en", a), ("zh", b)]), (steps.1, &[("zh", c), ("ne", d)])], &[&seed]);
        let supply = (steps.0 + steps.1) * SAMPLES_PER_STEP;
        let corpus = [windows("ne", supply), windows("zh", supply), windows("en", supply), windows("unused", 1)];
        let plan = Plan::new(&recipe, &corpus).expect("enough of all");
        prop_assert_eq!(plan.sources(), ["en", "zh", "ne"]);

        let mut seen = HashSet::new();
        let mut counts: HashMap<(String, String), u64> = HashMap::new();
        let count = |counts: &HashMap<_, _>, stage: &str, source: &str| {
            counts.get(&(stage.to_owned(), source.to_owned())).copied().unwrap_or(0)
        };
        for step in 0..plan.num_steps() {
            for (stage, source, trained, _) in ledger(&plan, step) {
                prop_assert_eq!(trained, count(&counts, &stage, &source));
            }
            for (index, sample) in step_samples(&plan, step).into_iter().enumerate() {
                prop_assert_eq!(plan.sample(Step(step), index), sample);
                prop_assert!(sample.epoch == 0 && sample.window < supply);
                prop_assert!(seen.insert(sample), "{:?} comes twice", sample);
                let source = plan.sources()[sample.source.0 as usize].clone();
                *counts.entry((plan.stage_at(Step(step)).name.to_owned(), source)).or_default() += 1;
            }
        }
        let all = ledger(&plan, plan.num_steps());
        for (stage, source, trained, planned) in &all {
            prop_assert_eq!((*trained, *planned), (*planned, count(&counts, stage, source)));
        }
        prop_assert_eq!(all.iter().map(|(.., planned)| planned).sum::<u64>(), seen.len() as u64);
    }
}

#[test]
fn a_source_of_several_stages_goes_on_where_it_stopped() {
    let recipe = recipe(&[(2, &[("en", 1)]), (3, &[("en", 1)]), (1, &[("en", 1)])], &[]);
    let plan = Plan::new(&recipe, &[windows("en", 72)]).expect("exactly enough");
    let seen: HashSet<u64> = (0..6).flat_map(|step| step_samples(&plan, step)).map(|sample| sample.window).collect();
    assert_eq!(seen, (0..72).collect());
    let refused = Plan::new(&recipe, &[windows("en", 71)]).expect_err("one window too few");
    assert_eq!(refused, RecipeError::NotEnoughTokens { shortages: vec![shortage("en", 71, 72)] });
}

#[test]
fn counts_are_those_worked_out_by_hand() {
    // 24 samples of weights 3 to 1, then 12 of one source.
    let recipe = recipe(&[(2, &[("en", 30), ("zh", 10)]), (1, &[("zh", 7)])], &[]);
    let plan = Plan::new(&recipe, &[windows("en", 18), windows("zh", 18)]).expect("exactly enough");
    let rows = |en, zh, zh_later| [row("s0", "en", en, 18), row("s0", "zh", zh, 6), row("s1", "zh", zh_later, 12)];
    assert_eq!(ledger(&plan, 0), rows(0, 0, 0));
    assert_eq!(ledger(&plan, 1), rows(9, 3, 0));
    assert_eq!(ledger(&plan, 2), rows(18, 6, 0));
    assert_eq!(ledger(&plan, 3), rows(18, 6, 12));
    let epochs: Vec<_> = plan.ledger(Step(2)).iter().map(|e| (e.trained_epochs(), e.planned_epochs())).collect();
    assert_eq!(epochs, [(1.0, 1.0), (6.0 / 18.0, 6.0 / 18.0), (0.0, 12.0 / 18.0)]);
}

#[test]
fn the_ledger_says_which_samples_of_a_source_every_step_takes() {
    let stages: [(u64, &[(&str, u64)]); 2] = [(2, &[("en", 3), ("ne", 1)]), (2, &[("ne", 1), ("en", 1)])];
    let recipe = recipe(&stages, &["corpus.allow_repeats=true"]);
    let plan = Plan::new(&recipe, &[windows("en", 50), windows("ne", 4)]).expect("enough");
    let seed = recipe.run.seed;
    for step in 0..plan.num_steps() {
        let mut expected = HashSet::new();
        for SourceSamples { source, samples } in plan.step_sources(Step(step)) {
            let len = if source == "ne" { 4 } else { 50 };
            let window = |n: u64| (source.clone(), Permutation::new(seed, &source, n / len, len).at(n % len));
            expected.extend(samples.map(|n| (n, window(n))));
        }
        let windows: HashSet<_> = expected.iter().map(|(_, window)| window.clone()).collect();
        let name = |sample: SampleRef| (plan.sources()[sample.source.0 as usize].clone(), sample.window);
        assert_eq!(windows, step_samples(&plan, step).into_iter().map(name).collect(), "step {step}");
    }
    let starts = |step| plan.step_sources(Step(step)).into_iter().map(|s| (s.source, s.samples)).collect::<Vec<_>>();
    assert_eq!(starts(1), [("en".into(), 9..18), ("ne".into(), 3..6)]);
    assert_eq!(starts(2), [("ne".into(), 6..12), ("en".into(), 18..24)], "stages go on where the one before stopped");
}

#[test]
fn stages_follow_each_other_with_their_own_schedules() {
    let recipe = recipe(&[(2, &[("en", 1)]), (3, &[("en", 1)])], &[]);
    let plan = Plan::new(&recipe, &[windows("en", 60)]).expect("exactly enough");
    let places: Vec<_> = (0..plan.num_steps()).map(|step| plan.stage_at(Step(step))).collect();
    assert_eq!(
        places.iter().map(|p| (p.index, p.step_in_stage)).collect::<Vec<_>>(),
        [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    );
    assert_eq!((places[1].name, places[1].num_steps, places[2].name, places[2].num_steps), ("s0", 2, "s1", 3));
    let rates: Vec<f64> = (0..5).map(|step| plan.learning_rate(Step(step))).collect();
    assert_eq!(rates, [0.5, 0.0, 0.5, 0.25, 0.0]);
}

#[test]
fn slots_share_a_step_evenly_and_in_order() {
    let plan = Plan::new(&recipe(&[(1, &[("en", 1)])], &[]), &[windows("en", 12)]).expect("exactly enough");
    let indices: Vec<usize> = (0..6).flat_map(|slot| plan.slot_samples(slot)).collect();
    assert_eq!(indices, (0..12).collect::<Vec<_>>());
    assert!((0..6).all(|slot| plan.slot_samples(slot).len() == 2));
}

#[test]
fn a_source_that_is_too_small_is_refused_or_repeated_evenly_and_noted() {
    let stages: [(u64, &[(&str, u64)]); 1] = [(5, &[("en", 5), ("ne", 1)])];
    let corpus = [windows("en", 50), windows("ne", 4)];
    let refused = Plan::new(&recipe(&stages, &[]), &corpus).expect_err("10 samples of 4");
    assert_eq!(refused, RecipeError::NotEnoughTokens { shortages: vec![shortage("ne", 4, 10)] });

    let plan = Plan::new(&recipe(&stages, &["corpus.allow_repeats=true"]), &corpus).expect("repeats are allowed");
    assert_eq!(plan.notes(), [PlanNote::Repeats { source: "ne".into(), epochs: 2.5 }]);
    let samples = (0..5).flat_map(|step| step_samples(&plan, step)).filter(|sample| sample.source == SourceId(1));
    let mut by_epoch = [const { Vec::new() }; 3];
    samples.for_each(|sample| by_epoch[sample.epoch as usize].push(sample.window));
    for epoch in &mut by_epoch[..2] {
        epoch.sort_unstable();
        assert_eq!(*epoch, [0, 1, 2, 3]);
    }
    assert_eq!(by_epoch[2].len(), 2);
}

#[test]
fn every_source_that_is_short_over_all_stages_is_named() {
    let recipe = recipe(&[(1, &[("en", 1), ("ne", 1)]), (1, &[("en", 1), ("zh", 1)])], &[]);
    let refused = Plan::new(&recipe, &[windows("en", 10), windows("ne", 6), windows("zh", 5)]).expect_err("two short");
    assert_eq!(refused, RecipeError::NotEnoughTokens { shortages: vec![shortage("en", 10, 12), shortage("zh", 5, 6)] });
    let words = "source `en` has 10 samples, but the stages take 12, which is 2 samples (32 tokens) too many; \
                 source `zh` has 5 samples, but the stages take 6, which is 1 samples (16 tokens) too many;";
    assert!(refused.to_string().contains(words), "{refused}");
}

#[test]
fn epochs_are_limited_for_all_sources_and_for_single_ones() {
    let stages: [(u64, &[(&str, u64)]); 1] = [(5, &[("en", 5), ("ne", 1)])];
    let corpus = [windows("en", 50), windows("ne", 4)]; // 50 samples of en, 10 of ne
    for (sets, is_enough) in [
        (vec!["corpus.max_epochs=2.5"], true),
        (vec!["corpus.max_epochs=2.25"], false),
        (vec!["corpus.allow_repeats=true", "corpus.max_epochs=2.25"], false),
        (vec!["corpus.source_max_epochs.ne=3"], true),
        (vec!["corpus.max_epochs=9", "corpus.source_max_epochs.ne=1"], false),
        (vec!["corpus.max_epochs=4", "corpus.source_max_epochs.en=0.5"], false),
    ] {
        assert_eq!(Plan::new(&recipe(&stages, &sets), &corpus).is_ok(), is_enough, "{sets:?}");
    }
    let refused = Plan::new(&recipe(&stages, &["corpus.max_epochs=2.25"]), &corpus).expect_err("10 of 9").to_string();
    assert!(refused.contains("4 samples for 2.25 epochs, but the stages take 10, which is 1 samples"), "{refused}");
    let plan = Plan::new(&recipe(&stages, &["corpus.max_epochs=2.5"]), &corpus).expect("just enough");
    assert_eq!(plan.notes(), [PlanNote::Repeats { source: "ne".into(), epochs: 2.5 }]);
    let in_epoch: Vec<_> = plan.ledger(Step(0)).iter().map(|entry| entry.num_epoch_tokens / SEQ_LEN).collect();
    assert_eq!(in_epoch, [50, 4]);
}

#[test]
fn updates_are_counted_from_where_the_optimizers_state_began() {
    let stages: [(u64, &[(&str, u64)]); 4] =
        [(2, &[("en", 1)]), (1, &[("en", 1)]), (2, &[("en", 1)]), (1, &[("en", 1)])];
    let numbers = |sets: &[&str]| {
        let plan = Plan::new(&recipe(&stages, sets), &[windows("en", 72)]).expect("enough");
        (0..6).map(|step| plan.update_number(Step(step))).collect::<Vec<_>>()
    };
    assert_eq!(numbers(&[]), [1, 2, 3, 4, 5, 6]);
    assert_eq!(numbers(&["stages.0.optimizer_state=reset"]), [1, 2, 3, 4, 5, 6]);
    assert_eq!(numbers(&["stages.2.optimizer_state=reset"]), [1, 2, 3, 1, 2, 3]);
    let both = ["stages.1.optimizer_state=reset", "stages.2.optimizer_state=reset", "stages.3.optimizer_state=carry"];
    assert_eq!(numbers(&both), [1, 2, 1, 1, 2, 3]);
}

#[test]
fn one_token_too_few_is_one_sample_too_few() {
    let recipe = recipe(&[(1, &[("en", 1)])], &[]);
    assert!(Plan::new(&recipe, &[tokens("en", 12 * SEQ_LEN + 1)]).is_ok());
    assert!(Plan::new(&recipe, &[tokens("en", 12 * SEQ_LEN)]).is_err());
}

#[test]
fn sources_that_are_absent_or_empty_are_refused_by_name() {
    let recipe = recipe(&[(1, &[("en", 1), ("ne", 1)])], &["corpus.allow_repeats=true"]);
    let absent = Plan::new(&recipe, &[windows("en", 50), windows("zh", 50)]).expect_err("no ne").to_string();
    assert_eq!(absent, "stage `s0` draws from source `ne`, which the corpus has not; it has: en, zh");
    for num_tokens in [0, 1, SEQ_LEN] {
        let empty = Plan::new(&recipe, &[windows("en", 50), tokens("ne", num_tokens)]).expect_err("an empty source");
        assert_eq!(
            empty,
            RecipeError::EmptySource { source_name: "ne".into(), num_tokens, needed: SEQ_LEN + 1, num_held_out: 0 }
        );
    }
}

#[test]
fn a_source_too_light_for_a_sample_is_noted() {
    let recipe = recipe(&[(1, &[("en", 1000), ("ne", 1)])], &[]);
    let plan = Plan::new(&recipe, &[windows("en", 50), windows("ne", 50)]).expect("enough");
    assert_eq!(plan.notes(), [PlanNote::NoSamples { stage: "s0".into(), source: "ne".into() }]);
    assert_eq!(ledger(&plan, 0), [row("s0", "en", 0, 12), row("s0", "ne", 0, 0)]);
}

#[test]
#[should_panic(expected = "step 1 is asked of a plan of 1 steps")]
fn a_step_beyond_the_end_is_no_step() {
    let plan = Plan::new(&recipe(&[(1, &[("en", 1)])], &[]), &[windows("en", 12)]).expect("exactly enough");
    plan.sample(Step(1), 0);
}

const VALIDATION: [&str; 2] = ["validation.every_steps=2", "validation.samples_per_source=3"];

#[test]
fn what_is_held_out_is_the_end_of_each_source_and_never_trained() {
    let sources: &[(&str, u64)] = &[("en", 1), ("zh", 1)];
    let recipe = recipe(&[(3, sources)], &VALIDATION);
    let corpus = [windows("en", 21), windows("zh", 21)];
    let plan = Plan::new(&recipe, &corpus).expect("18 of each are left");
    let sets: Vec<_> = plan.validation_sets().iter().map(|set| (set.source.as_str(), set.windows.clone())).collect();
    assert_eq!(sets, [("en", 18..21), ("zh", 18..21)]);
    let trained: HashSet<_> = (0..3).flat_map(|step| step_samples(&plan, step)).collect();
    assert_eq!((trained.len(), trained.iter().map(|sample| sample.window).max()), (36, Some(17)));
    assert_eq!((0..=3).filter(|step| plan.is_validated(Step(*step))).collect::<Vec<_>>(), [0, 2, 3]);
    let short = Plan::new(&recipe, &[windows("en", 21), windows("zh", 20)]).expect_err("one is missing");
    assert_eq!(short, RecipeError::NotEnoughTokens { shortages: vec![shortage("zh", 17, 18)] });
    let nothing_left = Plan::new(&recipe, &[windows("en", 21), windows("zh", 3)]).expect_err("all is held out");
    assert!(nothing_left.to_string().contains("beside the 3 that are held out"), "{nothing_left}");
}

#[test]
fn a_set_that_is_given_takes_nothing_from_training() {
    let sets =
        [VALIDATION[0], VALIDATION[1], "validation.sources=[\"en-held-out\"]", "validation.watch=[\"en-held-out\"]"];
    let given = recipe(&[(1, &[("en", 1)])], &sets);
    let corpus = [windows("en", 12), windows("en-held-out", 5)];
    let plan = Plan::new(&given, &corpus).expect("all of en is trained");
    assert_eq!((plan.sources(), plan.validation_sets()[0].windows.clone()), (&["en".to_string()][..], 2..5));
    let unknown = Plan::new(&given, &corpus[..1]).expect_err("no such source").to_string();
    assert!(unknown.contains("`validation.sources`") && unknown.contains("`en-held-out`; it has: en"), "{unknown}");
    let small = Plan::new(&given, &[windows("en", 12), windows("en-held-out", 2)]).expect_err("too few").to_string();
    assert!(small.contains("`validation.samples_per_source`") && small.contains("has 2 samples"), "{small}");
    let stranger = recipe(&[(1, &[("en", 1)])], &[VALIDATION[0], "validation.watch=[\"zh\"]"]);
    let unwatched = Plan::new(&stranger, &[windows("en", 40)]).expect_err("zh is not evaluated").to_string();
    assert!(unwatched.contains("`validation.watch`") && unwatched.contains("`zh` is not evaluated"), "{unwatched}");
}

#[test]
fn only_a_watched_source_raises_an_alarm_and_only_beyond_its_limit() {
    let sets = [VALIDATION[0], "validation.watch=[\"en\"]", "validation.max_worsening=0.5"];
    let validation = recipe(&[(1, &[("en", 1), ("zh", 1)])], &sets).validation.expect("given");
    let is_worse = |source, loss| validation.is_worse(source, 2.0, loss);
    assert_eq!([1.0, 3.0, 3.1, f64::NAN].map(|loss| is_worse("en", loss)), [false, false, true, true]);
    assert!(!is_worse("zh", 9.0));
}
