//! Matrix products whose result may be fp32 while their factors are bf16: gradients of weights, and logits.
//!
//! With bf16 factors on a GPU the product itself has an fp32 result, and what is added to is read and written in it. No
//! other device has that in libtorch, so factors become fp32 there first. Both ways every product of two numbers is exact
//! and sums are fp32.

use tch::{Kind, Tensor};

use super::ModelError;

/// `weight_grad += out_grad^T input`: the gradient of a linear layer's `[out, in]` weight.
pub fn add_product(weight_grad: &Tensor, out_grad: &Tensor, input: &Tensor) -> Result<(), ModelError> {
    let out_grad = out_grad.f_tr()?;
    let sum = match has_float_products(input) {
        true => weight_grad.f_addmm_dtype_out(weight_grad, &out_grad, input, Kind::Float),
        false => weight_grad.shallow_clone().f_addmm_(&floats(&out_grad)?, &floats(input)?),
    };
    Ok(sum.map(drop)?)
}

/// `out = a b` in the kind of `out`, fp32 or that of the factors, without a new tensor for it.
pub fn product_into(out: &Tensor, a: &Tensor, b: &Tensor) -> Result<(), ModelError> {
    let product = match out.kind() == a.kind() {
        true => a.f_mm_out(out, b),
        false if has_float_products(a) => a.f_mm_dtype_out(out, b, out.kind()),
        false => floats(a)?.f_mm_out(out, &floats(b)?),
    };
    Ok(product.map(drop)?)
}

fn has_float_products(factor: &Tensor) -> bool {
    factor.kind() == Kind::BFloat16 && factor.device().is_cuda()
}

fn floats(factor: &Tensor) -> Result<Tensor, ModelError> {
    Ok(factor.f_to_kind(Kind::Float)?)
}
