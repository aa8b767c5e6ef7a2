//! Causal grouped-query attention over rows of fused query, key and value heads.

use tch::Tensor;

use super::ModelError;

/// How a fused row `[q heads | k heads | v heads]` divides.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub query: i64,
    /// Key heads, and as many value heads.
    pub kv: i64,
    /// Width of a head.
    pub dim: i64,
}

/// What the forward gives and the backward wants again.
pub struct Attended {
    /// `[batch * sequence, query * dim]`
    pub out: Tensor,
    /// Log-sum-exp of the scores.
    log_sum_exp: Tensor,
}

impl Heads {
    /// Query, key and value `[batch, heads, sequence, dim]` of `qkv`, keys and values repeated for their group.
    fn split(self, qkv: &Tensor, batch: i64) -> Result<[Tensor; 3], ModelError> {
        let heads = qkv.f_view([batch, -1, self.query + 2 * self.kv, self.dim])?.f_transpose(1, 2)?;
        let part = |start, len| heads.f_narrow(1, start, len);
        let repeated = |t: Tensor| t.f_repeat_interleave_self_int(self.query / self.kv, 1, None);
        Ok([
            part(0, self.query)?,
            repeated(part(self.query, self.kv)?)?,
            repeated(part(self.query + self.kv, self.kv)?)?,
        ])
    }
}

/// Softmax attention of rotated `qkv` `[batch * sequence, (query + 2 kv) * dim]`.
pub fn forward(qkv: &Tensor, batch: i64, heads: Heads) -> Result<Attended, ModelError> {
    let [q, k, v] = heads.split(qkv, batch)?;
    let (out, log_sum_exp) =
        Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu::<&Tensor>(&q, &k, &v, 0.0, true, None, None)?;
    let out = out.f_transpose(1, 2)?.f_reshape([-1, heads.query * heads.dim])?;
    Ok(Attended { out, log_sum_exp })
}

/// Gradient with respect to `qkv` given the gradient with respect to `attended.out`.
pub fn backward(
    out_grad: &Tensor,
    qkv: &Tensor,
    attended: &Attended,
    batch: i64,
    heads: Heads,
) -> Result<Tensor, ModelError> {
    let [q, k, v] = heads.split(qkv, batch)?;
    let by_head = |t: &Tensor| t.f_view([batch, -1, heads.query, heads.dim])?.f_transpose(1, 2);
    let (dq, dk, dv) = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward::<&Tensor>(
        &by_head(out_grad)?,
        &q,
        &k,
        &v,
        &by_head(&attended.out)?,
        &attended.log_sum_exp,
        0.0,
        true,
        None,
        None,
    )?;
    let group = |t: &Tensor| -> Result<Tensor, ModelError> {
        let sequence = t.size()[2];
        let grouped = t.f_reshape([batch, heads.kv, -1, sequence, heads.dim])?;
        Ok(grouped.f_sum_dim_intlist([2i64].as_slice(), false, None)?)
    };
    let all = Tensor::f_cat(&[dq, group(&dk)?, group(&dv)?], 1)?;
    Ok(all.f_transpose(1, 2)?.f_reshape(qkv.size())?)
}
