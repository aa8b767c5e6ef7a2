//! What Qwen2 computes besides matrix products, by one of two sets of kernels.
//!
//! [`host`] has this crate's own, for fp32 on the CPU; [`aten`] goes through libtorch's operations, for any device and
//! either number format. Activations and their gradients are in the model's compute dtype; weights of norms, statistics,
//! losses, logits and gradients of parameters are fp32 in both.
//!
//! Tensors that are written to come as `&Tensor`, as everywhere in tch: a tensor is a handle to shared memory.

pub mod aten;
mod blockwise;
mod flash;
pub mod host;

use tch::{Device, Kind, Tensor};

use super::{ModelError, places::Places};

type Result<T = ()> = std::result::Result<T, ModelError>;

/// The kernels for activations of that kind on that device.
pub fn choose(device: Device, activations: Kind) -> &'static dyn Kernels {
    match (device, activations) {
        (Device::Cpu, Kind::Float) => &host::Host,
        _ => &aten::Aten,
    }
}

/// One set of kernels. Rows are tokens. Every result is the same bits for the same arguments.
pub trait Kernels: Sync {
    /// RMSNorm over the last dimension of `x` `[rows, width]`, with an fp32 `weight` `[width]`.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Normed>;

    /// Backward of [`Kernels::rms_norm`]: adds to `x_grad` `[rows, width]` and to the fp32 `weight_grad` `[width]`.
    fn rms_norm_backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        inverse_rms: &Tensor,
        out_grad: &Tensor,
        x_grad: &Tensor,
        weight_grad: &Tensor,
    ) -> Result;

    /// Rotary embedding in place on the first `heads` heads of each row of `rows_of_heads` `[rows, stride]`, each by the
    /// angles of the row's position.
    fn rotate(&self, rows_of_heads: &Tensor, heads: i64, places: &Places, turn: Turn) -> Result;

    /// Causal softmax attention with scale `dim^-1/2` within each span of rotated `qkv` `[rows, (query + 2 kv) * dim]`.
    fn attention(&self, qkv: &Tensor, places: &Places, heads: Heads) -> Result<Attended>;

    /// Backward of [`Kernels::attention`]: the gradient with respect to `qkv`.
    fn attention_backward(
        &self,
        out_grad: &Tensor,
        qkv: &Tensor,
        attended: &Attended,
        places: &Places,
        heads: Heads,
    ) -> Result<Tensor>;

    /// `silu(gate) * up` for `gate_up` `[rows, 2 * width]` (gate first), as `[rows, width]`.
    fn swiglu(&self, gate_up: &Tensor) -> Result<Tensor>;

    /// Backward of [`Kernels::swiglu`], in place: `gate_up` becomes its gradient, and `out`, which comes holding the
    /// output's gradient, becomes the forward's output.
    fn swiglu_backward(&self, gate_up: &Tensor, out: &Tensor) -> Result;

    /// Cross-entropy of fp32 `logits` `[rows, vocab]` against int64 `targets` `[rows]`, which must lie in the vocabulary:
    /// returns a loss per row, fp32 or fp64, and leaves `scale` times the loss's gradient in `logits`.
    fn cross_entropy(&self, logits: &Tensor, targets: &Tensor, scale: f64) -> Result<Tensor>;

    /// `to[at[r]] += from[r]` for all rows; `to` is fp32 `[num_rows, width]`, `at` int64 `[rows]` below `num_rows`.
    fn add_rows_at(&self, to: &Tensor, at: &Tensor, from: &Tensor) -> Result;

    /// `to += sum of the rows of from`; `to` is fp32 `[width]`, `from` `[rows, width]`.
    fn add_row_sum(&self, to: &Tensor, from: &Tensor) -> Result;
}

/// Output of [`Kernels::rms_norm`]: the normed rows and, per row, `(mean(x^2) + eps)^-1/2`.
pub struct Normed {
    /// `[rows, width]`, of the kind of `x`
    pub out: Tensor,
    /// `[rows]`, fp32
    pub inverse_rms: Tensor,
}

/// Which way [`Kernels::rotate`] turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// As in the forward.
    Forward,
    /// Back again: the gradient's way.
    Backward,
}

/// How a fused row `[query heads | key heads | value heads]` divides.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub query: i64,
    /// Key heads, and as many value heads; divides `query`.
    pub kv: i64,
    /// Width of a head.
    pub dim: i64,
}

impl Heads {
    fn row(self) -> i64 {
        (self.query + 2 * self.kv) * self.dim
    }

    /// Query heads that share a key head.
    fn group(self) -> i64 {
        self.query / self.kv
    }

    fn scale(self) -> f64 {
        (self.dim as f64).powf(-0.5)
    }

    /// Queries, keys and values as views `[rows, heads, dim]` of fused rows `[rows, row]`.
    fn split(self, qkv: &Tensor) -> Result<[Tensor; 3]> {
        let part = |first: i64, heads: i64| -> Result<Tensor> {
            Ok(qkv.f_narrow(1, first * self.dim, heads * self.dim)?.f_unflatten(1, [heads, self.dim])?)
        };
        Ok([part(0, self.query)?, part(self.query, self.kv)?, part(self.query + self.kv, self.kv)?])
    }
}

/// Output of [`Kernels::attention`].
pub struct Attended {
    /// `[rows, query * dim]`
    pub out: Tensor,
    /// Logarithm of the sum of each query's exponentiated scores, fp32 `[query, rows]`.
    log_sum_exp: Tensor,
    /// The state of random numbers that flash attention's backward asks for, although nothing is dropped.
    random_state: Option<[Tensor; 2]>,
}
