//! Angles of the rotary position embedding, computed as Hugging Face's Qwen2 computes them, in fp32.

use tch::{Device, Kind, Tensor};

use super::ModelError;

/// Cosines and sines of every position's angles, `[sequence, head_dim / 2]` each.
pub struct RopeTables {
    /// Cosines.
    pub cosine: Tensor,
    /// Sines.
    pub sine: Tensor,
}

impl RopeTables {
    /// Angles `position * theta^(-2i / head_dim)` for positions `0..sequence`.
    pub fn new(sequence: i64, head_dim: i64, theta: f64, device: Device) -> Result<Self, ModelError> {
        let options = (Kind::Float, device);
        let exponents = Tensor::f_arange_start_step(0, head_dim, 2, options)?.f_div_scalar(head_dim)?;
        let frequencies = Tensor::f_pow_scalar(theta, &exponents)?.f_reciprocal()?;
        let angles = Tensor::f_arange(sequence, options)?.f_outer(&frequencies)?;
        Ok(Self { cosine: angles.f_cos()?, sine: angles.f_sin()? })
    }
}
