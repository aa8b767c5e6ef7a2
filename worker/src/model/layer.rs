//! One decoder layer: a function of its parameters and its input, and the gradient of that function.
//!
//! ```text
//! x -> norm -> q k v -> rotate -> attention -> o -(+ x)-> mid -> norm -> gate up -> swiglu -> down -(+ mid)-> out
//! ```
//! Rows are tokens: every activation is `[batch * sequence, width]`, in the compute dtype, and so is its gradient: also
//! what runs from layer to layer (`x`, `mid`, `out`).

use polo_recipe::model::Qwen2Config;
use tch::Tensor;

use super::ModelError;
use super::kernels::{Attended, Heads, Kernels, Normed, Turn};
use super::places::Places;
use super::products::{add_product, product, sum};
use super::views::LayerViews;

/// What all layers share during one micro-batch.
pub struct Context<'a> {
    /// The model's architecture.
    pub config: &'a Qwen2Config,
    /// Which of its rows attend to each other, and at which positions.
    pub places: &'a Places,
    /// What its rows are computed with.
    pub kernels: &'a dyn Kernels,
}

/// What the backward needs of the forward.
pub struct Saved {
    attention_norm: Normed,
    qkv: Tensor,
    attended: Attended,
    mid: Tensor,
    mlp_norm: Normed,
    gate_up: Tensor,
}

impl Context<'_> {
    fn heads(&self) -> Heads {
        let (query, kv) = (self.config.num_attention_heads as i64, self.config.num_key_value_heads as i64);
        Heads { query, kv, dim: self.config.head_dim() as i64 }
    }

    fn rotate(&self, qkv: &Tensor, turn: Turn) -> Result<(), ModelError> {
        let heads = self.heads();
        self.kernels.rotate(qkv, heads.query + heads.kv, self.places, turn)
    }
}

/// The layer's output and what its backward needs.
pub fn forward(x: &Tensor, params: &LayerViews, context: &Context) -> Result<(Tensor, Saved), ModelError> {
    let (eps, kernels) = (context.config.rms_norm_eps, context.kernels);
    let attention_norm = kernels.rms_norm(x, &params.input_norm, eps)?;
    let qkv = sum(&params.qkv_bias, &attention_norm.out, &params.qkv_weight.f_tr()?)?;
    context.rotate(&qkv, Turn::Forward)?;
    let attended = kernels.attention(&qkv, context.places, context.heads())?;
    let mid = sum(x, &attended.out, &params.o_weight.f_tr()?)?;
    let mlp_norm = kernels.rms_norm(&mid, &params.post_attention_norm, eps)?;
    let gate_up = product(&mlp_norm.out, &params.gate_up_weight.f_tr()?)?;
    let out = sum(&mid, &kernels.swiglu(&gate_up)?, &params.down_weight.f_tr()?)?;
    Ok((out, Saved { attention_norm, qkv, attended, mid, mlp_norm, gate_up }))
}

/// Turns `grad`, the gradient with respect to the output, into the one with respect to `x`, in place, and adds the
/// parameters' gradients to `grads`.
pub fn backward(
    grad: &Tensor,
    x: &Tensor,
    saved: Saved,
    params: &LayerViews,
    grads: &LayerViews,
    context: &Context,
) -> Result<(), ModelError> {
    let kernels = context.kernels;
    let Saved { attention_norm, qkv, attended, mid, mlp_norm, gate_up } = saved;
    mlp_backward(grad, &mid, mlp_norm, gate_up, params, grads, kernels)?;
    drop(mid);

    let attended_grad = product(grad, &params.o_weight)?;
    add_product(&grads.o_weight, grad, &attended.out)?;
    let qkv_grad = kernels.attention_backward(&attended_grad, &qkv, &attended, context.places, context.heads())?;
    drop((attended_grad, qkv, attended));
    context.rotate(&qkv_grad, Turn::Backward)?;
    kernels.add_row_sum(&grads.qkv_bias, &qkv_grad)?;
    add_product(&grads.qkv_weight, &qkv_grad, &attention_norm.out)?;
    let norm_grad = product(&qkv_grad, &params.qkv_weight)?;
    kernels.rms_norm_backward(x, &params.input_norm, &attention_norm.inverse_rms, &norm_grad, grad, &grads.input_norm)
}

fn mlp_backward(
    grad: &Tensor,
    mid: &Tensor,
    norm: Normed,
    gate_up: Tensor,
    params: &LayerViews,
    grads: &LayerViews,
    kernels: &dyn Kernels,
) -> Result<(), ModelError> {
    let swiglu = product(grad, &params.down_weight)?;
    kernels.swiglu_backward(&gate_up, &swiglu)?;
    add_product(&grads.down_weight, grad, &swiglu)?;
    drop(swiglu);
    add_product(&grads.gate_up_weight, &gate_up, &norm.out)?;
    let norm_grad = product(&gate_up, &params.gate_up_weight)?;
    let (weight, weight_grad) = (&params.post_attention_norm, &grads.post_attention_norm);
    kernels.rms_norm_backward(mid, weight, &norm.inverse_rms, &norm_grad, grad, weight_grad)
}
