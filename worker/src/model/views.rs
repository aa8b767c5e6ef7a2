//! Parameters (or gradients) of one block as views into the flat vector.
//!
//! Neighbours in the layout that are used together are seen as one matrix: q, k and v, and gate and up.

use polo_recipe::layout::Layout;
use tch::Tensor;

use super::ModelError;

/// One decoder layer: `hidden` wide, `qkv = hidden + 2 * kv_size`, `mlp` wide within.
pub struct LayerViews {
    /// `[hidden]`
    pub input_norm: Tensor,
    /// `[qkv, hidden]`
    pub qkv_weight: Tensor,
    /// `[qkv]`
    pub qkv_bias: Tensor,
    /// `[hidden, hidden]`
    pub o_weight: Tensor,
    /// `[hidden]`
    pub post_attention_norm: Tensor,
    /// `[2 * mlp, hidden]`
    pub gate_up_weight: Tensor,
    /// `[hidden, mlp]`
    pub down_weight: Tensor,
}

/// The tensors outside the layers.
pub struct OuterViews {
    /// `[vocab, hidden]`
    pub embedding: Tensor,
    /// `[hidden]`
    pub norm: Tensor,
    /// `[vocab, hidden]`; the embedding itself when they are tied.
    pub head: Tensor,
}

impl LayerViews {
    /// Views of layer `layer` in `flat`.
    pub fn new(flat: &Tensor, layout: &Layout, layer: usize) -> Result<Self, ModelError> {
        let view = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| format!("model.layers.{layer}.{name}")).collect();
            joined(flat, layout, &names)
        };
        Ok(Self {
            input_norm: view(&["input_layernorm.weight"])?,
            qkv_weight: view(&["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"])?,
            qkv_bias: view(&["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"])?,
            o_weight: view(&["self_attn.o_proj.weight"])?,
            post_attention_norm: view(&["post_attention_layernorm.weight"])?,
            gate_up_weight: view(&["mlp.gate_proj.weight", "mlp.up_proj.weight"])?,
            down_weight: view(&["mlp.down_proj.weight"])?,
        })
    }
}

impl OuterViews {
    /// Views of the embedding, the final norm and the head in `flat`.
    pub fn new(flat: &Tensor, layout: &Layout) -> Result<Self, ModelError> {
        let view = |name: &str| joined(flat, layout, &[name.to_owned()]);
        let head =
            if layout.tensor("lm_head.weight").is_some() { "lm_head.weight" } else { "model.embed_tokens.weight" };
        Ok(Self { embedding: view("model.embed_tokens.weight")?, norm: view("model.norm.weight")?, head: view(head)? })
    }
}

/// Adjacent tensors seen as one, joined along their first dimension.
fn joined(flat: &Tensor, layout: &Layout, names: &[String]) -> Result<Tensor, ModelError> {
    let find = |name: &String| layout.tensor(name).ok_or_else(|| ModelError::NoSuchTensor(name.clone()));
    let parts = names.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    debug_assert!(parts.windows(2).all(|pair| pair[0].range().end == pair[1].offset));
    let mut shape: Vec<i64> = parts[0].shape.iter().map(|&n| n as i64).collect();
    shape[0] = parts.iter().map(|part| part.shape[0] as i64).sum();
    let len = parts.iter().map(|part| part.numel() as i64).sum();
    Ok(flat.f_narrow(0, parts[0].offset as i64, len)?.f_view(shape.as_slice())?)
}
