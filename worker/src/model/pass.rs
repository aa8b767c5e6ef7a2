//! One micro-batch on its way through the blocks: forward from the embedding to the head, and back.
//!
//! Every block is given its own parameters, and a place to add their gradients to, when its turn comes; nothing here
//! needs those of another block at the same time, but for an output projection that is the embedding. Parameters and their
//! gradients are fp32; to compute in another kind, a block's parameters are converted when its turn comes.

use polo_recipe::layout::Layout;
use tch::{Device, Tensor};

use super::kernels::Kernels;
use super::layer::{self, Context, Saved};
use super::places::{Places, Spans};
use super::rope::RopeTables;
use super::views::{self, HeadViews, LayerViews};
use super::{Model, ModelError, check_tokens, head, per_sample, split};

/// A layer's input, and the rest of what its backward needs unless that is recomputed.
struct Kept {
    input: Tensor,
    saved: Option<Saved>,
}

/// A micro-batch between two blocks.
pub struct Pass<'m> {
    model: &'m Model,
    /// `[batch, sequence]`
    inputs: Tensor,
    /// `[batch * sequence]`
    targets: Tensor,
    places: Places,
    /// Whether it comes back.
    returns: bool,
    /// Of each layer that was gone through and not yet back.
    kept: Vec<Kept>,
    /// Output of the block before, `[batch * sequence, hidden]`; on the way back the gradient with respect to it.
    x: Tensor,
}

impl<'m> Pass<'m> {
    /// Enters by the embedding, whose block is `first`; `tokens` are int64 `[batch, seq_len + 1]`, best on the host.
    pub fn new(model: &'m Model, tokens: &Tensor, first: &Tensor) -> Result<Self, ModelError> {
        tch::no_grad(|| {
            let (device, options) = (first.device(), &model.options);
            model.check_device("first", first)?;
            let tokens = tokens.f_to_device(Device::Cpu)?;
            check_tokens(&tokens, model.config.vocab_size)?;
            let (inputs, targets) = split(&tokens)?;
            let (sequence, ids) = (inputs.size2()?.1, Vec::<i64>::try_from(inputs.f_view(-1)?)?);
            let spans = Spans::new(&ids, sequence as usize, options.document_end);
            let (head_dim, theta) = (model.config.head_dim() as i64, model.config.rope_theta);
            let places = Places::new(spans, RopeTables::new(sequence, head_dim, theta, device)?)?;
            let (inputs, targets) = (inputs.f_to_device(device)?, targets.f_to_device(device)?);
            let rows = views::embedding(first, &model.layout)?.f_index_select(0, &inputs.f_view(-1)?)?;
            Ok(Self { model, inputs, targets, places, returns: true, kept: Vec::new(), x: rows.f_to_kind(model.kind)? })
        })
    }

    /// One that ends at the head: nothing is kept for the way back.
    pub fn one_way(self) -> Self {
        Self { returns: false, ..self }
    }

    fn context(&self) -> Context<'_> {
        Context { config: &self.model.config, places: &self.places, kernels: self.model.kernels }
    }

    /// Goes through the layer that is block number `block`.
    pub fn layer(&mut self, block: usize, params: &Tensor) -> Result<(), ModelError> {
        tch::no_grad(|| {
            let views = LayerViews::in_kind(params, self.model.kind, &self.model.layout, block - 1)?;
            let (out, saved) = layer::forward(&self.x, &views, &self.context())?;
            let input = std::mem::replace(&mut self.x, out);
            if self.returns {
                self.kept.push(Kept { input, saved: (!self.model.options.recompute).then_some(saved) });
            }
            Ok(())
        })
    }

    /// Each sample's summed loss; the vectors are those of the last block and of the first.
    pub fn into_losses(self, last: &Tensor, first: &Tensor) -> Result<Vec<f64>, ModelError> {
        tch::no_grad(|| {
            let params = HeadViews::in_kind(last, first, self.model.kind, &self.model.layout)?;
            let losses = head::loss(&self.x, &self.targets, &params, &self.model.head_context())?;
            Ok(per_sample(&losses, self.inputs.size()[0]))
        })
    }

    /// The last layer's output.
    pub fn into_output(self) -> Tensor {
        self.x
    }

    /// Turns round at the head: returns each sample's summed loss, and adds `scale` times the gradients. The last block's
    /// vector comes first, then the first one's, which is used if the output projection is the embedding.
    pub fn head(&mut self, params: [&Tensor; 2], grads: [&Tensor; 2], scale: f64) -> Result<Vec<f64>, ModelError> {
        tch::no_grad(|| {
            let Model { layout, kind, .. } = self.model;
            let params = HeadViews::in_kind(params[0], params[1], *kind, layout)?;
            let grads = HeadViews::new(grads[0], grads[1], layout)?;
            let context = self.model.head_context();
            let (losses, grad) = head::loss_and_grad(&self.x, &self.targets, &params, &grads, &context, scale)?;
            self.x = grad;
            Ok(per_sample(&losses, self.inputs.size()[0]))
        })
    }

    /// Goes back through the layer that is block number `block`, and adds its gradients to `grads`.
    pub fn layer_backward(&mut self, block: usize, params: &Tensor, grads: &Tensor) -> Result<(), ModelError> {
        let Some(Kept { input, saved }) = self.kept.pop() else { return Ok(()) };
        tch::no_grad(|| {
            let Model { layout, kind, .. } = self.model;
            let views = LayerViews::in_kind(params, *kind, layout, block - 1)?;
            let grads = LayerViews::new(grads, layout, block - 1)?;
            let saved = match saved {
                Some(saved) => saved,
                None => layer::forward(&input, &views, &self.context())?.1,
            };
            layer::backward(&self.x, &input, saved, &views, &grads, &self.context())
        })
    }

    /// Leaves by the embedding.
    pub fn into_embedding_grad(self) -> EmbeddingGrad {
        EmbeddingGrad { inputs: self.inputs, grad: self.x, kernels: self.model.kernels }
    }
}

/// What a pass leaves for the embedding's gradient.
pub struct EmbeddingGrad {
    /// `[batch, sequence]`
    inputs: Tensor,
    /// With respect to the embedded tokens, `[batch * sequence, hidden]`.
    grad: Tensor,
    kernels: &'static dyn Kernels,
}

impl EmbeddingGrad {
    /// Adds it to `grads`, the first block's.
    pub fn add_to(&self, grads: &Tensor, layout: &Layout) -> Result<(), ModelError> {
        let to = views::embedding(grads, layout)?;
        tch::no_grad(|| self.kernels.add_rows_at(&to, &self.inputs.f_view(-1)?, &self.grad))
    }
}
