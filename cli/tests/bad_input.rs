//! Mistakes that people make, through the programs they make them with: each ends in one clear error and loses nothing.
#![allow(missing_docs)]

mod support;

use std::{fs, net::TcpListener};

use polo_store::testing::SeaweedFs;
use support::{ENDLESS, Running, World, assert_one_error, finish, result, talk};

fn cut(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.len() - 5].to_vec()
}

/// Changes one byte in the middle.
fn flip(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bytes
}

#[test]
fn recipes_with_a_mistake_name_the_field_and_what_would_be_right() {
    let world = World::new();
    for (set, parts) in [
        ("batch.slotz=2", ["`batch.slotz`", "expected one of `seq_len`"]),
        ("batch.slots=two", ["`batch.slots`", "expected a whole number"]),
        ("batch.slots=3", ["`batch.slots`", "divide `batch.samples_per_step` = 4"]),
        ("batch.micro_batch=3", ["`batch.micro_batch`", "divide the 2 samples of a slot"]),
        ("workers.min_workers=3", ["`workers.min_workers`", "at most `batch.slots` = 2"]),
        ("model.qwen2.num_attention_heads=3", ["`model.qwen2`", "hidden_size"]),
        ("stages.0.schedule.floor=2", ["`stages.0.schedule.floor`", "from 0 to 1"]),
        ("batch.slots", ["--set batch.slots", "write `--set section.field=value`"]),
    ] {
        let shown = finish(&mut world.polo(&["recipe", "show", "recipe.toml", "--set", set]));
        assert_one_error(&shown, &["recipe.toml: ", parts[0], parts[1]]);
        assert!(shown.stdout.is_empty());
    }
    for mut command in [
        world.run(&["--set", "batch.slots=3"]),
        world.polo(&["coordinator", "recipe.toml", "--set", "batch.slots=3"]),
        world.worker(&["--id", "a", "--set", "batch.slots=3"]),
    ] {
        assert_one_error(&finish(&mut command), &["recipe.toml: ", "`batch.slots` (--set batch.slots=3)"]);
    }
    world.write("recipe.toml", b"[run\nname = 3");
    assert_one_error(&finish(&mut world.run(&[])), &["recipe.toml: ", "not valid TOML (line 1)"]);
    fs::remove_file(world.path("recipe.toml")).expect("removed");
    assert_one_error(&finish(&mut world.run(&[])), &["cannot read recipe recipe.toml"]);
    assert!(!world.path("run").exists(), "no store was made");
}

#[test]
fn a_recipe_that_does_not_fit_its_corpus_is_refused_and_takes_no_store() {
    let world = World::with_tokens(&[("en", 700), ("ne", 20), ("dot", 5)]);
    let dot = "stages.0.sources=[{ name = 'dot', weight_tokens = 1 }]";
    for (sets, parts) in [
        (vec!["model.qwen2.vocab_size=63"], ["a tokenizer of 64 ids", "`model.qwen2.vocab_size` is 63"]),
        (vec!["stages.0.sources.0.name=fr"], ["source `fr`", "it has: en, ne, dot"]),
        (
            vec!["stages.0.steps=20"],
            ["source `ne` has 2 samples, but the stages take 40", "corpus.allow_repeats = true"],
        ),
        (vec![dot, "corpus.allow_repeats=true"], ["source `dot` has 5 tokens, but one sample takes 9", "add text"]),
        (vec!["corpus.url=nowhere"], ["nowhere/manifest.json", "no such object"]),
    ] {
        let sets: Vec<_> = sets.iter().flat_map(|set| ["--set", set]).collect();
        assert_one_error(&finish(&mut world.run(&sets)), &parts);
        assert!(!world.path("run/recipe.toml").exists(), "the store is free for the right recipe");
    }
    let repeated = finish(&mut world.run(&["--set", "corpus.allow_repeats=true"]));
    assert!(talk(&repeated).contains("note: source `ne` is repeated: 3.00 epochs"), "{}", talk(&repeated));
    result(&repeated);
    world.write("corpus/manifest.json", b"{\"format_version\": 1}");
    assert_one_error(&finish(&mut world.run(&[])), &["manifest.json: not a corpus manifest: missing field"]);
}

#[test]
fn a_corpus_that_was_changed_is_refused_before_training_and_mending_it_is_enough() {
    let world = World::new();
    let whole = result(&finish(&mut world.run(&["--set", "run.store=undisturbed"])));
    for (file, damage) in [
        ("corpus/en/0.bin", flip as fn(&[u8]) -> Vec<u8>),
        ("corpus/ne/0.bin", cut),
        ("corpus/en/0.idx", flip),
        ("corpus/ne/0.idx", cut),
    ] {
        let good = world.read(file);
        world.write(file, &damage(&good));
        let failed = finish(world.run(&["--workers", "2", "--respawn"]).env("POLO_CACHE", world.path("unused")));
        assert_one_error(&failed, &[file, "is damaged", "prepare the corpus again"]);
        assert!(!talk(&failed).contains("worker w0 started"), "{}", talk(&failed));
        world.write(file, &good);
    }
    let moved = world.path("en-0.bin");
    fs::rename(world.path("corpus/en/0.bin"), &moved).expect("moved");
    assert_one_error(&finish(&mut world.run(&[])), &["corpus/en/0.bin is missing", "prepare the corpus again"]);
    fs::rename(moved, world.path("corpus/en/0.bin")).expect("moved back");
    world.write("tokenizer.json", b"another");
    let failed = finish(&mut world.run(&["--set", "corpus.tokenizer=tokenizer.json"]));
    assert_one_error(&failed, &["/tokenizer.json", "the corpus was prepared with", "`corpus.tokenizer`"]);
    world.write("tokenizer.json", b"tokenizer");
    let mut mended = world.run(&["--workers", "2", "--set", "corpus.tokenizer=tokenizer.json"]);
    let mended = result(&finish(mended.env("POLO_CACHE", world.path("mended"))));
    assert_eq!(mended["state_digest"], whole["state_digest"]);
}

#[test]
fn a_shard_that_was_damaged_without_a_trace_ends_the_run_with_its_name() {
    let world = World::new();
    for (file, damage) in [("corpus/en/0.bin", flip as fn(&[u8]) -> Vec<u8>), ("corpus/ne/0.idx", cut)] {
        let good = world.read(file);
        let written = fs::metadata(world.path(file)).and_then(|metadata| metadata.modified()).expect("its time");
        world.write(file, &damage(&good));
        let opened = fs::File::options().append(true).open(world.path(file)).expect("opened");
        opened.set_modified(written).expect("set");
        let cold = world.text(&format!("cache-{}", file.replace('/', "-")));
        let failed = finish(world.run(&["--workers", "2", "--respawn"]).env("POLO_CACHE", cold));
        assert_one_error(&failed, &["the run failed: worker w", file, "is damaged", "prepare the corpus again"]);
        world.write(file, &good);
    }
}

#[test]
fn a_run_does_not_go_on_with_another_corpus() {
    let world = World::new();
    result(&finish(&mut world.run(&[])));
    let manifest = String::from_utf8(world.read("corpus/manifest.json")).expect("UTF-8");
    world.write("corpus/manifest.json", manifest.replace("\"num_bytes_text\": ", "\"num_bytes_text\": 1").as_bytes());
    let failed = finish(&mut world.run(&[]));
    assert_one_error(&failed, &["/run was trained on the corpus", "/corpus holds", "bring that corpus back"]);
    world.write("corpus/manifest.json", manifest.as_bytes());
    result(&finish(&mut world.run(&[])));
}

#[test]
fn initial_weights_that_cannot_be_read_end_the_run_with_the_files_name() {
    let world = World::new();
    result(&finish(&mut world.run(&["--set", "run.store=first"])));
    let exported = finish(&mut world.polo(&["export", "--store", "first", "--to", "model"]));
    assert!(exported.status.success(), "{}", talk(&exported));
    let good = world.read("model/model.safetensors");
    let longer_header = [&[0xff], &good[1..]].concat();
    let wrong_shape = ["--set", "model.qwen2.intermediate_size=32"];
    for (bytes, sets, part) in [
        (cut(&good), &[][..], "model/model.safetensors is damaged"),
        (good[..4].to_vec(), &[], "too few for a safetensors file"),
        (longer_header, &[], "model/model.safetensors is damaged: its header"),
        (good.clone(), &wrong_shape, "config.json asks for"),
    ] {
        world.write("model/model.safetensors", &bytes);
        let mut run = world.run(&["--workers", "2", "--respawn", "--set", "model.init=model"]);
        let failed = finish(run.args(["--set", &format!("run.store=run-{}", part.len())]).args(sets));
        assert_one_error(&failed, &["`model.init`", part]);
    }
    fs::remove_file(world.path("model/model.safetensors")).expect("removed");
    let failed = finish(&mut world.run(&["--respawn", "--set", "model.init=model"]));
    assert_one_error(&failed, &["`model.init`", "/model", "neither model.safetensors nor"]);
    world.write("model/model.safetensors", &good);
    result(&finish(&mut world.run(&["--set", "model.init=model"])));
}

#[test]
fn stores_that_cannot_be_reached_are_named_with_what_to_check() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let server = runtime.block_on(SeaweedFs::start(&SeaweedFs::default_binary(), "bucket")).expect("SeaweedFS");
    let world = World::new();
    for set in ["corpus.url=s3://missing/corpus", "run.store=s3://missing/run"] {
        let failed = finish(world.run(&["--set", set]).envs(server.settings()));
        assert_one_error(&failed, &["s3://missing/", "the bucket does not exist; create it"]);
    }
    let failed = finish(world.polo(&["verify", "--store", "s3://missing/run"]).envs(server.settings()));
    assert_one_error(&failed, &["s3://missing/run/recipe.toml", "the bucket does not exist"]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    drop(listener);
    let nobody = polo_store::testing::settings(&format!("http://{address}"));
    let failed = finish(world.run(&["--set", "run.store=s3://bucket/run"]).envs(nobody));
    assert_one_error(&failed, &["s3://bucket/run/recipe.toml", "gave up after ", "AWS_ENDPOINT_URL"]);
}

#[test]
fn a_store_is_never_given_to_another_recipe_and_commands_say_when_it_has_no_run() {
    let world = World::new();
    let first = result(&finish(&mut world.run(&[])));
    let failed = finish(&mut world.run(&["--set", "run.seed=4"]));
    assert_one_error(&failed, &["run/recipe.toml belongs to the recipe", "another store"]);
    let verified = finish(&mut world.polo(&["verify", "recipe.toml", "--json"]));
    let report: serde_json::Value = serde_json::from_slice(&verified.stdout).expect("JSON");
    assert_eq!(report["checkpoints"][0]["state_digest"], first["state_digest"], "{report}");
    for command in [vec!["verify", "--store", "empty"], vec!["export", "--store", "empty", "--to", "out"]] {
        assert_one_error(&finish(&mut world.polo(&command)), &["/empty: there is no run here", "`run.store`"]);
    }
    let failed = finish(&mut world.polo(&["export", "recipe.toml", "--step", "2", "--to", "out"]));
    assert_one_error(&failed, &["checkpoints/000000000002.json"]);
}

#[test]
fn workers_that_do_not_belong_are_turned_away_and_the_run_goes_on() {
    let world = World::new();
    let mut coordinator =
        Running::start(world.polo(&["coordinator", "recipe.toml", "--listen", "127.0.0.1:0"]).args(ENDLESS));
    let address = coordinator.address();
    let worker = |id: &str| {
        let mut command = world.worker(&["--id", id, "--coordinator", &address]);
        command.args(ENDLESS);
        command
    };
    let member = Running::start(&mut worker("a"));
    coordinator.wait_for_line("step     1 ");
    let failed = finish(worker("b").args(["--set", "run.seed=4"]));
    assert_one_error(
        &failed,
        &["refused by the coordinator", "its recipe has identity", "start it with this run's recipe"],
    );
    let failed = finish(&mut worker("a"));
    assert_one_error(
        &failed,
        &["a live worker is called a already", &format!("(pid {} ", member.pid()), "its own name"],
    );
    let other = World::with_tokens(&[("en", 700), ("ne", 701)]);
    let failed = finish(worker("c").args(["--set", &format!("corpus.url={}", other.text("corpus"))]));
    assert_one_error(&failed, &["it reads a corpus with digest", "point it at this run's corpus"]);
    let again = world
        .polo(&["coordinator", "recipe.toml", "--listen", address.trim_start_matches("http://")])
        .args(ENDLESS)
        .output();
    assert_one_error(&again.expect("ran"), &["cannot listen on 127.0.0.1:", "choose another with --listen"]);
    assert!(finish(&mut world.polo(&["stop", "--address", &address])).status.success());
    let ended = result(&coordinator.finish());
    assert_eq!((&ended["outcome"], &ended["num_incidents"]), (&"stopped".into(), &0.into()));
    assert!(member.finish().status.success());
}

#[test]
fn a_gpu_that_is_not_there_is_named_before_anything_is_trained() {
    if std::path::Path::new("/proc/driver/nvidia/version").exists() {
        println!("skipped: this machine has an NVIDIA driver");
        return;
    }
    let world = World::new();
    let failed = finish(&mut world.worker(&["--id", "a", "--set", "run.device=cuda"]));
    assert_one_error(&failed, &["libcuda.so.1 cannot be loaded", "set run.device = \"cpu\""]);
}

#[test]
fn a_worker_program_or_port_that_cannot_be_had_is_named() {
    let world = World::new();
    let failed = finish(&mut world.run(&["--worker-program", "/nowhere/polo-worker"]));
    assert_one_error(&failed, &["cannot start /nowhere/polo-worker", "--worker-program"]);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let failed = finish(&mut world.polo(&["run", "recipe.toml", "--listen", &address]));
    assert_one_error(&failed, &[&format!("cannot listen on {address}"), "choose another with --listen"]);
    let failed = finish(world.polo(&[]).args(["coordinator", "recipe.toml", "--listen", &address]));
    assert_one_error(&failed, &[&format!("cannot listen on {address}")]);
}
