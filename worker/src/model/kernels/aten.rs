//! Kernels made of libtorch's operations: for any device, in fp32 or bf16.
//!
//! Norms, rotations and losses are computed in fp32, whatever the kind of their rows, and rounded once. SwiGLU's `silu`
//! is fp32 within, and each of its products is rounded, as in transformers.

use tch::{Kind, Tensor};

use super::{Attended, Heads, Kernels, Normed, Result, Turn, blockwise, flash};
use crate::model::places::Places;

/// libtorch's operations.
pub struct Aten;

impl Kernels for Aten {
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Normed> {
        let width = x.size2()?.1 as f64;
        let norm = x.f_norm_scalaropt_dim_dtype(2, -1, false, Kind::Float)?;
        let inverse_rms = norm.f_square()?.f_div_scalar(width)?.f_add_scalar(eps)?.f_rsqrt()?;
        let out = x.f_empty_like()?;
        x.f_mul(&inverse_rms.f_unsqueeze(-1)?)?.f_mul_out(&out, weight).map(drop)?;
        Ok(Normed { out, inverse_rms })
    }

    fn rms_norm_backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        inverse_rms: &Tensor,
        out_grad: &Tensor,
        x_grad: &Tensor,
        weight_grad: &Tensor,
    ) -> Result {
        let (width, inverse) = (x.size2()?.1 as f64, inverse_rms.f_unsqueeze(-1)?);
        let mut products = out_grad.f_mul(&x.f_mul(&inverse)?)?;
        weight_grad.shallow_clone().f_add_(&products.f_sum_dim_intlist(0, false, Kind::Float)?).map(drop)?;
        let sums = products.f_mul_(weight)?.f_sum_dim_intlist(-1, true, Kind::Float)?;
        drop(products);
        // Of the normed row's gradient, what points along the row changes nothing but its length.
        let along = sums.f_div_scalar(width)?.f_mul(&inverse)?;
        let mut across = out_grad.f_mul(weight)?;
        across.f_sub_(&x.f_mul(&along)?).map(drop)?;
        x_grad.shallow_clone().f_add_(&across.f_mul_(&inverse)?).map(drop)?;
        Ok(())
    }

    fn rotate(&self, rows_of_heads: &Tensor, heads: i64, places: &Places, turn: Turn) -> Result {
        let at = |table: &Tensor| -> Result<Tensor> { Ok(table.f_index_select(0, &places.positions)?.f_unsqueeze(1)?) };
        let (cosine, sine) = (at(&places.rope.cosine)?, at(&places.rope.sine)?);
        let sine = if turn == Turn::Forward { sine } else { sine.f_neg()? };
        let half = cosine.size()[2];
        let halves = rows_of_heads.f_narrow(1, 0, heads * 2 * half)?.f_unflatten(1, [heads, 2 * half])?;
        let (mut x, mut y) = (halves.f_narrow(2, 0, half)?, halves.f_narrow(2, half, half)?);
        // Products with fp32 angles are fp32.
        let turned_x = x.f_mul(&cosine)?.f_sub_(&y.f_mul(&sine)?)?;
        let turned_y = y.f_mul(&cosine)?.f_add_(&x.f_mul(&sine)?)?;
        x.f_copy_(&turned_x).map(drop)?;
        y.f_copy_(&turned_y).map(drop)?;
        Ok(())
    }

    fn attention(&self, qkv: &Tensor, places: &Places, heads: Heads) -> Result<Attended> {
        match flash::works_on(qkv, heads) {
            true => flash::attention(qkv, places, heads),
            false => blockwise::attention(qkv, places.spans.bounds(), heads),
        }
    }

    fn attention_backward(
        &self,
        out_grad: &Tensor,
        qkv: &Tensor,
        attended: &Attended,
        places: &Places,
        heads: Heads,
    ) -> Result<Tensor> {
        match flash::works_on(qkv, heads) {
            true => flash::attention_backward(out_grad, qkv, attended, places, heads),
            false => blockwise::attention_backward(out_grad, qkv, attended, places.spans.bounds(), heads),
        }
    }

    fn swiglu(&self, gate_up: &Tensor) -> Result<Tensor> {
        let [gate, up] = halves(gate_up)?;
        Ok(gate.f_silu()?.f_mul_(&up)?)
    }

    fn swiglu_backward(&self, gate_up: &Tensor, out: &Tensor) -> Result {
        let [gate, up] = halves(gate_up)?;
        let activated = gate.f_silu()?;
        gate.f_silu_backward_grad_input(&gate, &out.f_mul(&up)?).map(drop)?;
        let forward = activated.f_mul(&up)?;
        activated.f_mul_out(&up, out).map(drop)?;
        out.shallow_clone().f_copy_(&forward).map(drop)?;
        Ok(())
    }

    fn cross_entropy(&self, logits: &Tensor, targets: &Tensor, scale: f64) -> Result<Tensor> {
        let (mut logits, targets) = (logits.shallow_clone(), targets.f_unsqueeze(1)?);
        logits.f_sub_(&logits.f_amax(-1, true)?).map(drop)?;
        let target_logits = logits.f_gather(1, &targets, false)?;
        let totals = logits.f_exp_()?.f_sum_dim_intlist(-1, true, Kind::Float)?;
        logits.f_mul_(&totals.f_reciprocal()?.f_mul_scalar(scale)?).map(drop)?;
        // A row has one target, so no two writes meet.
        let at_targets = logits.f_gather(1, &targets, false)?.f_sub_scalar(scale)?;
        logits.f_scatter_(1, &targets, &at_targets).map(drop)?;
        Ok(totals.f_log()?.f_sub(&target_logits)?.f_squeeze_dim(1)?)
    }

    // On the CPU `index_add` goes row after row. On a GPU, under deterministic algorithms, it sorts the indices first.
    fn add_rows_at(&self, to: &Tensor, at: &Tensor, from: &Tensor) -> Result {
        to.shallow_clone().f_index_add_(0, at, &from.f_to_kind(Kind::Float)?).map(drop)?;
        Ok(())
    }

    fn add_row_sum(&self, to: &Tensor, from: &Tensor) -> Result {
        to.shallow_clone().f_add_(&from.f_sum_dim_intlist(0, false, Kind::Float)?).map(drop)?;
        Ok(())
    }
}

/// Gate and up of `gate_up` `[rows, 2 * width]` as views `[rows, width]`.
fn halves(gate_up: &Tensor) -> Result<[Tensor; 2]> {
    let width = gate_up.size2()?.1 / 2;
    Ok([gate_up.f_narrow(1, 0, width)?, gate_up.f_narrow(1, width, width)?])
}
