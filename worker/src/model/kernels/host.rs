//! The shim's kernels (`csrc/kernels.cpp`, `csrc/attention.cpp`) for fp32 on the CPU, as safe functions: kinds, shapes and
//! places are checked here.

use tch::{Device, Kind, Tensor};

use super::{Attended, Heads, Kernels, Normed, Result, Turn};
use crate::model::{ModelError, places::Places};

/// This crate's own kernels.
pub struct Host;

unsafe extern "C" {
    fn polo_rms_norm(x: *const f32, w: *const f32, eps: f32, rows: i64, width: i64, out: *mut f32, inverse: *mut f32);
    fn polo_rms_norm_backward(
        x: *const f32,
        weight: *const f32,
        inverse: *const f32,
        out_grad: *const f32,
        rows: i64,
        width: i64,
        x_grad: *mut f32,
        weight_grad: *mut f32,
    );
    fn polo_rotate(
        rows_of_heads: *mut f32,
        rows: i64,
        stride: i64,
        positions: *const i64,
        heads: i64,
        half: i64,
        cosine: *const f32,
        sine: *const f32,
        direction: f32,
    );
    fn polo_attention(
        qkv: *const f32,
        bounds: *const i64,
        num_spans: i64,
        heads: i64,
        kv_heads: i64,
        dim: i64,
        out: *mut f32,
        log_sum_exp: *mut f32,
    );
    fn polo_attention_backward(
        qkv: *const f32,
        out: *const f32,
        log_sum_exp: *const f32,
        out_grad: *const f32,
        bounds: *const i64,
        num_spans: i64,
        heads: i64,
        kv_heads: i64,
        dim: i64,
        qkv_grad: *mut f32,
    );
    fn polo_swiglu(gate_up: *const f32, rows: i64, width: i64, out: *mut f32);
    fn polo_swiglu_backward(gate_up: *mut f32, out: *mut f32, rows: i64, width: i64);
    fn polo_cross_entropy(logits: *mut f32, targets: *const i64, rows: i64, vocab: i64, scale: f32, losses: *mut f64);
    fn polo_add_rows_at(to: *mut f32, indices: *const i64, from: *const f32, rows: i64, width: i64);
    fn polo_add_row_sum(to: *mut f32, from: *const f32, rows: i64, width: i64);
}

/// The memory of a contiguous tensor of that shape, or an error that names it.
fn memory<T>(name: &'static str, tensor: &Tensor, kind: Kind, shape: &[i64]) -> Result<*mut T> {
    let found = (tensor.kind(), tensor.device(), tensor.size());
    if found != (kind, Device::Cpu, shape.to_vec()) || !tensor.is_contiguous() {
        let wanted = format!("contiguous {kind:?} {shape:?} on the CPU");
        let found = format!("{:?} {:?} on {:?} with strides {:?}", found.0, found.2, found.1, tensor.stride());
        return Err(ModelError::Tensor { name, wanted, found });
    }
    Ok(tensor.data_ptr().cast())
}

fn floats(name: &'static str, tensor: &Tensor, shape: &[i64]) -> Result<*mut f32> {
    memory(name, tensor, Kind::Float, shape)
}

impl Kernels for Host {
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Normed> {
        let (rows, width) = x.size2()?;
        let out = Tensor::f_empty([rows, width], (Kind::Float, x.device()))?;
        let inverse_rms = Tensor::f_empty([rows], (Kind::Float, x.device()))?;
        let (x, weight) = (floats("x", x, &[rows, width])?, floats("weight", weight, &[width])?);
        let (to, inverse) = (floats("out", &out, &[rows, width])?, floats("inverse_rms", &inverse_rms, &[rows])?);
        // SAFETY: four live buffers of the sizes checked above.
        unsafe { polo_rms_norm(x, weight, eps as f32, rows, width, to, inverse) };
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
        let (rows, width) = x.size2()?;
        let (x, out_grad) = (floats("x", x, &[rows, width])?, floats("out_grad", out_grad, &[rows, width])?);
        let (weight, inverse) = (floats("weight", weight, &[width])?, floats("inverse_rms", inverse_rms, &[rows])?);
        let (x_grad, weight_grad) =
            (floats("x_grad", x_grad, &[rows, width])?, floats("weight_grad", weight_grad, &[width])?);
        // SAFETY: six live buffers of the sizes checked above.
        unsafe { polo_rms_norm_backward(x, weight, inverse, out_grad, rows, width, x_grad, weight_grad) };
        Ok(())
    }

    fn rotate(&self, rows_of_heads: &Tensor, heads: i64, places: &Places, turn: Turn) -> Result {
        let Places { spans, rope, .. } = places;
        let (stride, (num_positions, half)) = (rows_of_heads.size2()?.1, rope.cosine.size2()?);
        let direction = if turn == Turn::Forward { 1.0 } else { -1.0 };
        let data = floats("rows_of_heads", rows_of_heads, &[spans.num_rows(), stride])?;
        let cosine = floats("cosine", &rope.cosine, &[num_positions, half])?;
        let sine = floats("sine", &rope.sine, &[num_positions, half])?;
        if heads * half * 2 > stride {
            let wanted = format!("at least {heads} heads of {} a row", half * 2);
            return Err(ModelError::Tensor { name: "rows_of_heads", wanted, found: format!("{stride} a row") });
        }
        if spans.longest() > num_positions {
            let wanted = format!("{} positions", spans.longest());
            return Err(ModelError::Tensor { name: "cosine", wanted, found: num_positions.to_string() });
        }
        let (rows, positions) = (spans.num_rows(), spans.positions().as_ptr());
        // SAFETY: four live buffers of the sizes checked above, the heads lie within a row, and each of the `rows` positions
        // lies in the tables.
        unsafe { polo_rotate(data, rows, stride, positions, heads, half, cosine, sine, direction) };
        Ok(())
    }

    fn attention(&self, qkv: &Tensor, places: &Places, heads: Heads) -> Result<Attended> {
        let (spans, options) = (&places.spans, (Kind::Float, qkv.device()));
        let rows = spans.num_rows();
        let out = Tensor::f_empty([rows, heads.query * heads.dim], options)?;
        let log_sum_exp = Tensor::f_empty([heads.query, rows], options)?;
        let from = floats("qkv", qkv, &[rows, heads.row()])?;
        let (to, sums) = (out.data_ptr().cast(), log_sum_exp.data_ptr().cast());
        let (bounds, num_spans) = spans.raw();
        // SAFETY: four live buffers, the tensors of the sizes checked above with a row for each of the spans', and
        // `heads.kv` divides `heads.query` (Model::new).
        unsafe { polo_attention(from, bounds, num_spans, heads.query, heads.kv, heads.dim, to, sums) };
        Ok(Attended { out, log_sum_exp, random_state: None })
    }

    fn attention_backward(
        &self,
        out_grad: &Tensor,
        qkv: &Tensor,
        attended: &Attended,
        places: &Places,
        heads: Heads,
    ) -> Result<Tensor> {
        let spans = &places.spans;
        let (rows, width) = (spans.num_rows(), heads.query * heads.dim);
        let qkv_grad = qkv.f_zeros_like()?;
        let (from, to) =
            (floats("qkv", qkv, &[rows, heads.row()])?, floats("qkv_grad", &qkv_grad, &[rows, heads.row()])?);
        let out = floats("out", &attended.out, &[rows, width])?;
        let out_grad = floats("out_grad", out_grad, &[rows, width])?;
        let sums = floats("log_sum_exp", &attended.log_sum_exp, &[heads.query, rows])?;
        let (bounds, num_spans) = spans.raw();
        // SAFETY: six live buffers, the tensors of the sizes checked above with a row for each of the spans', and
        // `heads.kv` divides `heads.query` (Model::new).
        unsafe {
            let (query, kv, dim) = (heads.query, heads.kv, heads.dim);
            polo_attention_backward(from, out, sums, out_grad, bounds, num_spans, query, kv, dim, to);
        }
        Ok(qkv_grad)
    }

    fn swiglu(&self, gate_up: &Tensor) -> Result<Tensor> {
        let (rows, double) = gate_up.size2()?;
        let out = Tensor::f_empty([rows, double / 2], (Kind::Float, gate_up.device()))?;
        let (from, to) = (floats("gate_up", gate_up, &[rows, double])?, floats("out", &out, &[rows, double / 2])?);
        // SAFETY: two live buffers of the sizes checked above.
        unsafe { polo_swiglu(from, rows, double / 2, to) };
        Ok(out)
    }

    fn swiglu_backward(&self, gate_up: &Tensor, out: &Tensor) -> Result {
        let (rows, double) = gate_up.size2()?;
        let (gate_up, out) = (floats("gate_up", gate_up, &[rows, double])?, floats("out", out, &[rows, double / 2])?);
        // SAFETY: two live buffers of the sizes checked above.
        unsafe { polo_swiglu_backward(gate_up, out, rows, double / 2) };
        Ok(())
    }

    fn cross_entropy(&self, logits: &Tensor, targets: &Tensor, scale: f64) -> Result<Tensor> {
        let (rows, vocab) = logits.size2()?;
        let mut losses = vec![0.0; rows as usize];
        let data = floats("logits", logits, &[rows, vocab])?;
        let targets = indices("targets", targets, rows, vocab)?;
        // SAFETY: three live buffers of the sizes checked above, and every target is below `vocab`.
        unsafe { polo_cross_entropy(data, targets, rows, vocab, scale as f32, losses.as_mut_ptr()) };
        Ok(Tensor::f_from_slice(&losses)?)
    }

    fn add_rows_at(&self, to: &Tensor, at: &Tensor, from: &Tensor) -> Result {
        let ((num_rows, width), (rows, _)) = (to.size2()?, from.size2()?);
        let (to, from) = (floats("to", to, &[num_rows, width])?, floats("from", from, &[rows, width])?);
        let at = indices("indices", at, rows, num_rows)?;
        // SAFETY: three live buffers of the sizes checked above, and every index is below `num_rows`.
        unsafe { polo_add_rows_at(to, at, from, rows, width) };
        Ok(())
    }

    fn add_row_sum(&self, to: &Tensor, from: &Tensor) -> Result {
        let (rows, width) = from.size2()?;
        let (to, from) = (floats("to", to, &[width])?, floats("from", from, &[rows, width])?);
        // SAFETY: two live buffers of the sizes checked above.
        unsafe { polo_add_row_sum(to, from, rows, width) };
        Ok(())
    }
}

/// The memory of `count` int64 numbers that all lie in `0..limit`.
fn indices(name: &'static str, tensor: &Tensor, count: i64, limit: i64) -> Result<*const i64> {
    let data: *const i64 = memory::<i64>(name, tensor, Kind::Int64, &[count])?;
    // SAFETY: the tensor is alive, contiguous, and holds `count` int64 numbers.
    let numbers = unsafe { std::slice::from_raw_parts(data, count as usize) };
    match numbers.iter().find(|&&n| n < 0 || n >= limit) {
        Some(&token) => Err(ModelError::TokenOutOfRange { token, vocab_size: limit }),
        None => Ok(data),
    }
}
