//! libtorch's flash attention, which only GPUs have: fused, of variable length, with fewer key heads than query heads.
//!
//! Its backward adds in a fixed order where deterministic algorithms are asked for ([`crate::model::determinism`]).

use std::ffi::{CStr, c_char, c_void};

use tch::{Kind, Tensor};

use super::{Attended, Heads, Result};
use crate::model::{ModelError, places::Places};

/// Widest head that it takes; its width must be a multiple of 8 as well.
const WIDEST_HEAD: i64 = 256;

unsafe extern "C" {
    fn polo_flash_attention(
        queries: *const c_void,
        keys: *const c_void,
        values: *const c_void,
        bounds: *const c_void,
        longest: i64,
        scale: f64,
        results: *const *mut c_void,
    ) -> *mut c_char;
    fn polo_release(message: *mut c_char);
}

/// Whether flash attention takes these rows.
pub fn works_on(qkv: &Tensor, heads: Heads) -> bool {
    qkv.device().is_cuda() && qkv.kind() == Kind::BFloat16 && heads.dim % 8 == 0 && heads.dim <= WIDEST_HEAD
}

/// See [`super::Kernels::attention`].
pub fn attention(qkv: &Tensor, places: &Places, heads: Heads) -> Result<Attended> {
    let parts = heads.split(qkv)?;
    let [queries, keys, values] = parts.each_ref().map(|part| part.as_ptr().cast::<c_void>());
    // Undefined tensors, for the shim to fill.
    let results = [(); 4].map(|()| Tensor::new());
    let places_of_results = results.each_ref().map(|result| result.as_ptr().cast::<c_void>().cast_mut());
    let (bounds, longest) = (places.bounds.as_ptr().cast(), places.spans.longest());
    // SAFETY: eight live tensors; the shim assigns to the last four, catches every exception, and returns null or a string
    // that is ours.
    let message = unsafe {
        polo_flash_attention(queries, keys, values, bounds, longest, heads.scale(), places_of_results.as_ptr())
    };
    if !message.is_null() {
        return Err(ModelError::of_libtorch(taken(message)));
    }
    let [out, log_sum_exp, state, unused] = results;
    Ok(Attended { out: out.f_flatten(1, 2)?, log_sum_exp, random_state: Some([state, unused]) })
}

/// See [`super::Kernels::attention_backward`].
pub fn attention_backward(
    out_grad: &Tensor,
    qkv: &Tensor,
    attended: &Attended,
    places: &Places,
    heads: Heads,
) -> Result<Tensor> {
    let [queries, keys, values] = heads.split(qkv)?;
    let by_head = |rows: &Tensor| rows.f_unflatten(1, [heads.query, heads.dim]);
    let undefined = [Tensor::new(), Tensor::new()];
    let [state, unused] = attended.random_state.as_ref().unwrap_or(&undefined);
    let (bounds, longest) = (&places.bounds, places.spans.longest());
    let (queries_grad, keys_grad, values_grad) = Tensor::f_internal_flash_attention_backward(
        &by_head(out_grad)?,
        &queries,
        &keys,
        &values,
        &by_head(&attended.out)?,
        &attended.log_sum_exp,
        bounds,
        bounds,
        longest,
        longest,
        0.0,
        true,
        state,
        unused,
        heads.scale(),
        None,
        None,
    )?;
    let grads = [queries_grad, keys_grad, values_grad].map(|grad| grad.f_flatten(1, 2));
    let [queries_grad, keys_grad, values_grad] = grads;
    Ok(Tensor::f_cat(&[queries_grad?, keys_grad?, values_grad?], 1)?)
}

fn taken(message: *mut c_char) -> String {
    // SAFETY: a string of the shim's, which is ours to release.
    unsafe {
        let words = CStr::from_ptr(message).to_string_lossy().into_owned();
        polo_release(message);
        words
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::model::{places::Spans, rope::RopeTables};

    /// No CPU has the operation, but libtorch finds it by its name and arguments, and says so.
    #[test]
    fn where_there_is_none_libtorch_says_so() {
        let heads = Heads { query: 4, kv: 2, dim: 128 };
        let rope = RopeTables::new(3, heads.dim, 1e6, Device::Cpu).expect("tables");
        let places = Places::new(Spans::new(&[1; 6], 3, None), rope).expect("places");
        let qkv = Tensor::zeros([6, heads.row()], (Kind::BFloat16, Device::Cpu));
        assert!(!works_on(&qkv, heads));
        let error = attention(&qkv, &places, heads).err().expect("no such operation").to_string();
        assert!(error.contains("aten::_flash_attention_forward") && error.contains("CPU"), "{error}");
        let out = qkv.narrow(1, 0, heads.query * heads.dim);
        let attended = Attended { out: out.copy(), log_sum_exp: out.copy(), random_state: None };
        let error =
            attention_backward(&out, &qkv, &attended, &places, heads).expect_err("no such operation").to_string();
        assert!(error.contains("aten::_flash_attention_backward") && error.contains("CPU"), "{error}");
    }
}
