//! Qwen2's forward and backward, written out block by block on flat fp32 vectors.
//!
//! No autograd: a layer's backward is a function beside its forward ([`layer`]), so that recomputation, cancelling
//! between blocks and adding gradients straight into the flat vector are a few lines here. Start at
//! [`Model::loss_and_grad`].

pub mod head;
pub mod kernels;
pub mod layer;
pub mod rope;
pub mod spans;
pub mod views;

use polo_recipe::layout::Layout;
use polo_recipe::model::Qwen2Config;
use std::sync::Arc;
use tch::{Kind, Tensor};
use thiserror::Error;

use layer::{Context, Saved};
use rope::RopeTables;
use spans::Spans;
use views::{LayerViews, OuterViews};

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
    /// libtorch refused.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

/// How a model is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ModelOptions {
    /// Keep only each layer's input and redo its forward in the backward: less memory, a third more work, the same bits.
    pub recompute: bool,
    /// The id that ends a document, if tokens attend only within theirs. Positions begin anew with each document then.
    pub document_end: Option<i64>,
}

/// A Qwen2 without its weights, which every call brings as one flat vector in the order of its [`Layout`].
pub struct Model {
    config: Qwen2Config,
    layout: Arc<Layout>,
    options: ModelOptions,
}

/// A layer's input, and the rest of what its backward needs unless that is recomputed.
struct Kept {
    input: Tensor,
    saved: Option<Saved>,
}

impl Model {
    /// A model of that architecture, with the layout of [`Layout::qwen2`].
    pub fn new(config: &Qwen2Config, options: ModelOptions) -> Result<Self, ModelError> {
        check(config)?;
        Ok(Self { config: config.clone(), layout: Arc::new(Layout::qwen2(config)), options })
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
        tch::no_grad(|| {
            let (inputs, targets) = split(tokens)?;
            let (rope, spans) = (self.rope(&inputs)?, self.spans(&inputs)?);
            let context = Context { config: &self.config, spans: &spans, rope: &rope };
            let (outer, outer_grads) = (OuterViews::new(params, &self.layout)?, OuterViews::new(grads, &self.layout)?);

            let mut kept = Vec::new();
            let mut x = embed(&outer, &inputs)?;
            for number in 0..self.config.num_hidden_layers {
                go_on()?;
                let (out, saved) = layer::forward(&x, &self.layer(params, number)?, &context)?;
                kept.push(Kept { input: x, saved: (!self.options.recompute).then_some(saved) });
                x = out;
            }
            go_on()?;
            let (losses, grad) = head::loss_and_grad(&x, &targets, &outer, &outer_grads, &self.config, scale)?;
            drop(x);
            for number in (0..self.config.num_hidden_layers).rev() {
                go_on()?;
                let (views, grad_views) = (self.layer(params, number)?, self.layer(grads, number)?);
                let Some(Kept { input, saved }) = kept.pop() else { break };
                let saved = match saved {
                    Some(saved) => saved,
                    None => layer::forward(&input, &views, &context)?.1,
                };
                layer::backward(&grad, &input, saved, &views, &grad_views, &context)?;
            }
            kernels::add_rows_at(&outer_grads.embedding, &inputs.f_view(-1)?, &grad)?;
            Ok(per_sample(&losses, inputs.size()[0]))
        })
    }

    /// Each sample's summed loss, without gradients; arguments as in [`Model::loss_and_grad`].
    pub fn loss(&self, params: &Tensor, tokens: &Tensor) -> Result<Vec<f64>, ModelError> {
        tch::no_grad(|| {
            let (inputs, targets) = split(tokens)?;
            let x = self.hidden(params, &inputs)?;
            let losses = head::loss(&x, &targets, &OuterViews::new(params, &self.layout)?, &self.config)?;
            Ok(per_sample(&losses, inputs.size()[0]))
        })
    }

    /// Logits `[batch, sequence, vocab]` of int64 `input_ids` `[batch, sequence]`, for checks on small models.
    pub fn logits(&self, params: &Tensor, input_ids: &Tensor) -> Result<Tensor, ModelError> {
        tch::no_grad(|| {
            let outer = OuterViews::new(params, &self.layout)?;
            let x = self.hidden(params, input_ids)?;
            let normed = kernels::rms_norm(&x, &outer.norm, self.config.rms_norm_eps)?;
            let shape = [input_ids.size()[0], input_ids.size()[1], self.config.vocab_size as i64];
            Ok(normed.out.f_mm(&outer.head.f_tr()?)?.f_view(shape)?)
        })
    }

    /// The last layer's output.
    fn hidden(&self, params: &Tensor, inputs: &Tensor) -> Result<Tensor, ModelError> {
        self.check_flat("params", params)?;
        let (rope, spans) = (self.rope(inputs)?, self.spans(inputs)?);
        let context = Context { config: &self.config, spans: &spans, rope: &rope };
        let first = embed(&OuterViews::new(params, &self.layout)?, inputs)?;
        (0..self.config.num_hidden_layers)
            .try_fold(first, |x, number| Ok(layer::forward(&x, &self.layer(params, number)?, &context)?.0))
    }

    fn layer(&self, flat: &Tensor, number: usize) -> Result<LayerViews, ModelError> {
        LayerViews::new(flat, &self.layout, number)
    }

    fn spans(&self, inputs: &Tensor) -> Result<Spans, ModelError> {
        let ids = Vec::<i64>::try_from(inputs.f_view(-1)?)?;
        Ok(Spans::new(&ids, inputs.size2()?.1 as usize, self.options.document_end))
    }

    fn rope(&self, inputs: &Tensor) -> Result<RopeTables, ModelError> {
        let (head_dim, theta) = (self.config.head_dim() as i64, self.config.rope_theta);
        RopeTables::new(inputs.size2()?.1, head_dim, theta, inputs.device())
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

/// Inputs and targets, `[batch, sequence]` and `[batch * sequence]`.
fn split(tokens: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
    let sequence = tokens.size2()?.1 - 1;
    let inputs = tokens.f_narrow(1, 0, sequence)?.f_contiguous()?;
    Ok((inputs, tokens.f_narrow(1, 1, sequence)?.f_reshape(-1)?))
}

/// Rows of the embedding, `[batch * sequence, hidden]`.
fn embed(outer: &OuterViews, inputs: &Tensor) -> Result<Tensor, ModelError> {
    let ids = inputs.f_view(-1)?;
    kernels::check_indices("tokens", &ids, outer.embedding.size()[0])?;
    Ok(outer.embedding.f_index_select(0, &ids)?)
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
