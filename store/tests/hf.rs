//! Hugging Face folders: to the flat vector and back without a changed byte, and every wrong folder refused by name.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use half::{bf16, f16};
use polo_recipe::layout::Layout;
use polo_recipe::model::Qwen2Config;
use polo_store::checkpoint::{Manifest, ParamReader, put_chunk};
use polo_store::hf::{Dtype, export, import, read_params};
use polo_store::{Digest, Store, StoreError};
use safetensors::{Dtype as FileDtype, SafeTensors, tensor::TensorView};

type Tensors = BTreeMap<String, (FileDtype, Vec<usize>, Vec<u8>)>;

fn config(tied: bool) -> Qwen2Config {
    let json = serde_json::json!({
        "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 12, "vocab_size": 20, "tie_word_embeddings": tied
    });
    serde_json::from_value(json).expect("a config")
}

fn store(name: &str) -> Store {
    Store::open(&format!("memory://hf-{name}")).expect("open")
}

/// Made-up weights of every magnitude.
fn params(layout: &Layout) -> Vec<f32> {
    (0..layout.num_params).map(|n| ((n * 37 % 1009) as f32 - 504.0) * 2f32.powi(n as i32 % 40 - 30)).collect()
}

fn tensors(layout: &Layout, dtype: FileDtype) -> Tensors {
    let params = params(layout);
    let element = |value: &f32| match dtype {
        FileDtype::F32 => value.to_le_bytes().to_vec(),
        FileDtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        _ => bf16::from_f32(*value).to_le_bytes().to_vec(),
    };
    let content = |range: Range<usize>| -> Vec<u8> { params[range].iter().flat_map(element).collect() };
    layout.tensors.iter().map(|t| (t.name.clone(), (dtype, t.shape.clone(), content(t.range())))).collect()
}

async fn put_file(folder: &Store, file: &str, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).expect("a view"))
    });
    folder.put(file, safetensors::serialize(views, None).expect("serialises").into()).await.expect("put");
}

async fn put_folder(folder: &Store, config: &Qwen2Config, dtype: &str, tensors: &Tensors) {
    let mut json = serde_json::to_value(config).expect("json");
    json["model_type"] = "qwen2".into();
    json["torch_dtype"] = dtype.into();
    folder.put("config.json", json.to_string().into()).await.expect("put");
    put_file(folder, "model.safetensors", tensors).await;
}

async fn read_all(folder: &Store) -> Tensors {
    let mut all = Tensors::new();
    for entry in folder.list("").await.expect("list").iter().filter(|e| e.key.ends_with(".safetensors")) {
        let bytes = folder.get(&entry.key).await.expect("get");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("header");
        assert_eq!(header.metadata().as_ref().and_then(|m| m.get("format")).map(String::as_str), Some("pt"));
        for (name, view) in SafeTensors::deserialize(&bytes).expect("safetensors").tensors() {
            let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            assert!(all.insert(name, tensor).is_none(), "a tensor is in two files");
        }
    }
    all
}

/// Exports `values` as the flat vector and gives back the names of the files made.
async fn export_values(out: &Store, config: &Qwen2Config, values: &[f32], dtype: Dtype, shard: usize) -> Vec<String> {
    let params = |range: Range<usize>| std::future::ready(Ok::<_, StoreError>(values[range].to_vec()));
    let extra = [("tokenizer.json".to_owned(), Bytes::from_static(b"{}"))];
    export(out, config, &Layout::qwen2(config), params, dtype, shard, &extra).await.expect("export");
    out.list("").await.expect("list").into_iter().map(|e| e.key).collect()
}

#[tokio::test]
async fn an_import_exported_again_is_equal_to_the_byte() {
    let types = [(FileDtype::F32, Dtype::F32), (FileDtype::F16, Dtype::F16), (FileDtype::BF16, Dtype::Bf16)];
    for (n, (file_dtype, dtype)) in types.into_iter().enumerate() {
        for (tied, shard_bytes, num_shards) in [(true, usize::MAX, 1), (false, usize::MAX, 1), (false, 1000, 0)] {
            let (config, name) = (config(tied), format!("round-{n}-{tied}-{shard_bytes}"));
            let (folder, out) = (store(&format!("{name}-in")), store(&format!("{name}-out")));
            let (layout, given) = (Layout::qwen2(&config), tensors(&Layout::qwen2(&config), file_dtype));
            put_folder(&folder, &config, dtype.torch_name(), &given).await;
            assert_eq!(import(&folder).await.expect("import"), (config.clone(), dtype));
            let mut values = vec![0.0; layout.num_params];
            read_params(&folder, &layout, &mut values).await.expect("read");

            let files = export_values(&out, &config, &values, dtype, shard_bytes).await;
            assert_eq!(files.contains(&"model.safetensors".to_owned()), num_shards == 1, "{files:?}");
            assert_eq!(files.contains(&"model.safetensors.index.json".to_owned()), num_shards != 1, "{files:?}");
            assert!(files.contains(&"tokenizer.json".to_owned()));
            assert!(read_all(&out).await == given, "{name} came back changed");
            let mut again = vec![0.0; layout.num_params];
            assert_eq!(import(&out).await.expect("import"), (config, dtype));
            read_params(&out, &layout, &mut again).await.expect("read");
            assert_eq!(values, again);
        }
    }
}

#[tokio::test]
async fn shards_keep_to_their_limit_and_the_index_names_them_all() {
    let (config, out) = (config(false), store("shards"));
    let layout = Layout::qwen2(&config);
    let files = export_values(&out, &config, &params(&layout), Dtype::Bf16, 400).await;
    let shards: Vec<_> = files.iter().filter(|f| f.ends_with(".safetensors")).collect();
    assert!(shards.len() > 3 && shards[0] == &format!("model-00001-of-{:05}.safetensors", shards.len()), "{shards:?}");
    let index = out.get("model.safetensors.index.json").await.expect("get");
    let index: serde_json::Value = serde_json::from_slice(&index).expect("json");
    assert_eq!(index["metadata"]["total_size"], layout.num_params * 2);
    for shard in shards {
        let bytes = out.get(shard).await.expect("get");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let num_bytes: usize = file.tensors().iter().map(|(_, t)| t.data().len()).sum();
        assert!(num_bytes <= 400 || file.len() == 1, "{shard} has {num_bytes} bytes");
        assert!(file.names().iter().all(|name| index["weight_map"][name] == **shard));
    }
}

async fn read_error(name: &str, tied: bool, spoil: impl FnOnce(&mut Tensors)) -> Result<(), String> {
    let (folder, config) = (store(&format!("wrong-{name}")), config(tied));
    let layout = Layout::qwen2(&config);
    let mut tensors = tensors(&layout, FileDtype::F32);
    spoil(&mut tensors);
    put_folder(&folder, &config, "float32", &tensors).await;
    read_params(&folder, &layout, &mut vec![0.0; layout.num_params]).await.map_err(|e| e.to_string())
}

#[tokio::test]
async fn wrong_tensors_are_refused_by_file_and_name() {
    let norm = "model.norm.weight";
    let check = |error: Result<(), String>, words: &[&str]| {
        let error = error.expect_err("refused");
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    check(read_error("missing", true, |t| drop(t.remove(norm))).await, &["memory://hf-wrong-missing", norm]);
    let reshape = |t: &mut Tensors| t.get_mut(norm).expect("there").1 = vec![2, 4];
    check(read_error("shape", true, reshape).await, &["model.safetensors", norm, "[2, 4]", "[8]"]);
    let retype = |t: &mut Tensors| t.get_mut(norm).expect("there").0 = FileDtype::I32;
    check(read_error("dtype", true, retype).await, &["model.safetensors", norm, "I32"]);
    let add = |t: &mut Tensors| drop(t.insert("extra".into(), t[norm].clone()));
    check(read_error("extra", true, add).await, &["model.safetensors", "extra"]);
    let head = |t: &mut Tensors| drop(t.insert("lm_head.weight".into(), t["model.embed_tokens.weight"].clone()));
    assert_eq!(read_error("tied-head", true, head).await, Ok(()));
    let other_head = |t: &mut Tensors| {
        head(t);
        t.get_mut("lm_head.weight").expect("there").2[3] ^= 1;
    };
    check(read_error("other-head", true, other_head).await, &["model.safetensors", "lm_head.weight", "tie_word"]);
    check(read_error("no-head", false, |t| drop(t.remove("lm_head.weight"))).await, &["lm_head.weight"]);
}

#[tokio::test]
async fn cut_and_missing_files_are_refused_by_name() {
    let (folder, config) = (store("cut"), config(true));
    let layout = Layout::qwen2(&config);
    let mut out = vec![0.0; layout.num_params];
    let error = read_params(&folder, &layout, &mut out).await.expect_err("empty folder").to_string();
    assert!(error.contains("memory://hf-cut") && error.contains("model.safetensors"), "{error}");
    put_folder(&folder, &config, "float32", &tensors(&layout, FileDtype::F32)).await;
    let whole = folder.get("model.safetensors").await.expect("get");
    for len in [0, 7, 8, 100, whole.len() - 1] {
        folder.put("model.safetensors", whole.slice(..len)).await.expect("put");
        let error = read_params(&folder, &layout, &mut out).await.expect_err("cut").to_string();
        assert!(error.contains("memory://hf-cut/model.safetensors") && error.contains("bytes"), "{len}: {error}");
    }
    let sharded = store("cut-shards");
    let files = export_values(&sharded, &config, &params(&layout), Dtype::F32, 1000).await;
    let shard = files.iter().find(|f| f.ends_with(".safetensors")).expect("a shard");
    sharded.delete(shard).await.expect("delete");
    let error = read_params(&sharded, &layout, &mut out).await.expect_err("a shard is gone").to_string();
    assert!(error.contains(shard.as_str()), "{error}");
}

#[tokio::test]
async fn an_occupied_folder_is_refused() {
    let (config, out) = (config(true), store("occupied"));
    let layout = Layout::qwen2(&config);
    export_values(&out, &config, &params(&layout), Dtype::F32, usize::MAX).await;
    let params = |range: Range<usize>| std::future::ready(Ok(vec![0.0; range.len()]));
    let error = export(&out, &config, &layout, params, Dtype::F32, 1000, &[]).await.expect_err("occupied");
    assert!(error.to_string().contains("memory://hf-occupied"), "{error}");
}

#[tokio::test]
async fn a_checkpoint_is_exported_without_its_moments() {
    let (config, run, out) = (config(false), store("run"), store("from-checkpoint"));
    let layout = Layout::with_chunk_params(&config, 77);
    let values = params(&layout);
    let mut digests = Vec::new();
    for chunk in &layout.chunks {
        let moments = vec![7.0; 2 * chunk.range.len()];
        let object = values[chunk.range.clone()].iter().chain(&moments).flat_map(|v| v.to_le_bytes());
        digests.push(put_chunk(&run, object.collect()).await.expect("put chunk"));
    }
    let manifest = Manifest::new(5, "recipe".into(), Digest::of(b""), &layout, &digests, vec![]);
    let reader = ParamReader::new(&run, &manifest);
    let params = |range| reader.read(range);
    export(&out, &config, &layout, params, Dtype::F32, 1000, &[]).await.expect("export");
    let mut again = vec![0.0; layout.num_params];
    read_params(&out, &layout, &mut again).await.expect("read");
    assert_eq!(values, again);
}
