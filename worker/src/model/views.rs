//! Parameters (or gradients) of one block as views into the block's flat vector.
//!
//! Neighbours in the layout that are used together are seen as one matrix: q, k and v, and gate and up.

use polo_recipe::layout::Layout;
use tch::{Kind, Tensor};

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

/// The final norm and the output projection.
pub struct HeadViews {
    /// `[hidden]`
    pub norm: Tensor,
    /// `[vocab, hidden]`; the embedding itself when they are tied.
    pub head: Tensor,
}

impl LayerViews {
    /// Views of `block`, fp32, to compute with: norms' weights stay fp32; if `kind` is another, matrices and biases are
    /// those of a copy.
    pub fn in_kind(block: &Tensor, kind: Kind, layout: &Layout, layer: usize) -> Result<Self, ModelError> {
        let master = Self::new(block, layout, layer)?;
        if kind == Kind::Float {
            return Ok(master);
        }
        let Self { input_norm, post_attention_norm, .. } = master;
        Ok(Self { input_norm, post_attention_norm, ..Self::new(&block.f_to_kind(kind)?, layout, layer)? })
    }

    /// Views of layer `layer` in `block`, the vector of its block.
    pub fn new(block: &Tensor, layout: &Layout, layer: usize) -> Result<Self, ModelError> {
        let view = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| format!("model.layers.{layer}.{name}")).collect();
            joined(block, layout, layer + 1, &names)
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

/// The embedding `[vocab, hidden]` in the vector of the first block.
pub fn embedding(block: &Tensor, layout: &Layout) -> Result<Tensor, ModelError> {
    joined(block, layout, 0, &["model.embed_tokens.weight".to_owned()])
}

impl HeadViews {
    /// [`HeadViews::new`] on fp32 vectors, with the norm's weight in fp32 and the projection in `kind`.
    pub fn in_kind(last: &Tensor, first: &Tensor, kind: Kind, layout: &Layout) -> Result<Self, ModelError> {
        let Self { norm, head } = Self::new(last, first, layout)?;
        Ok(Self { norm, head: head.f_to_kind(kind)? })
    }

    /// Views in the vectors of the last block and of the first, which has the output projection if it is tied.
    pub fn new(last: &Tensor, first: &Tensor, layout: &Layout) -> Result<Self, ModelError> {
        let number = layout.blocks.len() - 1;
        let norm = joined(last, layout, number, &["model.norm.weight".to_owned()])?;
        let head = match is_tied(layout) {
            true => embedding(first, layout)?,
            false => joined(last, layout, number, &["lm_head.weight".to_owned()])?,
        };
        Ok(Self { norm, head })
    }
}

/// Whether the output projection is the embedding.
pub fn is_tied(layout: &Layout) -> bool {
    layout.tensor("lm_head.weight").is_none()
}

/// Adjacent tensors of a block seen as one, joined along their first dimension.
fn joined(block: &Tensor, layout: &Layout, number: usize, names: &[String]) -> Result<Tensor, ModelError> {
    let find = |name: &String| layout.tensor(name).ok_or_else(|| ModelError::NoSuchTensor(name.clone()));
    let parts = names.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    debug_assert!(parts.windows(2).all(|pair| pair[0].range().end == pair[1].offset));
    let mut shape: Vec<i64> = parts[0].shape.iter().map(|&n| n as i64).collect();
    shape[0] = parts.iter().map(|part| part.shape[0] as i64).sum();
    let len = parts.iter().map(|part| part.numel() as i64).sum();
    let offset = parts[0].offset - layout.blocks[number].range.start;
    Ok(block.f_narrow(0, offset as i64, len)?.f_view(shape.as_slice())?)
}
