//! Import and export beside transformers.

use polo_recipe::layout::Layout;
use polo_store::{Store, hf};

use crate::{Peer, assert_close, import, input_ids, logits, path, small_config};

/// (name, tied, key and value heads, element type, longest shard in bytes)
const CASES: [(&str, bool, usize, &str, usize); 5] = [
    ("tied_bf16_single", true, 2, "bfloat16", 1 << 20),
    ("tied_f32_sharded", true, 1, "float32", 20_000),
    ("untied_f32_single", false, 2, "float32", 1 << 20),
    ("untied_bf16_sharded", false, 4, "bfloat16", 12_000),
    ("untied_f16_single", false, 1, "float16", 1 << 20),
];

#[tokio::test]
async fn a_folder_of_transformers_has_the_same_logits_here_and_comes_back_to_the_byte() {
    let (folder, mut peer, ids) = (tempfile::tempdir().expect("tempdir"), Peer::start(), input_ids());
    for (name, tied, num_kv_heads, dtype_name, max_shard_bytes) in CASES {
        let (theirs, ours) = (folder.path().join(name), folder.path().join(format!("{name}_again")));
        peer.make(&theirs, &small_config(tied, num_kv_heads), dtype_name, max_shard_bytes);
        let right = peer.logits(&theirs, &ids);

        let (config, dtype, params) = import(&theirs).await;
        assert_eq!((config.tie_word_embeddings, dtype.torch_name()), (tied, dtype_name), "{name}");
        assert_close(name, &logits(&config, &params, &ids), &right);

        let out = Store::open(path(&ours)).expect("a folder");
        let range = |range| std::future::ready(Ok(params[std::ops::Range::<usize>::clone(&range)].to_vec()));
        hf::export(&out, &config, &Layout::qwen2(&config), range, dtype, max_shard_bytes, &[]).await.expect("export");
        let is_sharded = |folder: &std::path::Path| folder.join("model.safetensors.index.json").exists();
        assert_eq!((is_sharded(&theirs), is_sharded(&ours)), (name.ends_with("sharded"), name.ends_with("sharded")));
        assert_eq!(peer.tensors(&ours), peer.tensors(&theirs), "{name}: stored tensors");
        assert!(peer.logits(&ours, &ids) == right, "{name}: transformers computes other logits from what came back");
    }
}
