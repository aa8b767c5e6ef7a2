//! Qwen2's forward and backward, written out block by block on flat fp32 vectors.
//!
//! Parameters come, and their gradients go, in fp32; between them it is computed in [`ModelOptions::compute_dtype`].
//!
//! No autograd: a layer's backward is a function beside its forward ([`layer`]), so that recomputation, cancelling
//! between blocks and adding gradients straight into flat vectors are a few lines here. Start at [`pass`], one micro-batch's
//! way through the blocks.

pub mod determinism;
pub mod head;
pub mod kernels;
pub mod layer;
pub mod pass;
pub mod places;
pub mod products;
pub mod rope;
pub mod views;

use polo_recipe::config::ComputeDtype;
use polo_recipe::layout::Layout;
use polo_recipe::model::Qwen2Config;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};
use thiserror::Error;

use kernels::Kernels;
use pass::Pass;
use views::HeadViews;

/// Why no gradient came.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The caller asked to stop; the gradients are half done.
    #[error("cancelled between two blocks")]
    Cancelled,
    /// The architecture cannot be computed.
    #[error("config.json: {field} is {found}, but {wanted}")]
    Config {
        /// The key at fault.
        field: &'static str,
        /// Its value.
        found: usize,
        /// What it must be.
        wanted: String,
    },
    /// A tensor is not what a kernel can work on.
    #[error("tensor {name}: wanted {wanted}, found {found}")]
    Tensor {
        /// Its role.
        name: &'static str,
        /// What it must be.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// A token the model has no row for.
    #[error("token {token} is not in the model's vocabulary of {vocab_size}: was the corpus made with its tokenizer?")]
    TokenOutOfRange {
        /// The token.
        token: i64,
        /// Rows of the embedding.
        vocab_size: i64,
    },
    /// The layout lacks a tensor of the architecture.
    #[error("the layout has no tensor {0}")]
    NoSuchTensor(String),
    /// libtorch had no memory left for activations and buffers.
    #[error(
        "libtorch: {0}; what takes less memory: model.recompute = true, a smaller batch.micro_batch, \
         workers.offload_moments = true, workers.gather = \"block\", or more workers; `polo plan` says what would fit"
    )]
    OutOfMemory(String),
    /// libtorch refused.
    #[error("libtorch: {0}")]
    Torch(String),
}

impl ModelError {
    /// What libtorch, or the shim for it, complained of.
    fn of_libtorch(words: String) -> Self {
        match words.lines().find(|line| is_about_memory(line)) {
            Some(line) => Self::OutOfMemory(line.into()),
            None => Self::Torch(words),
        }
    }
}

/// The words of the allocators for GPUs and for the host.
fn is_about_memory(line: &str) -> bool {
    ["out of memory", "can't allocate memory"].iter().any(|words| line.contains(words))
}

impl From<tch::TchError> for ModelError {
    fn from(error: tch::TchError) -> Self {
        Self::of_libtorch(error.to_string())
    }
}

/// How a model is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelOptions {
    /// Keep only each layer's input and redo its forward in the backward: less memory, a third more work, the same bits.
    pub recompute: bool,
    /// The id that ends a document, if tokens attend only within theirs. Positions begin anew with each document then.
    pub document_end: Option<i64>,
    /// Number format of activations and of the matrices they are multiplied with.
    pub compute_dtype: ComputeDtype,
    /// Where parameters are and everything is computed.
    pub device: Device,
}

impl Default for ModelOptions {
    /// fp32 on the CPU.
    fn default() -> Self {
        Self { recompute: false, document_end: None, compute_dtype: ComputeDtype::default(), device: Device::Cpu }
    }
}

/// A Qwen2 without its weights, which every call brings as one flat vector in the order of its [`Layout`].
pub struct Model {
    config: Qwen2Config,
    layout: Arc<Layout>,
    options: ModelOptions,
    /// Of activations.
    kind: Kind,
    kernels: &'static dyn Kernels,
}

impl Model {
    /// A model of that architecture, with the layout of [`Layout::qwen2`]. On another device than the CPU, libtorch is told
    /// to use deterministic algorithms only, in the whole process.
    pub fn new(config: &Qwen2Config, options: ModelOptions) -> Result<Self, ModelError> {
        Self::with_kernels(config, options, kernels::choose(options.device, kind(options.compute_dtype)))
    }

    /// A model that is computed with other kernels than those for its device and compute dtype: to compare them.
    pub fn with_kernels(
        config: &Qwen2Config,
        options: ModelOptions,
        kernels: &'static dyn Kernels,
    ) -> Result<Self, ModelError> {
        check(config)?;
        if options.device != Device::Cpu {
            determinism::be_deterministic();
        }
        let (layout, kind) = (Arc::new(Layout::qwen2(config)), kind(options.compute_dtype));
        Ok(Self { config: config.clone(), layout, options, kind, kernels })
    }

    /// The architecture.
    pub fn config(&self) -> &Qwen2Config {
        &self.config
    }

    /// Where each parameter lies in the flat vectors.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Adds `scale` times the gradient of the sum of all tokens' losses to `grads`, and returns each sample's summed loss.
    ///
    /// `params` and `grads` are flat fp32 vectors of `layout().num_params`; `tokens` is int64 `[batch, seq_len + 1]`:
    /// all but the last of a row are inputs, all but the first are targets. `cancelled` is asked between blocks.
    pub fn loss_and_grad(
        &self,
        params: &Tensor,
        grads: &Tensor,
        tokens: &Tensor,
        scale: f64,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<f64>, ModelError> {
        self.check_flat("params", params)?;
        self.check_flat("grads", grads)?;
        let go_on = || if cancelled() { Err(ModelError::Cancelled) } else { Ok(()) };
        let mut pass = self.forward(params, tokens, &go_on)?;
        go_on()?;
        let (first, last) = (0, self.layout.blocks.len() - 1);
        let [params_of, grads_of] = [params, grads].map(|flat| move |block| self.block(flat, block));
        let losses =
            pass.head([&params_of(last)?, &params_of(first)?], [&grads_of(last)?, &grads_of(first)?], scale)?;
        for block in (first + 1..last).rev() {
            go_on()?;
            pass.layer_backward(block, &params_of(block)?, &grads_of(block)?)?;
        }
        pass.into_embedding_grad().add_to(&grads_of(first)?, &self.layout)?;
        Ok(losses)
    }

    /// Each sample's summed loss, without gradients; arguments as in [`Model::loss_and_grad`].
    pub fn loss(&self, params: &Tensor, tokens: &Tensor) -> Result<Vec<f64>, ModelError> {
        let pass = self.forward(params, tokens, &|| Ok(()))?;
        pass.into_losses(&self.block(params, self.layout.blocks.len() - 1)?, &self.block(params, 0)?)
    }

    /// fp32 logits `[batch, sequence, vocab]` of int64 `input_ids` `[batch, sequence]`, for checks on small models.
    pub fn logits(&self, params: &Tensor, input_ids: &Tensor) -> Result<Tensor, ModelError> {
        // What comes after the last token has no part in any logit.
        let tokens = Tensor::f_cat(&[input_ids, &input_ids.f_narrow(1, 0, 1)?], 1)?;
        let pass = self.forward(params, &tokens, &|| Ok(()))?;
        tch::no_grad(|| {
            let head = self.head(params)?;
            let normed = self.kernels.rms_norm(&pass.into_output(), &head.norm, self.config.rms_norm_eps)?;
            let ((batch, sequence), vocab) = (input_ids.size2()?, self.config.vocab_size as i64);
            let logits = Tensor::f_empty([batch * sequence, vocab], (Kind::Float, normed.out.device()))?;
            products::product_into(&logits, &normed.out, &head.head.f_tr()?)?;
            Ok(logits.f_view([batch, sequence, vocab])?)
        })
    }

    /// A micro-batch's way through all layers, up to the head.
    pub fn forward(
        &self,
        params: &Tensor,
        tokens: &Tensor,
        go_on: &dyn Fn() -> Result<(), ModelError>,
    ) -> Result<Pass<'_>, ModelError> {
        self.check_flat("params", params)?;
        let mut pass = Pass::new(self, tokens, &self.block(params, 0)?)?;
        for block in 1..self.layout.blocks.len() - 1 {
            go_on()?;
            pass.layer(block, &self.block(params, block)?)?;
        }
        Ok(pass)
    }

    /// A block's part of a whole vector.
    pub fn block(&self, flat: &Tensor, block: usize) -> Result<Tensor, ModelError> {
        let range = &self.layout.blocks[block].range;
        Ok(flat.f_narrow(0, range.start as i64, range.len() as i64)?)
    }

    fn head(&self, params: &Tensor) -> Result<HeadViews, ModelError> {
        let last = self.layout.blocks.len() - 1;
        HeadViews::in_kind(&self.block(params, last)?, &self.block(params, 0)?, self.kind, &self.layout)
    }

    fn head_context(&self) -> head::Context<'_> {
        head::Context { config: &self.config, kernels: self.kernels }
    }

    fn check_device(&self, name: &'static str, flat: &Tensor) -> Result<(), ModelError> {
        if flat.device() == self.options.device {
            return Ok(());
        }
        let (wanted, found) = (format!("it on {:?}", self.options.device), format!("it on {:?}", flat.device()));
        Err(ModelError::Tensor { name, wanted, found })
    }

    fn check_flat(&self, name: &'static str, flat: &Tensor) -> Result<(), ModelError> {
        let wanted = [self.layout.num_params as i64];
        if flat.kind() == Kind::Float && flat.size() == wanted && flat.is_contiguous() {
            return Ok(());
        }
        let found = format!("{:?} {:?}", flat.kind(), flat.size());
        Err(ModelError::Tensor { name, wanted: format!("contiguous Float {wanted:?}"), found })
    }
}

/// The kind of activations.
fn kind(compute_dtype: ComputeDtype) -> Kind {
    match compute_dtype {
        ComputeDtype::Float32 => Kind::Float,
        ComputeDtype::Bfloat16 => Kind::BFloat16,
    }
}

/// Inputs and targets, `[batch, sequence]` and `[batch * sequence]`.
fn split(tokens: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
    let sequence = tokens.size2()?.1 - 1;
    let inputs = tokens.f_narrow(1, 0, sequence)?.f_contiguous()?;
    Ok((inputs, tokens.f_narrow(1, 1, sequence)?.f_reshape(-1)?))
}

/// Refuses tokens on the host that are not in the vocabulary.
fn check_tokens(tokens: &Tensor, vocab_size: usize) -> Result<(), ModelError> {
    let vocab_size = vocab_size as i64;
    let numbers = Vec::<i64>::try_from(tokens.f_reshape(-1)?)?;
    match numbers.into_iter().find(|token| !(0..vocab_size).contains(token)) {
        Some(token) => Err(ModelError::TokenOutOfRange { token, vocab_size }),
        None => Ok(()),
    }
}

fn per_sample(losses: &[f64], batch: i64) -> Vec<f64> {
    losses.chunks(losses.len() / batch as usize).map(|rows| rows.iter().sum()).collect()
}

fn check(config: &Qwen2Config) -> Result<(), ModelError> {
    let wrong = |field, found, wanted: String| Err(ModelError::Config { field, found, wanted });
    let (hidden, heads, kv) = (config.hidden_size, config.num_attention_heads, config.num_key_value_heads);
    if heads == 0 || hidden % heads != 0 {
        return wrong("num_attention_heads", heads, format!("it must divide hidden_size {hidden}"));
    }
    if hidden / heads % 2 != 0 {
        return wrong("num_attention_heads", heads, format!("hidden_size {hidden} divided by it must be even"));
    }
    if kv == 0 || heads % kv != 0 {
        return wrong("num_key_value_heads", kv, format!("it must divide num_attention_heads {heads}"));
    }
    Ok(())
}
