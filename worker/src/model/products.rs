//! Matrix products, whose sums are fp32 whatever their factors are.
//!
//! Products of bf16 have a bf16 result, rounded once, or an fp32 one where that is wanted: gradients of weights, and logits.
//! A GPU has both; elsewhere the factors become fp32 first, which is also much faster on CPUs that do not compute in bf16.

use tch::{Kind, Tensor};

use super::ModelError;

type Result<T = ()> = std::result::Result<T, ModelError>;

/// `a b`, in their kind.
pub fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(match multiplies_floats(a) {
        true => floats(a)?.f_mm(&floats(b)?)?.f_to_kind(a.kind())?,
        false => a.f_mm(b)?,
    })
}

/// `term + a b`, in their kind; `term` may be one row for all.
pub fn sum(term: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(match multiplies_floats(a) {
        true => floats(term)?.f_addmm(&floats(a)?, &floats(b)?)?.f_to_kind(a.kind())?,
        false => term.f_addmm(a, b)?,
    })
}

/// `out = a b` in the kind of `out`, fp32 or that of the factors.
pub fn product_into(out: &Tensor, a: &Tensor, b: &Tensor) -> Result {
    match multiplies_floats(a) {
        true => out.shallow_clone().f_copy_(&floats(a)?.f_mm(&floats(b)?)?)?,
        false if out.kind() == a.kind() => a.f_mm_out(out, b).map(drop)?,
        false => a.f_mm_dtype_out(out, b, out.kind()).map(drop)?,
    }
    Ok(())
}

/// `weight_grad += out_grad^T input`: the fp32 gradient of a linear layer's `[out, in]` weight.
pub fn add_product(weight_grad: &Tensor, out_grad: &Tensor, input: &Tensor) -> Result {
    let out_grad = out_grad.f_tr()?;
    let sum = match input.kind() == Kind::Float || multiplies_floats(input) {
        true => weight_grad.shallow_clone().f_addmm_(&floats(&out_grad)?, &floats(input)?),
        false => weight_grad.f_addmm_dtype_out(weight_grad, &out_grad, input, Kind::Float),
    };
    Ok(sum.map(drop)?)
}

/// Whether products with such a factor are made of fp32 copies.
fn multiplies_floats(factor: &Tensor) -> bool {
    factor.kind() == Kind::BFloat16 && !factor.device().is_cuda()
}

fn floats(factor: &Tensor) -> Result<Tensor> {
    Ok(factor.f_to_kind(Kind::Float)?)
}
