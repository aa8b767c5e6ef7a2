//! Final norm, output projection and loss. The logits of a few rows exist at a time, in fp32, and become their own gradient.

use polo_recipe::{buffers::piece_rows, model::Qwen2Config};
use tch::{Device, Kind, Tensor};

use super::ModelError;
use super::kernels::{Kernels, Normed};
use super::products::{add_product, product_into};
use super::views::HeadViews;

/// What a head is computed with.
pub struct Context<'a> {
    /// The model's architecture.
    pub config: &'a Qwen2Config,
    /// Kernels for the rows' kind and device.
    pub kernels: &'a dyn Kernels,
}

/// Losses per row of `x` `[rows, hidden]` against `targets` `[rows]`.
pub fn loss(x: &Tensor, targets: &Tensor, params: &HeadViews, context: &Context) -> Result<Vec<f64>, ModelError> {
    let normed = context.kernels.rms_norm(x, &params.norm, context.config.rms_norm_eps)?;
    each_piece(&normed.out, targets, params, context, 0.0, |_, _, _| Ok(()))
}

/// Losses per row, and the gradient with respect to `x`; adds `scale` times the parameters' gradients to `grads`.
pub fn loss_and_grad(
    x: &Tensor,
    targets: &Tensor,
    params: &HeadViews,
    grads: &HeadViews,
    context: &Context,
    scale: f64,
) -> Result<(Vec<f64>, Tensor), ModelError> {
    let kernels = context.kernels;
    let Normed { out, inverse_rms } = kernels.rms_norm(x, &params.norm, context.config.rms_norm_eps)?;
    let norm_grad = out.f_empty_like()?;
    let losses = each_piece(&out, targets, params, context, scale, |start, hidden, logits_grad| {
        let logits_grad = logits_grad.f_to_kind(hidden.kind())?;
        product_into(&norm_grad.f_narrow(0, start, hidden.size()[0])?, &logits_grad, &params.head)?;
        add_product(&grads.head, &logits_grad, hidden)
    })?;
    let grad = x.f_zeros_like()?;
    kernels.rms_norm_backward(x, &params.norm, &inverse_rms, &norm_grad, &grad, &grads.norm)?;
    Ok((losses, grad))
}

/// Calls `use_grad(first row, normed rows, logits' gradient)` for each piece and gathers the rows' losses, which come to the
/// host together.
fn each_piece(
    normed: &Tensor,
    targets: &Tensor,
    params: &HeadViews,
    context: &Context,
    scale: f64,
    mut use_grad: impl FnMut(i64, &Tensor, &Tensor) -> Result<(), ModelError>,
) -> Result<Vec<f64>, ModelError> {
    let (rows, vocab_size) = (normed.size()[0], context.config.vocab_size);
    let most = piece_rows(vocab_size) as i64;
    let buffer = Tensor::f_empty([most.min(rows), vocab_size as i64], (Kind::Float, normed.device()))?;
    let mut losses = Vec::new();
    for start in (0..rows).step_by(most as usize) {
        let len = most.min(rows - start);
        let (hidden, logits) = (normed.f_narrow(0, start, len)?, buffer.f_narrow(0, 0, len)?);
        product_into(&logits, &hidden, &params.head.f_tr()?)?;
        losses.push(context.kernels.cross_entropy(&logits, &targets.f_narrow(0, start, len)?, scale)?);
        use_grad(start, &hidden, &logits)?;
    }
    Ok(Tensor::f_cat(&losses, 0)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?.try_into()?)
}
