//! Each of the kernels that are made of libtorch's operations beside this crate's own.

use polo_worker::model::{
    kernels::{Heads, Kernels, Turn, aten::Aten, host::Host},
    places::{Places, Spans},
    products::{add_product, product, product_into, sum},
    rope::RopeTables,
};
use tch::{Device, Kind, Tensor};

use crate::assert_close;

/// Of fp32 results: as many units in the last place as sums in another order may differ by.
const TOLERANCE: f64 = 2e-6;
/// Of a result that was rounded to bf16 once, over itself.
const ROUNDED_ONCE: f64 = 1.0 / 256.0;

/// Random numbers that are the same in bf16.
fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::BFloat16, Device::Cpu)).to_kind(Kind::Float)
}

fn bf16(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::BFloat16)
}

fn seed() {
    tch::manual_seed(7);
}

/// Every element is the right one, rounded once.
fn assert_rounded_once(what: &str, found: &Tensor, right: &Tensor) {
    assert_eq!(found.kind(), Kind::BFloat16, "{what}");
    let allowed = right.abs() * ROUNDED_ONCE + right.abs().max() * TOLERANCE;
    let excess = ((found.to_kind(Kind::Float) - right).abs() - allowed).max().double_value(&[]);
    assert!(excess <= 0.0, "{what}: an element is off by {excess:e} more than rounding explains");
}

/// Rows of three samples, the first in several documents, one of which takes several blocks of queries.
fn places(dim: i64) -> (Places, i64) {
    const SEQUENCE: usize = 600;
    let mut ids = vec![0; 3 * SEQUENCE];
    [3, 4, 40, 599, 1799].into_iter().for_each(|row: usize| ids[row] = 9);
    let spans = Spans::new(&ids, SEQUENCE, Some(9));
    let rope = RopeTables::new(SEQUENCE as i64, dim, 1e4, Device::Cpu).expect("tables");
    (Places::new(spans, rope).expect("places"), ids.len() as i64)
}

#[test]
fn norms_are_equal_and_rounded_once() {
    seed();
    let (x, weight, out_grad) =
        (random(&[37, 200]), Tensor::randn([200], (Kind::Float, Device::Cpu)), random(&[37, 200]));
    let normed = |kernels: &dyn Kernels, x: &Tensor| kernels.rms_norm(x, &weight, 1e-5).expect("rows");
    let (right, found, rounded) = (normed(&Host, &x), normed(&Aten, &x), normed(&Aten, &bf16(&x)));
    assert_close("out", &found.out, &right.out, TOLERANCE);
    assert_close("inverse", &found.inverse_rms, &right.inverse_rms, TOLERANCE);
    assert_close("inverse of bf16", &rounded.inverse_rms, &right.inverse_rms, TOLERANCE);
    assert_rounded_once("out", &rounded.out, &right.out);

    let grads = |kernels: &dyn Kernels, x: &Tensor, out_grad: &Tensor| {
        let (x_grad, weight_grad) = (x.zeros_like(), weight.ones_like());
        kernels.rms_norm_backward(x, &weight, &right.inverse_rms, out_grad, &x_grad, &weight_grad).expect("gradients");
        (x_grad, weight_grad)
    };
    let (right_grads, found) = (grads(&Host, &x, &out_grad), grads(&Aten, &x, &out_grad));
    assert_close("x_grad", &found.0, &right_grads.0, TOLERANCE);
    assert_close("weight_grad", &found.1, &right_grads.1, TOLERANCE);
    let rounded = grads(&Aten, &bf16(&x), &bf16(&out_grad));
    assert_rounded_once("x_grad", &rounded.0, &right_grads.0);
    assert_close("weight_grad of bf16", &rounded.1, &right_grads.1, TOLERANCE);
}

#[test]
fn rotations_are_equal_and_rounded_once_both_ways() {
    seed();
    let (places, rows) = places(10);
    for turn in [Turn::Forward, Turn::Backward] {
        let x = random(&[rows, 5 * 10]);
        let rotated = |kernels: &dyn Kernels, x: &Tensor| {
            let x = x.copy();
            kernels.rotate(&x, 3, &places, turn).expect("rows");
            x
        };
        let right = rotated(&Host, &x);
        assert_close("rotated", &rotated(&Aten, &x), &right, TOLERANCE);
        assert_rounded_once("rotated", &rotated(&Aten, &bf16(&x)), &right);
    }
}

#[test]
fn attention_is_equal_and_rounded_once() {
    seed();
    for heads in
        [Heads { query: 6, kv: 2, dim: 16 }, Heads { query: 2, kv: 2, dim: 10 }, Heads { query: 3, kv: 1, dim: 8 }]
    {
        let (places, rows) = places(heads.dim);
        let (qkv, out_grad) =
            (random(&[rows, (heads.query + 2 * heads.kv) * heads.dim]), random(&[rows, heads.query * heads.dim]));
        let both = |kernels: &dyn Kernels, qkv: &Tensor, out_grad: &Tensor| {
            let attended = kernels.attention(qkv, &places, heads).expect("rows");
            let grad = kernels.attention_backward(out_grad, qkv, &attended, &places, heads).expect("gradients");
            (attended.out, grad)
        };
        let ((out, grad), found) = (both(&Host, &qkv, &out_grad), both(&Aten, &qkv, &out_grad));
        assert_close("out", &found.0, &out, TOLERANCE);
        assert_close("qkv_grad", &found.1, &grad, 2.0 * TOLERANCE);
        let rounded = both(&Aten, &bf16(&qkv), &bf16(&out_grad));
        assert_rounded_once("out", &rounded.0, &out);
        // It is taken from the rounded output.
        assert_close("qkv_grad of bf16", &rounded.1, &grad, ROUNDED_ONCE);
    }
}

#[test]
fn swiglu_is_equal_and_each_product_rounded() {
    seed();
    let (gate_up, out_grad) = (random(&[21, 2 * 30]), random(&[21, 30]));
    let both = |kernels: &dyn Kernels, gate_up: &Tensor, out_grad: &Tensor| {
        let out = kernels.swiglu(gate_up).expect("rows");
        let (grad, redone) = (gate_up.copy(), out_grad.copy());
        kernels.swiglu_backward(&grad, &redone).expect("gradients");
        assert!(out.is_contiguous());
        assert_eq!(redone, out, "the forward's output once more");
        (out, grad)
    };
    let (right, found) = (both(&Host, &gate_up, &out_grad), both(&Aten, &gate_up, &out_grad));
    let rounded = both(&Aten, &bf16(&gate_up), &bf16(&out_grad));
    for (what, right, found, rounded) in [("out", right.0, found.0, rounded.0), ("grad", right.1, found.1, rounded.1)] {
        assert_close(what, &found, &right, TOLERANCE);
        assert_close(&format!("{what} of bf16"), &rounded, &right, 2.0 * ROUNDED_ONCE);
    }
}

#[test]
fn losses_and_gradients_of_logits_are_equal() {
    seed();
    let logits = random(&[13, 1009]) * 8.0 + 300.0;
    let targets = Tensor::randint(1009, [13], (Kind::Int64, Device::Cpu));
    let both = |kernels: &dyn Kernels| {
        let grad = logits.copy();
        (kernels.cross_entropy(&grad, &targets, 0.25).expect("losses"), grad)
    };
    let ((losses, grad), found) = (both(&Host), both(&Aten));
    assert_close("losses", &found.0, &losses, TOLERANCE);
    assert_close("gradient", &found.1, &grad, TOLERANCE);
}

#[test]
fn rows_are_added_where_they_belong_also_twice_and_summed_in_fp32() {
    seed();
    let (at, from) = (Tensor::from_slice(&[3_i64, 0, 3, 3, 5, 0]), random(&[6, 40]));
    let added = |kernels: &dyn Kernels, from: &Tensor| {
        let to = Tensor::ones([7, 40], (Kind::Float, Device::Cpu)) * 1000.0;
        kernels.add_rows_at(&to, &at, from).expect("rows");
        let sum = Tensor::ones([40], (Kind::Float, Device::Cpu)) * 1000.0;
        kernels.add_row_sum(&sum, from).expect("rows");
        (to, sum)
    };
    let right = added(&Host, &from);
    for found in [added(&Aten, &from), added(&Aten, &bf16(&from))] {
        assert_close("rows", &found.0, &right.0, 2e-7);
        assert_close("sum", &found.1, &right.1, 2e-7);
    }
}

#[test]
fn products_of_bf16_are_exact_and_summed_in_fp32() {
    seed();
    let (a, b, term) = (random(&[50, 300]), random(&[300, 20]), random(&[50, 20]) * 32.0);
    let right = a.mm(&b);
    assert_rounded_once("product", &product(&bf16(&a), &bf16(&b)).expect("a product"), &right);
    assert_rounded_once("sum", &sum(&bf16(&term), &bf16(&a), &bf16(&b)).expect("a sum"), &(&right + &term));
    for (kind, tolerance) in [(Kind::Float, TOLERANCE), (Kind::BFloat16, ROUNDED_ONCE)] {
        let found = Tensor::empty([50, 20], (kind, Device::Cpu));
        product_into(&found, &bf16(&a), &bf16(&b)).expect("a product");
        assert_close(&format!("into {kind:?}"), &found, &right, tolerance);
    }
    let found = term.copy();
    add_product(&found, &bf16(&a.tr()), &bf16(&b)).expect("a product");
    assert_close("added", &found, &(&right + &term), TOLERANCE);
}
