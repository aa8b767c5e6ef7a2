//! A recipe from its texts: layers, defaults, errors, and the identity.

use polo_recipe::config::{
    Checkpoint, Copies, Device, InitialWeights, OnNonFinite, Optimizer, Recipe, Reduction, Workers,
};
use polo_recipe::error::RecipeError;
use proptest::prelude::*;

const MINIMAL: &str = r#"
[run]
name = "small"
store = "s3://bucket/small"
[model]
config = "config.json"
[corpus]
url = "s3://bucket/corpus"
[batch]
seq_len = 16
samples_per_step = 12
slots = 6
[[stages]]
name = "one"
steps = 5
[stages.schedule]
kind = "wsd"
peak_learning_rate = 1e-3
warmup_steps = 2
decay_steps = 2
[[stages.sources]]
name = "en"
weight_tokens = 3
[[stages.sources]]
name = "zh"
weight_tokens = 2
"#;

const CONFIG_JSON: &str = r#"{"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 300, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    "tie_word_embeddings": true, "max_position_embeddings": 64, "use_cache": true}"#;

fn read_file(path: &str) -> Result<String, String> {
    if path == "config.json" { Ok(CONFIG_JSON.into()) } else { Err("no such file".into()) }
}

fn resolve(text: &str, env: &[(&str, &str)], sets: &[&str]) -> Result<Recipe, RecipeError> {
    let env = env.iter().map(|&(name, value)| (name.into(), value.into()));
    let sets: Vec<String> = sets.iter().map(|&set| set.into()).collect();
    Recipe::resolve(text, env, &sets, read_file)
}

fn minimal(sets: &[&str]) -> Recipe {
    resolve(MINIMAL, &[], sets).expect("the minimal recipe is right")
}

#[test]
fn what_is_not_given_has_its_default() {
    let recipe = minimal(&[]);
    assert_eq!((recipe.run.seed, recipe.run.threads, recipe.run.reduction), (0, 1, Reduction::Exact));
    assert_eq!(recipe.run.device, Device::Cpu);
    assert_eq!((&recipe.model.init, recipe.model.recompute), (&InitialWeights::Random, false));
    assert_eq!((&recipe.corpus.tokenizer, recipe.corpus.allow_repeats), (&None, false));
    assert_eq!((recipe.batch.micro_batch, recipe.stages[0].schedule.floor), (1, 0.0));
    let optimizer = Optimizer { betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1, ..Optimizer::default() };
    assert_eq!(recipe.optimizer, optimizer);
    assert_eq!((optimizer.max_grad_norm, optimizer.on_non_finite), (1.0, OnNonFinite::Stop));
    assert_eq!(recipe.workers.copies, Copies::Number(2));
    assert_eq!(recipe.checkpoint, Checkpoint { every_steps: 100, keep: 3 });
    assert_eq!(recipe.workers, Workers::default());
}

#[test]
fn the_environment_overrides_the_file_and_set_overrides_both() {
    let env = [("POLO__BATCH__SLOTS", "3"), ("POLO__RUN__SEED", "7"), ("POLO_LOG", "debug"), ("HOME", "/")];
    let sets = ["batch.slots=4", "stages.0.steps=9", "optimizer.betas=[0.8, 0.9]", "run.store=file:///tmp/x"];
    let recipe = resolve(MINIMAL, &env, &sets).expect("all overrides are right");
    assert_eq!((recipe.batch.slots, recipe.run.seed, recipe.stages[0].steps), (4, 7, Some(9)));
    assert_eq!((recipe.optimizer.betas, recipe.run.store.as_str()), ([0.8, 0.9], "file:///tmp/x"));
    assert_eq!(recipe.optimizer.weight_decay, 0.1);
}

#[test]
fn the_model_is_taken_from_its_file_into_the_recipe() {
    let recipe = minimal(&[]);
    assert_eq!((recipe.model.qwen2.hidden_size, recipe.model.qwen2.rms_norm_eps), (64, 1e-5));
}

#[test]
fn a_resolved_recipe_resolves_to_itself() {
    for recipe in [
        minimal(&[]),
        minimal(&["run.seed=18446744073709551615", "model.init=s3://bucket/hf", "corpus.tokenizer=t.json"]),
        minimal(&["stages.0.schedule.peak_learning_rate=0.1", "stages.0.schedule.floor=0.3"]),
        minimal(&["model.compute_dtype=bfloat16", "corpus.max_epochs=2.5", "corpus.source_max_epochs.zh=4"]),
        two_stages(GROUPS, &["stages.1.optimizer_state=reset"]),
    ] {
        let again = resolve(&recipe.to_toml(), &[], &[]).expect("a resolved recipe is right");
        assert_eq!(again, recipe);
        assert_eq!(again.identity(), recipe.identity());
        assert_eq!(again.to_toml(), recipe.to_toml());
    }
}

#[test]
fn a_token_budget_is_rounded_to_the_nearest_step() {
    // A step has 12 * 16 = 192 tokens.
    for (tokens, steps) in [(960, 5), (1055, 5), (1056, 6), (1152, 6)] {
        let text = MINIMAL.replace("steps = 5\n", &format!("tokens = {tokens}\n"));
        assert_eq!(resolve(&text, &[], &[]).expect("a budget").num_steps(), steps, "{tokens} tokens");
    }
}

#[test]
fn the_identity_covers_what_decides_the_numbers_and_nothing_else() {
    let identity = minimal(&[]).identity();
    for set in [
        "run.seed=1",
        "run.threads=2",
        "model.init=hf",
        "model.compute_dtype=bfloat16",
        "corpus.allow_repeats=true",
        "batch.seq_len=8",
        "batch.slots=3",
        "batch.micro_batch=2",
        "batch.document_mask=true",
        "optimizer.weight_decay=0",
        "stages.0.steps=6",
        "stages.0.schedule.floor=0.5",
        "stages.0.sources.0.name=fr",
        "stages.0.sources.0.weight_tokens=4",
    ] {
        assert_ne!(minimal(&[set]).identity(), identity, "{set}");
    }
    for set in [
        "run.name=other",
        "run.store=elsewhere",
        "model.recompute=true",
        "model.compute_dtype=float32",
        "corpus.url=elsewhere",
        "corpus.tokenizer=t.json",
        "corpus.max_epochs=2",
        "corpus.source_max_epochs.zh=2",
        "checkpoint.keep=1",
        "workers.min_workers=2",
        "stages.0.name=other",
    ] {
        assert_eq!(minimal(&[set]).identity(), identity, "{set}");
    }
    let budget = resolve(&MINIMAL.replace("steps = 5\n", "tokens = 960\n"), &[], &[]).expect("a budget");
    assert_eq!(budget.identity(), identity, "a budget of as many steps");
}

/// The sources of the minimal recipe, as groups.
const GROUPS: &str =
    "groups = [{ name = 'g', share = 3, sources = ['en'] }, { name = 'h', share = 2, sources = ['zh'] }]";

/// The minimal recipe and a second stage that is mixed from `what`.
fn two_stages(what: &str, sets: &[&str]) -> Recipe {
    let schedule = "schedule = { kind = 'constant', peak_learning_rate = 1e-3 }";
    let text = format!("{MINIMAL}[[stages]]\nname = 'two'\nsteps = 5\n{schedule}\n{what}\n");
    resolve(&text, &[], sets).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn groups_are_the_same_run_as_their_sources_with_the_same_weights() {
    let sources = "sources = [{ name = 'en', weight_tokens = 3 }, { name = 'zh', weight_tokens = 2 }]";
    let (grouped, plain) = (two_stages(GROUPS, &[]), two_stages(sources, &[]));
    assert_eq!(grouped.stages[1].weighted_sources(), plain.stages[1].sources);
    assert_eq!(grouped.identity(), plain.identity());
    for set in ["stages.1.groups.0.name=other", "stages.1.groups.0.weights=[7]", "stages.1.optimizer_state=carry"] {
        assert_eq!(two_stages(GROUPS, &[set]).identity(), grouped.identity(), "{set}");
    }
    for set in ["stages.1.groups.0.share=4", "stages.1.groups.1.sources=['ne']", "stages.1.optimizer_state=reset"] {
        assert_ne!(two_stages(GROUPS, &[set]).identity(), grouped.identity(), "{set}");
    }
    let reset_at_the_start = two_stages(GROUPS, &["stages.0.optimizer_state=reset"]);
    assert_eq!(reset_at_the_start.identity(), grouped.identity(), "a run starts with zeros anyhow");
}

#[test]
fn a_group_is_split_evenly_or_by_weight() {
    let split = |group: &str| {
        let groups = format!("groups = [{{ name = 'g', share = 1, sources = ['zh'] }}, {{ name = 'h', {group} }}]");
        two_stages(&groups, &[]).stages[1].weighted_sources().iter().map(|s| s.weight_tokens).collect::<Vec<_>>()
    };
    assert_eq!(split("share = 3, sources = ['a', 'b']"), [2, 3, 3]);
    assert_eq!(split("share = 3, sources = ['a', 'b'], weights = [20, 10]"), [1, 2, 1]);
}

#[test]
fn wrong_groups_are_refused_with_field_and_remedy() {
    let stage = "stages.0";
    for (set, mentions) in [
        ("groups=[]", ["`stages.0`", "has nothing to mix"]),
        ("groups=[{ name = 'g', share = 1, sources = [] }]", ["`stages.0.groups.0.sources`", "at least one source"]),
        ("groups=[{ name = 'g', share = 0, sources = ['en'] }]", ["`stages.0.groups.0.share`", "from 1 to 1000000"]),
        ("groups=[{ name = 'g', share = 0.5, sources = ['en'] }]", ["`stages.0.groups`", "expected a whole number"]),
        (
            "groups=[{ name = 'g', share = 1, sources = ['en'], weights = [1, 2] }]",
            ["0.weights`", "2 weights for 1 sources"],
        ),
        ("groups=[{ name = 'g', share = 1, sources = ['en'], weights = [0] }]", ["0.weights`", "at least 1"]),
        ("groups=[{ name = 'g', share = 1, sources = ['en', 'en'] }]", ["0.groups.0.sources`", "`en` is there twice"]),
        (
            "groups=[{ name = 'g', share = 1, sources = ['en'] }, { name = 'g', share = 1, sources = ['zh'] }]",
            ["0.groups.1.name`", "`g` is there twice"],
        ),
        (
            "groups=[{ name = 'g', share = 1, sources = ['en'] }, { name = 'h', share = 1, sources = ['en'] }]",
            ["0.groups.1.sources`", "`en` is there twice"],
        ),
        ("groups=[{ name = 'g', part = 1, sources = ['en'] }]", ["unknown field `part`", "`share`"]),
        ("optimizer_state=keep", ["`stages.0.optimizer_state`", "`carry` or `reset`"]),
    ] {
        let sources = format!("{stage}.sources=[]");
        let error = resolve(MINIMAL, &[], &[&sources, &format!("{stage}.{set}")]).expect_err(set).to_string();
        assert!(mentions.iter().all(|mention| error.contains(mention)), "{set}: {error}");
    }
    let both = resolve(&format!("{MINIMAL}[[stages.groups]]\nname = 'g'\nshare = 1\nsources = ['ne']\n"), &[], &[]);
    let error = both.expect_err("sources and groups").to_string();
    assert!(error.contains("both `sources` and `groups`"), "{error}");
}

#[test]
fn the_identity_never_changes_between_versions() {
    assert_eq!(minimal(&[]).identity(), "1c7c0e475b98d6088356f4bdc5516e35e0984ba457b35903cf3b11453ef7520a");
}

#[test]
fn a_wrong_file_is_refused_with_field_line_and_remedy() {
    for (from, to, mentions) in [
        ("slots = 6", "slot = 6", ["`batch.slot` (line 12)", "expected one of `seq_len`, `samples_per_step`, `slots`"]),
        ("slots = 6", "slots = \"6\"", ["`batch.slots` (line 12)", "expected a whole number"]),
        ("slots = 6", "slots = -6", ["`batch.slots` (line 12)", "not negative"]),
        ("slots = 6", "slots = 5", ["`batch.slots` (line 12)", "as 4 and 6 do"]),
        (
            "slots = 6",
            "slots = 6\nmicro_batch = 3",
            ["`batch.micro_batch` (line 13)", "divide the 2 samples of a slot"],
        ),
        ("slots = 6", "slots = 0", ["`batch.slots` (line 12)", "at least 1"]),
        ("slots = 6", "", ["`batch` (line 9)", "missing field `slots`"]),
        ("slots = 6", "slots = ", ["line 12", "not valid TOML"]),
        ("slots = 6", "slots = 6\nslots = 6", ["line 13", "duplicate key"]),
        ("seq_len = 16", "seq_len = 65", ["`batch.seq_len` (line 10)", "allows at most 64"]),
        ("[corpus]", "[corpse]", ["`corpse` (line 7)", "`corpus`"]),
        ("\"small\"", "\"a/b\"", ["`run.name` (line 3)", "letters, digits"]),
        ("\"s3://bucket/small\"", "\"\"", ["`run.store` (line 4)", "give a URL"]),
        (
            "config = \"config.json\"",
            "config = \"config.json\"\ncompute_dtype = \"fp16\"",
            ["`model.compute_dtype` (line 7)", "`float32`"],
        ),
        ("config = \"config.json\"", "", ["`model` (line 5)", "give `config ="]),
        (
            "config = \"config.json\"",
            "config = \"x.json\"",
            ["`model.config` (line 6)", "cannot read x.json: no such file"],
        ),
        ("config = \"config.json\"", "config = 3", ["`model.config` (line 6)", "not a string"]),
        ("config = \"config.json\"", "config = \"config.json\"\nqwen2 = {}", ["`model` (line 5)", "keep one"]),
        ("config = \"config.json\"", "konfig = \"config.json\"", ["`model` (line 5)", "has no architecture"]),
        ("config = \"config.json\"", "config = \"config.json\"\nx = 1", ["`model.x` (line 7)", "`config`"]),
        (
            "kind = \"wsd\"",
            "kind = \"cos\"",
            ["`stages.0.schedule.kind` (line 17)", "`cosine`, `linear`, `constant`, `wsd`"],
        ),
        ("kind = \"wsd\"", "kind = \"linear\"", ["`stages.0.schedule.decay_steps` (line 20)", "only for"]),
        ("decay_steps = 2", "", ["`stages.0.schedule.decay_steps` (line 16)", "is missing"]),
        ("decay_steps = 2", "decay_steps = 4", ["`stages.0.schedule.decay_steps` (line 20)", "only 3 steps after"]),
        ("warmup_steps = 2", "warmup_steps = 6", ["`stages.0.schedule.warmup_steps` (line 19)", "only 5 steps"]),
        ("1e-3", "nan", ["`stages.0.schedule.peak_learning_rate` (line 18)", "above 0"]),
        ("steps = 5\n", "steps = 5\ntokens = 9\n", ["`stages.0` (line 13)", "keep one"]),
        ("steps = 5\n", "", ["`stages.0` (line 13)", "give `steps` or `tokens`"]),
        ("steps = 5\n", "tokens = 95\n", ["`stages.0.tokens` (line 15)", "a step has 192 tokens"]),
        ("steps = 5\n", "steps = 4000000000\n", ["`stages.0.steps` (line 15)", "split it"]),
        ("\"zh\"", "\"en\"", ["`stages.0.sources.1.name` (line 25)", "names have to differ"]),
        ("weight_tokens = 2", "weight_tokens = 0", ["`stages.0.sources.1.weight_tokens` (line 26)", "at least 1"]),
    ] {
        assert!(MINIMAL.contains(from), "{from}");
        let error = resolve(&MINIMAL.replacen(from, to, 1), &[], &[]).expect_err(to).to_string();
        assert!(mentions.iter().all(|mention| error.contains(mention)), "{to}: {error}");
    }
}

#[test]
fn a_wrong_override_is_refused_by_name() {
    for (set, mentions) in [
        ("batch.slots", ["--set batch.slots:", "section.field=value"]),
        ("batch.slots=5", ["`batch.slots` (--set batch.slots=5)", "as 4 and 6 do"]),
        ("batch.slot=5", ["`batch.slot` (--set batch.slot=5)", "`slots`"]),
        ("batch=5", ["`batch` (--set batch=5)", "expected a table"]),
        ("batch..slots=5", ["--set batch..slots=5:", "section.field"]),
        ("stages.1.steps=5", ["--set stages.1.steps=5:", "a list of 1"]),
        ("run.name.x=5", ["--set run.name.x=5:", "no fields"]),
        ("optimizer.betas=[0.9, \"x\"]", ["`optimizer.betas` (--set", "expected a number"]),
        ("optimizer.betas=[0.9, 1.0]", ["`optimizer.betas.1` (--set", "below 1"]),
        ("optimizer.eps=-1", ["`optimizer.eps` (--set", "above 0"]),
        ("optimizer.weight_decay=-1", ["`optimizer.weight_decay` (--set", "at least 0"]),
        ("checkpoint.every_steps=0", ["`checkpoint.every_steps` (--set", "at least 1"]),
        ("corpus.max_epochs=0", ["`corpus.max_epochs` (--set", "above 0"]),
        ("corpus.source_max_epochs.ne=2", ["`corpus.source_max_epochs.ne` (--set", "the stages draw from: en, zh"]),
        ("corpus.source_max_epochs.zh=-1", ["`corpus.source_max_epochs.zh` (--set", "above 0"]),
        ("workers.min_workers=7", ["`workers.min_workers` (--set", "`batch.slots` = 6"]),
        ("batch.samples_per_step=6000000000", ["`batch.samples_per_step` (--set", "at most"]),
    ] {
        let error = resolve(MINIMAL, &[], &[set]).expect_err(set).to_string();
        assert!(mentions.iter().all(|mention| error.contains(mention)), "{set}: {error}");
    }
    let error = resolve(MINIMAL, &[("POLO__BATCH__SLOTS", "7")], &[]).expect_err("7").to_string();
    assert!(error.contains("`batch.slots` (environment variable POLO__BATCH__SLOTS)"), "{error}");
}

#[test]
fn the_recipes_of_this_repository_are_right() {
    let demo = include_str!("../../configs/demo.toml");
    let recipe = resolve(demo, &[], &[]).expect("configs/demo.toml");
    assert_eq!(recipe.model.qwen2.vocab_size, 151_936);
}

proptest! {
    #[test]
    fn a_damaged_file_is_an_error_or_a_recipe_but_no_panic(start in 0usize..600, len in 0usize..40, put in "\\PC{0,3}") {
        let start = start.min(MINIMAL.len());
        let text = format!("{}{put}{}", &MINIMAL[..start], &MINIMAL[(start + len).min(MINIMAL.len())..]);
        if let Ok(recipe) = resolve(&text, &[], &[]) {
            prop_assert_eq!(resolve(&recipe.to_toml(), &[], &[]), Ok(recipe));
        }
    }

    #[test]
    fn any_override_is_an_error_or_a_recipe_but_no_panic(set in "(run|batch|stages|x)(\\.(0|slots|seed|steps)){0,3}=\\PC{0,8}") {
        let _ = resolve(MINIMAL, &[], &[&set]);
    }
}

#[test]
fn nccl_sums_only_where_gpus_compute() {
    let refused = resolve(MINIMAL, &[], &["run.reduction=nccl"]).expect_err("no GPU to sum on").to_string();
    assert!(refused.contains("`run.reduction`") && refused.contains("set `run.device` to `cuda`"), "{refused}");
    let recipe = minimal(&["run.reduction=nccl", "run.device=cuda"]);
    assert_eq!((recipe.run.reduction, recipe.run.device), (Reduction::Nccl, Device::Cuda));
    let identities =
        [&[][..], &["run.device=cuda"], &["run.device=cuda", "run.reduction=nccl"]].map(|s| minimal(s).identity());
    assert!(identities[0] != identities[1] && identities[1] != identities[2], "each trains other numbers");
}
