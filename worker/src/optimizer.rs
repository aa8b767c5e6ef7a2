//! AdamW with decoupled weight decay, and clipping by the whole gradient's norm, chunk by chunk.
//!
//! An update is always cut by [`Layout::decay_segments`], also where one call could span a block, so that a chunk's bits
//! are the same whoever owns it and whichever chunks it is updated with.

use std::ffi::{CStr, c_char, c_void};

use polo_recipe::layout::{ChunkId, Layout};
use tch::Tensor;
use thiserror::Error;

use crate::flat::{device, view_mut};

unsafe extern "C" {
    fn polo_fused_adamw(
        param: *const c_void,
        grad: *const c_void,
        exp_avg: *const c_void,
        exp_avg_sq: *const c_void,
        step: *const c_void,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
    ) -> *mut c_char;
    fn polo_release(message: *mut c_char);
}

/// Why an update failed; the chunk it names may be half updated.
#[derive(Debug, Error)]
pub enum OptimizerError {
    /// A vector is not as long as its chunk.
    #[error("{name}: wanted {wanted} elements, found {found}")]
    Vector {
        /// Which one.
        name: &'static str,
        /// The chunk's length.
        wanted: usize,
        /// Its own.
        found: usize,
    },
    /// libtorch's AdamW refused.
    #[error("chunk {chunk}: libtorch: {message}")]
    Update {
        /// The chunk.
        chunk: u32,
        /// Its words.
        message: String,
    },
    /// libtorch refused something simpler.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// AdamW's constants for one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// This step's learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; norms and biases are spared.
    pub weight_decay: f64,
}

/// Vectors of one chunk, all updated in place.
pub struct ChunkState<'a> {
    /// Parameters.
    pub params: &'a mut [f32],
    /// First moments.
    pub exp_avg: &'a mut [f32],
    /// Second moments.
    pub exp_avg_sq: &'a mut [f32],
    /// Summed gradients; an update leaves them multiplied by the clip coefficient.
    pub grads: &'a mut [f32],
}

impl ChunkState<'_> {
    fn check(&self, wanted: usize) -> Result<(), OptimizerError> {
        let named = [
            ("params", &self.params),
            ("exp_avg", &self.exp_avg),
            ("exp_avg_sq", &self.exp_avg_sq),
            ("grads", &self.grads),
        ];
        match named.into_iter().find(|(_, vector)| vector.len() != wanted) {
            Some((name, vector)) => Err(OptimizerError::Vector { name, wanted, found: vector.len() }),
            None => Ok(()),
        }
    }
}

impl AdamW {
    /// Update number `update_number` (from 1, since its moments were zeros) of `chunk`, on gradients times `clip_coefficient`.
    ///
    /// The formula is that of `torch.optim.AdamW`, the arithmetic that of its fused form.
    pub fn apply(
        &self,
        state: ChunkState<'_>,
        layout: &Layout,
        chunk: ChunkId,
        update_number: u64,
        clip_coefficient: f64,
    ) -> Result<(), OptimizerError> {
        let place = &layout.chunks[chunk.0 as usize].range;
        state.check(place.len())?;
        tch::no_grad(|| {
            let step = Tensor::from_slice(&[update_number as f32]).f_squeeze()?.f_to_device(device())?;
            let ChunkState { params, exp_avg, exp_avg_sq, grads } = state;
            let [params, grads, exp_avg, exp_avg_sq] = [params, grads, exp_avg, exp_avg_sq].map(view_mut);
            for (range, decay) in layout.decay_segments(chunk) {
                let cut = |whole: &Tensor| whole.f_narrow(0, (range.start - place.start) as i64, range.len() as i64);
                let mut grad = cut(&grads)?;
                if clip_coefficient != 1.0 {
                    grad.f_mul_scalar_(clip_coefficient).map(drop)?;
                }
                let weight_decay = if decay { self.weight_decay } else { 0.0 };
                self.update([&cut(&params)?, &grad, &cut(&exp_avg)?, &cut(&exp_avg_sq)?], &step, weight_decay)
                    .map_err(|message| OptimizerError::Update { chunk: chunk.0, message })?;
            }
            Ok(())
        })
    }

    /// One fused update of parameter, gradient and moments of equal length.
    fn update(&self, slices: [&Tensor; 4], step: &Tensor, weight_decay: f64) -> Result<(), String> {
        let [param, grad, exp_avg, exp_avg_sq] = slices.map(|slice| slice.as_ptr().cast::<c_void>());
        let Self { learning_rate, beta1, beta2, eps, .. } = *self;
        // SAFETY: five live tensors; the shim catches every exception and returns null or a string that is ours.
        unsafe {
            let step = step.as_ptr().cast();
            let message = polo_fused_adamw(
                param,
                grad,
                exp_avg,
                exp_avg_sq,
                step,
                learning_rate,
                beta1,
                beta2,
                eps,
                weight_decay,
            );
            if message.is_null() {
                return Ok(());
            }
            let words = CStr::from_ptr(message).to_string_lossy().into_owned();
            polo_release(message);
            Err(words)
        }
    }
}

/// What gradients of norm `total_norm` are multiplied by so that their norm is at most `max_norm`, as
/// `torch.nn.utils.clip_grad_norm_` has it.
pub fn clip_coefficient(total_norm: f64, max_norm: f64) -> f64 {
    (max_norm / (total_norm + 1e-6)).min(1.0)
}
