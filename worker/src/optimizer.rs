//! AdamW with decoupled weight decay, and clipping by the whole gradient's norm, chunk by chunk.
//!
//! An update is always cut by [`Layout::decay_segments`], also where one call could span a block, so that a chunk's bits
//! are the same whoever owns it and whichever chunks it is updated with.

use std::ffi::{CStr, c_char, c_void};

use polo_recipe::layout::{ChunkId, Layout};
use tch::{Kind, Tensor};
use thiserror::Error;

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
    /// The vectors do not fit the layout.
    #[error("{name}: wanted a contiguous fp32 vector of {wanted} elements, found {found}")]
    Vector {
        /// Which one.
        name: &'static str,
        /// The layout's length.
        wanted: usize,
        /// What it is.
        found: String,
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

/// Flat fp32 vectors of the layout's length, all updated in place.
#[derive(Clone, Copy)]
pub struct FlatState<'a> {
    /// Parameters.
    pub params: &'a Tensor,
    /// First moments.
    pub exp_avg: &'a Tensor,
    /// Second moments.
    pub exp_avg_sq: &'a Tensor,
    /// Summed gradients; an update leaves them multiplied by the clip coefficient.
    pub grads: &'a Tensor,
}

impl FlatState<'_> {
    fn check(&self, layout: &Layout) -> Result<(), OptimizerError> {
        let named = [
            ("params", self.params),
            ("exp_avg", self.exp_avg),
            ("exp_avg_sq", self.exp_avg_sq),
            ("grads", self.grads),
        ];
        for (name, vector) in named {
            let fits = vector.kind() == Kind::Float && vector.is_contiguous();
            if !fits || vector.size() != [layout.num_params as i64] {
                let found = format!("{:?} {:?}", vector.kind(), vector.size());
                return Err(OptimizerError::Vector { name, wanted: layout.num_params, found });
            }
        }
        Ok(())
    }
}

impl AdamW {
    /// Update number `update_number` (from 1) of the chunks in `chunks`, on gradients times `clip_coefficient`.
    ///
    /// The formula is that of `torch.optim.AdamW`, the arithmetic that of its fused form.
    pub fn apply(
        &self,
        state: FlatState,
        layout: &Layout,
        chunks: impl IntoIterator<Item = ChunkId>,
        update_number: u64,
        clip_coefficient: f64,
    ) -> Result<(), OptimizerError> {
        state.check(layout)?;
        tch::no_grad(|| {
            let step = Tensor::from_slice(&[update_number as f32]).f_squeeze()?.f_to_device(state.params.device())?;
            for chunk in chunks {
                for (range, decay) in layout.decay_segments(chunk) {
                    let cut = |flat: &Tensor| flat.f_narrow(0, range.start as i64, range.len() as i64);
                    let mut grad = cut(state.grads)?;
                    if clip_coefficient != 1.0 {
                        grad.f_mul_scalar_(clip_coefficient).map(drop)?;
                    }
                    let slices = [cut(state.params)?, grad, cut(state.exp_avg)?, cut(state.exp_avg_sq)?];
                    self.update(&slices, &step, if decay { self.weight_decay } else { 0.0 })
                        .map_err(|message| OptimizerError::Update { chunk: chunk.0, message })?;
                }
            }
            Ok(())
        })
    }

    /// One fused update of parameter, gradient and moments of equal length.
    fn update(&self, slices: &[Tensor; 4], step: &Tensor, weight_decay: f64) -> Result<(), String> {
        let [param, grad, exp_avg, exp_avg_sq] = slices.each_ref().map(|slice| slice.as_ptr().cast::<c_void>());
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
