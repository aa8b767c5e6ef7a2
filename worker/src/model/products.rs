//! Matrix products whose result is fp32 whatever their factors are: gradients of weights, and logits.
//!
//! With bf16 factors on a GPU the product itself has an fp32 result, and what is added to is read and written in it. No
//! other device has that in libtorch, so factors become fp32 there first. Both ways every product of two numbers is exact
//! and sums are fp32.

use tch::{Kind, Tensor};

use super::ModelError;

/// `weight_grad += out_grad^T input`: the gradient of a linear layer's `[out, in]` weight.
pub fn add_product(weight_grad: &Tensor, out_grad: &Tensor, input: &Tensor) -> Result<(), ModelError> {
    let out_grad = out_grad.f_tr()?;
    match has_float_products(input) {
        true => weight_grad.f_addmm_dtype_out(weight_grad, &out_grad, input, Kind::Float),
        false => weight_grad.shallow_clone().f_addmm_(&floats(&out_grad)?, &floats(input)?),
    }?;
    Ok(())
}

/// `out = a b`, without a new tensor for it.
pub fn product_into(out: &Tensor, a: &Tensor, b: &Tensor) -> Result<(), ModelError> {
    if out.kind() == a.kind() {
        a.f_mm_out(out, b)?;
    } else if has_float_products(a) {
        a.f_mm_dtype_out(out, b, out.kind())?;
    } else {
        floats(a)?.f_mm_out(out, &floats(b)?)?;
    }
    Ok(())
}

fn has_float_products(factor: &Tensor) -> bool {
    factor.kind() == Kind::BFloat16 && factor.device().is_cuda()
}

fn floats(factor: &Tensor) -> Result<Tensor, ModelError> {
    Ok(factor.f_to_kind(Kind::Float)?)
}
