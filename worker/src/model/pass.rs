//! One micro-batch on its way through the blocks: forward from the embedding to the head, and back.
//!
//! Every block is given its own parameters, and a place to add their gradients to, when its turn comes; nothing here
//! needs those of another block at the same time, but for an output projection that is the embedding.

use polo_recipe::layout::Layout;
use tch::Tensor;

use super::layer::{self, Context, Saved};
use super::rope::RopeTables;
use super::spans::Spans;
use super::views::{self, HeadViews, LayerViews};
use super::{Model, ModelError, head, kernels, per_sample, split};

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
    spans: Spans,
    rope: RopeTables,
    /// Of each layer that was gone through and not yet back.
    kept: Vec<Kept>,
    /// Output of the block before, `[batch * sequence, hidden]`; on the way back the gradient with respect to it.
    x: Tensor,
}

impl<'m> Pass<'m> {
    /// Enters by the embedding, whose block is `first`; `tokens` are int64 `[batch, seq_len + 1]`.
    pub fn new(model: &'m Model, tokens: &Tensor, first: &Tensor) -> Result<Self, ModelError> {
        tch::no_grad(|| {
            let (inputs, targets) = split(tokens)?;
            let ids = inputs.f_view(-1)?;
            let embedding = views::embedding(first, &model.layout)?;
            kernels::check_indices("tokens", &ids, embedding.size()[0])?;
            let x = embedding.f_index_select(0, &ids)?;
            let (sequence, config) = (inputs.size2()?.1, &model.config);
            let spans = Spans::new(&Vec::<i64>::try_from(ids)?, sequence as usize, model.options.document_end);
            let rope = RopeTables::new(sequence, config.head_dim() as i64, config.rope_theta, inputs.device())?;
            Ok(Self { model, inputs, targets, spans, rope, kept: Vec::new(), x })
        })
    }

    fn context(&self) -> Context<'_> {
        Context { config: &self.model.config, spans: &self.spans, rope: &self.rope }
    }

    /// Goes through the layer that is block number `block`.
    pub fn layer(&mut self, block: usize, params: &Tensor) -> Result<(), ModelError> {
        tch::no_grad(|| {
            let views = LayerViews::new(params, &self.model.layout, block - 1)?;
            let (out, saved) = layer::forward(&self.x, &views, &self.context())?;
            let saved = (!self.model.options.recompute).then_some(saved);
            self.kept.push(Kept { input: std::mem::replace(&mut self.x, out), saved });
            Ok(())
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
            let [params, grads] = [params, grads].map(|[last, first]| HeadViews::new(last, first, &self.model.layout));
            let (losses, grad) =
                head::loss_and_grad(&self.x, &self.targets, &params?, &grads?, &self.model.config, scale)?;
            self.x = grad;
            Ok(per_sample(&losses, self.inputs.size()[0]))
        })
    }

    /// Goes back through the layer that is block number `block`, and adds its gradients to `grads`.
    pub fn layer_backward(&mut self, block: usize, params: &Tensor, grads: &Tensor) -> Result<(), ModelError> {
        let Some(Kept { input, saved }) = self.kept.pop() else { return Ok(()) };
        tch::no_grad(|| {
            let layout = &self.model.layout;
            let (views, grads) =
                (LayerViews::new(params, layout, block - 1)?, LayerViews::new(grads, layout, block - 1)?);
            let saved = match saved {
                Some(saved) => saved,
                None => layer::forward(&input, &views, &self.context())?.1,
            };
            layer::backward(&self.x, &input, saved, &views, &grads, &self.context())
        })
    }

    /// Leaves by the embedding.
    pub fn into_embedding_grad(self) -> EmbeddingGrad {
        EmbeddingGrad { inputs: self.inputs, grad: self.x }
    }
}

/// What a pass leaves for the embedding's gradient.
pub struct EmbeddingGrad {
    /// `[batch, sequence]`
    inputs: Tensor,
    /// With respect to the embedded tokens, `[batch * sequence, hidden]`.
    grad: Tensor,
}

impl EmbeddingGrad {
    /// Adds it to `grads`, the first block's.
    pub fn add_to(&self, grads: &Tensor, layout: &Layout) -> Result<(), ModelError> {
        tch::no_grad(|| kernels::add_rows_at(&views::embedding(grads, layout)?, &self.inputs.f_view(-1)?, &self.grad))
    }
}
