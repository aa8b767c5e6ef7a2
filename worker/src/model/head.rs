//! Final norm, output projection and loss. The logits of a few rows exist at a time, and become their own gradient.

use polo_recipe::{buffers::piece_rows, model::Qwen2Config};
use tch::{Kind, Tensor};

use super::ModelError;
use super::kernels::{self, Normed};
use super::layer::{add_product, product_into};
use super::views::HeadViews;

/// Losses per row of `x` `[rows, hidden]` against `targets` `[rows]`.
pub fn loss(x: &Tensor, targets: &Tensor, params: &HeadViews, config: &Qwen2Config) -> Result<Vec<f64>, ModelError> {
    let normed = kernels::rms_norm(x, &params.norm, config.rms_norm_eps)?;
    each_piece(&normed.out, targets, params, config, 0.0, |_, _, _| Ok(()))
}

/// Losses per row, and the gradient with respect to `x`; adds `scale` times the parameters' gradients to `grads`.
pub fn loss_and_grad(
    x: &Tensor,
    targets: &Tensor,
    params: &HeadViews,
    grads: &HeadViews,
    config: &Qwen2Config,
    scale: f64,
) -> Result<(Vec<f64>, Tensor), ModelError> {
    let Normed { out, inverse_rms } = kernels::rms_norm(x, &params.norm, config.rms_norm_eps)?;
    let norm_grad = out.f_empty_like()?;
    let losses = each_piece(&out, targets, params, config, scale, |start, hidden, logits_grad| {
        product_into(&norm_grad.f_narrow(0, start, hidden.size()[0])?, logits_grad, &params.head)?;
        add_product(&grads.head, logits_grad, hidden)
    })?;
    let grad = x.f_zeros_like()?;
    kernels::rms_norm_backward(x, &params.norm, &inverse_rms, &norm_grad, &grad, &grads.norm)?;
    Ok((losses, grad))
}

/// Calls `use_grad(first row, normed rows, logits' gradient)` for each piece and gathers the rows' losses.
fn each_piece(
    normed: &Tensor,
    targets: &Tensor,
    params: &HeadViews,
    config: &Qwen2Config,
    scale: f64,
    mut use_grad: impl FnMut(i64, &Tensor, &Tensor) -> Result<(), ModelError>,
) -> Result<Vec<f64>, ModelError> {
    let (rows, most) = (normed.size()[0], piece_rows(config.vocab_size) as i64);
    let buffer = Tensor::f_empty([most.min(rows), config.vocab_size as i64], (Kind::Float, normed.device()))?;
    let mut losses = Vec::with_capacity(rows as usize);
    for start in (0..rows).step_by(most as usize) {
        let len = most.min(rows - start);
        let (hidden, logits) = (normed.f_narrow(0, start, len)?, buffer.f_narrow(0, 0, len)?);
        product_into(&logits, &hidden, &params.head.f_tr()?)?;
        losses.extend(kernels::cross_entropy(&logits, &targets.f_narrow(0, start, len)?, scale)?);
        use_grad(start, &hidden, &logits)?;
    }
    Ok(losses)
}
